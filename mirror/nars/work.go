package nars

import (
	"context"
	"errors"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// Wanted announces items that may lack nars, which are fetched before those of
// others. It returns at once. It does nothing where only those are fetched that
// clients ask for.
func (f *Fetcher) Wanted(hashes []narinfo.PathHash) {
	if !f.options.All {
		return
	}
	f.missing.Add(int64(len(hashes))) // which the next count corrects
	for _, hash := range hashes {
		f.ask(hash)
	}
}

// ask has an item's nars fetched.
func (f *Fetcher) ask(hash narinfo.PathHash) {
	f.mu.Lock()
	if _, twice := f.isWanted[hash]; !twice {
		if len(f.wanted) >= mostWanted {
			// The older half, so that it is not each time.
			for _, old := range f.wanted[:mostWanted/2] {
				delete(f.isWanted, old)
			}
			f.wanted = append(f.wanted[:0], f.wanted[mostWanted/2:]...)
			f.overflowed = true
		}
		f.wanted = append(f.wanted, hash)
		f.isWanted[hash] = struct{}{}
	}
	f.mu.Unlock()
	f.rouse()
}

// rouse has Run look for what there is to do.
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
				f.rouse() // as it may have given room, or a time to try again
			}
		})
	}
	defer working.Wait()
	defer close(jobs)
	p := &pass{f: f, due: f.options.All}
	for ctx.Err() == nil {
		hash, pause, err := f.next(ctx, p)
		if err != nil && ctx.Err() == nil {
			pause = f.timing.fullPause
			f.log.Error("can't find out which nars are missing; that is tried again", "error", err, "again", pause.String())
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

// longest is how long Run sleeps at the most.
const longest = time.Hour

// next returns an item to be fetched, or for how long there is nothing to do.
func (f *Fetcher) next(ctx context.Context, p *pass) (hash narinfo.PathHash, pause time.Duration, err error) {
	now := f.now()
	f.mu.Lock()
	if paused := later(f.pausedUntil, f.fullUntil).Sub(now); paused > 0 {
		f.mu.Unlock()
		return hash, paused, nil
	}
	if last := len(f.wanted) - 1; last >= 0 {
		hash = f.wanted[last]
		f.wanted = f.wanted[:last]
		delete(f.isWanted, hash)
		f.mu.Unlock()
		return hash, 0, nil
	}
	hash, pause = f.dueRetry(now)
	f.mu.Unlock()
	if pause == 0 {
		return hash, 0, nil
	}
	hash, passPause, err := p.next(ctx, now)
	return hash, min(pause, passPause), err
}

// dueRetry returns an item whose time has come again, or when one has. The mutex
// is held.
func (f *Fetcher) dueRetry(now time.Time) (narinfo.PathHash, time.Duration) {
	if f.nextRetry.IsZero() {
		return narinfo.PathHash{}, longest
	}
	if wait := f.nextRetry.Sub(now); wait > 0 {
		return narinfo.PathHash{}, min(wait, longest)
	}
	f.nextRetry = time.Time{}
	for _, hash := range f.retries.Keys() {
		entry, _ := f.retries.Peek(hash)
		if !entry.at.After(now) {
			// Until it is settled, it is not due again.
			entry.at = now.Add(longest)
			f.retries.Add(hash, entry)
			f.nextRetry = now // perhaps another is
			return hash, 0
		}
		if f.nextRetry.IsZero() || entry.at.Before(f.nextRetry) {
			f.nextRetry = entry.at
		}
	}
	if f.nextRetry.IsZero() {
		return narinfo.PathHash{}, longest
	}
	return narinfo.PathHash{}, min(f.nextRetry.Sub(now), longest)
}

// isWaiting says whether the item has failed, and its time has not come.
func (f *Fetcher) isWaiting(hash narinfo.PathHash) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	entry, ok := f.retries.Peek(hash)
	return ok && f.now().Before(entry.at)
}

// fetchItem fetches all nars that an item lacks, the last one first: see
// [index.Index.Lacking].
func (f *Fetcher) fetchItem(ctx context.Context, hash narinfo.PathHash) {
	item, err := f.storage.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) || err == nil && !item.WithdrawnAt.IsZero() {
		f.done(hash)
		return
	}
	if err != nil {
		if ctx.Err() == nil {
			f.log.Error("can't look up an item whose nars are to be fetched", "item", hash.String(), "error", err)
		}
		return
	}
	for n := min(len(item.Narinfo.Files), 64) - 1; n >= 0; n-- {
		if item.HasStored(n) || item.FileName(n) == "" {
			continue
		}
		err := f.fetchFile(ctx, item, n)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if errors.Is(err, storage.ErrNotWanted) {
				f.done(hash)
			}
			return // it comes again, with the others
		}
	}
	f.done(hash)
	f.missing.Add(-1)
}

// fetchFile fetches one file, and returns when it is stored or has failed, which
// is noted.
func (f *Fetcher) fetchFile(ctx context.Context, item *storage.Item, n int) error {
	if adopted, err := f.adopt(ctx, item, n); adopted || err != nil {
		return err
	}
	for {
		fl, err := f.begin(ctx, item, n, false, nil)
		if err != nil {
			switch {
			case errors.Is(err, errNoRoom):
				f.unfit(err)
			case ctx.Err() == nil && !errors.Is(err, errStopped):
				f.failed(item, item.FileName(n), err)
			}
			return err
		}
		fl.leave() // nobody reads it here
		select {
		case <-fl.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		switch {
		case errors.Is(fl.result, errStored):
			return nil
		case !errors.Is(fl.result, errAnew):
			return fl.result
		}
	}
}

// liesThere is [storage.Storage.HasUnrecorded], but for a file that was stored after the
// caller had read the row.
func (f *Fetcher) liesThere(ctx context.Context, item *storage.Item, n int) (bool, error) {
	lies, err := f.storage.HasUnrecorded(ctx, item, n)
	if err != nil || !lies {
		return false, err
	}
	stored, err := f.isStored(ctx, item, n)
	return !stored, err
}

// isStored reads the row again, and says whether the item's Nth file is stored.
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

// adopt has the row claim what lies there already, if it is the nar.
func (f *Fetcher) adopt(ctx context.Context, item *storage.Item, n int) (bool, error) {
	lies, err := f.liesThere(ctx, item, n)
	if err == nil && lies {
		err = f.storage.Adopt(ctx, item, n, f.options.Decode)
		if errors.Is(err, storage.ErrWrongNar) {
			f.log.Warn("a file in the storage that no row claims is not the nar that it should be, and makes way for it", "file", item.FileName(n), "error", err)
			return false, nil
		}
		if err == nil {
			f.log.Info("took a file into the index that lay in the storage already", "file", item.FileName(n))
			if err := f.removeSpool(item, n); err != nil {
				f.log.Warn("can't remove what was fetched of a nar that is stored", "file", item.FileName(n), "error", err)
			}
			return true, nil
		}
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrNotWanted) {
		f.failed(item, item.FileName(n), localError{err})
	}
	return false, err
}
