package nars

import (
	"cmp"
	"maps"
	"slices"

	"nar-herder/narinfo"
)

// Fetching is a nar that is being fetched.
type Fetching struct {
	Path narinfo.StorePath
	// File is its name at the source.
	File string
	// Have is the number of bytes so far, and Size that of the whole file, negative if unknown.
	Have, Size int64
	// OnDemand means that a client has requested it.
	OnDemand bool
}

// Fetching returns at most n of the nars that are being fetched, those for clients first.
func (f *Fetcher) Fetching(n int) (all []Fetching) {
	f.mu.Lock()
	downloads := slices.Collect(maps.Values(f.downloads))
	f.mu.Unlock()
	for _, d := range downloads {
		have, size := d.length()
		all = append(all, Fetching{d.item.Narinfo.StorePath, d.item.FileName(d.n), have, size, d.onDemand})
	}
	slices.SortFunc(all, func(a, b Fetching) int {
		switch {
		case a.OnDemand == b.OnDemand:
			return cmp.Compare(a.File, b.File)
		case a.OnDemand:
			return -1
		}
		return 1
	})
	return all[:min(len(all), n)]
}
