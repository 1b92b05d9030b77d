package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/narcheck"
)

// one copies a file of the source if necessary.
func (r *run) one(ctx context.Context, info bytestore.Info) Result {
	result := Result{Name: info.Name, Size: info.Size}
	failed := func(side side, err error) Result {
		result.Outcome, result.side, result.Err = Failed, side, err
		return result
	}
	item, n, err := r.item(ctx, info.Name)
	if err != nil {
		return failed(index, err)
	}
	want := info.Size
	if item != nil && item.HasStored(n) {
		want = item.StoredSize(n)
	}
	size, err := r.there.size(ctx, info.Name)
	if err != nil {
		return failed(target, err)
	}
	var differs error
	switch {
	case size >= 0 && size != want:
		differs = fmt.Errorf("it has %d bytes in the target, %d in the source", size, info.Size)
	case size >= 0 && r.Compare:
		var side side
		if differs, side, err = r.compare(ctx, info.Name); errors.Is(err, fs.ErrNotExist) && side == source {
			result.Outcome = Gone
			return result
		} else if err != nil {
			return failed(side, err)
		}
		result.read = true
	}
	if size >= 0 && differs == nil {
		if kept, err := r.keep(ctx, info.Name); err != nil {
			return failed(target, err)
		} else if kept {
			result.Outcome, result.kept = There, true
			return result
		}
	}
	switch {
	case info.Size != want:
		result.Outcome = Wrong
		result.Err = fmt.Errorf("it has %d bytes in the source, %d in the index", info.Size, want)
		return result
	case differs != nil && item == nil && !r.Replace:
		result.Outcome = Differs
		result.Err = fmt.Errorf("%w: no narinfo says which is right: name an index with --database, or take the source's with --replace", differs)
		return result
	}
	result.Replaced = differs != nil
	if r.DryRun {
		result.Outcome = Copied
		return result
	}
	return r.copy(ctx, item, n, result)
}

// item returns the item of a file, nil if it is unknown.
func (r *run) item(ctx context.Context, name string) (*storage.Item, int, error) {
	if r.Items == nil {
		return nil, -1, nil
	}
	item, n, err := r.Items.FileUnder(ctx, name)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, -1, nil
	}
	return item, n, err
}

// keep flushes a file that is in the target already. It returns false if the file was just
// removed. In a remote store, visible files are durable.
func (r *run) keep(ctx context.Context, name string) (bool, error) {
	if r.there.remote || r.DryRun {
		return true, nil
	}
	err := r.To.Flush(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// copyBuffer is how many bytes are compared at a time.
const copyBuffer = 256 << 10

// compare reads a file in both stores. differs is nil if they are equal; err is an error of
// the returned side.
func (r *run) compare(ctx context.Context, name string) (differs error, of side, err error) {
	ours, _, err := r.From.Open(ctx, name, 0, -1)
	if err != nil {
		return nil, source, err
	}
	defer ours.Close()
	theirs, _, err := r.To.Open(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("it was just removed from the target"), nobody, nil
	} else if err != nil {
		return nil, target, err
	}
	defer theirs.Close()
	coming := r.reader(ctx, ours)
	a, b := make([]byte, copyBuffer), make([]byte, copyBuffer)
	for at := int64(0); ; {
		n, errA := io.ReadFull(coming, a)
		m, errB := io.ReadFull(theirs, b)
		switch {
		case errA != nil && errA != io.EOF && errA != io.ErrUnexpectedEOF:
			return nil, source, errA
		case errB != nil && errB != io.EOF && errB != io.ErrUnexpectedEOF:
			return nil, target, errB
		case !bytes.Equal(a[:n], b[:m]):
			return fmt.Errorf("it differs in the target from byte %d on", at+int64(firstOther(a[:n], b[:m]))), nobody, nil
		case errA != nil:
			return nil, nobody, nil
		}
		at += int64(n)
	}
}

// firstOther returns the index of the first difference.
func firstOther(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// slowSize is the length in bytes from which on decompressing a file needs a slot: the
// decoder of a smaller one ends before the next call returns.
const slowSize = 1 << 20

// copy copies a file to the target, and verifies it on the way if there is an item.
func (r *run) copy(ctx context.Context, item *storage.Item, n int, result Result) Result {
	if item != nil && result.Size >= slowSize {
		select {
		case r.decoders <- struct{}{}:
			defer func() { <-r.decoders }()
		case <-ctx.Done():
		}
	}
	body, info, err := r.From.Open(ctx, result.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		result.Outcome = Gone
		return result
	} else if err != nil {
		result.side, result.Err = source, err
		return result
	}
	defer body.Close()
	result.Size = info.Size
	coming := r.reader(ctx, body)
	var staged bytestore.Staged
	var stageErr, checkErr error
	if item == nil {
		staged, stageErr = r.To.Stage(ctx, result.Name, readTwice(coming, body), info.Size)
	} else {
		staged, stageErr, checkErr = r.stageVerified(ctx, item, n, coming, body, result.Name, info.Size)
	}
	if stageErr == nil {
		defer staged.Abort()
	}
	switch {
	case ctx.Err() != nil:
		result.Err = ctx.Err()
	case errors.Is(checkErr, narcheck.ErrWrongNar):
		result.Outcome, result.Err = Wrong, checkErr
	case coming.err != nil:
		result.side, result.Err = source, coming.err
	case errors.Is(stageErr, bytestore.ErrWrongSize):
		result.Err = fmt.Errorf("it changed while it was read: %w: run it again", stageErr)
	case stageErr != nil:
		result.side, result.Err = target, stageErr
	case checkErr != nil && !errors.Is(checkErr, narcheck.ErrUnreadable):
		result.Err = checkErr
	default:
		if err := staged.Commit(ctx); err != nil {
			result.side, result.Err = target, err
			break
		}
		result.Outcome, result.Verified, result.read, result.kept = Copied, item != nil && checkErr == nil, true, true
	}
	return result
}

// stageVerified stages a file, and on the way decompresses it and compares its NarHash.
func (r *run) stageVerified(ctx context.Context, item *storage.Item, n int, from, body io.Reader, name string, size int64) (_ bytestore.Staged, stageErr, checkErr error) {
	checked, checking := io.Pipe()
	verdict := make(chan error, 1)
	go func() {
		err := narcheck.Check(ctx, item.Narinfo, n, checked, r.Decode)
		if errors.Is(err, narcheck.ErrUnreadable) {
			// The compression is unknown: the file may be good, so copy it.
			_, _ = io.Copy(io.Discard, checked)
		}
		checked.CloseWithError(err) // ends the staging, too
		verdict <- err
	}()
	staged, stageErr := r.To.Stage(ctx, name, readTwice(io.TeeReader(from, checking), body), size)
	checking.CloseWithError(stageErr)
	return staged, stageErr, <-verdict
}
