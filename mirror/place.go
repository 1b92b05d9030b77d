package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// place is up to where the source is followed. It is written in the transaction
// that does what it says, so that nothing is done twice or not at all.
type place struct {
	// Source is the URL from which the dump came that this began with, without user and
	// password; "" where that is unknown.
	Source string `json:"source,omitempty"`
	// Instance is whose changes are followed by number, up to Position; "" where
	// they have none.
	// Mark tells whether the change there is still the one that was followed.
	Instance string `json:"instance,omitempty"`
	Position int64  `json:"position,omitempty"`
	Mark     string `json:"mark,omitempty"`
	// Removals counts what the source has removed in the last hour, by the minutes
	// since 1970 in which it was removed here.
	Removals map[int64]int `json:"removals,omitempty"`
	// Since is the time of the newest change, and Seen has those of the last
	// while before it: of what comes again, and may have been written late,
	// they tell what is new.
	Since time.Time `json:"since,omitzero"`
	Seen  seen      `json:"seen,omitempty"`
	// Dump is the entity tag of the dump that this began with, as long as nothing
	// was followed since: the source's log may begin behind it.
	Dump string `json:"dump,omitempty"`
	// Owed is the entity tag of a dump after which nothing was withdrawn, as it didn't name
	// all items that are damaged at the source: see [Mirror.payOwed].
	Owed string `json:"owed,omitempty"`
}

func (p place) isZero() bool { return p.Instance == "" && p.Since.IsZero() }

// placeSetting is where it is kept.
const placeSetting = "mirror.place"

// readPlace returns where the source is followed from on; a zero one when nothing
// of it is here.
func readPlace(ctx context.Context, x *index.Index) (place, error) {
	text, err := x.Setting(ctx, placeSetting)
	if err != nil {
		return place{}, err
	}
	var p place
	if text != "" {
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return place{}, fmt.Errorf("the setting %s in the database: %w", placeSetting, err)
		}
		return p, nil
	}
	// An index that came from the source as a whole says where it is from.
	if p.Instance, err = x.Setting(ctx, index.CopyInstance); err != nil || p.Instance == "" {
		return place{}, err
	}
	number, err := x.Setting(ctx, index.CopyLastChange)
	if err != nil {
		return place{}, err
	}
	if p.Position, err = strconv.ParseInt(number, 10, 64); err != nil {
		return place{}, fmt.Errorf("the setting %s in the database: %w", index.CopyLastChange, err)
	}
	return p, nil
}

// known is the place of one whose changes have numbers.
func (p place) known() peer.Known {
	return peer.Known{Instance: p.Instance, Position: p.Position, Mark: p.Mark}
}

func (p place) write(tx *index.Tx) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return tx.SetSetting(placeSetting, string(text))
}

// fingerprint tells one change from others.
type fingerprint [8]byte

func fingerprintOf(c peer.Change) (f fingerprint) {
	sum := sha256.Sum256([]byte(c.Datetime + "\n" + c.Change + "\n" + c.Data))
	copy(f[:], sum[:])
	return f
}

// seen are changes by their fingerprints, with their times.
type seen map[fingerprint]time.Time

// MarshalText packs them.
func (s seen) MarshalText() ([]byte, error) {
	packed := make([]byte, 0, 16*len(s))
	for f, at := range s {
		packed = append(packed, f[:]...)
		for shift := 56; shift >= 0; shift -= 8 {
			packed = append(packed, byte(at.Unix()>>shift))
		}
	}
	return []byte(base64.StdEncoding.EncodeToString(packed)), nil
}

// UnmarshalText is the inverse of MarshalText.
func (s *seen) UnmarshalText(text []byte) error {
	packed, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	*s = make(seen, len(packed)/16)
	for ; len(packed) >= 16; packed = packed[16:] {
		var seconds int64
		for _, b := range packed[8:16] {
			seconds = seconds<<8 | int64(b)
		}
		(*s)[fingerprint(packed[:8])] = time.Unix(seconds, 0).UTC()
	}
	return nil
}

// overlap is how much later than its time a change may be written at the source:
// another process there may take so long to commit it.
const overlap = time.Minute

// from is since when changes are asked for.
func (p place) from() time.Time { return p.Since.Add(-overlap) }

// with returns the place behind further changes. Those that are dated ahead are
// remembered, and don't move it: what is right would come behind it no more.
func (p place) with(changes seen, now time.Time) place {
	next := place{Source: p.Source, Since: p.Since, Removals: p.Removals, Owed: p.Owed, Seen: make(seen, len(p.Seen)+len(changes))}
	for _, at := range changes {
		if at.After(next.Since) && !stamp.IsAhead(at, now) {
			next.Since = at
		}
	}
	for _, some := range []seen{p.Seen, changes} {
		for f, at := range some {
			if !at.Before(next.from()) {
				next.Seen[f] = at
			}
		}
	}
	return next
}

// anchors are the newest changes that were seen: as long as the source has them
// in its log, it has all that came after them.
func (p place) anchors() (anchors []fingerprint) {
	for f, at := range p.Seen {
		if at.Equal(p.Since) {
			anchors = append(anchors, f)
		}
	}
	return anchors
}
