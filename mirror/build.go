package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"nar-herder/internal/rowsum"
	"nar-herder/internal/stamp"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// lotItems is how many rows are made ready together, unless their texts come to
	// batchBytes, and lotsAhead how many lots are in memory besides those that are just
	// being worked at.
	lotItems  = 128
	lotsAhead = 8
	// buildGCPercent is how much the heap may grow between two collections meanwhile, in
	// percent: it is small, and with 100 they take much of the time.
	buildGCPercent = 200
	// mostToldBad is how many rows are logged one by one, and may be wrong whatever the
	// share is.
	mostToldBad = 20
)

// errManyBad says that so many rows of a dump are wrong that the others can't be
// believed either.
var errManyBad = errors.New("too many of its narinfos are wrong")

// errBadIndex says that a copy of an index can't be used.
var errBadIndex = errors.New("its index makes no sense")

// badIndex makes an error one of what was downloaded. Whatever SQLite says of that file,
// such as that it has no memory for it, it says because of the file.
func badIndex(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", errBadIndex, err)
}

// building makes a new index of what a source publishes: of the texts of its items and
// their times, each of which passes the gate, and of nothing else.
type building struct {
	log    *slog.Logger
	source string
	// doing is called with a line of progress.
	doing func(string)
	// count is how many items there should be, and fallback the time of those without one
	// that makes sense.
	count    int64
	fallback time.Time
	now      time.Time

	bad int64
}

// admitted is a row that has passed the gate, or why it has not.
type admitted struct {
	row index.Row
	err error
}

// lot is some rows, in their order.
type lot[T any] struct {
	rows  []T
	done  chan struct{} // closed when made is there
	made  []admitted
	ended error // why there are no more
}

// run reads rows, makes them ready on all cores, and writes them in their order. size is
// how many bytes the text of a row has at the most.
func run[T any](ctx context.Context, b *building, builder *index.Builder, rows iter.Seq2[T, error], size func(T) int, prepare func(T) (index.Row, error)) error {
	ctx, stop := context.WithCancel(ctx)
	ordered, work := make(chan *lot[T], lotsAhead), make(chan *lot[T])
	var running sync.WaitGroup
	defer running.Wait() // what they use is about to be closed
	defer stop()
	running.Go(func() {
		defer close(ordered)
		defer close(work)
		l := &lot[T]{done: make(chan struct{})}
		bytes := 0
		pass := func() bool {
			for _, to := range []chan<- *lot[T]{ordered, work} {
				select {
				case to <- l:
				case <-ctx.Done():
					return false
				}
			}
			l, bytes = &lot[T]{done: make(chan struct{}), rows: make([]T, 0, lotItems)}, 0
			return true
		}
		for row, err := range rows {
			if err != nil {
				l.ended = err
				break
			}
			l.rows = append(l.rows, row)
			if bytes += size(row); (len(l.rows) == lotItems || bytes >= batchBytes) && !pass() {
				return
			}
		}
		pass()
	})
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for l := range work {
				l.made = make([]admitted, len(l.rows))
				for i, row := range l.rows {
					l.made[i].row, l.made[i].err = prepare(row)
				}
				l.rows = nil
				close(l.done)
			}
		})
	}
	var done int64
	for l := range ordered {
		select {
		case <-l.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		for i := range l.made {
			if err := b.take(builder, &l.made[i]); err != nil {
				return err
			}
		}
		if l.ended != nil {
			return l.ended
		}
		before := done
		if done += int64(len(l.made)); before/10_000 != done/10_000 {
			b.doing(fmt.Sprintf("making the index: %d of %d items", done, b.count))
		}
	}
	return ctx.Err()
}

// take writes a row that has passed the gate.
func (b *building) take(builder *index.Builder, made *admitted) error {
	if made.err == nil {
		return builder.Add(&made.row)
	}
	if b.bad++; b.bad <= mostToldBad {
		b.log.Error("skipped a narinfo that the source publishes, as it is refused", "source", b.source, "error", made.err)
	}
	if b.bad > max(mostToldBad, b.count/badShare) {
		return fmt.Errorf("%w: over %d of %d, the last: %w", errManyBad, b.bad-1, b.count, made.err)
	}
	return nil
}

// entry sets the time at which an item was added, which may make no sense.
func (b *building) entry(entry *index.Entry, at time.Time) *index.Entry {
	if at.Before(time.Unix(0, 0)) || at.IsZero() || stamp.IsAhead(at, b.now) {
		at = b.fallback
	}
	entry.AddedAt = at.UTC().Truncate(time.Second)
	return entry
}

// finish ends the building with the place from where on the source is followed.
func finish(ctx context.Context, builder *index.Builder, at place) error {
	text, err := json.Marshal(at)
	if err != nil {
		return errors.Join(err, builder.Abort())
	}
	_, err = builder.Finish(ctx, map[string]string{placeSetting: string(text)})
	return err
}

// ofIndex makes the index at a name of another instance's index, which is a file of a file
// system.
func (b *building) ofIndex(ctx context.Context, name string, fsys fs.FS, file string) (err error) {
	foreign, err := index.OpenForeignIn(ctx, fsys, file)
	if err != nil {
		return badIndex(err)
	}
	defer func() { err = errors.Join(err, foreign.Close()) }()
	b.count = foreign.Items
	defer debug.SetGCPercent(debug.SetGCPercent(buildGCPercent))
	builder, err := index.Build(ctx, name)
	if err != nil {
		return err
	}
	rows := func(yield func(index.ForeignRow, error) bool) {
		for row, err := range foreign.Rows(ctx) {
			if !yield(row, badIndex(err)) {
				return
			}
		}
	}
	type memory struct {
		text []byte
		n    narinfo.Narinfo
	}
	pool := sync.Pool{New: func() any { return new(memory) }}
	err = run(ctx, b, builder, rows, index.ForeignRow.Size, func(row index.ForeignRow) (index.Row, error) {
		m := pool.Get().(*memory)
		text, err := foreign.Text(row, m.text)
		if err == nil {
			err = storage.AdmitInto(&m.n, text)
		}
		if err != nil {
			return index.Row{}, err // which has parts of the text, so that the memory isn't used again
		}
		made := builder.Row(b.entry(builder.PrepareForeign(&m.n, foreign, row), row.AddedAt))
		m.text = text
		pool.Put(m)
		return made, nil
	})
	if errors.Is(err, errManyBad) {
		err = badIndex(err)
	}
	if err != nil {
		return errors.Join(err, builder.Abort())
	}
	return finish(ctx, builder, place{Source: b.source, Instance: foreign.Instance, Position: foreign.LastChange})
}

// ofDump makes the index at a name of a dump.
func (b *building) ofDump(ctx context.Context, name string, db *dump, at place) error {
	builder, err := index.Build(ctx, name)
	if err != nil {
		return err
	}
	err = run(ctx, b, builder, b.itemsOf(ctx, db), func(r itemOrOdd) int { return len(r.item.Text) }, func(r itemOrOdd) (index.Row, error) {
		if r.odd != nil {
			return index.Row{}, r.odd
		}
		n, err := admitItem(r.item, db)
		if err != nil {
			return index.Row{}, err
		}
		return builder.Row(b.entry(builder.Prepare(n), r.item.AddedAt)), nil
	})
	if err != nil {
		return errors.Join(err, builder.Abort())
	}
	return finish(ctx, builder, at)
}

// itemOrOdd is an item of a dump, or why it can't be read.
type itemOrOdd struct {
	item original.Item
	odd  error
}

// itemsOf goes through a dump. It ends with an error where the rows are not those that
// were written, as far as the dump tells.
func (b *building) itemsOf(ctx context.Context, db *dump) iter.Seq2[itemOrOdd, error] {
	return func(yield func(itemOrOdd, error) bool) {
		var sum rowsum.Sum
		for item, err := range db.Items(ctx, original.FromStart) {
			var row *original.RowError
			if err != nil && !errors.As(err, &row) {
				yield(itemOrOdd{}, badDump(err))
				return
			}
			if err == nil {
				original.AddTo(&sum, item)
			}
			if !yield(itemOrOdd{item, err}, nil) {
				return
			}
		}
		if err := db.compare(&sum); err != nil {
			yield(itemOrOdd{}, err)
		}
	}
}

// admitItem reads the text of a dump's item. One that may have been damaged must be as it
// was signed. What the source has made without a sum may have items without a signature.
func admitItem(item original.Item, db *dump) (*narinfo.Narinfo, error) {
	n, err := storage.Admit(item.Text)
	if err == nil && !db.isWhole() {
		if err = plausible(n); db.verified && errors.Is(err, narinfo.ErrUnsigned) {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// build makes a new index of the source's dump.
func (m *Mirror) build(ctx context.Context, name string, db *dump) error {
	at, _, err := m.behind(ctx, db)
	if err != nil {
		return err
	}
	now := m.now()
	b := &building{log: m.log, source: m.Source.String(), doing: func(what string) { m.status.doing(Syncing, what) }, now: now, fallback: now}
	if !db.modified.IsZero() && db.modified.Before(now) {
		b.fallback = db.modified
	}
	if b.count, err = db.Count(ctx); err != nil {
		return badDump(err)
	}
	err = b.ofDump(ctx, name, db, at)
	if errors.Is(err, errManyBad) {
		err = badDump(err)
	}
	return err
}
