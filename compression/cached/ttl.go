package cached

import (
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// policy returns the TTL policy of the options. Its types are a copy.
func (o *Options) policy() narinfo.TTLPolicy {
	p := narinfo.TTLPolicy{TTLs: o.TTLs, Types: make(map[string]narinfo.TTLs)}
	for _, t := range o.Types {
		p.Types[t.Name] = t.TTLs
	}
	return p
}

// Advertised returns for how long clients may keep narinfos, for [index.Index.Advertise].
func (o *Options) Advertised() map[string]index.Advertised {
	p := o.policy()
	all := make(map[string]index.Advertised)
	add := func(key, name string) {
		ttl, grace := p.Binding(name)
		all[key] = index.Advertised{TTL: ttl, Grace: grace}
	}
	add(index.Narinfos, "")
	for _, t := range o.Types {
		add(t.Name, t.Name)
	}
	return all
}

// LimitTTLs limits advertised TTLs.
func (o *Options) LimitTTLs(most time.Duration) {
	p := o.policy()
	p.Limit(most)
	o.TTLs = p.TTLs
	for i := range o.Types {
		o.Types[i].TTLs = p.Types[o.Types[i].Name]
	}
}

// TTL returns the advertised TTL of a narinfo with files of the types; nil for none.
func (c *Cache) TTL(types []string) *time.Duration {
	return c.ttls.Advertised(types...)
}
