package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/apply"
	"nar-herder/mirror/cursor"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// A transaction applies up to batchSize changes, or up to batchBytes of narinfos.
	batchSize  = 1000
	batchBytes = 4 << 20
	// hurryAbove is the backlog above which the index is written as by a large import.
	hurryAbove = 10_000
	// pageInterval is the time between requests for pages of changes.
	pageInterval = 5 * time.Second
	// noStreamFor is how long pages are requested after a stream was silent.
	noStreamFor = 10 * time.Minute
	// busyStreamFor is the same for a source that allowed no more streams.
	busyStreamFor = time.Minute
	// cursorEvery is how often the cursor is written while there are no changes.
	cursorEvery = time.Minute
)

// batch is the changes of one transaction.
type batch struct {
	changes []apply.Change
	size    int           // of narinfos, in bytes
	next    cursor.Cursor // after it
	// state is the state of the source's log that came before the changes.
	state peer.LogState
}

func (b *batch) add(change apply.Change) {
	b.changes = append(b.changes, change)
	if change.Narinfo != nil {
		b.size += len(change.Narinfo.Text)
	}
}

func (b *batch) isFull() bool { return len(b.changes) >= batchSize || b.size >= batchBytes }

// noteWithdrawn logs that items were withdrawn, and when they may be deleted.
func (m *Mirror) noteWithdrawn(ctx context.Context, items int) {
	due, err := m.Storage.DeleteAfter(ctx)
	if err != nil {
		return // the next change logs that the database fails
	}
	m.Log.Info("withdrew items that the source has removed", "items", items, "freed_from", due.UTC().Format(time.RFC3339))
}

// apply applies changes and moves the cursor.
func (m *Mirror) apply(ctx context.Context, b *batch) error {
	removals, err := m.removals(ctx, b.changes)
	if err != nil {
		return err
	}
	options := apply.Options{Within: func(tx *index.Tx) error { return b.next.Write(tx) }}
	if removals > 0 {
		if b.next.Removals, err = m.allow(ctx, withRemovals(b.next.Removals, removals, m.Now())); err != nil {
			return err
		}
		if options, err = m.removing(ctx, &b.next); err != nil {
			return err
		}
	}
	sums, err := apply.Changes(ctx, m.Storage, b.changes, options)
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

// removing returns the options of a transaction that removes items, except for pinned ones,
// and writes the cursor.
func (m *Mirror) removing(ctx context.Context, at *cursor.Cursor) (apply.Options, error) {
	options := apply.Options{Within: func(tx *index.Tx) error { return at.Write(tx) }}
	if m.Pinned == nil {
		return options, nil
	}
	keeps, guard, err := m.Pinned(ctx)
	options.Keeps = keeps
	options.Within = func(tx *index.Tx) error { return errors.Join(guard(tx), at.Write(tx)) }
	return options, err
}

// removals returns how many of the changes remove items of the source that are here.
func (m *Mirror) removals(ctx context.Context, changes []apply.Change) (count int, err error) {
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

// hurry makes the index write as for large imports, until slow is called.
func (m *Mirror) hurry(ctx context.Context) (slow func()) {
	if err := m.Storage.Index().SetBulk(ctx, true); err != nil {
		m.Log.Warn("can't hurry", "error", err)
	}
	return func() {
		if err := m.Storage.Index().SetBulk(ctx, false); err != nil && ctx.Err() == nil {
			m.Log.Warn("can't stop to hurry", "error", err)
		}
	}
}

func (m *Mirror) announce(changes []apply.Change) {
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
	// Removing one of suddenShare items within suddenTime, unless that is negligible,
	// counts as a mistake at the source.
	suddenShare = 10
	suddenTime  = time.Hour
)

// withRemovals adds a number of removals to those of the last hour, by the mirror's own
// clock, since a source can date its changes as it likes. A minute in the future, as after
// the clock was ahead, counts as the current one.
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

// allow refuses a source that removes too much within an hour. It returns the removals to
// remember: none if an administrator has accepted them.
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

// errUnreadable reports a change that makes no sense.
var errUnreadable = errors.New("makes no sense")

func (m *Mirror) isAhead(t time.Time) bool { return stamp.IsAhead(t, m.Now()) }

// read parses a change.
func read(c peer.Change) (change apply.Change, err error) {
	if change.At, err = cursor.ParseTime(c.Datetime); err != nil {
		return change, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	switch c.Change {
	case peer.Addition:
		n, err := storage.Admit([]byte(c.Data))
		if err != nil {
			return change, fmt.Errorf("%w: %w", errUnreadable, err)
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

// followStream follows the source's stream of changes until that ends.
func (m *Mirror) followStream(ctx context.Context, at cursor.Cursor) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if at.Refused.IsOutdated(m.Keys) {
		ctx, cancel = context.WithTimeout(ctx, debtRetry) // see payRefused
		defer cancel()
	} else if at.Owed != "" {
		ctx, cancel = context.WithTimeout(ctx, owedEvery) // see payOwed
		defer cancel()
	}
	stream, err := m.Source.Changes(ctx, at.Known())
	if errors.Is(err, peer.ErrSilent) {
		m.noStreamUntil = m.Now().Add(noStreamFor)
		m.Log.Info("the stream of changes is silent: requesting pages", "source", m.Source.String(), "interval", pageInterval)
	}
	if err != nil {
		return err
	}
	var gathering sync.WaitGroup
	defer func() {
		cancel()
		stream.Close()
		gathering.Wait() // it uses fields that the next step uses
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
	// Changes are parsed while those before them are written.
	batches := make(chan *batch, 2)
	failed := make(chan error, 1)
	gathering.Go(func() {
		failed <- m.gather(ctx, stream, at, batches)
		close(batches)
	})
	written := m.Now()
	for b := range batches {
		if err := m.notSelf(b.state); err != nil {
			return err
		}
		b.next.Removals = at.Removals
		if len(b.changes) == 0 {
			if b.next.Position != at.Position && m.Now().Sub(written) > cursorEvery {
				if err := m.Storage.Index().Update(ctx, b.next.Write); err != nil {
					return err
				}
				written = m.Now()
			}
		} else if err := m.apply(ctx, b); err != nil {
			return err
		} else {
			written = m.Now()
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

// gather reads the stream and sends its changes in batches.
func (m *Mirror) gather(ctx context.Context, stream *peer.Stream, at cursor.Cursor, to chan<- *batch) error {
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
		b.changes = m.authorize(b.changes, &b.next)
		b.state = stream.State()
		if b.state.Instance != at.Instance {
			return fmt.Errorf("follow the changes of %s: %w: they are another instance's", m.Source, peer.ErrAnswer)
		}
		at = b.next
		select {
		case to <- b: // also what came before a failure
		case <-ctx.Done():
			return ctx.Err()
		}
		if failure != nil {
			return failure
		}
	}
}

// take adds a change, which a digest has verified, to a batch. It skips an unreadable one,
// which would be the same the next time.
func (m *Mirror) take(b *batch, c peer.Change) {
	change, err := read(c)
	if err != nil {
		m.unreadableChange(c, err)
		return
	}
	if m.isAhead(change.At) {
		change.At = m.Now().UTC().Truncate(time.Second)
	}
	change.Prepare(m.Storage.Index())
	b.add(change)
}

// unreadableChange counts and logs a skipped change.
func (m *Mirror) unreadableChange(c peer.Change, err error) {
	m.status.skipped()
	if m.unreadableLogged++; m.unreadableLogged <= maxLogged {
		m.Log.Warn("skipped a change of the source that can't be followed", "source", m.Source.String(), "change", c.ID, "datetime", c.Datetime, "error", err)
	}
}

// maxLogged bounds the skipped changes in the log.
const maxLogged = 100

// followPages requests pages of changes until there are none left.
func (m *Mirror) followPages(ctx context.Context, at cursor.Cursor) error {
	for {
		reply, err := m.Source.ChangesAfter(ctx, at.Known())
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
		b.changes = m.authorize(b.changes, &b.next)
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
