// Package check compares the index of a storage with its bytes, and repairs what it finds.
package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// Checker checks one storage.
type Checker struct {
	*storage.Storage
	index *index.Index
	bytes bytestore.Store // for nars; nil for none
	log   *slog.Logger
}

// New makes a checker.
func New(s *storage.Storage) *Checker {
	return &Checker{Storage: s, index: s.Index(), bytes: s.NarStore(), log: s.Log()}
}

// Compare compares the index with the bytes, both ways, and changes nothing. It looks
// again at what seems wrong, with the index locked unless that is open for reading only,
// so that concurrent additions and removals are not reported.
//
// An error comes with the finding [Unknown]. Callers that continue get the remaining
// findings. looked is called after each item and each file; it may be nil.
func (c *Checker) Compare(ctx context.Context, looked func()) iter.Seq2[Finding, error] {
	if looked == nil {
		looked = func() {}
	}
	return func(yield func(Finding, error) bool) {
		if c.bytes == nil {
			return
		}
		// If the whole storage can't be read, report that once.
		if err := c.readable(ctx); err != nil {
			yield(Finding{}, err)
			return
		}
		report, end := c.reporter(ctx, yield)
		if c.checkItems(ctx, looked, report, yield) && end() && c.checkFiles(ctx, looked, report, yield) {
			end()
		}
	}
}

// reporter returns a function that looks again at a file that seems wrong and yields the finding,
// and one that ends this. Both return false when the check is over.
func (c *Checker) reporter(ctx context.Context, yield func(Finding, error) bool) (report func(narinfo.PathHash, string) bool, end func() bool) {
	if c.index.IsReadOnly() {
		later := &suspects{c: c, yield: yield}
		return func(hash narinfo.PathHash, name string) bool { return later.report(ctx, hash, name) },
			func() bool { return later.flush(ctx) }
	}
	return func(hash narinfo.PathHash, name string) bool { return c.report(ctx, hash, name, yield) },
		func() bool { return true }
}

// CheckIndex finds damage in the index: in dictionaries, texts and lookup columns. Errors
// are as in [Checker.Compare]; looked is called after each item.
func (c *Checker) CheckIndex(ctx context.Context, looked func()) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		for damage, err := range c.index.FindDamage(ctx, looked) {
			finding := Finding{Damage: damage}
			switch {
			case err != nil:
			case damage.Dictionary != 0:
				finding.Kind, finding.Note = Damaged, fmt.Sprintf("dictionary %d: %s", damage.Dictionary, damage.Reason)
			case damage.Change != 0:
				finding.Kind, finding.Note = Damaged, fmt.Sprintf("change %d: %s", damage.Change, damage.Reason)
			default:
				finding.Kind, finding.Note = Damaged, fmt.Sprintf("the narinfo of %s: %s", damage.Hash, damage.Reason)
			}
			if !yield(finding, err) {
				return
			}
		}
	}
}

// readable returns an error if the byte store as a whole can't be read.
func (c *Checker) readable(ctx context.Context) error {
	for info, err := range c.bytes.List(ctx) {
		if err != nil && info.Name == "" {
			return err
		}
		break
	}
	return nil
}

// checkItems looks for the file of each row, and calls report with what seems wrong. It
// returns false when the check is over, as does report.
func (c *Checker) checkItems(ctx context.Context, looked func(), report func(narinfo.PathHash, string) bool, yield func(Finding, error) bool) bool {
	for item, err := range c.Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			looked()
			continue // CheckIndex reports it
		}
		if err != nil {
			if !yield(Finding{}, err) {
				return false
			}
			continue // perhaps only this row can't be read
		}
		for n, name := range item.FileNames() {
			if name == "" || !item.HasStored(n) {
				continue
			}
			info, err := c.bytes.Stat(ctx, name)
			if err == nil && info.Size == item.StoredSize(n) {
				continue
			}
			if !report(item.Hash, name) {
				return false
			}
		}
		looked()
	}
	return true
}

// checkFiles looks for the row of each file. It returns false when the check is over.
func (c *Checker) checkFiles(ctx context.Context, looked func(), report func(narinfo.PathHash, string) bool, yield func(Finding, error) bool) bool {
	for info, err := range c.bytes.List(ctx) {
		finding := Finding{Name: info.Name, Note: fmt.Sprintf("%d bytes", info.Size), info: info}
		hash := storage.HashInName(info.Name)
		switch {
		case err != nil:
			finding.Note = ""
		case info.Name == bytestore.IdentityName, info.Name == bytestore.OwnerName:
			continue
		case info.Temporary:
			finding.Kind = Temporary
		case bytestore.IsQuarantined(info.Name):
			finding.Kind = Quarantined
		default:
			if item, err := c.Item(ctx, hash); err == nil {
				if n := item.FileNamed(info.Name); n >= 0 && item.HasStored(n) {
					looked()
					continue
				}
			}
			if !report(hash, info.Name) {
				return false
			}
			looked()
			continue
		}
		if !yield(finding, err) {
			return false
		}
		looked()
	}
	return true
}

// report compares a file that seems wrong with its row again, and yields the finding. It
// returns false when the check is over.
func (c *Checker) report(ctx context.Context, hash narinfo.PathHash, name string, yield func(Finding, error) bool) bool {
	finding, err := c.CompareFile(ctx, hash, name)
	return c.found(ctx, finding, err, yield)
}

// found yields the result of a comparison. It returns false when the check is over.
func (c *Checker) found(ctx context.Context, finding Finding, err error, yield func(Finding, error) bool) bool {
	switch {
	case ctx.Err() != nil:
		yield(Finding{}, ctx.Err())
		return false
	case err != nil:
		if !yield(Finding{Name: finding.Name, Item: finding.Item}, err) {
			return false
		}
		// If the whole storage can't be read, stop.
		if err := c.readable(ctx); err != nil {
			yield(Finding{}, err)
			return false
		}
		return true
	case finding.Kind == Unknown:
		return true
	}
	return yield(finding, nil)
}

// compare compares a file with its item's row within a transaction. Without an error, the
// kind Unknown says that nothing is wrong.
func (c *Checker) compare(ctx context.Context, tx *index.Tx, hash narinfo.PathHash, name string) (Finding, error) {
	finding := Finding{Name: name}
	row, err := tx.Item(hash)
	if errors.Is(err, index.ErrDamaged) {
		return finding, nil // it is unknown what the file should be
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return finding, err
	}
	n := -1
	if err == nil {
		if finding.Item, err = storage.NewItem(row); err != nil {
			return finding, err
		}
		n = finding.Item.FileNamed(name)
	}
	info, err := c.bytes.Stat(ctx, name)
	exists := err == nil
	if !exists && !errors.Is(err, fs.ErrNotExist) {
		return finding, err
	}
	finding.info = info
	switch {
	case n < 0:
		finding.Item = nil
		if exists {
			finding.Kind = Unreferenced
			finding.Note = fmt.Sprintf("%d bytes", info.Size)
		}
	case !finding.Item.HasStored(n):
		if exists {
			finding.Kind = Unrecorded
			if finding.Item.IsUnwanted(n) {
				finding.Kind, finding.Item = Unreferenced, nil
			}
			finding.Note = fmt.Sprintf("%d bytes", info.Size)
		}
	case !exists:
		finding.Kind = Missing
		finding.Note = fmt.Sprintf("should have %d bytes", finding.Item.StoredSize(n))
	case info.Size != finding.Item.StoredSize(n):
		finding.Kind = WrongSize
		finding.Note = fmt.Sprintf("%d bytes, should be %d", info.Size, finding.Item.StoredSize(n))
	}
	return finding, nil
}

// still returns the item of a finding within a transaction. The error is [errMeanwhile] if
// row or file have changed since.
func (c *Checker) still(ctx context.Context, tx *index.Tx, finding Finding) (*storage.Item, error) {
	row, err := tx.Item(finding.Item.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errMeanwhile
	} else if err != nil {
		return nil, err
	}
	if !bytes.Equal(row.Text, finding.Item.Text) || row.Stored != finding.Item.Stored || !slices.Equal(row.Sizes, finding.Item.Sizes) {
		return nil, errMeanwhile
	}
	item, err := storage.NewItem(row)
	if err != nil {
		return nil, err
	}
	info, err := c.bytes.Stat(ctx, finding.Name)
	switch gone := errors.Is(err, fs.ErrNotExist); {
	case err != nil && !gone:
		return nil, err
	case gone != (finding.Kind == Missing) || !gone && !info.IsSame(finding.info):
		return nil, errMeanwhile
	}
	return item, nil
}

// errMeanwhile says that a finding is outdated.
var errMeanwhile = errors.New("it has changed meanwhile: run the check again")

// hasChanged reports whether row or file of a finding have changed.
func (c *Checker) hasChanged(ctx context.Context, finding Finding) (bool, error) {
	var found error
	err := c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		_, found = c.still(ctx, tx, finding)
		return nil
	})
	if err == nil {
		err = found
	}
	if errors.Is(err, errMeanwhile) {
		return true, nil
	}
	return false, err
}
