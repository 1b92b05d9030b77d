package overview

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/httpapi/page/history"
	"nar-herder/storage/census"
)

// homeData is the .Data of the home page. All but the keys is zero if metrics are hidden.
type homeData struct {
	Keys     []Key
	Items    int64
	Nars     int64
	Size     int64
	Problems []Problem
	Formats  []Format
	// Counted is the share of the items that are counted in Formats, in percent, while they
	// are counted for the first time; "" after that.
	Counted   string
	NarSize   int64
	Storage   *StoragePicture
	Mirror    *MirrorState
	Upstreams []Upstream
	Plots     []history.Plot
}

// Key is a public key for clients.
type Key struct {
	Name string
	// Scheme is its text as a literal of Scheme.
	Scheme string
}

func (s *Sources) home(ctx context.Context, r *page.Request) (*page.Page, error) {
	data := homeData{}
	for _, name := range s.Keys.Names() {
		data.Keys = append(data.Keys, Key{name, schemeLiteral(tidy(s.Keys.Text(name)))})
	}
	if r.ShowsMetrics {
		s.addFigures(ctx, &data, r.Private)
	}
	return &page.Page{Template: homeTemplate, Data: &data}, nil
}

// tidy returns a key without most line breaks of libgcrypt. Spaces mean nothing outside of
// strings, which keys don't have.
func tidy(key string) string {
	if strings.Contains(key, `"`) {
		return key
	}
	key = strings.ReplaceAll(strings.Join(strings.Fields(key), " "), " )", ")")
	return strings.Replace(key, " (q ", "\n         (q ", 1) // the longest part
}

// schemeLiteral returns a text as a string literal of Scheme.
func schemeLiteral(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

func (s *Sources) addFigures(ctx context.Context, data *homeData, private bool) {
	f := s.Figures()
	data.Items, data.Nars, data.Size = f.Int("narherder_items"), f.Int("narherder_stored_nars"), f.Int("narherder_stored_bytes")
	data.Problems = s.problems(ctx, private)
	data.Mirror, data.Upstreams = s.mirrorState(), s.upstreams(f, private)
	data.Storage = storagePicture(f)
	counts := s.Census()
	data.Formats, data.NarSize = formats(counts, f), counts.NarSize
	if counts.At.IsZero() {
		data.Counted = page.Percent(float64(counts.Items), float64(data.Items))
	}
	data.Plots = plots(s.History)
}

// Format is the nars of a compression.
type Format struct {
	Name string
	census.Nars
	// CachedSize is the disk space of the nars that are cached in the compression.
	CachedSize int64
}

// formats returns the compressions, those with the most nars first.
func formats(counts census.Counts, f figures.Figures) (all []Format) {
	for _, name := range slices.Sorted(maps.Keys(counts.ByCompression)) {
		all = append(all, Format{Name: name, Nars: counts.ByCompression[name]})
	}
	for _, cached := range f.By("narherder_cached_bytes", "type") {
		i := slices.IndexFunc(all, func(format Format) bool { return format.Name == cached.Label })
		if i < 0 {
			i, all = len(all), append(all, Format{Name: cached.Label})
		}
		all[i].CachedSize = int64(cached.Value)
	}
	slices.SortStableFunc(all, func(a, b Format) int { return int(min(max(b.Named-a.Named, -1), 1)) })
	return all
}

// StoragePicture is a picture of the storage against its limit.
type StoragePicture struct {
	Usage, Withdrawn int64
	// Limit and Free are -1 if there is none, or if it is unknown.
	Limit, Free int64
	// Used, Pending and LimitAt are positions in the picture, from 0 to its Width. LimitAt is
	// -1 if the limit is its end, or if there is none.
	Used, Pending, LimitAt, Width int
	// Share is the usage of the whole in percent.
	Share string
	// Whole is what the picture shows: the limit, or without one, the usage with the free
	// space.
	Whole int64
}

// pictureWidth is that of the storage's picture, and leastShown that of the least usage.
const pictureWidth, leastShown = 600, 3

// storagePicture returns nil for a server without a storage that it may write to.
func storagePicture(f figures.Figures) *StoragePicture {
	if !f.Has("narherder_storage_usage_bytes") {
		return nil
	}
	p := &StoragePicture{Usage: f.Int("narherder_storage_usage_bytes"), Withdrawn: f.Int("narherder_storage_withdrawn_bytes"), Limit: -1, Free: -1, LimitAt: -1, Width: pictureWidth}
	if f.Has("narherder_storage_limit_bytes") {
		p.Limit = f.Int("narherder_storage_limit_bytes")
	}
	if f.Has("narherder_storage_free_bytes") {
		p.Free = f.Int("narherder_storage_free_bytes")
	}
	switch {
	case p.Limit >= 0:
		p.Whole = p.Limit
	case p.Free >= 0:
		p.Whole = p.Usage + p.Free
	default:
		return p // a bucket without a limit: there is nothing to compare with
	}
	end := max(p.Whole, p.Usage, 1)
	at := func(n int64) int { return int(math.Round(pictureWidth * float64(n) / float64(end))) }
	p.Used = at(max(0, p.Usage-p.Withdrawn))
	p.Pending = at(p.Usage) - p.Used
	if p.Usage > 0 && p.Used+p.Pending < leastShown {
		p.Used = leastShown - p.Pending
	}
	if p.Limit >= 0 && p.Usage > p.Limit {
		p.LimitAt = at(p.Limit)
	}
	p.Share = page.Percent(float64(p.Usage), float64(p.Whole))
	return p
}

// IsAbove reports whether the storage is above its limit.
func (p *StoragePicture) IsAbove() bool { return p.Limit >= 0 && p.Usage > p.Limit }

// plots returns the plots of the last day, or none before the first sample.
func plots(h *history.History) []history.Plot {
	bins, window := h.Bins()
	if len(bins) == 0 {
		return nil
	}
	series := func(value func(history.Bin) float64) []float64 {
		values := make([]float64, len(bins))
		for i, bin := range bins {
			values[i] = value(bin)
		}
		return values
	}
	perSecond := func(v float64) string { return short(v) + "/s" }
	bytesPerSecond := func(v float64) string { return page.Bytes(int64(v)) + "/s" }
	percent := func(v float64) string { return fmt.Sprintf("%.0f %%", 100*v) }
	seconds := func(v float64) string { return page.Duration(time.Duration(v * float64(time.Second))) }
	return []history.Plot{
		history.NewPlot("Requests", window, history.Nice, perSecond, series(func(b history.Bin) float64 { return b.Requests })),
		history.NewPlot("Bytes sent", window, history.NiceBytes, bytesPerSecond, series(func(b history.Bin) float64 { return b.Bytes })),
		history.NewPlot("Narinfos from memory", window, func(float64) float64 { return 1 }, percent, series(func(b history.Bin) float64 { return b.Hits })),
		history.NewPlot("Time to the first byte", window, history.Nice, seconds,
			series(func(b history.Bin) float64 { return b.Median }), series(func(b history.Bin) float64 { return b.P99 })),
	}
}

// short formats a number with two or three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return page.Count(int64(math.Round(v)))
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v == 0:
		return "0"
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}
