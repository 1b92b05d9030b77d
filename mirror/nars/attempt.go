package nars

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/narcheck"
)

const (
	// piece is how much is read from the source at a time.
	piece = 256 << 10
	// maxCuts is how often in a row a download resumes after it was cut with less than
	// minGain since: a source that sends a few bytes at a time would take days.
	maxCuts = 5
	minGain = 64 << 10
)

// attempt downloads the whole file into the spool and verifies it.
func (f *Fetcher) attempt(ctx context.Context, d *download) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := f.open(ctx, d)
	if err != nil {
		return err
	}
	verdict := make(chan error, 1)
	go func() {
		err := f.check(ctx, d)
		if err != nil {
			cancel(err) // the rest is useless
		}
		verdict <- err
	}()
	receiveErr := f.receive(ctx, d, body)
	if receiveErr != nil {
		cancel(receiveErr)
	}
	checkErr := <-verdict
	if errors.Is(checkErr, narcheck.ErrWrongNar) && !d.isResumed() {
		d.wrongFrom, d.others = failover.Reject(body)
	}
	if receiveErr == nil || errors.Is(context.Cause(ctx), checkErr) {
		return checkErr
	}
	return receiveErr
}

var errFault = errors.New("a fault of the program, please report it")

// check compares the file with the narinfo while it arrives.
func (f *Fetcher) check(ctx context.Context, d *download) (err error) {
	defer func() {
		// Decoders read foreign bytes.
		if fault := recover(); fault != nil {
			err = localError{fmt.Errorf("%w: %v\n%s", errFault, fault, debug.Stack())}
		}
	}()
	err = narcheck.Check(ctx, d.item.Narinfo, d.n, &growing{ctx: ctx, d: d}, f.options.Decode)
	if errors.Is(err, narcheck.ErrUnreadable) {
		err = localError{err}
	}
	return err
}

// open opens the spool file, and the source from the end of that. The body is nil if the file
// is complete.
func (f *Fetcher) open(ctx context.Context, d *download) (io.ReadCloser, error) {
	// The last download may have stored the file after the caller has read the row. From
	// here on, no other download of this process stores it.
	if stored, err := f.isStored(ctx, d.item, d.n); err != nil {
		return nil, localError{err}
	} else if stored {
		return nil, errStored
	}
	// Write nothing if the storage isn't mounted.
	if _, err := f.storage.Identity(ctx); err != nil {
		return nil, localError{err}
	}
	size := sizeOf(d.item, d.n)
	if err := fitsNar(d.item, size); err != nil {
		return nil, err
	}
	file, have, err := f.spool.Open(d.key)
	if err != nil {
		return nil, localError{fmt.Errorf("open the spool: %w", err)}
	}
	if size < 0 && have > 0 || have > size {
		// The right length is unknown, or the file is too long.
		if err := file.Truncate(0); err != nil {
			file.Close()
			return nil, localError{err}
		}
		have = 0
	}
	d.room.SetWritten(have)
	d.mu.Set(func() { d.file, d.have, d.size, d.resumed = file, have, size, have > 0 })
	if have == size {
		d.mu.Set(func() { d.opened = true })
		return nil, nil
	}
	body, size, err := f.openAt(ctx, d, have)
	if err != nil {
		return nil, err
	}
	d.mu.Set(func() { d.size, d.opened, d.flowing = size, true, true })
	return body, nil
}

// sizeOf returns the length of the item's Nth file, negative if unknown.
func sizeOf(item *storage.Item, n int) int64 {
	if size := item.StoredSize(n); size >= 0 || item.Narinfo.Files[n].Compression != "none" {
		return size
	}
	return item.Narinfo.NarSize
}

var errUnsized = errors.New("neither the narinfo nor the source says how long the nar or its file is")

// openAt opens the rest of the file at the source.
func (f *Fetcher) openAt(ctx context.Context, d *download, offset int64) (io.ReadCloser, int64, error) {
	body, size, err := f.source.Resume(ctx, d.item, d.n, d.file, offset, d.via)
	if err != nil {
		return nil, 0, err
	}
	d.mu.Lock()
	known := d.size
	d.mu.Unlock()
	if known >= 0 {
		size = known
	}
	switch {
	case known >= 0:
	case size >= 0:
		if err = fitsNar(d.item, size); err == nil {
			err = f.grow(ctx, d, size)
		}
	case d.item.Narinfo.NarSize < 0:
		err = localError{errUnsized}
	default:
		// The length is known at the end, as of a nar that is compressed while it is sent.
		err = f.grow(ctx, d, narcheck.MaxFileSize(d.item.Narinfo))
	}
	if err != nil {
		body.Close()
		return nil, 0, err
	}
	return body, size, nil
}

// fitsNar returns an error for a file that is too long for the item's nar.
func fitsNar(item *storage.Item, size int64) error {
	if most := narcheck.MaxFileSize(item.Narinfo); size > most {
		return fmt.Errorf("%w: a file of %d bytes, and no compression makes more than %d of it", narcheck.ErrWrongNar, size, most)
	}
	return nil
}

// receive writes the file into the spool, and resumes it when it is cut.
func (f *Fetcher) receive(ctx context.Context, d *download, body io.ReadCloser) error {
	var cause error // of the last end
	for cuts := 0; ; cuts++ {
		before, _ := d.position()
		if body != nil {
			cause = f.copy(ctx, d, body)
			body.Close()
			d.mu.Set(func() { d.flowing = false })
		}
		have, size := d.length()
		pause := time.Duration(0)
		if have-before >= minGain {
			cuts = 0
		} else if cuts > 0 {
			pause = f.timing.resumePause << (cuts - 1)
		}
		switch {
		case have == size:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case cuts >= maxCuts, errors.Is(cause, errLocal), errors.Is(cause, storage.ErrNotStored):
			return cause
		}
		f.log.Debug("the download of a nar was cut: resuming it", "file", d.item.FileName(d.n), "bytes", have, "error", cause)
		if err := pace.Sleep(ctx, pause); err != nil {
			return context.Cause(ctx)
		}
		if body, _, cause = f.openAt(ctx, d, have); cause == nil {
			d.mu.Set(func() { d.flowing, d.resumed = true, true })
		} else {
			body = nil
		}
	}
}

// waitTurn waits until the rate limit lets a download continue, or a client reads it.
func (f *Fetcher) waitTurn(ctx context.Context, d *download) error {
	pause := f.limiter.Pause()
	if pause <= 0 {
		return nil
	}
	timed, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	_ = d.mu.Wait(timed, func() bool { return d.readers > 0 }) // an error ends the pause, or all
	return ctx.Err()
}

// copy writes one answer into the spool. The end of an answer of unknown length is that of the
// file.
func (f *Fetcher) copy(ctx context.Context, d *download, body io.Reader) error {
	buffer := make([]byte, piece)
	have, size := d.length()
	most := size
	if size < 0 {
		most = narcheck.MaxFileSize(d.item.Narinfo)
	}
	for have != size {
		if have == most {
			return fmt.Errorf("%w: more than %d bytes are coming", narcheck.ErrWrongNar, most)
		}
		part := buffer[:min(int64(len(buffer)), most-have)]
		if !d.hasReaders() {
			part = f.limiter.Bound(part)
			if err := f.waitTurn(ctx, d); err != nil {
				return err
			}
		}
		n, err := body.Read(part)
		if n > 0 {
			if _, err := d.file.WriteAt(part[:n], have); err != nil {
				return localError{err}
			}
			have += int64(n)
			d.room.SetWritten(have)
			if !d.hasReaders() {
				f.limiter.Consume(n)
			}
			d.mu.Set(func() { d.have = have })
			if f.options.Received != nil {
				f.options.Received(int64(n))
			}
		}
		switch {
		case have == size:
			return nil
		case err == io.EOF && size < 0:
			d.mu.Set(func() { d.size = have })
			return nil
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}
