// Package search finds items by words of their names, and by the starts of their hashes.
//
// The search index is a file beside the database with the distinct names of all items, in
// lowercase and sorted, each with its items. A search compares every name. That takes some 5 ms for
// the 200,000 names of a million items and grows with the number of names alone, so common words,
// single letters, hostile queries and the exact ranking of all matches need no special treatment.
// An index of trigrams, such as FTS5's, finds rare words faster, but would have to look up and sort
// each match of a common one, and takes several times the space: this file takes 1 % of the
// database. The names stay in memory after the first search, some 27 bytes each; a server that
// nobody searches spends no memory on them.
//
// The file is derived data. It follows the database by the positions of items, which only grow:
// whatever was added after the newest position in the file is read at the start and kept in
// memory, until there is enough to merge it into a new file. So the database has no table and no
// write for it, commands need not know it, and deleting it only costs the time of building
// another one. A search looks up each item that it returns, so it never shows removed or withdrawn
// ones; a sweep drops removed items from the file. A file of another database, an older format,
// or with a wrong checksum is replaced.
package search

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/disk"
	"nar-herder/internal/logonce"
	"nar-herder/storage/index"
)

// suffix of the database's name makes the name of the file.
const suffix = "-search"

// Index is the search index of a database, and a [prometheus.Collector] of its metrics. Its
// methods are safe for concurrent use.
type Index struct {
	index  *index.Index
	path   string
	log    *slog.Logger
	faults logonce.Filter
	limits limits
	gauges []prometheus.Collector

	// Run alone changes these.
	mu      sync.RWMutex
	table   *table // nil: there is no file
	recent  recent // items that are not in the table
	covered int64  // position of the last item in either

	damaged  atomic.Bool // Run must build the index again
	items    atomic.Int64
	complete atomic.Bool
	swept    time.Time
	refused  time.Time // when the file could not be written
}

// limits are constants, except in tests.
type limits struct {
	// A new file is written after least items; during a build, after a quarter of those in the old
	// file, if these are more, or most items. Memory holds twice as many at most if the file can't be written: about 100 bytes
	// each.
	least, most int
	// blockText and blockPostings end a block of the file, in bytes.
	blockText, blockPostings int
	// rest is how many times as long as it has worked Run rests.
	rest int
}

var defaultLimits = limits{least: 50_000, most: 100_000, blockText: 32 << 10, blockPostings: 128 << 10, rest: 12}

// New returns the search index of a database, which is empty until [Index.Run] has read or built
// it. A nil log discards messages.
func New(x *index.Index, log *slog.Logger) *Index {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Index{
		index: x, path: x.Beside(suffix), log: log, limits: defaultLimits,
	}
	s.gauges = []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "narherder_search_index_bytes", Help: "Size of the search index on disk.",
		}, func() float64 { return float64(s.State().Bytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "narherder_search_indexed_items", Help: "Items in the search index.",
		}, func() float64 { return float64(s.State().Indexed) }),
	}
	return s
}

// State is the extent of a search index.
type State struct {
	// Indexed items can be found. They include items that were removed since the last sweep.
	Indexed int64
	// Items is the number of items in the database.
	Items int64
	// Building means that not all items were read yet, so results are incomplete.
	Building bool
	// Bytes is the size of the file.
	Bytes int64
}

// State returns the present state, from memory.
func (s *Index) State() State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	state := State{Indexed: s.indexed(), Items: s.items.Load(), Building: !s.complete.Load()}
	if s.table != nil {
		state.Bytes = s.table.size
	}
	return state
}

// indexed returns how many items the index has.
func (s *Index) indexed() int64 {
	n := int64(s.recent.items)
	if s.table != nil {
		n += s.table.meta.Items
	}
	return n
}

// Close closes the file, after Run and all searches have returned.
func (s *Index) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closeTable()
}

func (s *Index) closeTable() (err error) {
	if s.table != nil {
		err = s.table.file.Close()
		s.table = nil
	}
	return err
}

// Describe implements [prometheus.Collector].
func (s *Index) Describe(descs chan<- *prometheus.Desc) {
	for _, gauge := range s.gauges {
		gauge.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (s *Index) Collect(values chan<- prometheus.Metric) {
	for _, gauge := range s.gauges {
		gauge.Collect(values)
	}
}

// load opens the file if it belongs to the database and to its present content.
func (s *Index) load(ctx context.Context) error {
	t, err := openTable(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = s.mustMatch(ctx, t); err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.table, s.covered = t, t.meta.Covered
			s.recent.newest = t.meta.Newest
			return nil
		}
		_ = t.file.Close() // it was only read
	}
	if errors.Is(err, errDamaged) {
		s.log.Info("can't use the search index: building another one", "file", s.path, "error", err)
		s.remove()
		return nil
	}
	return err
}

// mustMatch returns errDamaged unless the table has items of the present database. One that was
// restored from an older copy may assign the same positions to other items.
func (s *Index) mustMatch(ctx context.Context, t *table) error {
	last, err := s.index.LastPosition(ctx)
	if err != nil {
		return err
	}
	if t.meta.Instance != s.index.Instance() || t.meta.Covered > last {
		return damaged("it belongs to another database, or to a newer copy")
	}
	positions := make([]int64, len(t.meta.Newest))
	for i, n := range t.meta.Newest {
		positions[i] = n.Position
	}
	items, err := s.index.ItemsByPosition(ctx, positions)
	if err != nil {
		return err
	}
	for i, item := range items {
		if item != nil && item.Hash.String() != t.meta.Newest[i].Hash {
			return damaged("it belongs to a newer copy of the database")
		}
	}
	return nil
}

// remove removes a file that can't be used.
func (s *Index) remove() {
	err := mustBeOurs(s.path)
	if err == nil {
		err = os.Remove(s.path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.faults.Log(s.log, slog.LevelWarn, time.Now(), "can't remove the search index", "error", err)
	}
}

// reset discards the index, so that Run builds another one.
func (s *Index) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.closeTable() // it was only read
	s.remove()
	s.recent, s.covered = recent{}, 0
	s.complete.Store(false)
}

// replace makes t the table in the place of the present one and of all recent items.
func (s *Index) replace(t *table) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.closeTable()
	s.table, s.recent = t, recent{newest: t.meta.Newest}
	return err
}

// write merges the recent items into a new file. keep selects items; nil keeps all.
func (s *Index) write(ctx context.Context, keep func(position int64) bool) (err error) {
	if err := mustBeOurs(s.path); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(s.index.Path()); err == nil {
		mode = info.Mode().Perm() & 0o666
	}
	file, err := openUnfinished(s.path+unfinished, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	t, err := s.writeTo(ctx, file, keep)
	if err == nil {
		if err = os.Rename(file.Name(), s.path); err == nil {
			return errors.Join(s.replace(t), disk.SyncDirectory(s.path))
		}
		err = errors.Join(err, t.file.Close())
	}
	return errors.Join(err, os.Remove(file.Name()))
}
