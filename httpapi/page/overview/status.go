package overview

import (
	"context"
	"math"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/internal/recentlog"
	"nar-herder/narinfo"
)

// statusData is the .Data of the status page.
type statusData struct {
	Uptime    time.Duration
	Problems  []Problem
	Mirror    *MirrorState
	Upstreams []Upstream
	Groups    []Group
	Newest    []Newest
	Events    []recentlog.Event
	Options   []Option
}

// Newest is an item that was added lately.
type Newest struct {
	Hash, Name string
	At         time.Time
}

// Group is what the server does of one kind.
type Group struct {
	Title string
	Rows  []Row
}

// Row is a figure.
type Row struct{ Name, Value string }

// newestShown is the number of new items on the page.
const newestShown = 10

func (s *Sources) status(ctx context.Context, r *page.Request) (*page.Page, error) {
	data := statusData{}
	items, err := s.Newest(ctx, newestShown)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		n, err := narinfo.Parse(item.Text)
		if err != nil {
			continue
		}
		data.Newest = append(data.Newest, Newest{item.Hash.String(), n.StorePath.Name, item.AddedAt})
	}
	if r.ShowsMetrics {
		f := s.Figures()
		data.Problems, data.Mirror, data.Upstreams, data.Groups = s.problems(ctx, r.Private), s.mirrorState(), s.upstreams(f, r.Private), rows(f, time.Now())
		data.Uptime = time.Since(s.Started)
	}
	if r.Private {
		data.Events, data.Options = s.Events(), s.Options
	}
	return &page.Page{Title: "Status", Template: statusTemplate, Data: &data}, nil
}

// figure is how a row shows a metric.
type figure struct {
	name   string // of the row
	metric string
	format func(value float64, now time.Time) string
	pairs  []string // of label and value, see [figures.Figures.Sum]
}

func number(v float64, _ time.Time) string { return page.Count(int64(v)) }

func size(v float64, _ time.Time) string { return page.Bytes(int64(v)) }

// limit formats a size that may be missing.
func limit(v float64, _ time.Time) string {
	if v < 0 {
		return "none"
	}
	return page.Bytes(int64(v))
}

// since formats a time in seconds since 1970.
func since(v float64, now time.Time) string {
	if v <= 0 {
		return "never"
	}
	return page.Duration(max(0, now.Sub(time.UnixMilli(int64(v*1000))))) + " ago"
}

// groups are the figures on the status page. A figure of a metric that a server doesn't have
// is left out, and so is a group whose first metric it doesn't have.
var groups = []struct {
	title   string
	figures []figure
}{
	{"Compressing nars for the cache", []figure{
		{"being compressed", "narherder_cached_nars_running", number, nil},
		{"waiting", "narherder_cached_nars_queued", number, nil},
		{"failed, to be retried", "narherder_cached_nars_failing", number, nil},
		{"made", "narherder_cached_nars_made_total", number, nil},
		{"withdrawn", "narherder_cached_nars_withdrawn_total", number, nil},
		{"size of the cached nars", "narherder_cached_bytes", size, nil},
	}},
	{"Fetching nars", []figure{
		{"being fetched", "narherder_mirror_nars_in_flight", number, nil},
		{"missing", "narherder_mirror_nars_missing", number, nil},
		{"fetched", "narherder_mirror_nars_fetched_total", number, nil},
		{"bytes fetched", "narherder_mirror_nars_fetched_bytes_total", size, nil},
		{"failed attempts", "narherder_mirror_nars_failures_total", number, nil},
	}},
	{"Looking up items at upstreams", []figure{
		{"in flight", "narherder_lookups_in_flight", number, nil},
		{"to be written", "narherder_lookups_unwritten", number, nil},
		{"done", "narherder_lookups_total", number, nil},
	}},
	{"Verifying stored nars (scrub)", []figure{
		{"items never verified", "narherder_scrub_never_verified_items", number, nil},
		{"longest unverified", "narherder_scrub_oldest_verification_timestamp_seconds", since, nil},
		{"bytes read", "narherder_scrub_read_bytes_total", size, nil},
		{"findings", "narherder_scrub_findings_total", number, nil},
		{"repaired", "narherder_scrub_repaired_total", number, nil},
		{"items not repaired", "narherder_scrub_unrepaired_items", number, nil},
	}},
	{"Removing and withdrawing", []figure{
		{"size of the storage", "narherder_storage_usage_bytes", size, nil},
		{"limit of the storage", "narherder_storage_limit_bytes", limit, nil},
		{"above the limit", "narherder_storage_excess_bytes", size, nil},
		{"free on its file system", "narherder_storage_free_bytes", size, nil},
		{"minimum to keep free", "narherder_storage_minimum_free_bytes", limit, nil},
		{"withdrawn, waiting for clients to forget them", "narherder_storage_withdrawn_bytes", size, nil},
		{"nars removed", "narherder_removal_nars_total", number, nil},
		{"items withdrawn", "narherder_removal_withdrawn_total", number, nil},
		{"bytes freed", "narherder_removal_bytes_total", size, nil},
	}},
	{"Evicting nars of upstreams", []figure{
		{"nars evicted", "narherder_eviction_nars_total", number, nil},
		{"bytes freed", "narherder_eviction_bytes_total", size, nil},
		{"items forgotten", "narherder_eviction_forgotten_items_total", number, nil},
	}},
	{"Serving clients", []figure{
		{"open connections", "narherder_http_connections", number, nil},
		{"limit of connections", "narherder_http_connections_limit", number, nil},
		{"nars being decompressed", "narherder_decoders", number, nil},
		{"memory for decompressing", "narherder_decoder_memory_bytes", size, nil},
		{"narinfos in memory", "narherder_answer_cache_entries", number, nil},
		{"instances that follow changes", "narherder_change_streams", number, nil},
		{"requests that failed", "narherder_faults_total", number, nil},
	}},
	{"Local cache of the storage", []figure{
		{"size", "narherder_storage_cache_bytes", size, nil},
		{"limit", "narherder_storage_cache_limit_bytes", size, nil},
		{"hits", "narherder_storage_cache_hits_total", number, nil},
		{"misses", "narherder_storage_cache_misses_total", number, nil},
	}},
	{"Database", []figure{
		{"free on its file system", "narherder_database_free_bytes", size, nil},
		{"items without a stored nar", "narherder_items_without_nars", number, nil},
		{"reads of damaged narinfos", "narherder_index_damaged_texts_total", number, nil},
		{"dumps that failed", "narherder_dump_failures_total", number, nil},
	}},
}

// rows returns the figures that a server has.
func rows(f figures.Figures, now time.Time) (all []Group) {
	for _, g := range groups {
		if !f.Has(g.figures[0].metric) {
			continue
		}
		group := Group{Title: g.title}
		for _, row := range g.figures {
			if !f.Has(row.metric) {
				continue
			}
			if value := f.Sum(row.metric, row.pairs...); !math.IsNaN(value) {
				group.Rows = append(group.Rows, Row{row.name, row.format(value, now)})
			}
		}
		all = append(all, group)
	}
	return all
}

// Metrics returns the names of the metrics that the pages show. A server must have all but those
// of features that it doesn't use.
func Metrics() []string {
	names := []string{"narherder_items", "narherder_stored_nars", "narherder_stored_bytes", "narherder_upstream_narinfo_requests_total"}
	for _, g := range groups {
		for _, row := range g.figures {
			names = append(names, row.metric)
		}
	}
	return names
}
