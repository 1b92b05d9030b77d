package nars

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/mirror/nars/lacking"
	"nar-herder/mirror/nars/room"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/dropped"
	"nar-herder/storage/narcheck"
)

// Wanted announces items that may lack nars, which are fetched before others. It returns
// at once. It does nothing if nars are fetched on demand only.
func (f *Fetcher) Wanted(hashes []narinfo.PathHash) {
	if !f.options.All {
		return
	}
	f.missing.Add(int64(len(hashes))) // the next count corrects it
	for _, hash := range hashes {
		f.want(hash)
	}
}

// want queues an item.
func (f *Fetcher) want(hash narinfo.PathHash) {
	f.queue.Add(hash)
	f.rouse()
}

// rouse wakes Run.
func (f *Fetcher) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run fetches in the background until the context ends, or Close is called.
func (f *Fetcher) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)()
	jobs := make(chan narinfo.PathHash)
	var working sync.WaitGroup
	for range f.options.AtOnce {
		working.Go(func() {
			for hash := range jobs {
				f.fetchItem(ctx, hash)
				f.rouse() // there may be room, or a retry
			}
		})
	}
	defer working.Wait()
	defer close(jobs)
	pass := lacking.New(lacking.Options{All: f.options.All, Index: f.storage.Index(), Queue: f.queue, Room: f.room, Spool: f.spool, Missing: &f.missing,
		Pause: f.timing.fullPause, Every: f.timing.passEvery, Log: f.log})
	var passes logonce.Filter
	for ctx.Err() == nil {
		hash, pause, err := f.next(ctx, pass)
		if err != nil && ctx.Err() == nil {
			pause = f.timing.fullPause
			passes.Log(f.log, slog.LevelWarn, f.now(), "can't find out which nars are missing: will retry", "error", err, "retry_in", pause)
		} else if err == nil {
			passes.Over(f.log, "missing nars are looked for again")
		}
		if pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-f.wake:
			case <-ctx.Done():
			}
			timer.Stop()
			continue
		}
		select {
		case jobs <- hash:
		case <-ctx.Done():
		}
	}
}

// next returns the next item, or how long to wait for one.
func (f *Fetcher) next(ctx context.Context, pass *lacking.Pass) (hash narinfo.PathHash, wait time.Duration, err error) {
	now := f.now()
	if paused := f.pausedFor(now); paused > 0 {
		return hash, paused, nil
	}
	if hash, wait = f.queue.Next(now); wait == 0 {
		return hash, 0, nil
	}
	hash, passWait, err := pass.Next(ctx, now)
	return hash, min(wait, passWait), err
}

// pausedFor returns how long nothing is to be fetched, except for clients.
func (f *Fetcher) pausedFor(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return later(f.pausedUntil, f.fullUntil).Sub(now)
}

// fetchItem fetches all nars that an item lacks, the last one first: see
// [index.Index.Lacking]. Of an item of an upstream, it only records those that are in the byte
// store already.
func (f *Fetcher) fetchItem(ctx context.Context, hash narinfo.PathHash) {
	item, err := f.storage.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) || err == nil && !item.WithdrawnAt.IsZero() {
		f.queue.Done(hash)
		return
	}
	if err != nil {
		if ctx.Err() == nil {
			f.logged.Log(f.log, slog.LevelWarn, f.now(), "can't look up an item of which nars are missing", "item", hash.String(), "error", err)
		}
		return
	}
	var absent uint64 // files that the source doesn't have
	var absentErr error
	var absentName string
	for n := len(item.Narinfo.Files) - 1; n >= 0; n-- {
		if item.HasStored(n) || item.HasDropped(n) || item.FileName(n) == "" {
			continue
		}
		var err error
		if item.Origin != 0 {
			_, err = f.adopt(ctx, item, n)
		} else {
			err = f.fetchFile(ctx, item, n)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, storage.ErrNotStored):
			absent |= 1 << n
			absentErr, absentName = err, item.FileName(n)
		case errors.Is(err, storage.ErrNotWanted):
			f.queue.Done(hash)
			return
		case err != nil:
			return // the retry fetches the others, too
		}
	}
	if absent != 0 && !f.dropAbsent(ctx, item, absent) {
		if ctx.Err() == nil {
			f.failed(item, absentName, absentErr)
		}
		return
	}
	f.queue.Done(hash)
	if item.Origin == 0 {
		f.missing.Add(-1)
	}
}

// dropAbsent gives up the files of an item that the source doesn't have, if another one is
// stored. Otherwise they are looked for again, and it returns false.
func (f *Fetcher) dropAbsent(ctx context.Context, item *storage.Item, absent uint64) bool {
	isDropped, err := dropped.DropAbsent(ctx, f.storage, item, absent)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		f.logged.Log(f.log, slog.LevelWarn, f.now(), "can't record which nars the source does not have", "item", item.Narinfo.StorePath.String(), "error", err)
		return false
	case !isDropped:
		return false
	}
	const text = "the source does not have some files of an item, and others are stored here: not looking for them again"
	if f.logged.IsDue(text, f.now()) {
		f.log.Info(text, "item", item.Narinfo.StorePath.String())
	}
	return true
}

// fetchFile fetches one file. It returns when that is stored, or after recording a failure.
func (f *Fetcher) fetchFile(ctx context.Context, item *storage.Item, n int) error {
	if adopted, err := f.adopt(ctx, item, n); adopted || err != nil {
		return err
	}
	for {
		d, err := f.begin(ctx, item, n, false, nil)
		if err != nil {
			switch {
			case errors.Is(err, room.ErrNone):
				f.unfit(err)
			case ctx.Err() == nil && !errors.Is(err, errStopped):
				f.failed(item, item.FileName(n), err)
			}
			return err
		}
		d.leave() // there is no reader here
		select {
		case <-d.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		switch {
		case errors.Is(d.result, errStored):
			return nil
		case !errors.Is(d.result, errAnew):
			return d.result
		}
	}
}

// hasUnrecorded is [storage.Storage.HasUnrecorded], except for a file that was stored after
// the caller had read the row.
func (f *Fetcher) hasUnrecorded(ctx context.Context, item *storage.Item, n int) (bool, error) {
	has, err := f.storage.HasUnrecorded(ctx, item, n)
	if err != nil || !has {
		return false, err
	}
	stored, err := f.isStored(ctx, item, n)
	return !stored, err
}

// isStored reads the row again, and reports whether the item's Nth file is stored.
func (f *Fetcher) isStored(ctx context.Context, item *storage.Item, n int) (bool, error) {
	now, err := f.storage.Item(ctx, item.Hash)
	if errors.Is(err, storage.ErrNotFound) || err == nil && now.Narinfo.NarHash != item.Narinfo.NarHash {
		return false, nil
	} else if err != nil {
		return false, err
	}
	i := now.FileNamed(item.FileName(n))
	return i >= 0 && now.HasStored(i), nil
}

// adopt records a file that is in the byte store already, if it is the nar.
func (f *Fetcher) adopt(ctx context.Context, item *storage.Item, n int) (bool, error) {
	has, err := f.hasUnrecorded(ctx, item, n)
	if err == nil && has {
		err = f.storage.Adopt(ctx, item, n, f.options.Decode)
		if errors.Is(err, narcheck.ErrWrongNar) {
			f.log.Warn("an unreferenced file in the storage is not the nar that it should be: replacing it", "file", item.FileName(n), "error", err)
			return false, nil
		}
		if err == nil {
			f.log.Info("recorded a nar that was in the storage already", "file", item.FileName(n))
			if err := f.spool.Remove(item, n); err != nil {
				f.log.Warn("can't remove the partial download of a stored nar", "file", item.FileName(n), "error", err)
			}
			return true, nil
		}
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrNotWanted) {
		f.failed(item, item.FileName(n), localError{err})
	}
	return false, err
}
