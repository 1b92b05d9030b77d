package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
)

// Finding is where index and bytes are not true to each other.
type Finding struct {
	Kind FindingKind
	// Name is the file's, in the storage.
	Name string
	// Item is the one that the file belongs to; nil for a stranger.
	Item *Item
	// Note says more.
	Note string
}

// FindingKind says what is wrong.
type FindingKind int

const (
	// Missing: the index has the file as stored, and it certainly is not.
	Missing FindingKind = iota
	// WrongSize: the file is shorter or longer than the index has it.
	WrongSize
	// Unrecorded: a file that an item names is there, and the index does not
	// have it as stored.
	Unrecorded
	// Stranger: no item names the file.
	Stranger
	// Temporary: a file is being written, or was when a process died.
	Temporary
)

func (k FindingKind) String() string {
	return [...]string{"missing", "wrong size", "unrecorded", "stranger", "temporary"}[k]
}

// Check compares the index with the bytes, both ways, and changes nothing. What
// other processes add and remove meanwhile may show up as a finding. An error
// ends it: not knowing is no finding.
func (s *Storage) Check(ctx context.Context) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		if s.bytes == nil {
			return
		}
		if s.checkItems(ctx, yield) {
			s.checkFiles(ctx, yield)
		}
	}
}

// checkItems looks for the file of each row. It returns false when the pass is
// over.
func (s *Storage) checkItems(ctx context.Context, yield func(Finding, error) bool) bool {
	for item, err := range s.Items(ctx) {
		if err != nil {
			yield(Finding{}, err)
			return false
		}
		for n, name := range item.names {
			if !item.HasStored(n) {
				continue
			}
			finding := Finding{Name: name, Item: item}
			info, err := s.bytes.Stat(ctx, name)
			switch want := item.StoredSize(n); {
			case errors.Is(err, fs.ErrNotExist):
				finding.Kind = Missing
			case err != nil:
				yield(Finding{}, err)
				return false
			case info.Size != want:
				finding.Kind = WrongSize
				finding.Note = fmt.Sprintf("%d bytes, should be %d", info.Size, want)
			default:
				continue
			}
			if !yield(finding, nil) {
				return false
			}
		}
	}
	return true
}

// checkFiles looks for the row of each file.
func (s *Storage) checkFiles(ctx context.Context, yield func(Finding, error) bool) {
	for info, err := range s.bytes.List(ctx) {
		if err != nil {
			yield(Finding{}, err)
			return
		}
		finding := Finding{Kind: Stranger, Name: info.Name, Note: fmt.Sprintf("%d bytes", info.Size)}
		if info.Temporary {
			finding.Kind = Temporary
		} else if item, err := s.Item(ctx, hashInName(info.Name)); err == nil {
			if n := item.FileNamed(info.Name); n >= 0 {
				if item.HasStored(n) {
					continue
				}
				finding.Kind, finding.Item = Unrecorded, item
			}
		} else if !errors.Is(err, ErrNotFound) {
			yield(Finding{}, err)
			return
		}
		if !yield(finding, nil) {
			return
		}
	}
}
