package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/mirror/sourcedump"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// lotItems is the number of rows that are prepared together, unless their texts reach
	// lotBytes first. lotsAhead is the number of lots in memory besides those in work.
	lotItems  = 128
	lotBytes  = 4 << 20
	lotsAhead = 8
	// buildGCPercent replaces the usual 100 during a build: the heap is so small that
	// collections would take much of the time.
	buildGCPercent = 200
)

// errManyBad reports so many wrong rows that the others can't be trusted.
var errManyBad = errors.New("too many of its narinfos are wrong")

// errBadIndex reports a copy of an index that can't be used.
var errBadIndex = errors.New("its index makes no sense")

// badIndex marks an error of reading a downloaded index as [errBadIndex]. That includes all
// errors of SQLite, such as a lack of memory: the file causes them.
func badIndex(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", errBadIndex, err)
}

// build builds a new index from what a source publishes. It takes only the texts of the
// items, each of which is validated, and their times.
type build struct {
	log    *slog.Logger
	source string
	// keys are authorized to sign the narinfos; nil for any key.
	keys *signing.Keys
	// doing receives a line of progress.
	doing func(string)
	// count is the expected number of items, and fallback the time of items without a valid
	// time.
	count    int64
	fallback time.Time
	now      time.Time

	bad     int64
	refused cursor.Refused
	// dump is what the index is built from; nil for a copy of an index.
	dump *sourcedump.Dump
}

// prepared is a row of the new index, or the reason why it was rejected.
type prepared struct {
	row index.Row
	err error
}

// lot is some rows, in their order.
type lot[T any] struct {
	rows     []T
	done     chan struct{} // closed when prepared is set
	prepared []prepared
	ended    error // the error that ended the rows
}

// run reads rows, prepares them on all cores and writes them in their order. size returns the
// maximum length of a row's text.
func run[T any](ctx context.Context, b *build, builder *index.Builder, rows iter.Seq2[T, error], size func(T) int, prepare func(T) (index.Row, error)) error {
	ctx, stop := context.WithCancel(ctx)
	ordered, work := make(chan *lot[T], lotsAhead), make(chan *lot[T])
	var running sync.WaitGroup
	defer running.Wait() // before the caller closes what they use
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
			if bytes += size(row); (len(l.rows) == lotItems || bytes >= lotBytes) && !pass() {
				return
			}
		}
		pass()
	})
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for l := range work {
				l.prepared = make([]prepared, len(l.rows))
				for i, row := range l.rows {
					l.prepared[i].row, l.prepared[i].err = prepare(row)
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
		for i := range l.prepared {
			if err := b.take(builder, &l.prepared[i]); err != nil {
				return err
			}
		}
		if l.ended != nil {
			return l.ended
		}
		before := done
		if done += int64(len(l.prepared)); before/10_000 != done/10_000 {
			b.doing(fmt.Sprintf("building the index: %d of %d items", done, b.count))
		}
	}
	return ctx.Err()
}

// take writes a row, or counts it as refused or bad.
func (b *build) take(builder *index.Builder, made *prepared) error {
	if made.err == nil {
		return builder.Add(&made.row)
	}
	if reason := storage.Reason(made.err); reason != "" {
		if b.refused.Counts[reason] == 0 {
			b.log.Warn("refused a narinfo of the source because of its signature; others with the same reason are only counted", "source", b.source, "reason", string(reason), "error", made.err)
		}
		b.refused = b.refused.With(b.keys, reason, 1, b.now)
		if b.dump == nil || !b.dump.IsDamage(made.err) {
			return nil
		}
		b.bad++
	} else if b.bad++; b.bad <= sourcedump.MaxLoggedBad {
		b.log.Warn("skipped a narinfo that the source publishes: it is invalid", "source", b.source, "error", made.err)
	}
	if sourcedump.TooManyBad(b.bad, b.count) {
		return fmt.Errorf("%w: over %d of %d, the last: %w", errManyBad, b.bad-1, b.count, made.err)
	}
	return nil
}

// named adds the item's name to an error.
func named(n *narinfo.Narinfo, err error) error {
	return fmt.Errorf("%s: %w", n.StorePath.BaseName(), err)
}

// entry sets the time at which an item was added, or the fallback if that makes no sense.
func (b *build) entry(entry *index.Entry, at time.Time) *index.Entry {
	if at.Before(time.Unix(0, 0)) || at.IsZero() || stamp.IsAhead(at, b.now) {
		at = b.fallback
	}
	entry.AddedAt = at.UTC().Truncate(time.Second)
	return entry
}

// finish finishes the index with the cursor from which the source is followed.
func (b *build) finish(ctx context.Context, builder *index.Builder, at cursor.Cursor) error {
	at.Refused = b.refused
	settings, err := at.Settings()
	if err != nil {
		return errors.Join(err, builder.Abort())
	}
	_, err = builder.Finish(ctx, settings)
	return err
}

// fromIndex builds the index with the name from another instance's index, which is a file of
// a file system.
func (b *build) fromIndex(ctx context.Context, name string, fsys fs.FS, file string) (err error) {
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
		if err == nil && b.keys != nil {
			if err = storage.Authorize(&m.n, b.keys); err != nil {
				err = named(&m.n, err)
			}
		}
		if err != nil {
			return index.Row{}, err // it may quote the text, so the memory isn't reused
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
	return b.finish(ctx, builder, cursor.Cursor{Source: b.source, Instance: foreign.Instance, Position: foreign.LastChange})
}

// fromDump builds the index with the name from a dump, and gives it a cursor.
func (b *build) fromDump(ctx context.Context, name string, d *sourcedump.Dump, at cursor.Cursor) error {
	builder, err := index.Build(ctx, name)
	if err != nil {
		return err
	}
	b.dump = d
	size := func(e sourcedump.Entry) int { return len(e.Text) }
	err = run(ctx, b, builder, d.Entries(ctx), size, func(e sourcedump.Entry) (index.Row, error) {
		n, err := d.Admit(e, b.keys)
		if storage.Reason(err) != "" {
			err = named(n, err)
		}
		if err != nil {
			return index.Row{}, err
		}
		return builder.Row(b.entry(builder.Prepare(n), e.AddedAt)), nil
	})
	if errors.Is(err, errManyBad) {
		err = fmt.Errorf("%w: %w", health.ErrBadDump, err)
	}
	if err != nil {
		return errors.Join(err, builder.Abort())
	}
	return b.finish(ctx, builder, at)
}
