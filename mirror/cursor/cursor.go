// Package cursor records how far a mirror has followed its source: by the numbers of the
// source's changes, or by their times if the source doesn't number them.
package cursor

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/original"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// Cursor is the position up to which a source is followed. It is written in the same
// transaction as the changes before it, so that each change is applied exactly once.
type Cursor struct {
	// Source is the URL of the dump that the mirror started from, without user and
	// password; "" if unknown.
	Source string `json:"source,omitempty"`
	// Instance is the instance that numbers the changes; "" if they have no numbers.
	// Position is the number of the last change that was followed, and Mark identifies
	// that change.
	Instance string `json:"instance,omitempty"`
	Position int64  `json:"position,omitempty"`
	Mark     string `json:"mark,omitempty"`
	// Removals counts the source's removals of the last hour, by the minutes since 1970
	// in which they were applied here.
	Removals map[int64]int `json:"removals,omitempty"`
	// Since is the time of the newest change. Seen has the changes of the last minute
	// before it, which the source sends again: a change not in it is new, even if it was
	// written late.
	Since time.Time `json:"since,omitzero"`
	Seen  Seen      `json:"seen,omitempty"`
	// Dump is the entity tag of the dump that the mirror started from, until a change has
	// been followed: the source's log may begin after that dump.
	Dump string `json:"dump,omitempty"`
	// Owed is the entity tag of a dump after which nothing was withdrawn, because it
	// didn't name all items that are damaged at the source.
	Owed string `json:"owed,omitempty"`
	// Refused has the narinfos that were refused.
	Refused Refused `json:"refused,omitzero"`
}

// setting is the key of the cursor in the index's settings.
const setting = "mirror.place"

// IsZero reports whether nothing of the source is here yet.
func (c Cursor) IsZero() bool { return c.Instance == "" && c.Since.IsZero() }

// Read returns the cursor of an index.
func Read(ctx context.Context, x *index.Index) (c Cursor, err error) {
	text, err := x.Setting(ctx, setting)
	if err != nil {
		return Cursor{}, err
	}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return Cursor{}, fmt.Errorf("the setting %s in the database: %w", setting, err)
		}
		return c, nil
	}
	// An index that was copied from the source records its origin.
	if c.Instance, err = x.Setting(ctx, index.CopyInstance); err != nil || c.Instance == "" {
		return Cursor{}, err
	}
	number, err := x.Setting(ctx, index.CopyLastChange)
	if err != nil {
		return Cursor{}, err
	}
	if c.Position, err = strconv.ParseInt(number, 10, 64); err != nil {
		return Cursor{}, fmt.Errorf("the setting %s in the database: %w", index.CopyLastChange, err)
	}
	return c, nil
}

// Write stores the cursor.
func (c Cursor) Write(tx *index.Tx) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return tx.SetSetting(setting, string(text))
}

// Settings returns the settings of a new index with this cursor.
func (c Cursor) Settings() (map[string]string, error) {
	text, err := json.Marshal(c)
	return map[string]string{setting: string(text)}, err
}

// Known returns the cursor as a query for numbered changes.
func (c Cursor) Known() peer.Known {
	return peer.Known{Instance: c.Instance, Position: c.Position, Mark: c.Mark}
}

// ParseTime reads a time as the original writes it, or in RFC 3339.
func ParseTime(text string) (time.Time, error) {
	text = strings.Replace(strings.TrimSuffix(text, "Z"), "T", " ", 1)
	t, err := time.Parse(time.DateTime, text) // a fraction may follow
	return t.Truncate(time.Second), err
}

// Fingerprint identifies a change that has no number.
type Fingerprint [8]byte

// FingerprintOf returns the fingerprint of a change.
func FingerprintOf(c peer.Change) (f Fingerprint) {
	sum := sha256.Sum256([]byte(c.Datetime + "\n" + c.Change + "\n" + c.Data))
	copy(f[:], sum[:])
	return f
}

// Seen is a set of changes with their times.
type Seen map[Fingerprint]time.Time

// MarshalText implements [encoding.TextMarshaler].
func (s Seen) MarshalText() ([]byte, error) {
	packed := make([]byte, 0, 16*len(s))
	for f, at := range s {
		packed = append(packed, f[:]...)
		packed = binary.BigEndian.AppendUint64(packed, uint64(at.Unix()))
	}
	return []byte(base64.StdEncoding.EncodeToString(packed)), nil
}

// UnmarshalText is the inverse of MarshalText.
func (s *Seen) UnmarshalText(text []byte) error {
	packed, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	*s = make(Seen, len(packed)/16)
	for ; len(packed) >= 16; packed = packed[16:] {
		(*s)[Fingerprint(packed[:8])] = time.Unix(int64(binary.BigEndian.Uint64(packed[8:])), 0).UTC()
	}
	return nil
}

const (
	// overlap is how much later than its time a change may be committed at the source.
	overlap = time.Minute
	// MaxSeen bounds the changes within [overlap], which are in memory and in the cursor.
	MaxSeen = 250_000
)

// ErrTooManySeen reports more than [MaxSeen] changes.
var ErrTooManySeen = fmt.Errorf("it has over %d changes within a minute", MaxSeen)

// From returns the time from which changes are requested.
func (c Cursor) From() time.Time { return c.Since.Add(-overlap) }

// With returns the cursor after further changes. A change dated in the future is
// remembered but doesn't move the cursor: changes with the right time would be missed.
func (c Cursor) With(changes Seen, now time.Time) Cursor {
	next := Cursor{Source: c.Source, Since: c.Since, Removals: c.Removals, Owed: c.Owed, Refused: c.Refused, Seen: make(Seen, len(c.Seen)+len(changes))}
	for _, at := range changes {
		if at.After(next.Since) && !stamp.IsAhead(at, now) {
			next.Since = at
		}
	}
	for _, some := range []Seen{c.Seen, changes} {
		for f, at := range some {
			if !at.Before(next.From()) {
				next.Seen[f] = at
			}
		}
	}
	return next
}

// Anchors returns the newest changes that were seen. While the source still has one of
// them in its log, it also has every change after it.
func (c Cursor) Anchors() (anchors []Fingerprint) {
	for f, at := range c.Seen {
		if at.Equal(c.Since) {
			anchors = append(anchors, f)
		}
	}
	return anchors
}

// Behind returns the cursor after the content of an original's database, by the times of
// its changes. since is the time of its newest content. Times in the future are ignored.
func Behind(ctx context.Context, db *original.Database, since, now time.Time) (Cursor, error) {
	each := func(f func(original.Change)) error {
		for change, err := range db.Changes(ctx) {
			var row *original.RowError
			if errors.As(err, &row) {
				continue
			} else if err != nil {
				return err
			}
			f(change)
		}
		return nil
	}
	next := Cursor{Since: since}
	if stamp.IsAhead(since, now) {
		next.Since = time.Time{}
		err := each(func(change original.Change) {
			if !stamp.IsAhead(change.At, now) && change.At.After(next.Since) {
				next.Since = change.At
			}
		})
		if err != nil {
			return next, err
		}
	}
	changes := make(Seen)
	err := each(func(change original.Change) {
		if change.At.Before(next.From()) || len(changes) > MaxSeen {
			return
		}
		c := peer.Change{Datetime: change.At.Format(time.DateTime), Change: peer.Addition, Data: change.Data}
		if change.Removal {
			c.Change = peer.Removal
		}
		changes[FingerprintOf(c)] = change.At
	})
	if err == nil && len(changes) > MaxSeen {
		err = ErrTooManySeen
	}
	return next.With(changes, now), err
}

// ConvertedSettings returns the settings of an index that is converted from the database
// of an original that was a mirror. With them it resumes by the times of the changes in
// the original's log, without the source's dump. It returns none if that log is empty or
// its times are wrong.
func ConvertedSettings(ctx context.Context, from *original.Database) (map[string]string, error) {
	// The times of items may be local ones.
	newest, err := from.NewestChange(ctx)
	if err != nil || newest.IsZero() {
		return nil, err
	}
	c, err := Behind(ctx, from, newest, time.Now())
	if errors.Is(err, ErrTooManySeen) || err == nil && c.IsZero() {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return c.Settings()
}
