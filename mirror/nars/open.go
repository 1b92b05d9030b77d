package nars

import (
	"context"
	"errors"
	"io"

	"nar-herder/mirror/nars/spool"
	"nar-herder/peer"
	"nar-herder/peer/passing"
	"nar-herder/storage"
)

// OpenFile opens an item's Nth file for a client, as [Source] does: in a flight,
// which is begun unless the file can't be stored now, or at the source itself, where it is
// compared on its way, see [passing.Source.OpenFile].
// Nothing is written to the database on the way of the request.
func (f *Fetcher) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (io.ReadCloser, int64, error) {
	if item.FileName(n) == "" {
		return f.options.Passing.OpenFile(ctx, item, n, offset, length, via)
	}
	for range 3 { // after a flight that was begun anew, and one of a file that is stored
		fl, stored, size, err := f.board(ctx, item, n, offset, length, via)
		if stored != nil || err != nil {
			return stored, size, err
		}
		if fl == nil {
			break
		}
		size, err = fl.begun(ctx)
		if err == nil && offset > size {
			err = localError{io.ErrUnexpectedEOF}
		}
		if err == nil {
			end := size
			if length >= 0 {
				end = min(end, offset+length)
			}
			return &reader{ctx: ctx, f: f, flight: fl, via: via, off: offset, end: end}, size, nil
		}
		fl.leave()
		if errors.Is(err, errLocal) {
			break
		}
		if !errors.Is(err, errAnew) && !errors.Is(err, errStored) {
			return nil, 0, err
		}
	}
	return f.options.Passing.OpenFile(ctx, item, n, offset, length, via)
}

// Locate returns the URL of an item's Nth file at the source.
func (f *Fetcher) Locate(ctx context.Context, item *storage.Item, n int, via []string) (string, [16]byte, error) {
	return f.source.Locate(ctx, item, n, via)
}

// board joins the flight for a client, or begins it. The flight is nil when the
// client is to go to the source itself; stored is the file when it is here by now.
func (f *Fetcher) board(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (_ *flight, stored io.ReadCloser, size int64, err error) {
	direct := func() (*flight, io.ReadCloser, int64, error) { return nil, nil, 0, nil }
	ahead := offset // of what is here
	if !passing.IsAlone(item, n, offset, length) {
		ahead = 0 // The source would be asked for the whole.
	}
	fl := f.flying(spool.Key(item, n))
	if fl == nil {
		// The caller's item may be as it was a moment ago, when the nar had not
		// come yet.
		now, err := f.storage.Item(ctx, item.Hash)
		if errors.Is(err, storage.ErrNotFound) || err == nil && now.Narinfo.NarHash != item.Narinfo.NarHash {
			return direct()
		} else if err != nil {
			return nil, nil, 0, err
		}
		i := now.FileNamed(item.FileName(n))
		if i < 0 {
			return direct()
		}
		if now.HasStored(i) {
			// One that can't be read here is perhaps there.
			if reader, info, err := f.storage.OpenFile(ctx, now, i, offset, -1); err == nil {
				return nil, reader, info.Size, nil
			}
			return direct()
		}
		if !now.WithdrawnAt.IsZero() || f.isFull() {
			return direct()
		}
		lies, err := f.liesThere(ctx, now, i)
		if err != nil || lies || ahead > farAhead {
			// Not in the client's time, but it has asked for it.
			f.want(item.Hash)
			return direct()
		}
		// A storage that can't be used is no reason to give nothing.
		if fl, err = f.begin(ctx, now, i, true, via); err != nil {
			if f.isNews(errNoRoom.Error()) {
				f.log.Info("a nar that a client asks for is not stored, but passed on", "file", now.FileName(i), "reason", err)
			}
			return direct()
		}
	}
	have, flowing := fl.position()
	switch {
	case ahead > have+farAhead:
	case !flowing && peer.HasPassed(via) && !fl.isFor(via):
		// The one that it came through may be who this flight waits for, or
		// the one after it: two flights would wait for each other.
	default:
		return fl, nil, 0, nil
	}
	fl.leave()
	return direct()
}

// isFor says whether the flight was begun for a request that has come the same
// way, whose loops the source finds by that.
func (fl *flight) isFor(via []string) bool {
	if len(fl.via) != len(via) {
		return false
	}
	for i, line := range via {
		if fl.via[i] != line {
			return false
		}
	}
	return true
}

// isFull says whether nothing can be stored for now.
func (f *Fetcher) isFull() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now().Before(f.fullUntil)
}
