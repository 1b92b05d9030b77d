// Package dump makes and publishes dumps of an index, from which mirrors start.
//
// A dump is three files with the same state of the index: a database with the schema of the
// original Nar Herder, the same compressed, and a copy of the index, from which a mirror of
// this program starts in less time. The three are a generation. The previous generation is
// kept, because slow clients may still be downloading it.
package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/internal/stamp"
	"nar-herder/storage/index"
)

const (
	// changesKept is how many of the newest changes a dump has, for mirrors that follow
	// from the newest time there, and how many always stay in the log.
	changesKept = 1000
	// changesAge is the shortest time that a change stays in the log: a mirror that was
	// down for less can resume.
	changesAge = 30 * 24 * time.Hour
	// mostChanges bounds the log, whatever dumps have: this many changes, or
	// changesPerItem times the items if that is more, which takes some 100 MB or a sixth of
	// the index. Without it, the log would grow for ever if no dumps were made.
	mostChanges    = 1_000_000
	changesPerItem = 2
	// mostLogged is how many damaged items are logged for each dump.
	mostLogged = 20
)

// Options of [New].
type Options struct {
	// Path is the file name of the database, and the prefix of the other files, see
	// files.go.
	Path string
	// Interval is how often [Maker.Run] makes a dump; 0 for never.
	Interval time.Duration
	// Ready reports whether [Maker.Run] may make a dump; nil for always. It may not while
	// a mirror fetches its first items.
	Ready func() bool
	// Log may be nil.
	Log *slog.Logger
}

// Maker makes dumps of an index.
type Maker struct {
	index     *index.Index
	options   Options
	log       *slog.Logger
	published *Published
	metrics   *metrics
	make      func(context.Context) (Generation, error) // Make, except in tests
	now       func() time.Time                          // time.Now, except in tests
	most      int64                                     // mostChanges, except in tests
	failing   atomic.Bool                               // in Run
}

// New returns a maker of dumps of the index. It fails if the path is that of another file,
// which must not be overwritten.
func New(x *index.Index, options Options) (*Maker, error) {
	if err := CheckPath(context.Background(), options.Path, x.Path()); err != nil {
		return nil, fmt.Errorf("--database-dump: %w", err)
	}
	m := &Maker{index: x, options: options, log: options.Log, published: NewPublished(options.Path, x)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.make, m.now, m.most = m.Make, time.Now, mostChanges
	m.metrics = newMetrics(m)
	return m, nil
}

// Published returns the published dumps.
func (m *Maker) Published() *Published { return m.published }

// Make makes a dump, and trims the log by changes that all dumps have. The previous dump is
// served until the new one is complete and synced, and if Make fails. The error is [ErrBusy]
// while another process makes one, and [index.ErrFull] if there is not enough room. When the
// context ends, Make leaves files that [Maker.Tidy] and the next Make remove.
func (m *Maker) Make(ctx context.Context) (Generation, error) {
	begun := m.now()
	g, err := m.makeLocked(ctx, begun)
	if err != nil {
		if ctx.Err() != nil {
			return Generation{}, ctx.Err()
		}
		return Generation{}, m.advise(err)
	}
	m.log.Info("made a dump", "file", m.options.Path, "items", g.Items, "change", g.LastChange, "bytes", g.Size(),
		"duration", m.now().Sub(begun).Round(time.Millisecond))
	if err := m.trim(ctx, begun); err != nil && ctx.Err() == nil {
		m.log.Warn("old changes stay in the log until the next dump", "error", err)
	}
	return g, nil
}

func (m *Maker) makeLocked(ctx context.Context, at time.Time) (_ Generation, err error) {
	if err := CheckPath(ctx, m.options.Path, m.index.Path()); err != nil {
		return Generation{}, err
	}
	unlock, err := lock(m.options.Path)
	if err != nil {
		return Generation{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	old, err := m.clean()
	if err != nil {
		return Generation{}, err
	}
	if err := m.checkRoom(old); err != nil {
		return Generation{}, err
	}
	temporary := m.options.Path + temporaryInfix + strconv.FormatInt(at.UnixMilli(), 10)
	defer func() {
		if ctx.Err() != nil {
			return // see Tidy
		}
		for _, suffix := range []string{databaseSuffix, zstdSuffix, indexSuffix} {
			if removeErr := os.Remove(temporary + suffix); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	created := at.UTC().Truncate(time.Second)
	if len(old.Generations) > 0 && !created.After(old.Generations[0].CreatedAt) && !stamp.IsAhead(old.Generations[0].CreatedAt, created) {
		// Clients identify files by it, too.
		created = old.Generations[0].CreatedAt.Add(time.Second)
	}
	g, err := m.write(ctx, temporary, created)
	if err != nil {
		return Generation{}, err
	}
	return g, m.publish(temporary, at, g, old)
}

// Tidy removes the files of an interrupted Make, unless another is running.
func (m *Maker) Tidy() error {
	if _, err := os.Stat(m.options.Path + lockSuffix); errors.Is(err, fs.ErrNotExist) {
		return nil // there has never been one
	}
	unlock, err := lock(m.options.Path)
	if err != nil {
		return err
	}
	all, err := readManifest(m.options.Path)
	if err == nil {
		err = tidy(m.options.Path, all)
	}
	return errors.Join(err, unlock())
}

// clean keeps only the newest complete generation of this instance, so that there are never
// three, and removes the files of a killed process.
func (m *Maker) clean() (left manifest, err error) {
	all, err := readManifest(m.options.Path)
	if errors.Is(err, errManifest) {
		m.log.Warn("can't read the manifest of dumps: removing them", "error", err)
	} else if err != nil {
		return manifest{}, err
	}
	m.published.mu.Lock()
	own, ownErr := m.published.own(all.Generations)
	m.published.mu.Unlock()
	if ownErr != nil {
		return manifest{}, ownErr
	}
	for _, g := range own {
		if m.published.whole(g) == nil {
			left.Generations, left.Marks = []Generation{g}, all.Marks
			break
		}
	}
	if err != nil || len(left.Generations) != len(all.Generations) {
		// Before removing the files.
		if err := writeManifest(m.options.Path, m.options.Path+temporaryInfix+"manifest", left); err != nil {
			return manifest{}, err
		}
	}
	return left, tidy(m.options.Path, left)
}

// write writes the three files under temporary names.
func (m *Maker) write(ctx context.Context, temporary string, created time.Time) (Generation, error) {
	defer disk.WriteOut(temporary+indexSuffix, temporary+databaseSuffix, temporary+zstdSuffix)()
	copied, err := m.index.Copy(ctx, temporary+indexSuffix, created, changesKept)
	if err != nil {
		return Generation{}, err
	}
	g := Generation{Instance: m.index.Instance(), LastChange: copied.LastChange, Mark: copied.Mark, CreatedAt: created, Items: copied.Items, Damaged: int64(len(copied.Damaged))}
	for _, damage := range copied.Damaged[:min(len(copied.Damaged), mostLogged)] {
		m.log.Warn("the dump lacks a damaged item: run 'nar-herder check'", "item", damage.Hash.String(), "reason", damage.Reason)
	}
	// Make the rest from the copy, so that the files can't differ, and without load on the
	// index.
	if err := writeDatabase(ctx, temporary, temporary+indexSuffix, g, copied); err != nil {
		return Generation{}, err
	}
	items := g.Items
	err = both(ctx, func(ctx context.Context) error {
		return checkDatabase(ctx, temporary, items)
	}, func(ctx context.Context) (err error) {
		if g.Index, err = digest(ctx, temporary+indexSuffix); err == nil {
			g.Database, g.Zstd, err = compress(ctx, temporary, temporary+zstdSuffix)
		}
		return err
	})
	return g, err
}

// publish renames the files and writes the manifest.
func (m *Maker) publish(temporary string, at time.Time, g Generation, old manifest) error {
	name := fmt.Sprintf("%s%s%d-%d", filepath.Base(m.options.Path), generationInfix, g.LastChange, at.UnixMilli())
	for suffix, file := range map[string]*File{databaseSuffix: &g.Database, zstdSuffix: &g.Zstd, indexSuffix: &g.Index} {
		file.Name = name + suffix
		if err := os.Rename(temporary+suffix, filepath.Join(filepath.Dir(m.options.Path), file.Name)); err != nil {
			return err
		}
	}
	if err := disk.SyncDirectory(m.options.Path); err != nil {
		return err
	}
	now := manifest{append([]Generation{g}, old.Generations...), old.marksWith(g)}
	if err := writeManifest(m.options.Path, temporary+"-manifest", now); err != nil {
		return err
	}
	// From here on it is served.
	return linkPlain(m.options.Path, g)
}

// trim deletes old changes from the log that all dumps have: a mirror that starts from one of
// them finds the changes after it.
func (m *Maker) trim(ctx context.Context, now time.Time) error {
	generations, err := m.published.Generations()
	if err != nil || len(generations) == 0 {
		return err
	}
	all, err := readManifest(m.options.Path)
	if err != nil {
		return err
	}
	upTo := all.old(now)
	for _, g := range generations {
		upTo = min(upTo, g.LastChange)
	}
	deleted, err := m.index.TrimChanges(ctx, upTo, changesKept)
	if deleted > 0 {
		m.log.Info("removed changes from the log that all dumps have", "changes", deleted)
	}
	return err
}

// bound deletes the oldest changes of a log that is too long, even if no dump has them.
func (m *Maker) bound(ctx context.Context) error {
	last, err1 := m.index.LastChange(ctx)
	totals, err2 := m.index.Totals(ctx)
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	upTo := last - max(m.most, changesPerItem*totals.Items)
	if upTo <= 0 {
		return nil
	}
	deleted, err := m.index.TrimChanges(ctx, upTo, changesKept)
	if deleted == 0 {
		return err
	}
	// A mirror that starts from a dump needs the changes after it.
	generations, dumpErr := m.published.Generations()
	if dumpErr == nil && len(generations) > 0 && generations[0].LastChange >= upTo {
		m.log.Info("the log of changes was too long, so the oldest have left it", "changes", deleted)
		return err
	}
	m.log.Warn("the log of changes was too long, so the oldest have left it, and no dump has them: a mirror that has not followed them can't resume before 'nar-herder dump' has made one",
		"changes", deleted, "change", upTo)
	return err
}

// roomPerIndex is the size of a first dump in sizes of the index: the copy, and the
// database, which is larger because it is not compressed.
const roomPerIndex = 5

// checkRoom returns an error if there is too little room for a dump, because the index may be
// on the same disk.
func (m *Maker) checkRoom(old manifest) error {
	var need int64
	if len(old.Generations) > 0 {
		need = old.Generations[0].Size()
		need += need / 10
	} else {
		for _, suffix := range []string{"", "-wal"} {
			if info, err := os.Stat(m.index.Path() + suffix); err == nil {
				need += roomPerIndex * info.Size()
			}
		}
	}
	var system unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(m.options.Path), &system); err != nil {
		return fmt.Errorf("find out how much room there is for the dump: %w", err)
	}
	if free := int64(system.Bavail) * system.Bsize; free < need {
		return fmt.Errorf("%w: a dump takes about %d bytes, and %d are free", index.ErrFull, need, free)
	}
	return nil
}

// advise adds the next step to an error.
func (m *Maker) advise(err error) error {
	tried := "make the dump " + m.options.Path
	switch {
	case errors.Is(err, ErrBusy):
		return fmt.Errorf("%s: %w", tried, err)
	case isFull(err):
		if !errors.Is(err, index.ErrFull) {
			err = fmt.Errorf("%w: %w", index.ErrFull, err)
		}
		return fmt.Errorf("%s: %w: free some room there, or name a file on another disk with --database-dump", tried, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, index.ErrReadOnly), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s: %w: make %s a directory that this process may write to, or name another file with --database-dump", tried, err, filepath.Dir(m.options.Path))
	}
	return fmt.Errorf("%s: %w", tried, err)
}

// isFull reports whether an error means that the disk is full.
func isFull(err error) bool {
	var failure *sqlite.Error
	return disk.IsFull(err) || errors.Is(err, index.ErrFull) ||
		errors.As(err, &failure) && failure.Code()&0xff == sqlite3.SQLITE_FULL
}

// changed reports whether the index differs from the newest dump. It returns the time of that
// dump; zero for none.
func (m *Maker) changed(ctx context.Context) (changed bool, made time.Time, err error) {
	generations, err := m.published.Generations()
	if err != nil {
		// The next dump replaces the manifest.
		return true, time.Time{}, nil
	}
	last, err1 := m.index.LastChange(ctx)
	totals, err2 := m.index.Totals(ctx)
	withdrawn, err3 := m.index.WithdrawnCount(ctx)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return false, time.Time{}, err
	}
	items := totals.Items - withdrawn
	if len(generations) == 0 {
		// A new mirror that has no items yet must not publish an empty dump.
		return items > 0, time.Time{}, nil
	}
	newest := generations[0]
	if err := m.published.whole(newest); err != nil {
		m.log.Error("the dump is damaged: making another", "error", err)
		return true, time.Time{}, nil
	}
	return last != newest.LastChange || items != newest.Items+newest.Damaged, newest.CreatedAt, nil
}
