package index

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"time"

	"nar-herder/internal/stamp"
)

// bound is a column of times that may not be later than latest; later ones become value.
type bound struct {
	table, column string
	latest, value time.Time
}

// BoundTimes sets the times of withdrawals, of items and of cached files, to now where
// they are ahead, as after the clock was: they would not be due for as long. So are the
// times of cached files' last uses. Nothing waits for its deletion for longer than a client
// may hold a narinfo from now on. It returns how many there were. Where the first or the
// last item that came is ahead too, it may be this clock that is behind, and all stay.
func (x *Index) BoundTimes(ctx context.Context, now time.Time) (bounded int64, err error) {
	ahead := now.Add(stamp.Slack)
	var bounds []bound
	var promises map[string]promise // those to be shortened
	// find looks for times that are ahead.
	find := func(c *connection) (some int64, err error) {
		longest := unadvertised.longest()
		promises = make(map[string]promise)
		err = c.rows("SELECT key, value FROM settings WHERE key >= ? AND key < ?", []driver.Value{promiseSetting, promiseSetting + "\U0010ffff"}, func(row []driver.Value) (bool, error) {
			var p promise
			name, _ := row[0].(string)
			text, _ := row[1].(string)
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				return false, err
			}
			longest = max(longest, p.longest())
			if until := now.Add(time.Duration(p.Former)); p.Until.After(until.Add(stamp.Slack)) {
				p.Until = until.UTC()
				promises[name] = p
			}
			return true, nil
		})
		last := now.Add(longest)
		bounds = []bound{
			{"narinfos", "withdrawn_at", ahead, now}, {"cached_files", "withdrawn_at", ahead, now}, {"cached_files", "last_used", ahead, now},
			{"narinfos", "delete_after", last.Add(stamp.Slack), last}, {"cached_files", "delete_after", last.Add(stamp.Slack), last},
		}
		for _, b := range bounds {
			n, existsErr := c.integer("SELECT EXISTS (SELECT 1 FROM "+b.table+" WHERE "+b.column+" > ?)", b.latest.UnixMilli())
			err = errors.Join(err, existsErr)
			some += n
		}
		return some + int64(len(promises)), err
	}
	// Most times there are none, which needs no lock.
	var some int64
	err = x.readers.do(ctx, func(c *connection) (err error) {
		if some, err = find(c); err != nil || some == 0 {
			return err
		}
		// By arrival, as some between them may have come while the clock was ahead; and the
		// first as well, as the last may have come while it was behind.
		latest, err := c.integer("SELECT coalesce(max(added_at), 0) FROM items WHERE id IN ((SELECT min(id) FROM items), (SELECT max(id) FROM items))")
		if latest > ahead.UnixMilli() {
			some = 0
		}
		return err
	})
	if err != nil {
		return 0, describe("look for times that are ahead in "+x.path, err)
	}
	if some == 0 {
		return 0, nil
	}
	err = x.Reclaim(ctx, func(tx *Tx) error {
		bounded = 0
		if _, err := find(tx.conn); err != nil {
			return err
		}
		for name, p := range promises {
			text, err := json.Marshal(p)
			if err == nil {
				err = tx.SetSetting(name, string(text))
			}
			if err != nil {
				return err
			}
			bounded++
		}
		for _, b := range bounds {
			n, err := tx.conn.integer("SELECT count(*) FROM "+b.table+" WHERE "+b.column+" > ?", b.latest.UnixMilli())
			if err == nil && n > 0 {
				err = tx.conn.exec("UPDATE "+b.table+" SET "+b.column+" = ? WHERE "+b.column+" > ?", b.value.UnixMilli(), b.latest.UnixMilli())
			}
			if err != nil {
				return err
			}
			bounded += n
		}
		return nil
	})
	return bounded, err
}
