package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// VerifyOptions are for [Checker.Verify].
type VerifyOptions struct {
	Decode narcheck.Decoder
	// Rate is the maximum rate of reading in bytes per second; no limit if it is not
	// positive.
	Rate int64
	// From is the position to resume from, see [Checker.VerifyPosition].
	From VerifyPosition
	// Looked is called after each file with its length; may be nil.
	Looked func(bytes int64)
}

const (
	// verifySaveEvery bounds the work that is repeated after a crash.
	verifySaveEvery = 2 * time.Second
	// mostUnsaved bounds the items in memory.
	mostUnsaved = 1000
)

// Verify reads each stored file and finds those that are not the nar that the narinfo
// describes. In the index it records which items are right, and its position: an interrupted
// Verify resumes from [Checker.VerifyPosition], also after a crash. Then it skips items that
// were verified since it began, by whatever process. Missing files and files of the wrong size
// are left to [Checker.Compare]. Errors are as there.
func (c *Checker) Verify(ctx context.Context, options VerifyOptions) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		if c.bytes == nil {
			return
		}
		v := &verifying{
			Checker: c, VerifyOptions: options, limiter: &pace.Limiter{Rate: options.Rate},
			position: options.From, saved: c.Now(),
		}
		if v.Looked == nil {
			v.Looked = func(int64) {}
		}
		if v.position.Begun.IsZero() {
			v.position.Begun = c.Now().Truncate(time.Millisecond) // as the index stores times
		}
		over := false // yield must not be called again
		v.yield = func(finding Finding, err error) bool {
			over = over || !yield(finding, err)
			return !over
		}
		ended := v.all(ctx)
		if !ended && !over && ctx.Err() != nil {
			v.yield(Finding{}, ctx.Err())
		}
		// Save it even if the context has ended, so that the next Verify resumes.
		longer, cancel := linger.Context(ctx, linger.Second)
		defer cancel()
		err := v.save(longer, ended)
		switch {
		case err != nil && over:
			c.log.Warn("can't save the position of the check: the next one repeats this one", "error", err)
		case err != nil:
			v.yield(Finding{}, err)
		}
	}
}

// verifying is one pass of Verify.
type verifying struct {
	*Checker
	VerifyOptions
	yield    func(Finding, error) bool
	limiter  *pace.Limiter
	position VerifyPosition
	saved    time.Time
	right    []verifiedItem // not saved yet
}

// all verifies the items. It returns false if it was stopped before the end.
func (v *verifying) all(ctx context.Context) bool {
	for row, err := range v.index.Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			continue // CheckIndex reports it
		}
		if err != nil {
			if ctx.Err() == nil {
				v.yield(Finding{}, err)
			}
			return false // the index can't be read
		}
		// After the clock was set back, times of verifications are in the future.
		if !row.VerifiedAt.Before(v.position.Begun) && !row.VerifiedAt.After(v.Now()) {
			continue
		}
		if !v.one(ctx, row.Hash) {
			return false
		}
		if now := v.Now(); now.Sub(v.saved) >= verifySaveEvery || len(v.right) >= mostUnsaved {
			v.saved = now
			if err := v.save(ctx, false); err != nil && (ctx.Err() != nil || !v.yield(Finding{}, err)) {
				return false
			}
		}
	}
	return true
}

// one verifies an item's files. It returns false when the pass is over.
func (v *verifying) one(ctx context.Context, hash narinfo.PathHash) (more bool) {
	at := v.Now()
	item, err := v.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
		return true
	} else if err != nil {
		return ctx.Err() == nil && v.yield(Finding{}, err)
	}
	right := item.Stored != 0
	var files, bytes int64
	for n, name := range item.FileNames() {
		if !item.HasStored(n) || name == "" {
			continue
		}
		finding, size, err := v.file(ctx, hash, name)
		if ctx.Err() != nil {
			return false
		}
		if size >= 0 {
			v.Looked(size)
		}
		if err == nil && finding.Kind == Unknown {
			if right = right && size >= 0; right {
				files++
				bytes += size
			}
			continue
		}
		right = false
		if !v.yield(finding, err) {
			return false
		}
		if err != nil {
			// If the whole storage can't be read, stop.
			if err := v.readable(ctx); err != nil {
				v.yield(Finding{}, err)
				return false
			}
		}
	}
	if right {
		v.right = append(v.right, verifiedItem{item, at})
		v.position.Files += files
		v.position.Bytes += bytes
	}
	return true
}

// verifyTries is how often a file is read if it changes meanwhile.
const verifyTries = 5

// file verifies the named file. The size is negative if there was nothing to read. Without
// an error, the kind Unknown says that nothing is wrong.
func (v *verifying) file(ctx context.Context, hash narinfo.PathHash, name string) (finding Finding, size int64, err error) {
	for range verifyTries {
		finding = Finding{Name: name}
		item, err := v.Item(ctx, hash)
		if errors.Is(err, storage.ErrNotFound) {
			return finding, -1, nil
		} else if err != nil {
			return finding, -1, err
		}
		finding.Item = item
		n := item.FileNamed(name)
		if n < 0 {
			return finding, -1, nil
		}
		reader, info, err := v.OpenFile(ctx, item, n, 0, -1)
		if errors.Is(err, storage.ErrNotStored) || errors.Is(err, storage.ErrMismatch) {
			return finding, -1, nil // Compare reports it
		} else if err != nil {
			return finding, -1, err
		}
		err = narcheck.Check(ctx, item.Narinfo, n, v.limiter.Reader(ctx, io.LimitReader(reader, info.Size)), v.Decode)
		reader.Close()
		if err == nil {
			return finding, info.Size, nil
		}
		if !errors.Is(err, narcheck.ErrWrongNar) && !errors.Is(err, bytestore.ErrDamaged) {
			return finding, info.Size, fmt.Errorf("verify %s in storage %s: %w", name, v.bytes, err)
		}
		finding.Kind, finding.Note, finding.info = Corrupt, err.Error(), info
		// Row or file may have changed meanwhile.
		changed, err := v.hasChanged(ctx, finding)
		if err != nil || !changed {
			if err != nil {
				finding.Kind = Unknown
			}
			return finding, info.Size, err
		}
	}
	finding.Kind = Unknown
	return finding, -1, fmt.Errorf("verify %s in storage %s: it changed each time it was read: run the check again", name, v.bytes)
}
