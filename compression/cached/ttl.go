package cached

import (
	"cmp"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Advertised returns how long clients may keep narinfos, for [index.Index.Advertise]. NewTTL
// is advertised now, and TTL was before: the longer of the two counts.
func (o *Options) Advertised() map[string]index.Advertised {
	general := index.Advertised{
		TTL:   *cmp.Or(o.NewTTL, o.TTL, new(narinfo.UnadvertisedTTL)),
		Grace: narinfo.LongestTTL(o.TTL, o.NewTTL, narinfo.UnadvertisedTTL),
	}
	longest := general
	owns := make(map[string]index.Advertised)
	for _, t := range o.Types {
		if own := cmp.Or(t.NewTTL, t.TTL); own != nil {
			owns[t.Name] = index.Advertised{TTL: *own, Grace: narinfo.LongestTTL(t.TTL, t.NewTTL, general.Grace)}
			longest.TTL = max(longest.TTL, owns[t.Name].TTL)
			longest.Grace = max(longest.Grace, owns[t.Name].Grace)
		}
	}
	all := map[string]index.Advertised{index.Narinfos: longest}
	for _, t := range o.Types {
		all[t.Name] = longest // as its narinfos may name files of the others
		if own, ok := owns[t.Name]; ok {
			all[t.Name] = own
		}
	}
	return all
}

// LimitTTLs keeps narinfos from being advertised for longer than the given time.
func (o *Options) LimitTTLs(most time.Duration) {
	limit := func(ttl *time.Duration) *time.Duration { return new(min(*cmp.Or(ttl, &most), most)) }
	o.TTL, o.NewTTL = limit(o.TTL), limit(cmp.Or(o.NewTTL, o.TTL))
	for i := range o.Types {
		t := &o.Types[i]
		if own := cmp.Or(t.NewTTL, t.TTL); own != nil {
			t.TTL, t.NewTTL = limit(own), nil
		}
	}
}

// TTL returns what a narinfo that names files of the types advertises: the
// smallest of the types' own, or the general one; nil for nothing.
func (c *Cache) TTL(types []string) *time.Duration {
	var least *time.Duration
	for _, name := range types {
		if k := c.kinds[name]; k != nil {
			if own := cmp.Or(k.NewTTL, k.TTL); own != nil && (least == nil || *own < *least) {
				least = own
			}
		}
	}
	return cmp.Or(least, c.options.NewTTL, c.options.TTL)
}
