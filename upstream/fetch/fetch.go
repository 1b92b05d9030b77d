// Package fetch stores items of upstreams before clients request them.
//
// It asks for many narinfos at a time, and downloads several nars at a time meanwhile. A narinfo
// is written together with the nar, so that clients never get it before. What was stored before
// is skipped: a second run continues an interrupted one.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// Narinfos asks for narinfos, as [upstream.Set] does.
type Narinfos interface {
	Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, upstream.Answer))
}

// Nars stores nars, as [nar-herder/mirror/nars.Fetcher] does.
type Nars interface {
	Fetch(ctx context.Context, item *storage.Item, n int) error
}

// Options are for [Run].
type Options struct {
	Storage  *storage.Storage
	Narinfos Narinfos
	Nars     Nars
	// Closure also fetches everything that the items refer to.
	Closure bool
	// Tags are added to all items, and Pin pins those that were named.
	Tags []index.Tag
	Pin  bool
	// Expect is called when more items are wanted; may be nil.
	Expect func(items int)
	// Report is called for each item by one goroutine at a time.
	Report func(Result)

	// Tests set these; 0 for the constants.
	chunk      int
	inUsePause time.Duration
}

// Result is the outcome for one item.
type Result struct {
	// Path is that of the item; its name is empty if it is not known.
	Path narinfo.StorePath
	// Fetched says that its nar was stored now, and not before.
	Fetched bool
	// Bytes is the length of the nar as it was stored now.
	Bytes int64
	// Pinned says that it is pinned.
	Pinned bool
	Err    error
}

const (
	// defaultChunk is how many narinfos are asked for at a time.
	defaultChunk = 1000
	// downloads is how many nars are downloaded at a time.
	downloads = 4
	// maxInRow is how many failures in a row end a run, if the sources or this machine caused
	// them.
	maxInRow = 20
	// defaultInUsePause is the pause before a nar is tried again that another process is
	// fetching.
	defaultInUsePause = time.Second
)

var (
	errNoSource  = errors.New("no source has it")
	errNoNar     = errors.New("no source has its nar")
	errAnother   = errors.New("another nar of this item is being served from here, and stays")
	errDropped   = errors.New("all its files were dropped here")
	errWithdrawn = errors.New("another nar of this item is withdrawn: try again when it has been removed")
)

// Run fetches items, of which the names may be empty. A failure of one doesn't stop the others.
// The error is the context's, [nar-herder/mirror/nars.ErrFull] if there is no room, or says why
// the sources or the index can't be used.
func Run(ctx context.Context, items []narinfo.StorePath, options Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{Options: options, index: options.Storage.Index(), stop: cancel, seen: make(map[narinfo.PathHash]struct{}), origins: make(map[string]int64)}
	r.chunk, r.inUsePause = cmp.Or(r.chunk, defaultChunk), cmp.Or(r.inUsePause, defaultInUsePause)
	r.want(items)
	if options.Pin {
		r.pinned = make(map[narinfo.PathHash]struct{}, len(items))
		for _, item := range items {
			r.pinned[item.Hash] = struct{}{}
		}
	}
	jobs := make(chan *job, r.chunk)
	var working sync.WaitGroup
	for range downloads {
		working.Go(func() {
			for job := range jobs {
				if ctx.Err() == nil {
					r.fetch(ctx, job)
				}
			}
		})
	}
	err := r.resolveAll(ctx, jobs)
	if err != nil {
		cancel(err)
	}
	close(jobs)
	working.Wait()
	return context.Cause(ctx)
}

// run is one call of [Run].
type run struct {
	Options
	index  *index.Index
	stop   context.CancelCauseFunc
	pinned map[narinfo.PathHash]struct{}
	// seen are all items that were ever wanted, wanted those that come next, and origins the
	// numbers of upstreams. Only resolveAll uses them.
	seen    map[narinfo.PathHash]struct{}
	wanted  []narinfo.StorePath
	origins map[string]int64

	mu    sync.Mutex // of what follows, and of Report
	inRow int
}

// want adds items that are new.
func (r *run) want(items []narinfo.StorePath) {
	for _, item := range items {
		if _, seen := r.seen[item.Hash]; !seen {
			r.seen[item.Hash] = struct{}{}
			r.wanted = append(r.wanted, item)
		}
	}
	if r.Expect != nil {
		r.Expect(len(r.seen))
	}
}

// report reports a result. all says that a failure concerns all
// items.
func (r *run) report(ctx context.Context, result Result, all bool) {
	if ctx.Err() != nil && result.Err != nil {
		return // it may be due to that
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Report(result)
	if !all {
		r.inRow = 0
	} else if r.inRow++; r.inRow == maxInRow {
		r.stop(fmt.Errorf("%d failures in a row, the last: %w", maxInRow, result.Err))
	}
}
