package check

import (
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// Finding is an inconsistency between index and bytes, or within one of them.
type Finding struct {
	Kind FindingKind
	// Name is the file's name in the storage, "" if the finding is not about a file.
	Name string
	// Item is nil for an unreferenced file.
	Item *storage.Item
	// Note says more.
	Note string
	// Damage is what is damaged in the index.
	Damage *index.Damage
	// References are those that an incomplete item lacks.
	References []narinfo.StorePath

	// Partial says that an [Unstored] item has other nars in the storage, so that nothing
	// is wrong.
	Partial bool

	// info describes the file as it was found.
	info bytestore.Info
}

// FindingKind says what is wrong.
type FindingKind int

const (
	// Unknown: it could not be found out. It comes with an error.
	Unknown FindingKind = iota
	// Missing: the index has the file as stored, and it certainly is not.
	Missing
	// WrongSize: the file is shorter or longer than the index has it.
	WrongSize
	// Corrupt: the file is as long as it should be, and what is in it is not
	// the nar that the narinfo describes.
	Corrupt
	// Unrecorded: a file that an item names is there, and the index does not
	// have it as stored.
	Unrecorded
	// Damaged: the index has something else than what was written to it.
	Damaged
	// Unstored: no nar of the item is in the storage, nor provided by another instance.
	Unstored
	// Incomplete: the item refers to others that have no narinfo, or that are
	// about to go.
	Incomplete
	// Unreferenced: no item names the file.
	Unreferenced
	// Temporary: a file is being written, or was when a process died.
	Temporary
	// Quarantined: a file that was found to be wrong once, and set aside.
	Quarantined
)

func (k FindingKind) String() string {
	return [...]string{"unknown", "missing", "wrong size", "corrupt", "unrecorded", "damaged", "unstored", "incomplete", "stranger", "temporary", "quarantined"}[k]
}

// IsNotice reports whether the finding does no harm.
func (f *Finding) IsNotice() bool {
	return f.Kind == Unreferenced || f.Kind == Temporary || f.Kind == Quarantined || f.Kind == Unstored && f.Partial
}
