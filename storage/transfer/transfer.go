// Package transfer copies all nars of one byte store to another.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"nar-herder/internal/disk"
	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/narcheck"
)

// Copy is a copy of the nars of From to To. A run that was interrupted or killed leaves
// complete and temporary files in the target, and the next run resumes.
type Copy struct {
	From, To bytestore.Store

	// Items returns the item of a file, to verify its nar. If it is nil, only sizes
	// are compared. [storage.Storage] implements it.
	Items Items
	// Decode is needed with Items.
	Decode narcheck.Decoder

	// Concurrency is how many files are copied at a time; if it is not positive, as
	// many as suit the stores.
	Concurrency int
	// Rate limits the bytes per second that are read from the source; no limit if it
	// is not positive.
	Rate int64

	// Compare reads and compares files that are in both stores.
	Compare bool
	// Replace replaces files that differ in the target even if no item says which of
	// the two is right.
	Replace bool
	// DryRun writes nothing, and reads nars only for Compare.
	DryRun bool

	// Report is called for each file, one at a time; it may be nil.
	Report func(Result)
	// Moved is called as bytes are read, concurrently; it may be nil.
	Moved func(bytes int64)
	// Listed is called now and then while the target is listed, with the number of
	// files so far; it may be nil.
	Listed func(files int64)
}

// Items looks up items by the names of their files.
type Items interface {
	// FileUnder returns the item with a file of that name, and the file's number, or
	// [storage.ErrNotFound].
	FileUnder(ctx context.Context, name string) (*storage.Item, int, error)
}

const (
	// defaultConcurrency lets a disk read while another flushes.
	defaultConcurrency = 4
	// syncEvery is how many files are committed before a Sync, so that a loss of power
	// loses little work.
	syncEvery = 1000
	// fewInRow is how many files may fail in a row before the store is probed.
	fewInRow = 8
	// manyInRow is how many files may fail in a row although the target's Probe
	// succeeds.
	manyInRow = 64
)

// ErrStore means that a store or the index doesn't work. Other errors are about single
// files.
var ErrStore = errors.New("can't continue")

// run is a Copy in progress.
type run struct {
	*Copy
	limiter  pace.Limiter
	there    *there
	end      context.CancelCauseFunc
	decoders chan struct{} // a slot for each decoder of a large file

	mu       sync.Mutex
	summary  Summary
	inRow    [sides]int // failures of each side in a row
	unsynced int
}

// Run copies until it is done, the context ends, or a store doesn't work; then the error
// is [ErrStore]. The summary counts failures of single files, which are not errors.
func (c *Copy) Run(ctx context.Context) (Summary, error) {
	if err := c.refuseSame(ctx); err != nil {
		return Summary{}, err
	}
	working, end := context.WithCancelCause(ctx)
	defer end(nil)
	r := &run{
		Copy: c, end: end, limiter: pace.Limiter{Rate: c.Rate}, there: newThere(c.To, c.Listed),
		// Decoders take memory, and more than these wouldn't be faster.
		decoders: make(chan struct{}, max(defaultConcurrency, 2*runtime.GOMAXPROCS(0))),
	}
	files := make(chan bytestore.Info)
	var workers sync.WaitGroup
	for range c.concurrency() {
		workers.Go(func() {
			for info := range files {
				if working.Err() == nil {
					r.done(working, r.one(working, info))
				}
			}
		})
	}
	r.list(working, files)
	close(files)
	workers.Wait()
	err := context.Cause(working)
	// Also if the context has ended: the next run skips these files, and doesn't sync
	// them.
	if r.unsynced > 0 {
		err = errors.Join(err, r.sync(context.WithoutCancel(ctx)))
	}
	return r.summary, err
}

func (c *Copy) concurrency() int {
	if c.Concurrency > 0 {
		return c.Concurrency
	}
	n := defaultConcurrency
	for _, store := range []bytestore.Store{c.From, c.To} {
		n = max(n, store.Concurrency())
	}
	return n
}

// list sends the files of the source to the workers.
func (r *run) list(ctx context.Context, files chan<- bytestore.Info) {
	for info, err := range r.From.List(ctx) {
		switch {
		case err != nil && info.Name == "":
			r.end(fmt.Errorf("%w: %w: run it again when that is fixed, and it resumes", ErrStore, err))
			return
		case err != nil:
			r.done(ctx, Result{Name: info.Name, Outcome: Failed, Err: err})
			continue
		case info.Temporary || bytestore.IsPrivate(info.Name) || isProbe(info.Name):
			continue
		}
		if err := r.there.expect(ctx); err != nil {
			r.end(fmt.Errorf("%w: %w: run it again when that is fixed, and it resumes", ErrStore, err))
			return
		}
		select {
		case files <- info:
		case <-ctx.Done():
			return
		}
	}
}

// done counts and reports a file, and ends the run if a store doesn't work.
func (r *run) done(ctx context.Context, result Result) {
	if ctx.Err() != nil && result.Outcome == Failed {
		return // canceled, not failed
	}
	r.mu.Lock()
	r.summary.count(result)
	if r.Report != nil {
		r.Report(result)
	}
	failures := 0
	if result.side != nobody {
		r.inRow[result.side]++
		failures = r.inRow[result.side]
	} else if result.read {
		r.inRow = [sides]int{}
	}
	if result.kept {
		r.unsynced++
	}
	due := r.unsynced >= syncEvery
	if due {
		r.unsynced = 0
	}
	r.mu.Unlock()
	if due {
		if err := r.sync(ctx); err != nil {
			r.end(err)
		}
	}
	if result.side == target && disk.IsFull(result.Err) {
		// Stop now: small files would still fit, and use up the last space.
		const text = "%w: the target is full: %w: free space there and run it again, and it resumes"
		r.end(fmt.Errorf(text, ErrStore, result.Err))
		return
	}
	if failures > 0 && failures%fewInRow == 0 {
		if err := r.checkStores(ctx, result, failures); err != nil {
			r.end(err)
		}
	}
}

// sync makes the committed files survive a loss of power.
func (r *run) sync(ctx context.Context) error {
	if err := r.To.Sync(ctx); err != nil {
		return fmt.Errorf("%w: flush the copied files: %w: run it again when that is fixed", ErrStore, err)
	}
	return nil
}
