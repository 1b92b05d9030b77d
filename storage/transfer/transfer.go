// Package transfer brings all nars of one byte store into another.
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
)

// Copy says what to bring where. A run that was interrupted or killed leaves
// whole files and temporary ones in the target, and the next goes on from there.
type Copy struct {
	From, To bytestore.Store

	// Items knows which nar lies under a name; nil when nobody does, and then
	// sizes are all that is compared. [storage.Storage] is one.
	Items Items
	// Decode is needed with Items.
	Decode storage.Decoder

	// AtOnce is how many files are copied at a time; as many as suit the stores
	// when it is not positive.
	AtOnce int
	// Rate is how many bytes a second are read of the source at the most; no
	// limit when it is not positive.
	Rate int64

	// Compare has what is in both stores read in both.
	Compare bool
	// Replace has what is another in the target replaced also where no item says
	// which of the two is right.
	Replace bool
	// DryRun has nothing written, and no nar read but for Compare.
	DryRun bool

	// Report is called for each file, one at a time; nil for nobody.
	Report func(Result)
	// Moved is called as bytes are read, by several goroutines; nil for nobody.
	Moved func(bytes int64)
	// Listed is called now and then while the target is listed, with how many
	// files it has so far; nil for nobody.
	Listed func(files int64)
}

// Items knows items by the names of their files.
type Items interface {
	// FileUnder returns the item that has a file under the name, and which one
	// that is, or [storage.ErrNotFound].
	FileUnder(ctx context.Context, name string) (*storage.Item, int, error)
}

const (
	// defaultAtOnce has a disk read while another is flushed.
	defaultAtOnce = 4
	// syncEvery is how many files are committed before the target is synced, so
	// that a loss of power has little of it done again.
	syncEvery = 1000
	// fewInRow is how many files a store fails with, one after the other, before
	// it is asked whether it works at all.
	fewInRow = 8
	// manyInRow is how many the target may fail with although it says that it
	// works.
	manyInRow = 64
)

// ErrStore says that a store as a whole does not work, or the index, where other
// errors are about single files.
var ErrStore = errors.New("can't go on")

// run is a Copy under way.
type run struct {
	*Copy
	limiter  pace.Limiter
	there    *there
	end      context.CancelCauseFunc
	decoders chan struct{} // a slot for each decoder of a large file

	mu       sync.Mutex
	summary  Summary
	inRow    [sides]int // how often each side has failed since it worked
	unsynced int
}

// Run copies until all is done, the context ends, or a store does not work,
// which is [ErrStore]. What is wrong with single files is in the summary, and no
// error.
func (c *Copy) Run(ctx context.Context) (Summary, error) {
	if err := c.refuseSame(ctx); err != nil {
		return Summary{}, err
	}
	working, end := context.WithCancelCause(ctx)
	defer end(nil)
	r := &run{
		Copy: c, end: end, limiter: pace.Limiter{Rate: c.Rate}, there: newThere(c.To, c.Listed),
		// They take memory, and there is no use in more than this.
		decoders: make(chan struct{}, max(defaultAtOnce, 2*runtime.GOMAXPROCS(0))),
	}
	files := make(chan bytestore.Info)
	var workers sync.WaitGroup
	for range c.atOnce() {
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
	// Also when the context has ended: what is there then is passed over by the
	// next run, which has nothing left to sync.
	if r.unsynced > 0 {
		err = errors.Join(err, r.sync(context.WithoutCancel(ctx)))
	}
	return r.summary, err
}

func (c *Copy) atOnce() int {
	if c.AtOnce > 0 {
		return c.AtOnce
	}
	n := defaultAtOnce
	for _, store := range []bytestore.Store{c.From, c.To} {
		n = max(n, store.Concurrency())
	}
	return n
}

// list hands out the files of the source.
func (r *run) list(ctx context.Context, files chan<- bytestore.Info) {
	for info, err := range r.From.List(ctx) {
		switch {
		case err != nil && info.Name == "":
			r.end(fmt.Errorf("%w: %w: nothing is lost: run it again when it does", ErrStore, err))
			return
		case err != nil:
			r.done(ctx, Result{Name: info.Name, Outcome: Failed, Err: err})
			continue
		case info.Temporary || bytestore.KeptApart(info.Name) || isProbe(info.Name):
			continue
		}
		if err := r.there.expect(ctx); err != nil {
			r.end(fmt.Errorf("%w: %w: nothing is lost: run it again when it does", ErrStore, err))
			return
		}
		select {
		case files <- info:
		case <-ctx.Done():
			return
		}
	}
}

// done counts a file, and sees to what follows from it for all.
func (r *run) done(ctx context.Context, result Result) {
	if ctx.Err() != nil && result.Outcome == Failed {
		return // not its fault
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
		// At once: small files would fit for long, and fill what others need.
		const text = "%w: the target is full: %w: make room there, and run it again: what was copied stays"
		r.end(fmt.Errorf(text, ErrStore, result.Err))
		return
	}
	if failures > 0 && failures%fewInRow == 0 {
		if err := r.hopeless(ctx, result, failures); err != nil {
			r.end(err)
		}
	}
}

// sync makes what was committed survive a loss of power.
func (r *run) sync(ctx context.Context) error {
	if err := r.To.Sync(ctx); err != nil {
		return fmt.Errorf("%w: make sure that what was copied stays: %w: run it again when that is mended", ErrStore, err)
	}
	return nil
}
