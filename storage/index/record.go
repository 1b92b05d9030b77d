package index

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"nar-herder/narinfo"
)

// Record is what administrators know of an item besides its row.
type Record struct {
	Tags []Tag
	// PinnedAt is when the item itself was pinned; zero if it is not.
	PinnedAt time.Time
	// Uses counts requests for its nars, as recorded so far, since the last time that one of its
	// cached nars was withdrawn. LastUsed is the time of the last one, or zero.
	Uses     int64
	LastUsed time.Time
	// LostAt is when its narinfo was hidden because no nar of it was stored any more, see
	// [Tx.SetLost]; zero if it is not hidden.
	LostAt time.Time
}

// Record returns the record of an item. That of an unknown item is the zero value, except that
// it may be pinned.
func (x *Index) Record(ctx context.Context, hash narinfo.PathHash) (record Record, err error) {
	err = x.View(ctx, func(tx *Tx) error {
		c := tx.conn
		if record.Tags, err = c.tags(hash); err != nil {
			return err
		}
		err := c.rows("SELECT at FROM pins WHERE hash = ?", []driver.Value{hash[:]}, func(row []driver.Value) (bool, error) {
			record.PinnedAt = time.UnixMilli(number(row[0])).UTC()
			return true, nil
		})
		if err != nil {
			return err
		}
		row, err := c.first(`SELECT u.count, u.last_used, n.lost_at FROM items i JOIN narinfos n ON n.id = i.id LEFT JOIN uses u ON u.item = i.id
			WHERE i.key = ? AND n.hash = ?`, keyOf(hash), hash[:])
		if err != nil || row == nil {
			return err
		}
		record.Uses = number(row[0])
		if at := number(row[1]); at > 0 {
			record.LastUsed = time.UnixMilli(at).UTC()
		}
		if at := number(row[2]); at > 0 {
			record.LostAt = time.UnixMilli(at).UTC()
		}
		return nil
	})
	if err != nil {
		return Record{}, fmt.Errorf("read the record of %s: %w", hash, err)
	}
	return record, nil
}
