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
	// Item is nil for an unreferenced file, and for an item without a narinfo.
	Item *storage.Item
	// Note has details.
	Note string
	// Damage describes the damage of a [Damaged] finding.
	Damage *index.Damage
	// References are those of an [Incomplete] item without a narinfo. If Item is nil, it is that
	// item.
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
	// Unknown: an error prevented the check.
	Unknown FindingKind = iota
	// Missing: the index has the file as stored, and it certainly is not.
	Missing
	// WrongSize: the file has another size than the index says.
	WrongSize
	// Corrupt: the file has the right size, but is not the nar that the narinfo describes.
	Corrupt
	// Unrecorded: a file that an item names exists, but the index does not have it as stored.
	Unrecorded
	// Damaged: a part of the index differs from what was written.
	Damaged
	// Unstored: neither the storage nor another instance, if that suffices, has a nar of the
	// item.
	Unstored
	// Incomplete: the item refers to others that have no narinfo or are withdrawn.
	Incomplete
	// Unsigned: the item has no signature.
	Unsigned
	// BadSignature: the item's signature doesn't match its narinfo.
	BadSignature
	// Unauthorized: none of the authorized keys has signed the item.
	Unauthorized
	// Unreferenced: no item names the file.
	Unreferenced
	// Temporary: the file is being written, or its writer was killed.
	Temporary
	// Quarantined: an earlier repair has set the file aside.
	Quarantined
)

func (k FindingKind) String() string {
	return [...]string{"unknown", "missing", "wrong size", "corrupt", "unrecorded", "damaged", "unstored", "incomplete", "unsigned", "bad signature", "unauthorized", "stranger", "temporary", "quarantined"}[k]
}

// IsAboutSignature reports whether clients refuse the item's narinfo.
func (k FindingKind) IsAboutSignature() bool {
	return k == Unsigned || k == BadSignature || k == Unauthorized
}

// IsNotice reports whether the finding does no harm.
func (f *Finding) IsNotice() bool {
	return f.Kind == Unreferenced || f.Kind == Temporary || f.Kind == Quarantined || f.Kind == Unstored && f.Partial
}
