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
	Hash, Name, Added string
}

// Group is what the server does of one kind.
type Group struct {
	Title string
	Rows  []Row
	Lists []List // only for the administrator
}

// Row is a figure.
type Row struct{ Name, Value string }

// newestShown is the number of new items on the page.
const newestShown = 10

func (s *Sources) status(ctx context.Context, r *page.Request) (*page.Page, error) {
	data, now := statusData{}, time.Now()
	items, err := s.Newest(ctx, newestShown)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		n, err := narinfo.Parse(item.Text)
		if err != nil {
			continue
		}
		data.Newest = append(data.Newest, Newest{item.Hash.String(), n.StorePath.Name, ago(item.AddedAt, now)})
	}
	if r.ShowsMetrics {
		f := s.Figures()
		data.Problems, data.Mirror, data.Upstreams = s.problems(ctx, r.Private), s.mirrorState(), s.upstreams(f, r.Private)
		var workers *Workers
		if r.Private {
			workers = s.Workers
		}
		if data.Groups, err = makeGroups(ctx, f, workers, now); err != nil {
			return nil, err
		}
		data.Uptime = now.Sub(s.Started)
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
	return ago(time.UnixMilli(int64(v*1000)), now)
}

// groups are the figures on the status page. A figure of a metric that a server doesn't have
// is left out, and so are all of a group without its first one. A group with neither figures nor
// lists is left out.
var groups = []struct {
	title   string
	figures []figure
	lists   func(w *Workers, ctx context.Context, now time.Time) ([]List, error) // nil for none
}{
	{"Compressing nars for the cache", []figure{
		{"being compressed", "narherder_cached_nars_running", number, nil},
		{"waiting", "narherder_cached_nars_queued", number, nil},
		{"failed, to be retried", "narherder_cached_nars_failing", number, nil},
		{"made", "narherder_cached_nars_made_total", number, nil},
		{"withdrawn", "narherder_cached_nars_withdrawn_total", number, nil},
		{"size of the cached nars", "narherder_cached_bytes", size, nil},
	}, (*Workers).compressing},
	{"Fetching nars", []figure{
		{"being fetched", "narherder_mirror_nars_in_flight", number, nil},
		{"missing", "narherder_mirror_nars_missing", number, nil},
		{"fetched", "narherder_mirror_nars_fetched_total", number, nil},
		{"bytes fetched", "narherder_mirror_nars_fetched_bytes_total", size, nil},
		{"failed attempts", "narherder_mirror_nars_failures_total", number, nil},
	}, (*Workers).fetching},
	{"Looking up items at upstreams", []figure{
		{"in flight", "narherder_lookups_in_flight", number, nil},
		{"to be written", "narherder_lookups_unwritten", number, nil},
		{"done", "narherder_lookups_total", number, nil},
	}, nil},
	{"Verifying stored nars (scrub)", []figure{
		{"items never verified", "narherder_scrub_never_verified_items", number, nil},
		{"longest unverified", "narherder_scrub_oldest_verification_timestamp_seconds", since, nil},
		{"bytes read", "narherder_scrub_read_bytes_total", size, nil},
		{"findings", "narherder_scrub_findings_total", number, nil},
		{"repaired", "narherder_scrub_repaired_total", number, nil},
		{"items not repaired", "narherder_scrub_unrepaired_items", number, nil},
	}, (*Workers).verifying},
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
	}, (*Workers).removing},
	{"Evicting nars of upstreams", []figure{
		{"nars evicted", "narherder_eviction_nars_total", number, nil},
		{"bytes freed", "narherder_eviction_bytes_total", size, nil},
		{"items forgotten", "narherder_eviction_forgotten_items_total", number, nil},
	}, (*Workers).evicting},
	{"Serving clients", []figure{
		{"open connections", "narherder_http_connections", number, nil},
		{"limit of connections", "narherder_http_connections_limit", number, nil},
		{"nars being decompressed", "narherder_decoders", number, nil},
		{"memory for decompressing", "narherder_decoder_memory_bytes", size, nil},
		{"narinfos in memory", "narherder_answer_cache_entries", number, nil},
		{"instances that follow changes", "narherder_change_streams", number, nil},
		{"requests that failed", "narherder_faults_total", number, nil},
	}, nil},
	{"Local cache of the storage", []figure{
		{"size", "narherder_storage_cache_bytes", size, nil},
		{"limit", "narherder_storage_cache_limit_bytes", size, nil},
		{"hits", "narherder_storage_cache_hits_total", number, nil},
		{"misses", "narherder_storage_cache_misses_total", number, nil},
	}, nil},
	{"Database", []figure{
		{"free on its file system", "narherder_database_free_bytes", size, nil},
		{"items without a stored nar", "narherder_items_without_nars", number, nil},
		{"reads of damaged narinfos", "narherder_index_damaged_texts_total", number, nil},
		{"dumps that failed", "narherder_dump_failures_total", number, nil},
	}, nil},
}

// makeGroups returns the figures that a server has, and what its workers, unless nil, work on.
func makeGroups(ctx context.Context, f figures.Figures, workers *Workers, now time.Time) (all []Group, err error) {
	for _, g := range groups {
		group := Group{Title: g.title}
		if workers != nil && g.lists != nil {
			if group.Lists, err = g.lists(workers, ctx, now); err != nil {
				return nil, err
			}
		}
		for _, row := range g.figures {
			if !f.Has(g.figures[0].metric) || !f.Has(row.metric) {
				continue
			}
			if value := f.Sum(row.metric, row.pairs...); !math.IsNaN(value) {
				group.Rows = append(group.Rows, Row{row.name, row.format(value, now)})
			}
		}
		if len(group.Rows)+len(group.Lists) > 0 {
			all = append(all, group)
		}
	}
	return all, nil
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
