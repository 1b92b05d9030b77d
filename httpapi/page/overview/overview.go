// Package overview makes the pages that show what a server has and does: home and status.
package overview

import (
	"context"
	"embed"
	"strings"
	"time"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/httpapi/page/history"
	"nar-herder/internal/recentlog"
	"nar-herder/internal/redact"
	mirror "nar-herder/mirror/health"
	"nar-herder/storage/census"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// Sources are what the pages show. None of the functions takes long.
type Sources struct {
	Keys    page.Keys
	Figures func() figures.Figures
	History *history.History
	Health  func(ctx context.Context) []health.State
	Census  func() census.Counts
	// Mirror returns the state of a mirror, and Upstreams those of a cache; nil for others.
	Mirror    func() mirror.Status
	Upstreams func() []upstream.Status
	// Newest returns the items that were added last.
	Newest func(ctx context.Context, n int) ([]*index.Item, error)
	// Events are the newest lines of the log, and Options the options in effect. Only the
	// administrator sees these and what the Workers work on.
	Events  func() []recentlog.Event
	Options []Option
	Workers *Workers
	Started time.Time
}

// Option is an option of the server in effect.
type Option struct{ Name, Value, Origin string }

//go:embed home.html status.html parts.html
var files embed.FS

var (
	homeTemplate   = page.Parse(files, "home.html", "parts.html")
	statusTemplate = page.Parse(files, "status.html", "parts.html")
)

// Add adds the pages to a site.
func Add(site *page.Site, sources *Sources) {
	site.Add(page.Route{Name: "", Label: "Home", Minimal: true, Make: sources.home})
	site.Add(page.Route{Name: "status", Label: "Status", Make: sources.status})
}

// Problem is a part of the server that has problems.
type Problem struct {
	Part   string
	Texts  []string
	Fails  bool
	Advice string
	Detail string // only for the administrator
}

// problems returns the parts that have problems, failing ones first.
func (s *Sources) problems(ctx context.Context, private bool) (all []Problem) {
	for _, fails := range []bool{true, false} {
		for _, state := range s.Health(ctx) {
			if state.Problems == nil || state.Fails != fails {
				continue
			}
			p := Problem{Part: strings.ReplaceAll(state.Part, "_", " "), Texts: state.Problems, Fails: fails, Advice: Advice(state.Part)}
			if private {
				p.Detail = state.Detail
			}
			all = append(all, p)
		}
	}
	return all
}

// Advice says what to do about the problems of a part.
func Advice(part string) string { return advice[part] }

var advice = map[string]string{
	"database":           "Check that the database file exists and can be read; after damage, restore a backup.",
	"database_damage":    "Run 'nar-herder check', then 'nar-herder check --repair'.",
	"database_space":     "Free space on the file system of the database.",
	"storage":            "Check that the storage is mounted, or that the bucket can be reached; the log has the error.",
	"storage_writes":     "Check free space and permissions of the storage; the log has the error.",
	"storage_owner":      "See 'One owner, one server' in the manual before you run 'nar-herder claim-storage'.",
	"storage_space":      "Raise the limit, add criteria for removal, or free space.",
	"scrub":              "Run 'nar-herder check --repair', with --from=URL if another server has the nars.",
	"withdrawn_items":    "Check the permissions of the storage; the log has the error.",
	"items_without_nars": "Import the nars, or run 'nar-herder check --repair --from=URL'.",
	"dumps":              "Check free space at --database-dump; the log has the error.",
	"mirror":             "Check the mirrored instance and the network; 'nar-herder mirror-status' tells more.",
	"mirror_nars":        "Check the mirrored instance and free space; the log has the error.",
	"upstreams":          "Check the network; nothing to do if the upstream itself is down.",
	"tls_certificate":    "Renew the certificate, or correct its files: the server reads them again within a second.",
	"advertisement":      "Check that the server listens on the local network, and that its name is not taken.",
}

// MirrorState is the state of a mirror.
type MirrorState struct {
	mirror.Status
	// Lag is 0 if it is unknown.
	Lag time.Duration
}

// mirrorState returns nil if this is not a mirror.
func (s *Sources) mirrorState() *MirrorState {
	if s.Mirror == nil {
		return nil
	}
	status := s.Mirror()
	state := &MirrorState{Status: status}
	if status.LagSeconds > 0 {
		state.Lag = time.Duration(status.LagSeconds * float64(time.Second))
	}
	return state
}

// IsKnown reports whether the lag is known.
func (m *MirrorState) IsKnown() bool { return m.LagSeconds >= 0 }

// Upstream is the state of an upstream.
type Upstream struct {
	Name  string
	IsUp  bool
	Since time.Time
	Error string
	// Found, Absent and Failed are how many narinfos it was asked for since the start of the
	// server, by outcome.
	Found, Absent, Failed int64
}

// upstreams returns the states of the upstreams. Only the administrator sees directories, and
// addresses in errors.
func (s *Sources) upstreams(f figures.Figures, private bool) (all []Upstream) {
	if s.Upstreams == nil {
		return nil
	}
	const metric = "narherder_upstream_narinfo_requests_total"
	for _, status := range s.Upstreams() {
		u := Upstream{Name: status.Label, IsUp: status.Up, Since: status.Since}
		if private {
			u.Name = status.URL
		}
		switch {
		case status.Err == nil:
		case private:
			u.Error = redact.Text(status.Err.Error())
		default:
			u.Error = redact.Fault(status.Err)
		}
		u.Found, u.Absent = f.Int(metric, "upstream", status.Label, "outcome", "found"), f.Int(metric, "upstream", status.Label, "outcome", "absent")
		u.Failed = f.Int(metric, "upstream", status.Label) - u.Found - u.Absent
		all = append(all, u)
	}
	return all
}
