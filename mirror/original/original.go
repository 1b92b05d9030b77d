// Package original reads and writes databases with the schema of the original Nar Herder
// (Guile), which instances of either program exchange as dumps. All knowledge of the schema
// is here.
//
// The names of tables and columns are remembered and could not be verified. So a reader uses
// what there is: narinfos.contents alone is enough, as everything except times, tags and the
// log can be derived from the texts.
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

// Cached is a nar in a compression that the instance made itself.
type Cached struct {
	Compression string
	Size        int64 // of the file, in bytes; -1 when not known
}

// Item is a narinfo with its tags and cached nars.
type Item struct {
	Text []byte // the narinfo, byte for byte
	// AddedAt is when the first instance added it, UTC and in whole seconds; zero if
	// unknown.
	AddedAt time.Time
	Tags    []Tag
	Cached  []Cached
	// ID is the row's id, if it was read. A Writer assigns its own ids.
	ID int64
}

// Change is a row of the log that mirrors follow.
type Change struct {
	At      time.Time // UTC, in whole seconds
	Removal bool
	// Data is the narinfo of an addition, or the store path of a removal.
	Data string
	// ID is the row's id, if it was read. A Writer assigns its own ids.
	ID int64
}

// SumKey is the key of the sum of all items in [Database.Info].
const SumKey = "sum"

// DamagedKey is the key of the path hashes, separated by spaces, of the items that a dump
// lacks because they are damaged and not removed, or of [ManyDamaged] if some are unknown.
const (
	DamagedKey  = "damaged"
	ManyDamaged = "many"
)

// AddTo adds an item to the sum of all, by which a damaged dump is detected.
func AddTo(sum *rowsum.Sum, item Item) {
	var at int64
	if !item.AddedAt.IsZero() {
		at = item.AddedAt.Unix()
	}
	sum.Add(at, 0, item.Text)
}

// FromStart is the id that comes before all others.
const FromStart = math.MinInt64

// Errors of [Open]. Each is wrapped in one that names the file and what to do.
var (
	// ErrNotDatabase reports a file that is not an SQLite database, or a damaged one.
	ErrNotDatabase = errors.New("not an SQLite database")
	// ErrNotOriginal reports a database without the original's narinfos.
	ErrNotOriginal = errors.New("not a database of the original Nar Herder")
	// ErrInUse reports that another process has the database open.
	ErrInUse = errors.New("database is in use")
)

// RowError reports one row that makes no sense. Reading continues after it.
type RowError struct {
	Table string
	ID    int64
	Err   error
}

func (e *RowError) Error() string { return fmt.Sprintf("%s, row %d: %v", e.Table, e.ID, e.Err) }

func (e *RowError) Unwrap() error { return e.Err }
