// Package storage keeps store items. An item is a row in the index and bytes in a byte
// store, which this package keeps consistent: no crash leaves a row that claims bytes
// which are not stored. What a crash does leave behind, package storage/check finds.
package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/readers"
	"nar-herder/storage/space"
)

// ErrNotFound says that there certainly is no such item.
var ErrNotFound = index.ErrNotFound

// ErrLost is the [ErrNotFound] of an item that is hidden from clients because its nars are
// lost.
var ErrLost = index.ErrLost

// ErrNotStored says that the item is known and its bytes are certainly not here.
var ErrNotStored = errors.New("the nar is not in this storage")

// ErrMismatch says that bytes which the index has as stored are missing or of another
// size. It is a fault of this machine, not an answer to a client.
var ErrMismatch = errors.New("index and storage disagree")

// Storage is an index and the bytes that belong to it.
type Storage struct {
	*space.Space
	// Readers knows who reads the files of items that came from upstreams.
	*readers.Readers
	index *index.Index
	bytes *itemBytes // nil: nars are kept elsewhere
	log   *slog.Logger
	now   func() time.Time
	// linked is how many bytes were deleted by this process and have other names.
	linked atomic.Int64
	// notDeleted is how often a file could not be deleted.
	notDeleted atomic.Int64
	readOnly   bool
	keys       *signing.Keys
	mayWrite   func(context.Context) error // nil: always
	// checked is when mayWrite allowed it last; nil for never, or no longer.
	checked atomic.Pointer[time.Time]
}

// Options of [New]. The zero value is valid.
type Options struct {
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock for the times of items; nil for the system's.
	Now func() time.Time
	// MayWrite returns an error if this instance may not write to the byte store; nil allows
	// it always.
	MayWrite func(context.Context) error
	// ReadOnly prevents writing to the byte store; see [Storage.IsReadOnly].
	ReadOnly bool
	// Keys are authorized to sign narinfos, see [Authorize]; nil for any key.
	Keys *signing.Keys
}

// New joins an index and a byte store, which the caller closes. Without a byte store, a
// Storage knows items but keeps no bytes.
func New(x *index.Index, bytes bytestore.Store, options Options) *Storage {
	s := &Storage{index: x, log: options.Log, now: options.Now, mayWrite: options.MayWrite, readOnly: options.ReadOnly, keys: options.Keys,
		Readers: readers.New()}
	if bytes != nil {
		s.bytes = &itemBytes{bytes}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.Space = space.New(x, bytes, s.log, s.now)
	return s
}

// Index returns the index, for queries and for transactions that change no bytes.
func (s *Storage) Index() *index.Index { return s.index }

// NarStore returns the byte store for the nars of items, nil for none. It refuses names that
// are not those of nars.
func (s *Storage) NarStore() bytestore.Store {
	if s.bytes == nil {
		return nil
	}
	return s.bytes
}

// Log returns the log for operators.
func (s *Storage) Log() *slog.Logger { return s.log }

// Now returns the time for items that are added now.
func (s *Storage) Now() time.Time { return s.now() }

// ByteStore returns the byte store itself, for notes and files that are not nars; nil for
// none.
func (s *Storage) ByteStore() bytestore.Store {
	if s.bytes == nil {
		return nil
	}
	return s.bytes.Store
}

// HasBytes reports whether there is a byte store.
func (s *Storage) HasBytes() bool { return s.bytes != nil }

// IsRemote reports whether the byte store is reached over a network.
func (s *Storage) IsRemote() bool { return s.bytes != nil && s.bytes.IsRemote() }

// Concurrency returns how many calls of LookFor at a time suit the byte store.
func (s *Storage) Concurrency() int {
	if s.bytes == nil {
		return 1
	}
	return s.bytes.Concurrency()
}

// Item is an item with its parsed narinfo.
type Item struct {
	*index.Item
	Narinfo *narinfo.Narinfo
	// Write writes the row of an item that is not in the index yet, in the transaction that
	// records its first stored file, so that no client gets the narinfo before; nil for an
	// item of the index. It may be called twice.
	Write func(*index.Tx) error
	// names are those of its files in the storage, "" for files that can't be in one.
	names []string
}

// Text returns the item's narinfo byte for byte, or [ErrNotFound].
func (s *Storage) Text(ctx context.Context, hash narinfo.PathHash) ([]byte, error) {
	return s.index.Text(ctx, hash)
}

// TextUntil is [index.Index.TextUntil].
func (s *Storage) TextUntil(ctx context.Context, hash narinfo.PathHash) ([]byte, time.Time, error) {
	return s.index.TextUntil(ctx, hash)
}

// Item returns the item, or [ErrNotFound].
func (s *Storage) Item(ctx context.Context, hash narinfo.PathHash) (*Item, error) {
	row, err := s.index.Item(ctx, hash)
	if err != nil {
		return nil, err
	}
	return s.ItemOf(row)
}

// ItemsAt returns many items, in the order of hashes; nil if there certainly is none.
func (s *Storage) ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*Item, error) {
	rows, err := s.index.ItemsAt(ctx, hashes)
	if err != nil {
		return nil, err
	}
	items := make([]*Item, len(rows))
	for i, row := range rows {
		if row == nil {
			continue
		}
		if items[i], err = s.ItemOf(row); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// NewItem parses the narinfo of a row.
func NewItem(row *index.Item) (*Item, error) {
	n, err := narinfo.Parse(row.Text)
	if err != nil {
		return nil, fmt.Errorf("the narinfo of %s in the database: %w", row.Hash, err)
	}
	item := &Item{Item: row, Narinfo: n, names: make([]string, len(n.Files))}
	for i, file := range n.Files {
		item.names[i] = NarName(file, row.Hash)
	}
	return item, nil
}

// FileNamed returns which of the item's files has the name in a storage, -1 for none.
func (i *Item) FileNamed(name string) int {
	if name == "" {
		return -1
	}
	return slices.Index(i.names, name)
}

// FileName returns the name of the item's Nth file in a storage, "" for a file that can't
// be in one.
func (i *Item) FileName(n int) string { return i.names[n] }

// FileNames returns FileName of all files.
func (i *Item) FileNames() []string { return i.names }

// NarNames returns all names that the item can have files under.
func (i *Item) NarNames() []string {
	return slices.DeleteFunc(slices.Clone(i.names), func(name string) bool { return name == "" })
}

// byEffort lists compressions by the work of decompression, the least first.
var byEffort = []string{"none", "zstd", "gzip", "lzip", "xz", "bzip2"}

// EasiestFile returns which of the available files takes the least work to decompress; -1
// if none has a compression that can be read. A dropped file is the last choice: it may be
// about to be deleted.
func (i *Item) EasiestFile(there func(n int) bool) int {
	best, least := -1, 2*len(byEffort)
	for n, file := range i.Narinfo.Files {
		effort := slices.Index(byEffort, file.Compression)
		if effort >= 0 && i.HasDropped(n) {
			effort += len(byEffort)
		}
		if effort >= 0 && effort < least && there(n) {
			best, least = n, effort
		}
	}
	return best
}

// IsUnwanted reports whether the Nth file was dropped and another one is stored, so that this
// one is not to be stored.
func (i *Item) IsUnwanted(n int) bool { return i.HasDropped(n) && i.Stored&^i.Dropped != 0 }

// Items returns all items that have every given tag. An error that is [index.ErrDamaged] is
// about one item, and others follow.
func (s *Storage) Items(ctx context.Context, tags ...index.Tag) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		for row, err := range s.index.Items(ctx, tags...) {
			var item *Item
			if err == nil {
				item, err = NewItem(row)
			}
			if !yield(item, err) {
				return
			}
		}
	}
}

// StoredSize is the recorded size of the item's Nth file in the storage.
func (i *Item) StoredSize(n int) int64 {
	return index.FileSize(i.Narinfo, n, i.Sizes)
}

// StoredBytes is the recorded length of all files of the item in the storage.
func (i *Item) StoredBytes() (total int64) {
	for n := range i.Narinfo.Files {
		if i.HasStored(n) {
			total += max(i.StoredSize(n), 0)
		}
	}
	return total
}

// FileUnder returns the item that has a file with the name, and which of its files that
// is. The error is [ErrNotFound] if there certainly is none. The file need not be stored.
func (s *Storage) FileUnder(ctx context.Context, name string) (*Item, int, error) {
	hash := HashInName(name)
	item, err := s.Item(ctx, hash)
	if err != nil {
		return nil, -1, err
	}
	n := item.FileNamed(name)
	if n < 0 {
		return nil, -1, ErrNotFound
	}
	return item, n, nil
}

// Instance returns the random id of this instance.
func (s *Storage) Instance() string { return s.index.Instance() }

// Totals returns the sums that the index keeps.
func (s *Storage) Totals(ctx context.Context) (index.Totals, error) { return s.index.Totals(ctx) }

// FilesNamed returns the bits, as in Stored, of the item's files with a name.
func (i *Item) FilesNamed(name string) (files uint64) {
	for n := range i.names {
		if i.names[n] == name {
			files |= 1 << n
		}
	}
	return files
}

// MarkStored records in a new row that the Nth file is stored, with its size.
func MarkStored(entry *index.Entry, n int, size int64) {
	entry.Stored |= 1 << n
	if entry.Narinfo.Files[n].Size >= 0 {
		return
	}
	if entry.Sizes == nil {
		entry.Sizes = make([]int64, len(entry.Narinfo.Files))
		for i := range entry.Sizes {
			entry.Sizes[i] = -1
		}
	}
	entry.Sizes[n] = size
}

// CarryStored marks those files of a new row as stored that the old row of the same nar has as
// stored, and as verified and dropped, unless they have another compression now. It is for
// callers without access to the byte store.
func CarryStored(entry *index.Entry, old *Item) {
	if old.Narinfo.NarHash != entry.Narinfo.NarHash {
		return
	}
	for n, file := range entry.Narinfo.Files {
		name, err := file.Path()
		if err != nil {
			continue
		}
		if i := old.FileNamed(name); i >= 0 && old.HasStored(i) && old.Narinfo.Files[i].Compression == file.Compression && (file.Size < 0 || file.Size == old.StoredSize(i)) {
			MarkStored(entry, n, old.StoredSize(i))
			entry.VerifiedAt = old.VerifiedAt
			if old.HasDropped(i) {
				entry.Dropped |= 1 << n
			}
		}
	}
}
