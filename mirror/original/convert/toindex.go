package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"nar-herder/mirror/original"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// writerCache is the writer's page cache, in bytes: a conversion touches all
	// of the index of hashes.
	writerCache = 128 << 20

	// A batch, which is a transaction, has up to batchRows or batchBytes. A crash loses one
	// batch; three are in memory.
	batchRows  = 1000
	batchBytes = 16 << 20

	// mostUnknown is how many nars may be unknown before the storage counts as failed.
	mostUnknown = 100
)

// errMoved reports that the file was replaced while it was opened.
var errMoved = errors.New("another process has just replaced it: try again")

// toIndex converts the database of the original at from into an index at made, or resumes
// that. Without an error, the index is complete and closed.
func toIndex(ctx context.Context, from, made string, o Options) (_ Result, err error) {
	before, err := os.Stat(from)
	if err != nil {
		return Result{}, err
	}
	source, err := original.OpenLocked(ctx, from)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	info, err := os.Stat(from)
	if err != nil {
		return Result{}, err
	}
	if !os.SameFile(before, info) {
		return Result{}, fmt.Errorf("database %s: %w", from, errMoved)
	}
	x, s, err := begin(ctx, source, info, made)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	if s.Complete {
		return s.Result, likeness(from, made)
	}
	c := &conversion{Options: o, source: source, index: x, state: s, problems: o.problems()}
	defer c.problems.end()
	if c.all, err = source.Count(ctx); err != nil {
		return s.Result, err
	}
	o.progress(s.Read, c.all)
	if !s.ItemsDone {
		if err := c.items(ctx); err != nil {
			return s.Result, fmt.Errorf("convert %s: %w", from, err)
		}
	}
	if err := c.changes(ctx); err != nil {
		return s.Result, fmt.Errorf("convert the changes of %s: %w", from, err)
	}
	return s.Result, likeness(from, made)
}

// conversion is a running conversion from an original.
type conversion struct {
	Options
	source   *original.Database
	index    *index.Index
	state    *state
	all      int64
	problems *problems
}

// batch is some rows of the source.
type batch struct {
	rows []row
	read int64 // narinfos, also those that make no sense
	last int64 // the id of the last one
	odd  []error
	err  error // the error that ended the rows
}

// row is a prepared narinfo, or an error.
type row struct {
	item    original.Item
	entry   *index.Entry
	err     error
	unknown map[string]error // nars that could not be looked for
}

// items converts the narinfos. It reads and prepares them while others are written.
func (c *conversion) items(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	ready := make(chan batch, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(ready)
		for b := range c.read(ctx) {
			c.prepare(ctx, &b)
			select {
			case ready <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	defer reading.Wait() // the source is about to be closed
	defer stop()
	for b := range ready {
		if b.err != nil {
			return b.err
		}
		if err := c.write(ctx, &b); err != nil {
			return err
		}
		c.progress(c.state.Read, c.all)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.update(ctx, func(*index.Tx, *state) error { return nil }, func(s *state) { s.ItemsDone = true })
}

// read gathers batches.
func (c *conversion) read(ctx context.Context) func(yield func(batch) bool) {
	return func(yield func(batch) bool) {
		b := batch{last: c.state.Last}
		size := 0
		for item, err := range c.source.Items(ctx, c.state.Last) {
			var odd *original.RowError
			if errors.As(err, &odd) {
				b.odd = append(b.odd, err)
				if odd.Table == "narinfos" {
					b.read, b.last = b.read+1, item.ID
				}
				continue
			}
			if err != nil {
				yield(batch{err: err})
				return
			}
			b.rows = append(b.rows, row{item: item})
			b.read, b.last = b.read+1, item.ID
			size += len(item.Text)
			if len(b.rows) == cmp.Or(c.rows, batchRows) || size >= batchBytes {
				if !yield(b) {
					return
				}
				b, size = batch{last: b.last}, 0
			}
		}
		if b.read > 0 || len(b.odd) > 0 {
			yield(b)
		}
	}
}

// prepare prepares rows on all cores.
func (c *conversion) prepare(ctx context.Context, b *batch) {
	next := make(chan *row)
	var workers sync.WaitGroup
	// One more than cores, since they also wait for disks.
	atOnce := runtime.GOMAXPROCS(0) + 1
	if c.Storage != nil {
		atOnce = max(atOnce, c.Storage.Concurrency())
	}
	for range atOnce {
		workers.Go(func() {
			for r := range next {
				c.prepareRow(ctx, r)
			}
		})
	}
	for i := range b.rows {
		next <- &b.rows[i]
	}
	close(next)
	workers.Wait()
}

func (c *conversion) prepareRow(ctx context.Context, r *row) {
	n, err := storage.Admit(r.item.Text)
	if err != nil {
		r.err = &original.RowError{Table: "narinfos", ID: r.item.ID, Err: err}
		return
	}
	r.entry = c.index.Prepare(n)
	r.entry.AddedAt, r.entry.Unlogged, r.entry.Mirrored = r.item.AddedAt, true, c.Mirrored
	if c.Storage == nil {
		return
	}
	for i, file := range n.Files {
		name, err := file.Path()
		if err != nil {
			continue // on another server
		}
		info, err := c.Storage.Stat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			if r.unknown == nil {
				r.unknown = make(map[string]error)
			}
			r.unknown[name] = err
			continue
		}
		if file.Size >= 0 && file.Size != info.Size {
			continue // incomplete: 'nar-herder check' repairs it
		}
		r.entry.Stored |= 1 << i
		if file.Size < 0 {
			if r.entry.Sizes == nil {
				r.entry.Sizes = make([]int64, len(n.Files))
				for j := range r.entry.Sizes {
					r.entry.Sizes[j] = -1
				}
			}
			r.entry.Sizes[i] = info.Size
		}
	}
}

// write writes a batch to the index.
func (c *conversion) write(ctx context.Context, b *batch) error {
	for _, err := range b.odd {
		c.problems.row(err)
	}
	for _, r := range b.rows {
		if r.err != nil {
			c.problems.row(r.err)
		}
		for name, err := range r.unknown {
			c.problems.nar(name, err)
			if c.problems.sorry > mostUnknown {
				return fmt.Errorf("look for nars in the storage: %w: make it readable and try again, or convert without it and run 'nar-herder check --repair' then", err)
			}
		}
	}
	return c.update(ctx, func(tx *index.Tx, s *state) error {
		s.Read, s.Last = s.Read+b.read, b.last
		s.Result.LeftOut += int64(len(b.odd))
		for i := range b.rows {
			if err := c.put(tx, &b.rows[i], &s.Result); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// update runs f in a transaction that also writes the state. The state changes once that is
// committed; finish makes its other changes.
func (c *conversion) update(ctx context.Context, f func(*index.Tx, *state) error, finish func(*state)) error {
	next := *c.state
	err := c.index.Update(ctx, func(tx *index.Tx) error {
		next = *c.state
		if err := f(tx, &next); err != nil {
			return err
		}
		if finish != nil {
			finish(&next)
		}
		return next.save(tx)
	})
	if err == nil {
		*c.state = next
	}
	return err
}

func (c *conversion) put(tx *index.Tx, r *row, result *Result) error {
	result.Unknown += int64(len(r.unknown))
	if r.err != nil {
		result.LeftOut++
		return nil
	}
	hash := r.entry.Narinfo.StorePath.Hash
	old, err := tx.Item(hash)
	if errors.Is(err, index.ErrNotFound) {
		old = nil
	} else if err != nil {
		return err
	}
	if err := tx.Put(r.entry, old); err != nil {
		return err
	}
	if old != nil {
		result.Repeated++
	} else {
		result.Items++
	}
	for stored := r.entry.Stored; stored != 0; stored &= stored - 1 {
		result.Stored++
	}
	if len(r.item.Tags) > 0 {
		result.Tagged++
		tags := make([]index.Tag, 0, len(r.item.Tags))
		for _, tag := range r.item.Tags {
			tags = append(tags, index.Tag(tag))
		}
		if err := tx.AddTags(hash, tags); err != nil {
			return err
		}
	}
	for _, cached := range r.item.Cached {
		if cached.Size < 0 {
			continue // the server compares a cached file with its recorded size
		}
		result.Cached++
		file := index.CachedFile{Hash: hash, Type: cached.Compression, Size: cached.Size, LastUsed: c.now()}
		if err := tx.PutCached(file); err != nil {
			return err
		}
	}
	return nil
}
