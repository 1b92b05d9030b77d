package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"math"
	"time"

	"nar-herder/internal/stamp"
)

// WithdrawnCursor is a position in the withdrawn items, ordered by the times when they may
// be deleted. The zero value is before the first item.
type WithdrawnCursor struct {
	at, id int64
	isSet  bool
}

// WithdrawnPage returns withdrawn, undamaged items after the cursor that may be deleted at
// the given time, the earliest first, and advances the cursor. more is true if others may
// follow. Times from before the clock was set are treated as in [Index.DeletableItems].
func (x *Index) WithdrawnPage(ctx context.Context, now time.Time, cursor *WithdrawnCursor, limit int) (items []*Item, more bool, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		read := 0
		if !cursor.isSet {
			*cursor = WithdrawnCursor{at: stamp.Earliest(now).UnixMilli(), id: math.MinInt64, isSet: true}
		}
		err := c.rows(itemColumns+" WHERE n.delete_after <= ? AND n.withdrawn_at IS NOT NULL AND (n.delete_after, n.id) > (?, ?) ORDER BY n.delete_after, n.id LIMIT ?",
			[]driver.Value{now.UnixMilli(), cursor.at, cursor.id, int64(limit)}, func(row []driver.Value) (bool, error) {
				read++
				cursor.id, _ = row[0].(int64)
				cursor.at, _ = row[11].(int64)
				item, err := x.item(row)
				if errors.Is(err, ErrDamaged) {
					return true, nil // its files are unknown
				}
				items = append(items, item)
				return true, err
			})
		more = read == limit
		return err
	})
	if err != nil {
		return nil, false, describe("list the withdrawn items in "+x.path, err)
	}
	return items, more, nil
}
