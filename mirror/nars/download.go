package nars

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/peer"
	"nar-herder/storage"
)

const (
	// piece is how much is read from the source at a time.
	piece = 256 << 10
	// mostCuts is how often in a row a flight resumes after it was cut with less than
	// leastGain since: a source that sends crumbs would hold it for days.
	mostCuts  = 5
	leastGain = 64 << 10
)

// attempt brings the whole file into the spool, and makes sure that it is the
// nar.
func (f *Fetcher) attempt(ctx context.Context, fl *flight) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := f.open(ctx, fl)
	if err != nil {
		return err
	}
	verdict := make(chan error, 1)
	go func() {
		err := f.check(ctx, fl)
		if err != nil {
			cancel(err) // what else comes is of no use
		}
		verdict <- err
	}()
	comeErr := f.download(ctx, fl, body)
	if comeErr != nil {
		cancel(comeErr)
	}
	checkErr := <-verdict
	if comeErr == nil || errors.Is(context.Cause(ctx), checkErr) {
		return checkErr
	}
	return comeErr
}

var errFault = errors.New("a fault of the program, please report it")

// check compares what comes with the narinfo.
func (f *Fetcher) check(ctx context.Context, fl *flight) (err error) {
	defer func() {
		// Codecs are given what comes from elsewhere.
		if fault := recover(); fault != nil {
			err = localError{fmt.Errorf("%w: %v\n%s", errFault, fault, debug.Stack())}
		}
	}()
	err = storage.CheckNar(ctx, fl.item.Narinfo, fl.n, &growing{ctx: ctx, fl: fl}, f.options.Decode)
	if errors.Is(err, storage.ErrUnreadable) {
		err = localError{err}
	}
	return err
}

// open opens the spool file, and the source where that stops. The body is nil
// when all is there already.
func (f *Fetcher) open(ctx context.Context, fl *flight) (io.ReadCloser, error) {
	// The caller may have read the row before the last flight stored the file. From
	// here on no other flight of this process stores it.
	if stored, err := f.isStored(ctx, fl.item, fl.n); err != nil {
		return nil, localError{err}
	} else if stored {
		return nil, errStored
	}
	// Where the storage isn't mounted, nothing is put into its place.
	if _, err := f.storage.Identity(ctx); err != nil {
		return nil, localError{err}
	}
	size := sizeOf(fl.item, fl.n)
	if err := fitsNar(fl.item, size); err != nil {
		return nil, err
	}
	file, have, err := f.spool.Open(fl.key)
	if err != nil {
		return nil, localError{fmt.Errorf("open the spool: %w", err)}
	}
	if size < 0 && have > 0 || have > size {
		// How much belongs there is not known, or it is too much.
		if err := file.Truncate(0); err != nil {
			file.Close()
			return nil, localError{err}
		}
		have = 0
	}
	fl.room.SetWritten(have)
	fl.mu.Set(func() { fl.file, fl.have, fl.size, fl.resumed = file, have, size, have > 0 })
	if have == size {
		fl.mu.Set(func() { fl.opened = true })
		return nil, nil
	}
	body, size, err := f.openAt(ctx, fl, have)
	if err != nil {
		return nil, err
	}
	fl.mu.Set(func() { fl.size, fl.opened, fl.flowing = size, true, true })
	return body, nil
}

// sizeOf is the length of the item's Nth file, negative when it is not known.
func sizeOf(item *storage.Item, n int) int64 {
	if size := item.StoredSize(n); size >= 0 || item.Narinfo.Files[n].Compression != "none" {
		return size
	}
	return item.Narinfo.NarSize
}

var errUnsized = errors.New("it does not say how long the file is")

// openAt has the source send the rest of the file.
func (f *Fetcher) openAt(ctx context.Context, fl *flight, offset int64) (io.ReadCloser, int64, error) {
	body, size, err := f.source.OpenFile(ctx, fl.item, fl.n, offset, -1, fl.via)
	if errors.Is(err, peer.ErrNoRange) {
		// What is here already is sent again, and passed over.
		if body, size, err = f.source.OpenFile(ctx, fl.item, fl.n, 0, -1, fl.via); err == nil {
			if _, err = io.CopyN(io.Discard, body, offset); err != nil {
				body.Close()
			}
		}
	}
	if err != nil {
		return nil, 0, err
	}
	fl.mu.Lock()
	known := fl.size
	fl.mu.Unlock()
	if known >= 0 {
		size = known
	}
	switch {
	case size < 0:
		err = localError{errUnsized}
	case known < 0:
		if err = fitsNar(fl.item, size); err == nil {
			err = f.grow(ctx, fl, size)
		}
	}
	if err != nil {
		body.Close()
		return nil, 0, err
	}
	return body, size, nil
}

// fitsNar returns an error for a file that is too long for the item's nar.
func fitsNar(item *storage.Item, size int64) error {
	if most := storage.MaxFileSize(item.Narinfo); size > most {
		return fmt.Errorf("%w: a file of %d bytes, where no compression makes more than %d of it", storage.ErrWrongNar, size, most)
	}
	return nil
}

// download writes what comes into the spool, and goes on where it is cut.
func (f *Fetcher) download(ctx context.Context, fl *flight, body io.ReadCloser) error {
	var cause error // of the last end
	for cuts := 0; ; cuts++ {
		before, _ := fl.position()
		if body != nil {
			cause = f.copy(ctx, fl, body)
			body.Close()
			fl.mu.Set(func() { fl.flowing = false })
		}
		have, _ := fl.position()
		pause := time.Duration(0)
		if have-before >= leastGain {
			cuts = 0
		} else if cuts > 0 {
			pause = f.timing.resumePause << (cuts - 1)
		}
		switch {
		case have == fl.size:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case cuts >= mostCuts, errors.Is(cause, errLocal), errors.Is(cause, storage.ErrNotStored):
			return cause
		}
		f.log.Debug("a nar has stopped to come, and is gone on with", "file", fl.item.FileName(fl.n), "at", have, "error", cause)
		if err := pace.Sleep(ctx, pause); err != nil {
			return context.Cause(ctx)
		}
		if body, _, cause = f.openAt(ctx, fl, have); cause == nil {
			fl.mu.Set(func() { fl.flowing, fl.resumed = true, true })
		} else {
			body = nil
		}
	}
}

// copy writes what one answer has into the spool.
func (f *Fetcher) copy(ctx context.Context, fl *flight, body io.Reader) error {
	buffer := make([]byte, piece)
	have, _ := fl.position()
	for have < fl.size {
		part := buffer[:min(int64(len(buffer)), fl.size-have)]
		if !fl.hasReaders() {
			part = f.line.Bound(part)
			if err := f.line.wait(ctx, fl); err != nil {
				return err
			}
		}
		n, err := body.Read(part)
		if n > 0 {
			if _, err := fl.file.WriteAt(part[:n], have); err != nil {
				return localError{err}
			}
			have += int64(n)
			fl.room.SetWritten(have)
			f.line.took(n, fl.hasReaders())
			fl.mu.Set(func() { fl.have = have })
		}
		if err == io.EOF && have < fl.size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && have < fl.size {
			return err
		}
	}
	return nil
}
