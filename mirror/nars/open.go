package nars

import (
	"context"
	"errors"
	"io"

	"nar-herder/mirror/nars/room"
	"nar-herder/mirror/nars/spool"
	"nar-herder/peer"
	"nar-herder/peer/passing"
	"nar-herder/storage"
)

// OpenFile opens an item's Nth file for a client, as [Source] does. It starts or joins a
// download. If the file can't be stored now, it opens the source and verifies the file on
// its way, see [passing.Source.OpenFile]. It doesn't write to the database.
func (f *Fetcher) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (io.ReadCloser, int64, error) {
	if item.FileName(n) == "" {
		return f.options.Passing.OpenFile(ctx, item, n, offset, length, via)
	}
	for range 3 { // a download may begin anew, and another process may store the file
		d, stored, size, err := f.joinOrBegin(ctx, item, n, offset, length, via)
		if stored != nil || err != nil {
			return stored, size, err
		}
		if d == nil {
			break
		}
		size, err = d.begun(ctx)
		if err == nil && size >= 0 && offset > size {
			err = localError{io.ErrUnexpectedEOF}
		}
		if err == nil {
			end := size
			if size < 0 {
				end = unknownEnd
			}
			if length >= 0 {
				end = min(end, offset+length)
			}
			return &reader{ctx: ctx, f: f, download: d, via: via, off: offset, end: end}, size, nil
		}
		d.leave()
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

// joinOrBegin joins or begins the download for a client. It returns the file if that is
// stored by now, and neither if the client is to read from the source.
func (f *Fetcher) joinOrBegin(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (_ *download, stored io.ReadCloser, size int64, err error) {
	direct := func() (*download, io.ReadCloser, int64, error) { return nil, nil, 0, nil }
	ahead := offset
	if !passing.IsAlone(item, n, offset, length) {
		ahead = 0 // the source would send the whole file
	}
	d := f.join(spool.Key(item, n))
	if d == nil {
		// The caller's row may be older than the end of the last download.
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
			// If it can't be read here, the source may have it.
			if reader, info, err := f.storage.OpenFile(ctx, now, i, offset, -1); err == nil {
				return nil, reader, info.Size, nil
			}
			return direct()
		}
		if !now.WithdrawnAt.IsZero() || now.IsUnwanted(i) || f.isFull() || f.options.OnlyUpstreams && now.Origin == 0 {
			return direct()
		}
		has, err := f.hasUnrecorded(ctx, now, i)
		if err != nil || has || ahead > farAhead {
			// It takes too long for the client: fetch it in the background.
			f.want(item.Hash)
			return direct()
		}
		// If it can't be stored, the source still serves the client.
		if d, err = f.begin(ctx, now, i, true, via); err != nil {
			if f.logged.IsDue(room.ErrNone.Error(), f.now()) {
				f.log.Info("a nar that a client requested is passed on and not stored", "file", now.FileName(i), "error", err)
			}
			return direct()
		}
	}
	have, flowing := d.position()
	switch {
	case ahead > have+farAhead:
	case !flowing && peer.HasPassed(via) && !d.isFor(via):
		// This download may wait for the instance that forwarded the request: two
		// downloads would wait for each other.
	default:
		return d, nil, 0, nil
	}
	d.leave()
	return direct()
}

// isFor reports whether the download began for a request with the same Via header, so that
// the source has detected loops by it.
func (d *download) isFor(via []string) bool {
	if len(d.via) != len(via) {
		return false
	}
	for i, line := range via {
		if d.via[i] != line {
			return false
		}
	}
	return true
}

// isFull reports whether nothing can be stored for now.
func (f *Fetcher) isFull() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now().Before(f.fullUntil)
}
