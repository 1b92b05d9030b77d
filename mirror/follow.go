package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// batchSize is how many changes are done in one transaction, and batchBytes
	// the length of narinfos that ends it as well.
	batchSize  = 1000
	batchBytes = 4 << 20
	// hurryAbove is a backlog that is worth to write in a hurry.
	hurryAbove = 10_000
	// pageInterval is for pages of changes, where a stream of them does not come
	// through.
	pageInterval = 5 * time.Second
	// noStreamFor is for how long a stream is not tried again then.
	noStreamFor = 10 * time.Minute
	// busyStreamFor is for how long a stream is not tried again that the source had no
	// room for.
	busyStreamFor = time.Minute
	// placeEvery is how often the place is written where nothing has to be done.
	placeEvery = time.Minute
)

// batch is what is done in one transaction.
type batch struct {
	changes []Followed
	size    int   // of narinfos, in bytes
	next    place // behind it
	// state is the source's, as it was told before the changes.
	state peer.LogState
}

func (b *batch) add(change Followed) {
	b.changes = append(b.changes, change)
	if change.Narinfo != nil {
		b.size += len(change.Narinfo.Text)
	}
}

func (b *batch) isFull() bool { return len(b.changes) >= batchSize || b.size >= batchBytes }

// noteWithdrawn logs that items were withdrawn, and from when on they may be deleted.
func (m *Mirror) noteWithdrawn(ctx context.Context, items int) {
	due, err := m.Storage.DeleteAfter(ctx)
	if err != nil {
		return // the database fails, which others log
	}
	m.log.Info("withdrew items that the source has removed", "items", items, "freed_from", due.UTC().Format(time.RFC3339))
}

// apply does what the source has done.
func (m *Mirror) apply(ctx context.Context, b *batch) error {
	removals, err := m.removals(ctx, b.changes)
	if err != nil {
		return err
	}
	options := ApplyOptions{Within: func(tx *index.Tx) error { return b.next.write(tx) }}
	if removals > 0 {
		if b.next.Removals, err = m.allow(ctx, withRemovals(b.next.Removals, removals, m.now())); err != nil {
			return err
		}
		if m.Pinned != nil {
			keeps, guard, err := m.Pinned(ctx)
			if err != nil {
				return err
			}
			options.Keeps = keeps
			options.Within = func(tx *index.Tx) error { return errors.Join(guard(tx), b.next.write(tx)) }
		}
	}
	sums, err := Apply(ctx, m.Storage, b.changes, options)
	if err != nil {
		return err
	}
	m.status.applied(sums)
	if sums.Withdrawn > 0 {
		m.noteWithdrawn(ctx, sums.Withdrawn)
	}
	m.announce(b.changes)
	return nil
}

// removals is how many of the changes remove what is here and came from the source.
func (m *Mirror) removals(ctx context.Context, changes []Followed) (count int, err error) {
	for _, change := range changes {
		if change.Narinfo != nil {
			continue
		}
		item, err := m.Storage.Index().Item(ctx, change.Hash)
		switch {
		case errors.Is(err, index.ErrNotFound):
		case errors.Is(err, index.ErrDamaged):
			count++
		case err != nil:
			return 0, err
		case item.Mirrored && item.WithdrawnAt.IsZero():
			count++
		}
	}
	return count, nil
}

// hurry has the index be written as it is by large imports, until slow is called.
func (m *Mirror) hurry(ctx context.Context) (slow func()) {
	if err := m.Storage.Index().Hurry(ctx, true); err != nil {
		m.log.Warn("can't hurry", "error", err)
	}
	return func() {
		if err := m.Storage.Index().Hurry(ctx, false); err != nil && ctx.Err() == nil {
			m.log.Warn("can't stop to hurry", "error", err)
		}
	}
}

func (m *Mirror) announce(changes []Followed) {
	if m.Wanted == nil {
		return
	}
	wanted := make([]narinfo.PathHash, 0, len(changes))
	for _, change := range changes {
		if change.Narinfo != nil {
			wanted = append(wanted, change.Narinfo.StorePath.Hash)
		}
	}
	m.Wanted(wanted)
}

const (
	// suddenShare is the share of all items whose removal within suddenTime is
	// taken for a mistake at the source, unless it is negligible.
	suddenShare = 10
	suddenTime  = time.Hour
)

// withRemovals adds a number of removals to those of the last hour. It counts by the
// mirror's own clock, since a source can give its changes any time. A minute that is
// yet to come, as after the clock was ahead, counts as the current one.
func withRemovals(done map[int64]int, count int, now time.Time) map[int64]int {
	minute := now.Unix() / 60
	recent := map[int64]int{minute: count}
	for at, n := range done {
		if at = min(at, minute); at > minute-int64(suddenTime/time.Minute) {
			recent[at] += n
		}
	}
	return recent
}

// allow refuses a source that removes very much at once. It returns the removals that are
// to be remembered: none of those that an administrator has accepted.
func (m *Mirror) allow(ctx context.Context, removals map[int64]int) (map[int64]int, error) {
	recent := 0
	for _, count := range removals {
		recent += count
	}
	if recent <= m.negligible {
		return removals, nil
	}
	totals, err := m.Storage.Index().Totals(ctx)
	if err != nil {
		return nil, err
	}
	if int64(recent) <= (totals.Items+int64(recent))/suddenShare {
		return removals, nil
	}
	return nil, m.unlessAccepted(ctx, fmt.Sprintf("it removes %d items of %d within an hour", recent, totals.Items))
}

// errUnreadable says that a change makes no sense.
var errUnreadable = errors.New("makes no sense")

func (m *Mirror) isAhead(t time.Time) bool { return stamp.IsAhead(t, m.now()) }

// read makes sense of a change. sure says that it has come as the source has it.
func read(c peer.Change, sure bool) (change Followed, err error) {
	if change.At, err = parseTime(c.Datetime); err != nil {
		return change, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	switch c.Change {
	case peer.Addition:
		n, err := storage.Admit([]byte(c.Data))
		if err != nil {
			return change, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if !sure {
			if err := plausible(n); err != nil {
				return change, fmt.Errorf("%w: %w", errUnreadable, err)
			}
		}
		change.Narinfo, change.Hash = n, n.StorePath.Hash
		return change, nil
	case peer.Removal:
		path, err := narinfo.ParseBaseName(strings.TrimPrefix(c.Data, narinfo.StoreDir+"/"))
		if err != nil {
			return change, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		change.Hash, change.StorePath = path.Hash, path.String()
		return change, nil
	}
	return change, fmt.Errorf("%w: a change %q", errUnreadable, c.Change)
}

// parseTime reads a time as the original writes it, or as others might.
func parseTime(text string) (time.Time, error) {
	text = strings.Replace(strings.TrimSuffix(text, "Z"), "T", " ", 1)
	t, err := time.Parse(time.DateTime, text) // a fraction may follow
	return t.Truncate(time.Second), err
}

// plausible looks whether a narinfo that came without a digest is as it was signed,
// and not damaged on its way. One without a signature may have lost it there, and
// is of no use to clients either.
func plausible(n *narinfo.Narinfo) error {
	if err := n.CheckSignature(); err != nil && !errors.Is(err, narinfo.ErrUnknownAlgorithm) {
		return err
	}
	return nil
}

// followStream follows the source by its stream of changes, until that ends.
func (m *Mirror) followStream(ctx context.Context, at place) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if at.Owed != "" {
		ctx, cancel = context.WithTimeout(ctx, owedEvery) // see payOwed
		defer cancel()
	}
	stream, err := m.Source.Changes(ctx, at.known())
	if errors.Is(err, peer.ErrSilent) {
		m.noStreamUntil = m.now().Add(noStreamFor)
		m.log.Info("the stream of changes does not come through, so they are asked for now and then", "source", m.Source.String(), "interval", pageInterval)
	}
	if err != nil {
		return err
	}
	var gathering sync.WaitGroup
	defer func() {
		cancel()
		stream.Close()
		gathering.Wait() // it uses what the next step does
	}()
	if err := m.notSelf(stream.State()); err != nil {
		return err
	}
	state := stream.State()
	m.status.heard(state, at.Position)
	slow := func() {}
	if state.Last-at.Position > hurryAbove {
		slow = m.hurry(ctx)
	}
	defer func() { slow() }()
	// Changes are made sense of while those before them are written.
	batches := make(chan *batch, 2)
	failed := make(chan error, 1)
	gathering.Go(func() {
		failed <- m.gather(ctx, stream, at, batches)
		close(batches)
	})
	written := m.now()
	for b := range batches {
		if err := m.notSelf(b.state); err != nil {
			return err
		}
		b.next.Removals = at.Removals
		if len(b.changes) == 0 {
			if b.next.Position != at.Position && m.now().Sub(written) > placeEvery {
				if err := m.Storage.Index().Update(ctx, b.next.write); err != nil {
					return err
				}
				written = m.now()
			}
		} else if err := m.apply(ctx, b); err != nil {
			return err
		} else {
			written = m.now()
		}
		at = b.next
		m.status.heard(b.state, at.Position)
		if b.state.Last-at.Position < batchSize {
			slow()
			slow = func() {}
		}
	}
	return <-failed
}

// gather reads the stream, and makes batches of what comes.
func (m *Mirror) gather(ctx context.Context, stream *peer.Stream, at place, to chan<- *batch) error {
	for {
		b := &batch{next: at}
		var failure error
		for first := true; first || !b.isFull() && stream.Buffered(); first = false {
			change, err := stream.Next()
			if err != nil {
				failure = fmt.Errorf("follow the changes of %s: %w", m.Source, err)
				break
			}
			if change == nil {
				state := stream.State()
				b.next.Position, b.next.Mark = state.Position, state.Mark
				continue
			}
			b.next.Position, b.next.Mark = change.ID, change.Mark
			m.take(b, *change)
		}
		b.state = stream.State()
		if b.state.Instance != at.Instance {
			return fmt.Errorf("follow the changes of %s: %w: they are another instance's", m.Source, peer.ErrAnswer)
		}
		at = b.next
		select {
		case to <- b: // what came before a failure is done
		case <-ctx.Done():
			return ctx.Err()
		}
		if failure != nil {
			return failure
		}
	}
}

// take adds a change, which has come as the source has it, to a batch. One that
// makes no sense would make none the next time either.
func (m *Mirror) take(b *batch, c peer.Change) {
	change, err := read(c, true)
	if err != nil {
		m.unreadableChange(c, err)
		return
	}
	if m.isAhead(change.At) {
		change.At = m.now().UTC().Truncate(time.Second)
	}
	change.Prepare(m.Storage.Index())
	b.add(change)
}

// unreadableChange tells of a change that is passed over.
func (m *Mirror) unreadableChange(c peer.Change, err error) {
	m.status.passedOver()
	if m.unreadableTold++; m.unreadableTold <= mostTold {
		m.log.Error("skipped a change of the source that can't be followed", "source", m.Source.String(), "change", c.ID, "datetime", c.Datetime, "error", err)
	}
}

// mostTold bounds the lines in the log about changes that are passed over.
const mostTold = 100

// followPages asks for pages of changes, until there are none left.
func (m *Mirror) followPages(ctx context.Context, at place) error {
	for {
		reply, err := m.Source.ChangesAfter(ctx, at.known())
		var lost *peer.LostError
		if errors.As(err, &lost) {
			return m.lost(ctx, at, lost)
		} else if err != nil {
			return err
		}
		if err := m.notSelf(reply.LogState); err != nil {
			return err
		}
		if reply.Instance != at.Instance {
			return fmt.Errorf("ask %s for its changes: %w: they are another instance's", m.Source, peer.ErrAnswer)
		}
		b := &batch{next: at, state: reply.LogState}
		b.next.Position, b.next.Mark = reply.Position, reply.Mark
		for _, change := range reply.Changes {
			m.take(b, change)
		}
		if b.next.Position != at.Position {
			if err := m.apply(ctx, b); err != nil {
				return err
			}
		}
		at = b.next
		m.status.heard(b.state, at.Position)
		if !reply.More {
			return nil
		}
	}
}
