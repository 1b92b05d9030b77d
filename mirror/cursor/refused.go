package cursor

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"
	"time"

	"nar-herder/narinfo/signing"
	"nar-herder/storage"
)

// Refused counts the narinfos of the source that were refused because of their signatures,
// since its last dump was used. The zero value is for none.
type Refused struct {
	// Keys identifies the keys that were authorized, or is otherKeys. With others, the source's
	// dump is used again.
	Keys   string                          `json:"keys,omitempty"`
	Counts map[storage.RefusalReason]int64 `json:"counts,omitempty"`
	// At is the time of the last one.
	At time.Time `json:"at,omitzero"`
}

// otherKeys is for narinfos of which some were refused with other keys than the rest, as when
// the source's dump could not be used after a change of the keys.
const otherKeys = "several"

// With returns the counts after count more narinfos were refused with the keys.
func (r Refused) With(keys *signing.Keys, reason storage.RefusalReason, count int64, at time.Time) Refused {
	next := Refused{keysID(keys), maps.Clone(r.Counts), at.UTC().Truncate(time.Second)}
	if next.Counts == nil {
		next.Counts = make(map[storage.RefusalReason]int64)
	}
	if r.IsOutdated(keys) {
		next.Keys = otherKeys
	}
	next.Counts[reason] += count
	return next
}

// IsOutdated reports whether narinfos were refused with other keys than these.
func (r Refused) IsOutdated(keys *signing.Keys) bool { return r.Keys != "" && r.Keys != keysID(keys) }

// keysID identifies a set of keys.
func keysID(keys *signing.Keys) string {
	if keys == nil {
		return "any"
	}
	sum := sha256.Sum256([]byte(strings.Join(keys.All(), "")))
	return hex.EncodeToString(sum[:8])
}
