package importer

import (
	"fmt"
	"io/fs"
	"math/bits"
	"strings"

	"nar-herder/storage"
	"nar-herder/storage/importer/source"
	"nar-herder/storage/index"
)

// An item can be added without some of its files, if these were lost or deleted elsewhere. They
// are recorded as dropped, so that clients don't get their unsigned blocks.

// errNoNar says that a file is nowhere.
type errNoNar struct {
	name, storage string
	places        []source.Place
	others        bool // the narinfo names other files, which may be there
}

func (e *errNoNar) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "its nar %s was not found: looked in the storage %s", e.name, e.storage)
	for _, place := range e.places {
		if place.Name != e.name {
			fmt.Fprintf(&text, ", %s", place)
			break // the others are rare
		}
		fmt.Fprintf(&text, ", %s", place.Directory)
	}
	fmt.Fprintf(&text, ": %v", fs.ErrNotExist)
	if e.others {
		text.WriteString(": --allow-missing-files imports items that have another of their nars")
	}
	return text.String()
}

func (e *errNoNar) Unwrap() error { return fs.ErrNotExist }

// mayLack reports whether the item may be added without the file: it was dropped before, or the
// addition allows it.
func (p *prepared) mayLack(name string) bool {
	if p.AllowMissing {
		return true
	}
	if p.old == nil || p.old.Narinfo.NarHash != p.Narinfo.NarHash {
		return false
	}
	i := p.old.FileNamed(name)
	return i >= 0 && p.old.HasDropped(i)
}

// stillMissing reports whether no other process has stored files that were missing when the
// addition was prepared.
func (p *prepared) stillMissing(row *storage.Item) bool {
	for n, file := range p.Narinfo.Files {
		if p.entry.Dropped&(1<<n) == 0 {
			continue
		}
		name := storage.NarName(file, p.Narinfo.StorePath.Hash)
		size := index.FileSize(p.Narinfo, n, p.entry.Sizes)
		if claims(row, p.Narinfo, n, name, size) && !claims(p.old, p.Narinfo, n, name, size) {
			return false
		}
	}
	return true
}

// setDropped records the missing files of an addition in the row of the same narinfo, and that
// those which were found are dropped no more.
func (p *prepared) setDropped(tx *index.Tx, row *storage.Item) error {
	dropped := row.Dropped &^ p.entry.Stored
	if dropped != row.Dropped {
		p.result.Outcome = Completed
	}
	if !row.Mirrored { // otherwise, the mirrored instance has them
		dropped |= p.entry.Dropped
		p.result.Missing = bits.OnesCount64(dropped &^ row.Dropped)
	}
	if dropped == row.Dropped {
		return nil
	}
	return tx.SetDropped(row.Hash, dropped, p.begun)
}
