package narinfo

import (
	"cmp"
	"time"
)

// UnadvertisedTTL is how long clients keep a narinfo without a TTL: Guix's %narinfo-ttl.
const UnadvertisedTTL = 36 * time.Hour

// TTLs say how long clients may keep narinfos of one kind; nil if not given.
type TTLs struct {
	TTL    *time.Duration // what narinfos advertise, or did before NewTTL was given
	NewTTL *time.Duration // what they advertise instead
}

// Advertised returns what narinfos advertise now; nil for nothing.
func (t TTLs) Advertised() *time.Duration { return cmp.Or(t.NewTTL, t.TTL) }

// Binding returns how long a client may hold a narinfo: the longer of what is advertised now
// and was before. otherwise is what narinfos advertise, or did, without a TTL.
func (t TTLs) Binding(otherwise time.Duration) time.Duration {
	if t.Advertised() == nil {
		return otherwise
	}
	before := cmp.Or(t.TTL, &otherwise)
	return max(*before, *cmp.Or(t.NewTTL, before))
}

// TTLPolicy decides how long clients may keep narinfos, and the nars that they name. The
// advertised TTLs are recorded, and still bind after the options have changed; see package
// index.
type TTLPolicy struct {
	TTLs
	// Types are the TTLs of narinfos that name a file of a further compression.
	Types map[string]TTLs
}

// Advertised returns what a narinfo that names files of the types advertises: the smallest of
// the types' own, or the general one; nil for nothing.
func (p *TTLPolicy) Advertised(types ...string) *time.Duration {
	var least *time.Duration
	for _, name := range types {
		if own := p.Types[name].Advertised(); own != nil && (least == nil || *own < *least) {
			least = own
		}
	}
	return cmp.Or(least, p.TTLs.Advertised())
}

// Binding returns the longest that narinfos which may name a file of the type advertise now,
// and how long a client may hold one. "" is for any narinfo.
func (p *TTLPolicy) Binding(name string) (ttl, grace time.Duration) {
	general := p.TTLs.Binding(UnadvertisedTTL)
	if own := p.Types[name]; own.Advertised() != nil {
		return *own.Advertised(), own.Binding(general)
	}
	ttl, grace = *cmp.Or(p.TTLs.Advertised(), new(UnadvertisedTTL)), general
	for _, other := range p.Types { // a narinfo may name files of several types
		if own := other.Advertised(); own != nil {
			ttl, grace = max(ttl, *own), max(grace, other.Binding(general))
		}
	}
	return ttl, grace
}

// Limit keeps narinfos from being advertised for longer than most.
func (p *TTLPolicy) Limit(most time.Duration) {
	limit := func(ttl *time.Duration) *time.Duration { return new(min(*cmp.Or(ttl, &most), most)) }
	p.TTLs = TTLs{limit(p.TTL), limit(p.TTLs.Advertised())}
	for name, t := range p.Types {
		if own := t.Advertised(); own != nil {
			p.Types[name] = TTLs{TTL: limit(own)}
		}
	}
}
