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

// ChangeKind is the kind of a change. Its values are stored in the database.
type ChangeKind int

const (
	// Added: a narinfo was added, or its text was replaced.
	Added ChangeKind = 1
	// Removed: the narinfo was removed or withdrawn.
	Removed ChangeKind = 2
	// StorageChanged: files of an unchanged narinfo were added to the storage or removed
	// from it. Mirrors don't receive it.
	StorageChanged ChangeKind = 3
	// AnnouncementChanged: the nars of an item were lost, so that its narinfo is hidden from
	// clients, or one was stored again. Mirrors don't receive it.
	AnnouncementChanged ChangeKind = 4
)

// Change is a row of the log of recent changes.
type Change struct {
	ID   int64
	At   time.Time
	Kind ChangeKind
	Hash narinfo.PathHash
	// StorePath is the full path, for removals only: their narinfo may not exist any more.
	StorePath string
}

// Mark distinguishes the change from another one with the same number, as a restored backup
// may have.
func (c *Change) Mark() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %s", c.ID, c.At.UnixMilli(), c.Kind, c.Hash))
	return hex.EncodeToString(sum[:8])
}

// markOf returns the mark of a change in a table of changes, or "" if the change is missing
// or damaged.
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

// ChangeMark returns the [Change.Mark] of a change, or "" if it is not in the log.
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

// changes returns the rows of the log after the given id.
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
	if err == nil && (!ok1 || !ok2 || kind < int64(Added) || kind > int64(AnnouncementChanged) || !change.isConsistent()) {
		err = &Damage{Change: change.ID, Reason: differs}
	}
	return change, err
}

// isConsistent reports whether the path of a removal matches its hash. If it didn't, a
// mirror would remove another item.
func (c *Change) isConsistent() bool {
	if c.Kind != Removed {
		return true
	}
	path, err := narinfo.ParseStorePath(c.StorePath)
	return err != nil || path.Hash == c.Hash
}

// lastChange selects the id of the newest change, also if its row was deleted.
const lastChange = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'recent_changes'), 0)"

// Watcher reports changes that any process has made to the database. It has a connection of
// its own, and one goroutine uses it at a time.
type Watcher struct {
	index   *Index
	conn    *connection // nil while the index is full: see Resume
	version int64       // SQLite's count of others' commits, as this connection saw it
	last    int64       // id of the newest change that was reported
	maxPoll int64       // maxPolled, except in tests
}

// Watch starts watching from the present state of the database.
func (x *Index) Watch(ctx context.Context) (*Watcher, error) {
	w := &Watcher{index: x, maxPoll: maxPolled}
	if x.IsFull() {
		return w, nil
	}
	return w, w.begin(ctx)
}

func (w *Watcher) begin(ctx context.Context) error {
	x := w.index
	conn, err := connect(ctx, x.source)
	if err != nil {
		return describe("watch "+x.path, err)
	}
	// In this order, a commit between the two is reported twice instead of never.
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

// maxPolled is how many changes a Poll returns. If there are more, clearing a cache is
// cheaper.
const maxPolled = 100_000

// Poll returns the changes since the last Poll. If complete is false, anything may have
// changed: the log does not reach back that far, or has too many changes. If nothing has
// changed, Poll takes a few microseconds.
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
	// Ids have no gaps, because SQLite reuses the id of a rolled back insert. So the count
	// shows whether changes were trimmed, or were added since the rows were read.
	complete = int64(len(changes)) == last-w.last
	if !complete {
		changes = nil
	}
	w.last = last
	w.version = version
	return changes, complete, nil
}

// Close closes the watcher's connection.
func (w *Watcher) Close() error {
	if w.conn == nil {
		return nil
	}
	return w.conn.close()
}

// MirrorChange is a change as mirrors receive it.
type MirrorChange struct {
	Change
	// Text is the present narinfo, for an addition.
	Text []byte
}

// Page is a part of the log.
type Page struct {
	Changes []MirrorChange
	// More means that the limit has ended the page.
	More bool
	// Position is the id of the last change that this page covers.
	Position int64
	// Mark belongs to the change at Position, and AfterMark to the change that the page
	// follows. They are "" if the log doesn't have these changes.
	Mark, AfterMark string
	// First is the id of the oldest change in the log, and Last of the newest one ever.
	// First is greater than Last if the log is empty.
	First, Last int64
}

// pageBytes is the total length of narinfos that ends a page.
const pageBytes = 4 << 20

// ChangesAfter returns the changes that concern mirrors among at most limit rows of the log
// after the given id, or fewer if they are long. It skips the addition of an item that was
// removed, since the removal follows, and of a damaged item, since its repair logs another
// addition.
func (x *Index) ChangesAfter(ctx context.Context, after int64, limit int) (page Page, err error) {
	page.Position = after
	err = x.readers.do(ctx, func(c *connection) error {
		// Before the rows: changes in between are returned, but not counted.
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
		// After the rows: nobody misses changes that are trimmed in between.
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

// lastLength returns the approximate size of the last change.
func lastLength(changes []MirrorChange) int {
	if len(changes) == 0 {
		return 0
	}
	return len(changes[len(changes)-1].Text)
}

// TimeCursor is a position in the log in the order of time: after the change with this time
// and id.
type TimeCursor struct {
	At time.Time
	ID int64
}

// ChangesFrom returns changes that concern mirrors after a position, the oldest first, and
// advances the position. It returns limit changes, or fewer if they are long. more is false
// at the end. It is for peers that identify changes by their time alone.
func (x *Index) ChangesFrom(ctx context.Context, cursor *TimeCursor, limit int) (found []MirrorChange, more bool, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		var changes []Change
		err := c.rows(`SELECT id, at, kind, hash, store_path FROM recent_changes
			WHERE (at, id) > (?, ?) AND kind IN (1, 2) ORDER BY at, id LIMIT ?`, []driver.Value{cursor.At.UnixMilli(), cursor.ID, int64(limit)},
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
			cursor.At, cursor.ID = change.At, change.ID
			if found, err = x.appendChange(c, found, change); err != nil {
				return err
			}
			size += lastLength(found)
		}
		return nil
	})
	if err != nil {
		return nil, false, describe("read the changes of "+x.path, err)
	}
	return found, more, nil
}

// appendChange appends a change if it concerns mirrors.
func (x *Index) appendChange(c *connection, found []MirrorChange, change Change) ([]MirrorChange, error) {
	switch change.Kind {
	case Removed:
		return append(found, MirrorChange{Change: change}), nil
	case Added:
		text, _, err := x.textOf(c, change.Hash)
		if err == ErrNotFound { // or withdrawn
			return found, nil
		}
		if err == ErrLost { // the mirror may have its nars
			err = nil
		}
		if errors.Is(err, ErrDamaged) {
			return found, nil // Mend logs another addition
		}
		if err != nil {
			return nil, err
		}
		return append(found, MirrorChange{Change: change, Text: text}), nil
	}
	return found, nil
}
