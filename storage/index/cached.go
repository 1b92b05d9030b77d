package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// CachedFile is a cached nar: an item's nar in a further compression, made by this
// instance.
type CachedFile struct {
	Hash narinfo.PathHash
	Type string // the compression, as in a narinfo
	Size int64  // in bytes
	// LastUsed is when it was created or last requested, as recorded so far.
	LastUsed time.Time
	// WithdrawnAt is when narinfos stopped naming it, and DeleteAfter when it may be
	// deleted. Both are zero while narinfos name it.
	WithdrawnAt, DeleteAfter time.Time
}

const cachedColumns = "SELECT n.hash, c.type, c.size, c.last_used, c.withdrawn_at, c.delete_after FROM cached_files c JOIN narinfos n ON n.id = c.item"

func cachedFile(row []driver.Value) (file CachedFile, err error) {
	if file.Hash, err = hashOf(row[0]); err != nil {
		return file, err
	}
	file.Type, _ = row[1].(string)
	file.Size = number(row[2])
	file.LastUsed = time.UnixMilli(number(row[3])).UTC()
	if at, ok := row[4].(int64); ok {
		file.WithdrawnAt, file.DeleteAfter = time.UnixMilli(at).UTC(), time.UnixMilli(number(row[5])).UTC()
	}
	return file, nil
}

// cachedFiles runs cachedColumns with a condition.
func (x *Index) cachedFiles(ctx context.Context, condition string, args ...driver.Value) (files []CachedFile, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(cachedColumns+condition, args, func(row []driver.Value) (bool, error) {
			file, err := cachedFile(row)
			files = append(files, file)
			return true, err
		})
	})
	if err != nil {
		return nil, describe("read the cached files in "+x.path, err)
	}
	return files, nil
}

// CachedFiles returns the cached files of an item, including withdrawn ones.
func (x *Index) CachedFiles(ctx context.Context, hash narinfo.PathHash) ([]CachedFile, error) {
	return x.cachedFiles(ctx, " JOIN items i ON i.id = c.item WHERE i.key = ? AND n.hash = ? ORDER BY c.type", keyOf(hash), hash[:])
}

// LeastUsed returns the cached files of a type that narinfos name and that were last used
// before the given time, the longest unused first.
func (x *Index) LeastUsed(ctx context.Context, kind string, before time.Time, limit int) ([]CachedFile, error) {
	return x.cachedFiles(ctx, " WHERE c.type = ? AND c.withdrawn_at IS NULL AND c.last_used < ? ORDER BY c.last_used LIMIT ?",
		kind, before.UnixMilli(), int64(limit))
}

// Deletable returns the withdrawn cached files of a type that may be deleted at the given
// time, the earliest first.
func (x *Index) Deletable(ctx context.Context, kind string, now time.Time, limit int) ([]CachedFile, error) {
	return x.cachedFiles(ctx, " WHERE c.type = ? AND c.delete_after BETWEEN ? AND ? AND c.withdrawn_at IS NOT NULL ORDER BY c.delete_after LIMIT ?",
		kind, stamp.Earliest(now).UnixMilli(), now.UnixMilli(), int64(limit))
}

// WithdrawnSize returns the total length of the withdrawn cached files of a type in bytes.
func (x *Index) WithdrawnSize(ctx context.Context, kind string) (size int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		size, err = c.integer("SELECT coalesce(sum(size), 0) FROM cached_files WHERE type = ? AND withdrawn_at IS NOT NULL", kind)
		return err
	})
	if err != nil {
		return 0, describe("sum the cached files in "+x.path, err)
	}
	return size, nil
}

// AllCached iterates over all cached files of a type, in the order of items. Rows that are
// added or removed meanwhile may be missing.
func (x *Index) AllCached(ctx context.Context, kind string) iter.Seq2[CachedFile, error] {
	return func(yield func(CachedFile, error) bool) {
		for last := int64(-1); ; {
			var page []CachedFile
			err := x.readers.do(ctx, func(c *connection) error {
				const query = `SELECT n.hash, c.type, c.size, c.last_used, c.withdrawn_at, c.delete_after, n.id FROM cached_files c JOIN narinfos n ON n.id = c.item
					WHERE c.item > ? AND c.type = ? ORDER BY c.item LIMIT ?`
				return c.rows(query, []driver.Value{last, kind, int64(listStep)}, func(row []driver.Value) (bool, error) {
					file, err := cachedFile(row)
					page = append(page, file)
					last = row[6].(int64)
					return true, err
				})
			})
			if err != nil {
				yield(CachedFile{}, describe("list the cached files in "+x.path, err))
				return
			}
			for _, file := range page {
				if !yield(file, nil) {
					return
				}
			}
			if len(page) < listStep {
				return
			}
		}
	}
}

// TextAndCached is [Index.TextUntil] with the cached files to append to the text, sorted by
// type. Only their Hash, Type and Size are set.
func (x *Index) TextAndCached(ctx context.Context, hash narinfo.PathHash) (text []byte, files []CachedFile, freshUntil time.Time, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		// One statement, so that the files belong to this text.
		row, err := c.first(`SELECT `+textColumns+`,
			(SELECT group_concat(type || ' ' || size || ' ' || coalesce(checksum, 'none'), ' ') FROM cached_files c WHERE c.item = i.id AND c.withdrawn_at IS NULL)
			FROM items i LEFT JOIN narinfos n ON n.id = i.id WHERE i.key = ?`, keyOf(hash))
		if err != nil {
			return err
		}
		if text, err = x.textFrom(row, hash); err != nil {
			text = nil
			return err
		}
		freshUntil = freshUntilFrom(row)
		if list, ok := row[8].(string); ok {
			words := strings.Fields(list)
			for ; len(words) >= 3; words = words[3:] {
				size, err := strconv.ParseInt(words[1], 10, 64)
				if err != nil || words[2] != "none" && words[2] != strconv.FormatInt(checksumOfCached(hash, words[0], size), 10) {
					x.damages.add()
					continue // the narinfo is valid without it
				}
				files = append(files, CachedFile{Hash: hash, Type: words[0], Size: size})
			}
		}
		// Sorting in the statement would cost each look-up a sorter.
		slices.SortFunc(files, func(a, b CachedFile) int { return strings.Compare(a.Type, b.Type) })
		return nil
	})
	if err != nil && err != ErrNotFound && err != ErrLost {
		return nil, nil, time.Time{}, describe(fmt.Sprintf("look up narinfo %s in %s", hash, x.path), err)
	}
	return text, files, freshUntil, err
}

// PutCached records a new cached file. Narinfos name it from now on.
func (tx *Tx) PutCached(file CachedFile) error {
	id, err := tx.id(file.Hash)
	if err != nil {
		return err
	}
	return tx.conn.exec(`INSERT INTO cached_files (item, type, size, last_used, checksum) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET size = excluded.size, checksum = excluded.checksum, last_used = excluded.last_used, withdrawn_at = NULL, delete_after = NULL`,
		id, file.Type, file.Size, file.LastUsed.UnixMilli(), checksumOfCached(file.Hash, file.Type, file.Size))
}

// WithdrawCached records that narinfos no longer name the file, and when it may be deleted.
// It resets the item's usage count, so that the file isn't created again at once.
func (tx *Tx) WithdrawCached(hash narinfo.PathHash, kind string, at time.Time) error {
	id, err := tx.id(hash)
	if err != nil {
		return err
	}
	due, err := tx.Expiry(kind, at)
	if err != nil {
		return err
	}
	return errors.Join(
		tx.conn.exec("UPDATE cached_files SET withdrawn_at = ?, delete_after = ? WHERE item = ? AND type = ? AND withdrawn_at IS NULL",
			at.UnixMilli(), milliseconds(due), id, kind),
		tx.conn.exec("UPDATE uses SET count = 0 WHERE item = ?", id))
}

// RemoveCached deletes the record of the file.
func (tx *Tx) RemoveCached(hash narinfo.PathHash, kind string) error {
	id, err := tx.id(hash)
	if err != nil {
		return err
	}
	return tx.conn.exec("DELETE FROM cached_files WHERE item = ? AND type = ?", id, kind)
}

// id returns the row id of an item, or [ErrNotFound].
func (tx *Tx) id(hash narinfo.PathHash) (driver.Value, error) {
	row, err := tx.conn.first("SELECT i.id FROM items i JOIN narinfos n ON n.id = i.id WHERE i.key = ? AND n.hash = ?", keyOf(hash), hash[:])
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, ErrNotFound
	}
	return row[0], nil
}

// Uses are requests for the nars of an item.
type Uses struct {
	Hash  narinfo.PathHash
	Count int64
	Last  time.Time
	// Types are the types of the cached files among them.
	Types []string
}

// Used is an item that clients have requested.
type Used struct {
	Hash narinfo.PathHash
	// Cached are the types of the cached files that its narinfo names.
	Cached []string
}

// CountUses adds to the recorded uses. It returns the items with at least least uses in
// total, and skips unknown items.
func (tx *Tx) CountUses(uses []Uses, least int64) (popular []Used, err error) {
	for _, u := range uses {
		id, err := tx.id(u.Hash)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		count, err := tx.conn.integer(`INSERT INTO uses VALUES (?, ?, ?)
			ON CONFLICT DO UPDATE SET count = count + excluded.count, last_used = max(last_used, excluded.last_used) RETURNING count`,
			id, u.Count, u.Last.UnixMilli())
		if err != nil {
			return nil, err
		}
		for _, kind := range u.Types {
			err := tx.conn.exec("UPDATE cached_files SET last_used = max(last_used, ?) WHERE item = ? AND type = ?", u.Last.UnixMilli(), id, kind)
			if err != nil {
				return nil, err
			}
		}
		if count < least {
			continue
		}
		used := Used{Hash: u.Hash}
		err = tx.conn.rows("SELECT type FROM cached_files WHERE item = ? AND withdrawn_at IS NULL", []driver.Value{id}, func(row []driver.Value) (bool, error) {
			if kind, err := textValue(row[0]); err == nil {
				used.Cached = append(used.Cached, kind)
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
		popular = append(popular, used)
	}
	return popular, nil
}

// Popular returns items with at least least uses and without a cached file of the type, in
// the order of items. cursor starts at zero, and each call advances it. At the end Popular
// returns none.
func (x *Index) Popular(ctx context.Context, kind string, least int64, cursor *int64) (hashes []narinfo.PathHash, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		const query = `SELECT u.item, n.hash FROM uses u JOIN narinfos n ON n.id = u.item WHERE u.item > ? AND u.count >= ?
			AND NOT EXISTS (SELECT 1 FROM cached_files c WHERE c.item = u.item AND c.type = ? AND c.withdrawn_at IS NULL) ORDER BY u.item LIMIT ?`
		return c.rows(query, []driver.Value{*cursor, least, kind, int64(listStep)}, func(row []driver.Value) (bool, error) {
			hash, err := hashOf(row[1])
			hashes = append(hashes, hash)
			*cursor = row[0].(int64)
			return true, err
		})
	})
	if err != nil {
		return nil, describe("look for popular items in "+x.path, err)
	}
	return hashes, nil
}
