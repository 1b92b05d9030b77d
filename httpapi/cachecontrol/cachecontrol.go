// Package cachecontrol has the values of Cache-Control for answers.
package cachecontrol

import (
	"fmt"
	"time"

	"nar-herder/narinfo"
)

// Values are values of Cache-Control. Empty ones are not sent.
type Values struct {
	Narinfo string
	Nar     string
	Missing string            // of a 404 for a narinfo, nar or file
	Lost    string            // of a 404 for the narinfo of an item whose nars are lost, or for a nar that an upstream lacks
	TTL     time.Duration     // bounds that of the narinfo of an upstream's item
	Cached  map[string]string // of cached nars, by type
}

// lostTTL is the longest time that clients may cache that an item is hidden because its nars are
// lost, or that an upstream lacks a nar: that may be repaired, or be made, at any time.
const lostTTL = 2 * time.Minute

// New makes the values for TTLs. cached returns the TTL of cached nars of a type; nil if there are
// none.
func New(ttls narinfo.TTLs, negative *time.Duration, cached func(types []string) *time.Duration) Values {
	ttl := ttls.Advertised()
	v := Values{Narinfo: MaxAge(ttl), Nar: public(ttl), Missing: MaxAge(negative), Cached: make(map[string]string)}
	if v.TTL = narinfo.UnadvertisedTTL; ttl != nil {
		v.TTL = *ttl
	}
	if v.Lost = v.Missing; negative != nil && *negative > lostTTL {
		ttl := lostTTL
		v.Lost = MaxAge(&ttl)
	}
	if cached != nil {
		for _, kind := range []string{"zstd", "lzip", "gzip"} {
			v.Cached[kind] = public(cached([]string{kind}))
		}
	}
	return v
}

// MaxAge returns the header for a TTL.
func MaxAge(ttl *time.Duration) string {
	if ttl == nil {
		return ""
	}
	return fmt.Sprintf("max-age=%d", int64(ttl.Seconds()))
}

// public returns the header that also allows shared caches, such as a CDN.
func public(ttl *time.Duration) string {
	if ttl == nil {
		return ""
	}
	return "public, " + MaxAge(ttl)
}
