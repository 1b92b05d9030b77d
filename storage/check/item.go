package check

import (
	"context"
	"errors"
	"iter"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// VerifyItem reads the stored files of one item within the limit, which may be shared, and finds
// what [Checker.Verify] and [Checker.Compare] would. Of the options, it uses Decode and Looked. An
// error comes with the kind [Unknown]; if the finding has no name, nothing can be read.
func (c *Checker) VerifyItem(ctx context.Context, hash narinfo.PathHash, limiter *pace.Limiter, options VerifyOptions) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		item, err := c.Item(ctx, hash)
		if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
			return // CheckIndex finds damage
		} else if err != nil {
			yield(Finding{}, err)
			return
		}
		v := &verifying{Checker: c, VerifyOptions: options, limiter: limiter}
		for n, name := range item.FileNames() {
			if name == "" || !item.HasStored(n) {
				continue
			}
			finding, size, err := v.file(ctx, hash, name)
			if size >= 0 {
				v.Looked(size)
			} else if err == nil {
				finding, err = c.compareStored(ctx, hash, name)
			}
			if (err != nil || finding.Kind != Unknown) && !c.found(ctx, finding, err, yield) {
				return
			}
		}
	}
}

// compareStored compares a file with its row, if the row has it as stored and this instance
// owns the byte store. The owner may have removed the file otherwise.
func (c *Checker) compareStored(ctx context.Context, hash narinfo.PathHash, name string) (Finding, error) {
	if errors.Is(c.MayDelete(ctx), storage.ErrNotOwner) {
		return Finding{}, nil
	}
	finding, err := c.CompareFile(ctx, hash, name)
	if err == nil && finding.Kind != Missing && finding.Kind != WrongSize {
		finding.Kind = Unknown // it has changed
	}
	return finding, err
}

// CompareFile compares a file with its item's row, as [Checker.Compare] does. Without an error,
// the kind [Unknown] says that nothing is wrong.
func (c *Checker) CompareFile(ctx context.Context, hash narinfo.PathHash, name string) (finding Finding, err error) {
	finding.Name = name
	var compareErr error
	err = c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		finding, compareErr = c.compare(ctx, tx, hash, name)
		return nil
	})
	if err == nil {
		err = compareErr
	}
	return finding, err
}
