package index

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"nar-herder/narinfo"
)

// Narinfos is the name under which [Index.Advertise] records the TTLs of all narinfos. The
// TTLs of narinfos that name a cached file are recorded under its type.
const Narinfos = "narinfos"

// Advertised is how long clients may keep narinfos, according to a server's options.
type Advertised struct {
	// TTL is the longest TTL that responses advertise.
	TTL time.Duration
	// Grace is at least TTL. It is longer while the administrator lowers a TTL, because
	// earlier responses have advertised more.
	Grace time.Duration
}

// answersKept is how long the server may still send an item's narinfo after its withdrawal,
// until it notices the change.
const answersKept = time.Second

// advertisement is the record of what servers have advertised, as stored in a setting.
type advertisement struct {
	// TTL and Grace are the values of the current or last server.
	TTL   duration `json:"ttl"`
	Grace duration `json:"grace"`
	// Until is when the last narinfo of an earlier server with other options expires, and
	// Former the longest TTL of those servers, to correct an Until that a wrong clock has
	// set.
	Until  time.Time `json:"until,omitzero"`
	Former duration  `json:"former,omitzero"`
}

// duration is encoded as text, such as 36h0m0s.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

// unadvertised is for databases that no server has used yet.
var unadvertised = advertisement{TTL: duration(narinfo.UnadvertisedTTL), Grace: duration(narinfo.UnadvertisedTTL)}

// expiry returns when no client can hold a narinfo any more that was served until at.
func (p *advertisement) expiry(at time.Time) time.Time {
	expiry := at.Add(time.Duration(max(p.TTL, p.Grace)))
	if p.Until.After(expiry) {
		expiry = p.Until
	}
	return expiry
}

// succeed returns the record for a server that starts now.
func (p advertisement) succeed(next Advertised, now time.Time) advertisement {
	if p.TTL == duration(next.TTL) && p.Grace == duration(next.Grace) {
		return p
	}
	// The earlier server may have served narinfos until just now.
	until := now.Add(time.Duration(p.TTL))
	p.Former = max(p.Former, p.TTL)
	if until.After(p.Until) {
		p.Until = until.UTC()
	}
	p.TTL, p.Grace = duration(next.TTL), duration(next.Grace)
	return p
}

// longest returns the longest time that a client may still hold a narinfo.
func (p *advertisement) longest() time.Duration {
	return max(time.Duration(max(p.TTL, p.Grace, p.Former)), narinfo.UnadvertisedTTL) + answersKept
}

// advertisedSetting is the prefix of settings with advertisements. A kind follows.
const advertisedSetting = "promise."

// advertised returns the advertisement of a kind. If none is recorded, found is false, and
// the result is that of all narinfos.
func (c *connection) advertised(kind string) (p advertisement, found bool, err error) {
	text, err := c.setting(advertisedSetting + kind)
	switch {
	case err != nil:
		return p, false, err
	case text != "":
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return p, false, fmt.Errorf("the times to live %q in the database: %w", text, err)
		}
		return p, true, nil
	case kind == Narinfos:
		return unadvertised, false, nil
	}
	p, _, err = c.advertised(Narinfos)
	return p, false, err
}

func (tx *Tx) setAdvertised(kind string, p advertisement) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return tx.SetSetting(advertisedSetting+kind, string(text))
}

// Advertise records how long clients may keep narinfos from now on, by kind. A server calls
// it before it serves any. Earlier advertisements stay in force until they have expired:
// see [Tx.Expiry].
func (x *Index) Advertise(ctx context.Context, now time.Time, all map[string]Advertised) error {
	changed := make(map[string]advertisement)
	compare := func(tx *Tx) error {
		clear(changed)
		// A machine may start with a slow clock.
		latest, err := tx.conn.integer("SELECT coalesce(max(at), 0) FROM recent_changes")
		if err != nil {
			return err
		}
		start := now
		if last := time.UnixMilli(latest); last.After(now) {
			start = last
		}
		for kind, advertised := range all {
			old, found, err := tx.conn.advertised(kind)
			if err != nil {
				return err
			}
			next := advertisement{TTL: duration(advertised.TTL), Grace: duration(advertised.Grace)}
			if found {
				next = old.succeed(advertised, start)
			}
			if !found || next != old {
				changed[kind] = next
			}
		}
		return nil
	}
	// Usually nothing changes.
	if err := x.View(ctx, compare); err != nil || len(changed) == 0 {
		return err
	}
	return x.Reclaim(ctx, func(tx *Tx) error {
		if err := compare(tx); err != nil {
			return err
		}
		for kind, next := range changed {
			if err := tx.setAdvertised(kind, next); err != nil {
				return err
			}
		}
		return nil
	})
}

// Expiry returns when no client can hold a narinfo any more that was served until at,
// according to all advertisements of this database. kind is [Narinfos], or the type of a
// cached file for narinfos that name one.
func (tx *Tx) Expiry(kind string, at time.Time) (time.Time, error) {
	p, _, err := tx.conn.advertised(kind)
	return p.expiry(at), err
}

// DeleteAfter returns when an item that is withdrawn at the given time may be deleted.
func (x *Index) DeleteAfter(ctx context.Context, at time.Time) (due time.Time, err error) {
	err = x.View(ctx, func(tx *Tx) error {
		due, err = tx.Expiry(Narinfos, at.Add(answersKept))
		return err
	})
	return due, err
}

// ShortestGrace returns the minimum time for which items and cached files of the kinds are
// kept if they are withdrawn now.
func (x *Index) ShortestGrace(ctx context.Context, now time.Time, kinds iter.Seq[string]) (shortest time.Duration, err error) {
	err = x.View(ctx, func(tx *Tx) error {
		shortest = math.MaxInt64
		for kind := range kinds {
			expiry, err := tx.Expiry(kind, now)
			if err != nil {
				return err
			}
			shortest = min(shortest, expiry.Sub(now))
		}
		return nil
	})
	return shortest, err
}

// deleteAfterVersion is the first schema version with columns delete_after.
const deleteAfterVersion = 7

// addDeleteAfter is the part of the migration to that version that SQL can't do. A setting
// has the grace of the last server. Without it, clients keep narinfos for
// [narinfo.UnadvertisedTTL].
func (c *connection) addDeleteAfter() error {
	const graceSetting = "removal.grace"
	noted, err := c.setting(graceSetting)
	if err != nil {
		return err
	}
	grace := narinfo.UnadvertisedTTL + answersKept
	tx := &Tx{conn: c}
	if noted != "" {
		// If it is damaged, the longest usual time is safe.
		last, err := time.ParseDuration(noted)
		if err != nil {
			last = 365 * 24 * time.Hour
		}
		kinds := []string{Narinfos}
		err = c.rows("SELECT DISTINCT type FROM cached_files", nil, func(row []driver.Value) (bool, error) {
			kind, err := textValue(row[0])
			kinds = append(kinds, kind)
			return true, err
		})
		for _, kind := range kinds {
			err = errors.Join(err, tx.setAdvertised(kind, advertisement{TTL: duration(last), Grace: duration(last)}))
		}
		if err = errors.Join(err, tx.SetSetting(graceSetting, "")); err != nil {
			return err
		}
		grace = max(grace, last)
	}
	for _, table := range []string{"narinfos", "cached_files"} {
		if err := c.exec("UPDATE "+table+" SET delete_after = withdrawn_at + ? WHERE withdrawn_at IS NOT NULL", grace.Milliseconds()); err != nil {
			return err
		}
	}
	return nil
}
