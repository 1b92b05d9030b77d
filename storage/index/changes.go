package index

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"nar-herder/narinfo"
)

// ChangeKind says what happened to an item. The numbers are in the database.
type ChangeKind int

const (
	// Added: a narinfo came, or its text was replaced.
	Added ChangeKind = 1
	// Removed: the narinfo went.
	Removed ChangeKind = 2
	// StorageChanged: the narinfo stays as it is, but files of it came into
	// the storage or went. It concerns this instance alone.
	StorageChanged ChangeKind = 3
)

// Change is a row of the log.
type Change struct {
	ID   int64
	At   time.Time
	Kind ChangeKind
	Hash narinfo.PathHash
	// StorePath is the full path, for a removal only: the narinfo that would
	// tell it is gone.
	StorePath string
}

// Mark tells the change from another that the log might have with the same number,
// as it would after a backup was put back.
func (c *Change) Mark() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %s", c.ID, c.At.UnixMilli(), c.Kind, c.Hash))
	return hex.EncodeToString(sum[:8])
}

// markOf returns the mark of a change in a table of them; "" where it is not there, or
// damaged.
func (c *connection) markOf(table string, id int64) (mark string, err error) {
	row, err := c.first("SELECT id, at, kind, hash, store_path FROM "+table+" WHERE id = ?", id)
	if err != nil || row == nil {
		return "", err
	}
	change, err := changeOf(row)
	if errors.Is(err, ErrDamaged) {
		return "", nil
	}
	return change.Mark(), err
}

// ChangeMark returns the [Change.Mark] of a change; "" where it is not in the log.
func (x *Index) ChangeMark(ctx context.Context, id int64) (mark string, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		mark, err = c.markOf("recent_changes", id)
		return err
	})
	if err != nil {
		return "", describe("read the changes of "+x.path, err)
	}
	return mark, nil
}

// changes returns rows of the log after the one with the given id.
func (c *connection) changes(after, limit int64) (changes []Change, err error) {
	err = c.rows(`SELECT id, at, kind, hash, store_path FROM recent_changes
		WHERE id > ? ORDER BY id LIMIT ?`, []driver.Value{after, limit},
		func(row []driver.Value) (bool, error) {
			change, err := changeOf(row)
			changes = append(changes, change)
			return true, err
		})
	return changes, err
}

func changeOf(row []driver.Value) (Change, error) {
	hash, err := hashOf(row[3])
	change := Change{ID: row[0].(int64), Hash: hash}
	at, ok1 := row[1].(int64)
	kind, ok2 := row[2].(int64)
	change.At, change.Kind = time.UnixMilli(at).UTC(), ChangeKind(kind)
	change.StorePath, _ = row[4].(string)
	if err == nil && (!ok1 || !ok2 || kind < int64(Added) || kind > int64(StorageChanged) || !change.isConsistent()) {
		err = &Damage{Change: change.ID, Reason: differs}
	}
	return change, err
}

// isConsistent says whether the path of a removal has its hash. With another, a mirror
// would remove another item.
func (c *Change) isConsistent() bool {
	if c.Kind != Removed {
		return true
	}
	path, err := narinfo.ParseStorePath(c.StorePath)
	return err != nil || path.Hash == c.Hash
}

// lastChange is the id of the newest change there has been, also when its row
// is gone.
const lastChange = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'recent_changes'), 0)"

// Watcher tells what any process has changed in the database since it was last
// asked. It has a connection of its own and is used by one goroutine at a time.
type Watcher struct {
	index   *Index
	conn    *connection // nil while the index is full: see Resume
	version int64       // SQLite's count of others' commits, as this connection saw it
	last    int64       // the newest row of the log that was told
	maxPoll int64       // maxPolled, but in tests
}

// Watch starts with the database as it is now.
func (x *Index) Watch(ctx context.Context) (*Watcher, error) {
	w := &Watcher{index: x, maxPoll: maxPolled}
	if x.IsFull() {
		return w, nil
	}
	return w, w.begin(ctx)
}

// begin opens the connection.
func (w *Watcher) begin(ctx context.Context) error {
	x := w.index
	conn, err := connect(ctx, x.source)
	if err != nil {
		return describe("watch "+x.path, err)
	}
	// In this order: a commit between the two is told twice rather than never.
	if w.version, err = conn.integer("PRAGMA data_version"); err == nil {
		w.last, err = conn.integer(lastChange)
	}
	if err != nil {
		conn.close()
		return describe("watch "+x.path, err)
	}
	w.conn = conn
	return nil
}

// maxPolled is how many changes a Poll lists before it gives up on naming
// them: past that, forgetting everything is cheaper.
const maxPolled = 100_000

// Poll returns what has changed since the last Poll. complete is false when
// the log does not reach back that far, or the changes are too many: then
// anything may have changed. When nothing has, it takes a few microseconds.
func (w *Watcher) Poll() (changes []Change, complete bool, err error) {
	if w.conn == nil {
		if w.index.IsFull() {
			return nil, false, nil
		}
		return nil, false, w.begin(context.Background())
	}
	version, err := w.conn.integer("PRAGMA data_version")
	if err != nil {
		return nil, false, fmt.Errorf("watch the database: %w", err)
	}
	if version == w.version {
		return nil, true, nil
	}
	changes, err = w.conn.changes(w.last, w.maxPoll)
	if err != nil {
		return nil, false, fmt.Errorf("watch the database: %w", err)
	}
	last, err := w.conn.integer(lastChange)
	if err != nil {
		return nil, false, fmt.Errorf("watch the database: %w", err)
	}
	// Ids have no gaps, since a number that is rolled back is given again. So
	// the count tells whether some have been trimmed, or have come since the
	// rows were read.
	complete = int64(len(changes)) == last-w.last
	if !complete {
		changes = nil
	}
	w.last = last
	w.version = version
	return changes, complete, nil
}

// Close ends the watcher's connection.
func (w *Watcher) Close() error {
	if w.conn == nil {
		return nil
	}
	return w.conn.close()
}

// MirrorChange is a change as it is told to those who mirror this instance.
type MirrorChange struct {
	Change
	// Text is the narinfo as it is now, for an addition.
	Text []byte
}

// Page is a part of the log.
type Page struct {
	Changes []MirrorChange
	// More says that the limit has ended it.
	More bool
	// Position is up to which change everything is told, with this page.
	Position int64
	// Mark is that of the change at the position, and AfterMark that of the one
	// behind which the page begins; "" where they are not in the log.
	Mark, AfterMark string
	// First is the oldest change that is still in the log, and Last the newest
	// that there has been. With none in the log, First is after Last.
	First, Last int64
}

// pageBytes is the length of narinfos that ends a page.
const pageBytes = 4 << 20

// ChangesAfter returns changes that concern mirrors, after the one with the given
// id, out of limit rows of the log, or fewer when they are long. An addition of an
// item that is gone is left out: its removal comes later. So is one of a damaged item:
// another addition follows when that is repaired.
func (x *Index) ChangesAfter(ctx context.Context, after int64, limit int) (page Page, err error) {
	page.Position = after
	err = x.readers.do(ctx, func(c *connection) error {
		// Before the rows: what comes in between is told, and not counted.
		if page.Last, err = c.integer(lastChange); err != nil {
			return err
		}
		changes, err := c.changes(after-1, int64(limit)+1)
		if err != nil {
			return err
		}
		if len(changes) > 0 && changes[0].ID == after {
			page.AfterMark = changes[0].Mark()
			changes = changes[1:]
		}
		changes = changes[:min(len(changes), limit)]
		// After the rows: what is trimmed in between is missed by nobody.
		if page.First, err = c.integer("SELECT coalesce(min(id), ? + 1) FROM recent_changes", page.Last); err != nil {
			return err
		}
		page.Mark = page.AfterMark
		page.More = len(changes) == limit
		size := 0
		for _, change := range changes {
			if size > pageBytes {
				page.More = true
				break
			}
			page.Position, page.Mark = change.ID, change.Mark()
			if page.Changes, err = x.appendChange(c, page.Changes, change); err != nil {
				return err
			}
			size += lastLength(page.Changes)
		}
		if len(changes) > 0 {
			page.Last = max(page.Last, changes[len(changes)-1].ID)
		}
		return nil
	})
	if err != nil {
		return Page{}, describe("read the changes of "+x.path, err)
	}
	return page, nil
}

// lastLength is about what the last change takes.
func lastLength(changes []MirrorChange) int {
	if len(changes) == 0 {
		return 0
	}
	return len(changes[len(changes)-1].Text)
}

// TimeCursor is a place in the log where that is in the order of time: behind the
// change of that time with that id.
type TimeCursor struct {
	At time.Time
	ID int64
}

// ChangesFrom returns changes that concern mirrors from a place on, the oldest
// first, limit at most or fewer when they are long, and moves the place on. more is false when there are none
// left. It is for those who know changes by their time alone.
func (x *Index) ChangesFrom(ctx context.Context, place *TimeCursor, limit int) (told []MirrorChange, more bool, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		var changes []Change
		err := c.rows(`SELECT id, at, kind, hash, store_path FROM recent_changes
			WHERE (at, id) > (?, ?) AND kind IN (1, 2) ORDER BY at, id LIMIT ?`, []driver.Value{place.At.UnixMilli(), place.ID, int64(limit)},
			func(row []driver.Value) (bool, error) {
				change, err := changeOf(row)
				changes = append(changes, change)
				return true, err
			})
		if err != nil {
			return err
		}
		more = len(changes) == limit
		size := 0
		for _, change := range changes {
			if size > pageBytes {
				more = true
				break
			}
			place.At, place.ID = change.At, change.ID
			if told, err = x.appendChange(c, told, change); err != nil {
				return err
			}
			size += lastLength(told)
		}
		return nil
	})
	if err != nil {
		return nil, false, describe("read the changes of "+x.path, err)
	}
	return told, more, nil
}

// tell appends a change, if it concerns mirrors.
func (x *Index) appendChange(c *connection, told []MirrorChange, change Change) ([]MirrorChange, error) {
	switch change.Kind {
	case Removed:
		return append(told, MirrorChange{Change: change}), nil
	case Added:
		text, err := x.textOf(c, change.Hash)
		if err == ErrNotFound { // or withdrawn
			return told, nil
		}
		if errors.Is(err, ErrDamaged) {
			return told, nil // Mend appends another addition
		}
		if err != nil {
			return nil, err
		}
		return append(told, MirrorChange{Change: change, Text: text}), nil
	}
	return told, nil
}
