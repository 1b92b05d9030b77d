// Package importer adds items from narinfo files and the nars beside them: bytes first,
// then rows.
package importer

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer/narinfofiles"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// Importer adds items to one storage.
type Importer struct {
	*storage.Storage
	index *index.Index
	bytes bytestore.Store // for nars; nil for none
	log   *slog.Logger
	// logged has the warnings that are logged once.
	logged sync.Map
}

// New makes an importer.
func New(s *storage.Storage) *Importer {
	return &Importer{Storage: s, index: s.Index(), bytes: s.NarStore(), log: s.Log()}
}

// Options of [Importer.Import]; the fields are as in [Addition].
type Options struct {
	Nars           Nars
	Keep           bool
	Replace        bool
	AllowMissing   bool
	WithReferences bool
	Tags           []index.Tag
	Decode         narcheck.Decoder
	// Verifying is called, by several goroutines at a time, for the bytes of files that are
	// verified; may be nil.
	Verifying func(bytes int64)
	// Sign returns the narinfo to add instead of that which was read, with a signature; nil
	// to add all as they are.
	Sign func(*narinfo.Narinfo) (*narinfo.Narinfo, error)
}

// Imported is the result for one narinfo file.
type Imported struct {
	File string
	Result
}

const (
	// batchItems bounds the memory of a batch. batchTime bounds how long other processes
	// wait for the database, and how long an imported item stays invisible.
	batchItems = 5_000
	batchTime  = 250 * time.Millisecond
)

// Import adds the items of narinfo files: each file named, and all below each directory
// named with names that end in ".narinfo". It looks for nars in the storage, then beside
// the narinfo, then below the directory named.
//
// report is called for each narinfo file when its row is durable, by one goroutine at a
// time. A failure does not stop the import. The returned error is the context's, or about
// a directory that can't be read.
//
// With WithReferences, all narinfos are read first. They may refer to items of the same
// import, in any order.
func (im *Importer) Import(ctx context.Context, names []string, options Options, report func(Imported)) error {
	work := make(chan narinfofiles.File, batchItems)
	ready := make(chan importing, batchItems/2)
	var walkErr error
	var plan *plan
	if options.WithReferences {
		var files []narinfofiles.File
		if plan, files, walkErr = im.planImport(ctx, names, report); plan == nil {
			return walkErr
		}
		go func() {
			defer close(work)
			for _, file := range files {
				select {
				case work <- file:
				case <-ctx.Done():
					return
				}
			}
		}()
	} else {
		go func() {
			defer close(work)
			walkErr = narinfofiles.WalkItems(ctx, names, work)
		}()
	}
	var workers sync.WaitGroup
	// More than cores, because workers also wait for disks: one flushes a nar while another
	// decompresses the next.
	for range 2 * runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for file := range work {
				ready <- importing{file, im.prepareFile(ctx, file, options, plan != nil)}
			}
		})
	}
	go func() {
		workers.Wait()
		close(ready)
	}()

	var waiting []importing
	wait := func(file narinfofiles.File, p *prepared) importing {
		return importing{file, &prepared{result: p.result, fresh: p.fresh}} // the rest takes memory
	}
	im.commitAll(ctx, ready, plan, func(i importing) {
		if worthAnotherTry(i.prepared.result.Err) {
			waiting = append(waiting, wait(i.File, i.prepared))
			return
		}
		im.discardFresh(ctx, i.prepared)
		report(Imported{i.Name, i.prepared.result})
	})
	// Retry one by one while any succeeds: another process may import their references.
	for progress := true; progress && len(waiting) > 0 && ctx.Err() == nil; {
		progress = false
		var left []importing
		for _, i := range waiting {
			p := im.addAlone(ctx, i.prepared.fresh, func() *prepared { return im.prepareFile(ctx, i.File, options, false) })
			if worthAnotherTry(p.result.Err) {
				left = append(left, wait(i.File, p))
				continue
			}
			progress = true
			im.discardFresh(ctx, p)
			report(Imported{i.Name, p.result})
		}
		if !progress {
			for _, i := range left {
				report(Imported{i.Name, i.prepared.result})
			}
		}
		waiting = left
	}
	var fresh []string
	for _, i := range waiting {
		fresh = append(fresh, i.prepared.fresh...)
	}
	im.Discard(ctx, fresh)
	if err := ctx.Err(); err != nil {
		return err
	}
	return walkErr
}

// worthAnotherTry reports whether an addition may succeed once the rest is imported.
func worthAnotherTry(err error) bool {
	var missing errMissingReferences
	return errors.As(err, &missing) || errors.Is(err, storage.ErrChanged) || errors.Is(err, errBatch)
}

type importing struct {
	narinfofiles.File
	prepared *prepared
}

// prepareFile reads a narinfo file and stages its nars.
func (im *Importer) prepareFile(ctx context.Context, file narinfofiles.File, options Options, planned bool) *prepared {
	n, err := file.Read()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return &prepared{result: Result{Outcome: Failed, Err: err}}
	}
	n, err = im.withKnownSignature(ctx, n)
	if err == nil && options.Sign != nil {
		n, err = options.Sign(n)
	}
	if err != nil {
		return &prepared{result: Result{Outcome: Failed, Err: err}}
	}
	return im.prepare(ctx, &Addition{
		Narinfo: n, Directories: file.Directories(), PublishCache: file.PublishCache(),
		Nars: options.Nars, Keep: options.Keep, Replace: options.Replace, AllowMissing: options.AllowMissing, WithReferences: options.WithReferences, Tags: options.Tags,
		Decode: options.Decode, verifying: options.Verifying, planned: planned,
	})
}

// commitAll commits additions in batches of as many as are ready: a single narinfo doesn't
// wait for a second, and many share a transaction.
func (im *Importer) commitAll(ctx context.Context, ready <-chan importing, plan *plan, report func(importing)) {
	commit := func(batch []importing) {
		additions := make([]*prepared, 0, len(batch))
		for _, i := range batch {
			if i.prepared.result.Err == nil {
				additions = append(additions, i.prepared)
			}
		}
		if len(additions) > 0 {
			im.commit(ctx, additions)
		}
		for _, i := range batch {
			report(i)
		}
	}
	for first := range ready {
		batch := []importing{first}
		size := first.prepared.lockedBytes()
		full := time.After(batchTime)
	gather:
		for len(batch) < batchItems && !im.IsMuch(size) {
			select {
			case next, ok := <-ready:
				if !ok {
					break gather
				}
				batch = append(batch, next)
				size += next.prepared.lockedBytes()
			case <-full:
				break gather
			}
		}
		if plan != nil {
			batch = plan.ready(ctx, im, batch)
		}
		commit(batch)
	}
	if plan != nil {
		// If the context has ended, some files were not prepared and won't come.
		clear(plan.coming)
		commit(plan.ready(ctx, im, nil))
	}
}
