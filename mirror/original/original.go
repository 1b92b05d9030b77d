// Package original knows the database of the original Nar Herder (Guile), which
// instances of either program pass to each other as a dump: it reads and writes
// files of that schema. All that is known of the schema is here.
//
// The names of tables and columns are remembered and could not be looked up. So
// a reader takes what there is: narinfos.contents alone is enough, as all but
// the times, the tags and the log can be made of the texts.
package original

import (
	"errors"
	"fmt"
	"math"
	"time"

	"nar-herder/internal/rowsum"
)

// Tag is a key and a value that an administrator gave to an item.
type Tag struct{ Key, Value string }

// Cached is a nar in a compression that the instance had made by itself.
type Cached struct {
	Compression string
	Size        int64 // of the file, in bytes; -1 when not known
}

// Item is a narinfo with what belongs to it.
type Item struct {
	Text []byte // the narinfo, byte for byte
	// AddedAt is when it came into the instance that had it first, UTC and in
	// whole seconds; zero when that is not known.
	AddedAt time.Time
	Tags    []Tag
	Cached  []Cached
	// ID is the row's, when it was read. A Writer gives ids of its own.
	ID int64
}

// Change is a row of the log that mirrors follow.
type Change struct {
	At      time.Time // UTC, in whole seconds
	Removal bool
	// Data is the narinfo of an addition, or the store path of a removal.
	Data string
	// ID is the row's, when it was read. A Writer gives ids of its own.
	ID int64
}

// SumKey is what the sum of all items is called in what is said of a dump.
const SumKey = "sum"

// DamagedKey is what the path hashes of items are called that a dump lacks since they are
// damaged, separated by spaces, or [ManyDamaged] where some hashes aren't known. They were
// not removed.
const (
	DamagedKey  = "damaged"
	ManyDamaged = "many"
)

// AddTo adds an item to the sum of all, which tells whether a dump is as it was written.
func AddTo(sum *rowsum.Sum, item Item) {
	var at int64
	if !item.AddedAt.IsZero() {
		at = item.AddedAt.Unix()
	}
	sum.Add(at, 0, item.Text)
}

// FromStart is the id that comes before all others.
const FromStart = math.MinInt64

// Errors of [Open] that callers tell apart. Each comes wrapped in one that names
// the file and what to do.
var (
	// ErrNotDatabase says that the file is no SQLite database, or a damaged one.
	ErrNotDatabase = errors.New("not an SQLite database")
	// ErrNotOriginal says that it is one, but without the original's narinfos.
	ErrNotOriginal = errors.New("not a database of the original Nar Herder")
	// ErrInUse says that another process has the database open.
	ErrInUse = errors.New("database is in use")
)

// RowError is about one row, which can't be made sense of. Others can: a reading
// goes on behind it.
type RowError struct {
	Table string
	ID    int64
	Err   error
}

func (e *RowError) Error() string { return fmt.Sprintf("%s, row %d: %v", e.Table, e.ID, e.Err) }

func (e *RowError) Unwrap() error { return e.Err }
