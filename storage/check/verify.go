package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// VerifyOptions are for [Checker.Verify].
type VerifyOptions struct {
	Decode storage.Decoder
	// Rate is the maximum rate of reading in bytes per second; no limit if it is not
	// positive.
	Rate int64
	// From is the position to resume from, see [Checker.VerifyPosition].
	From VerifyPosition
	// Looked is called after each file with its length; may be nil.
	Looked func(bytes int64)
}

// verifySaveEvery bounds the work that is repeated after a crash.
const verifySaveEvery = 2 * time.Second

// Verify reads each stored file and finds those that are not the nar that the narinfo
// describes. It changes nothing but its saved position: an interrupted Verify resumes from
// [Checker.VerifyPosition], also after a crash. Missing files and files of the wrong size
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
			v.position.Begun = c.Now()
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
		err := c.saveVerifyPosition(longer, v.position, ended)
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
}

// all verifies the items that were wrong before, and those after the position. It returns
// false if it was stopped before the end.
func (v *verifying) all(ctx context.Context) bool {
	before := slices.Clip(v.position.again) // appending must copy it
	v.position.again = before
	for i, hash := range before {
		wrong, more := v.one(ctx, hash, func(int64) {})
		if !more {
			v.position.again = append(slices.Clone(before[i:]), v.position.again[len(before):]...)
			return false
		}
		if wrong {
			v.position.again = append(v.position.again, hash)
		}
	}
	v.position.again = v.position.again[len(before):]
	count := func(size int64) {
		v.position.Files++
		v.position.Bytes += size
	}
	for row, err := range v.index.ItemsAfter(ctx, v.position.after) {
		if errors.Is(err, index.ErrDamaged) {
			continue // CheckIndex reports it
		}
		if err != nil {
			if ctx.Err() == nil {
				v.yield(Finding{}, err)
			}
			return false // the index can't be read
		}
		wrong, more := v.one(ctx, row.Hash, count)
		if !more {
			return false
		}
		if len(v.position.again) < mostAgain {
			v.position.after = row.Position()
			if wrong {
				v.position.again = append(v.position.again, row.Hash)
			}
		}
		if now := v.Now(); now.Sub(v.saved) >= verifySaveEvery {
			v.saved = now
			if err := v.saveVerifyPosition(ctx, v.position, false); err != nil && (ctx.Err() != nil || !v.yield(Finding{}, err)) {
				return false
			}
		}
	}
	return true
}

// one verifies an item's files. wrong says that the item must be verified again after an
// interruption; more is false when the pass is over.
func (v *verifying) one(ctx context.Context, hash narinfo.PathHash, count func(size int64)) (wrong, more bool) {
	item, err := v.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
		return false, true
	} else if err != nil {
		return true, ctx.Err() == nil && v.yield(Finding{}, err)
	}
	for n, name := range item.FileNames() {
		if !item.HasStored(n) || name == "" {
			continue
		}
		finding, size, err := v.file(ctx, hash, name)
		if ctx.Err() != nil {
			return true, false
		}
		if size >= 0 {
			count(size)
			v.Looked(size)
		}
		if err == nil && finding.Kind == Unknown {
			continue
		}
		wrong = true
		if !v.yield(finding, err) {
			return wrong, false
		}
		if err != nil {
			// If the whole storage can't be read, stop.
			if err := v.readable(ctx); err != nil {
				v.yield(Finding{}, err)
				return wrong, false
			}
		}
	}
	return wrong, true
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
		err = storage.CheckNar(ctx, item.Narinfo, n, v.limiter.Reader(ctx, io.LimitReader(reader, info.Size)), v.Decode)
		reader.Close()
		if err == nil {
			return finding, info.Size, nil
		}
		if !errors.Is(err, storage.ErrWrongNar) && !errors.Is(err, bytestore.ErrDamaged) {
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
