package index

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"nar-herder/internal/stamp"
)

// bound describes a column of times. Times after latest, or from before the clock was set,
// are replaced by value.
type bound struct {
	table, column string
	latest        int64 // in milliseconds
	value         time.Time
	// missing selects withdrawn rows that have no time in the column instead: a program
	// with an older schema doesn't set it.
	missing bool
}

// where returns the clause for rows with wrong times. Zero is damage in one of the columns,
// and unused in the others.
func (b bound) where() string {
	if b.missing {
		return fmt.Sprintf(" FROM %s WHERE withdrawn_at <= ? AND withdrawn_at >= ? AND %s IS NULL", b.table, b.column)
	}
	// Most rows of items have 0, and an index only the others.
	return fmt.Sprintf(" FROM %s WHERE %s != 0 AND (%[2]s > ? OR %[2]s > 0 AND %[2]s < ?)", b.table, b.column)
}

// BoundTimes corrects times that are in the future because the clock was wrong, and would
// delay deletions. It sets the times of withdrawals and of the last uses of cached files to
// now. It limits the times of deletion to the longest time that a client may hold a narinfo
// from now on, and adds missing ones. It also corrects times from before the clock was set.
// It returns the number of corrected times. If the first or last added item is in the
// future too, this clock may be the one that is wrong, so future times are kept.
func (x *Index) BoundTimes(ctx context.Context, now time.Time) (bounded int64, err error) {
	ahead, early := now.Add(stamp.Slack), stamp.Earliest(now).UnixMilli()
	var bounds []bound
	var advertisements map[string]advertisement // to be shortened
	// find looks for wrong times.
	find := func(c *connection) (some int64, err error) {
		longest := unadvertised.longest()
		advertisements = make(map[string]advertisement)
		err = c.rows("SELECT key, value FROM settings WHERE key >= ? AND key < ?", []driver.Value{advertisedSetting, advertisedSetting + "\U0010ffff"}, func(row []driver.Value) (bool, error) {
			var p advertisement
			name, _ := row[0].(string)
			text, _ := row[1].(string)
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				return false, err
			}
			longest = max(longest, p.longest())
			if until := now.Add(time.Duration(p.Former)); p.Until.After(until.Add(stamp.Slack)) {
				p.Until = until.UTC()
				advertisements[name] = p
			}
			return true, nil
		})
		last := now.Add(longest)
		latest, lastLatest := ahead.UnixMilli(), last.Add(stamp.Slack).UnixMilli()
		// By insertion, since items between them may have been added while the clock was
		// ahead. Check the first one as well, since the last may have been added while the
		// clock was behind.
		added, addedErr := c.integer("SELECT coalesce(max(added_at), 0) FROM items WHERE id IN ((SELECT min(id) FROM items), (SELECT max(id) FROM items))")
		if err = errors.Join(err, addedErr); added > latest {
			latest, lastLatest = math.MaxInt64, math.MaxInt64
			clear(advertisements)
		}
		bounds = []bound{
			{"narinfos", "withdrawn_at", latest, now, false}, {"cached_files", "withdrawn_at", latest, now, false}, {"cached_files", "last_used", latest, now, false},
			{"items", "drop_after", lastLatest, last, false},
			{"narinfos", "delete_after", lastLatest, last, false}, {"cached_files", "delete_after", lastLatest, last, false},
			// Last, after the times of withdrawals are corrected. No item withdrawn until
			// now is held longer.
			{"narinfos", "delete_after", now.UnixMilli(), last, true}, {"cached_files", "delete_after", now.UnixMilli(), last, true},
		}
		for _, b := range bounds {
			n, existsErr := c.integer("SELECT EXISTS (SELECT 1"+b.where()+")", b.latest, early)
			err = errors.Join(err, existsErr)
			some += n
		}
		return some + int64(len(advertisements)), err
	}
	// Usually there are none, and finding that out needs no lock.
	var some int64
	err = x.readers.do(ctx, func(c *connection) (err error) {
		some, err = find(c)
		return err
	})
	if err != nil {
		return 0, describe("look for times in the future in "+x.path, err)
	}
	if some == 0 {
		return 0, nil
	}
	err = x.Reclaim(ctx, func(tx *Tx) error {
		bounded = 0
		if _, err := find(tx.conn); err != nil {
			return err
		}
		for name, p := range advertisements {
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
			n, err := tx.conn.integer("SELECT count(*)"+b.where(), b.latest, early)
			if err == nil && n > 0 {
				set, _ := strings.CutPrefix(b.where(), " FROM "+b.table)
				err = tx.conn.exec("UPDATE "+b.table+" SET "+b.column+" = ?"+set, b.value.UnixMilli(), b.latest, early)
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
