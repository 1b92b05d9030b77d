package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"nar-herder/httpapi/page/overview"
	"nar-herder/internal/s3server"
)

// metricFamily is a metric of a server: what docs/monitoring.md says of it.
type metricFamily struct {
	name, kind, help string
	labels           []string
}

// families is the metrics of one or more servers by name, and the values of their labels.
type families struct {
	byName map[string]*metricFamily
	values map[string]map[string]bool // by "metric label", such as "narherder_healthy part"
}

// add adds the metrics of a server in the text format.
func (f *families) add(t *testing.T, text string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for name, family := range parsed {
		labels := make(map[string]bool)
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = true
				key := name + " " + label.GetName()
				if f.values[key] == nil {
					f.values[key] = make(map[string]bool)
				}
				f.values[key][label.GetValue()] = true
			}
		}
		one := metricFamily{name, strings.ToLower(family.GetType().String()), family.GetHelp(), slices.Sorted(maps.Keys(labels))}
		if known := f.byName[name]; known == nil {
			f.byName[name] = &one
		} else if known.kind != one.kind || known.help != one.help || !slices.Equal(known.labels, one.labels) {
			t.Errorf("%s differs between servers: %+v, %+v", name, *known, one)
		}
		if family.GetType() == dto.MetricType_COUNTER != strings.HasSuffix(name, "_total") && strings.HasPrefix(name, "narherder_") {
			t.Errorf("%s is a %s", name, one.kind)
		}
	}
}

// metricServers are servers in the roles that have all metrics.
func metricServers(t *testing.T) (addresses []string) {
	t.Helper()
	source, _, targets := generated(t, 5)
	// A server with everything of its own.
	p := newPlace(t)
	p.imports(t, source)
	succeed(t, p.args("check", "--verify")...)
	succeed(t, "dump", "--database="+p.database, "--database-dump="+filepath.Join(p.dir, "dump.db"))
	primary := p.serve(t, "--log-level=INFO", "--scrub-interval=1min", "--storage-limit=10GiB", "--storage-minimum-free-space=1MiB",
		"--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+filepath.Join(p.dir, "zstd"),
		"--cached-compression-directory-max-size=zstd=1GiB", "--ttl=1d")
	first := primary.addresses[0]
	for _, target := range targets {
		get(t, first, target)
		get(t, first, target)
	}
	// A mirror, and a cache.
	q := newPlace(t)
	mirror := q.serve(t, "--log-level=INFO", "--mirror=http://"+first, "--storage-limit=none")
	r := newPlace(t)
	cache := r.serve(t, "--log-level=INFO", "--upstream=http://"+first)
	if got := get(t, cache.addresses[0], targets[0]); got.StatusCode != 200 {
		t.Errorf("the cache: %s", got.Status)
	}
	// A front end of a bucket.
	b := newPlace(t)
	b.storage = s3server.New(t).URL("nars")
	b.imports(t, source)
	certificate := newPair(t, time.Now().Add(90*24*time.Hour))
	front := b.serve(t, certificate.options("--log-level=INFO", "--storage-cache="+filepath.Join(b.dir, "cache"), "--storage-cache-size=100MiB")...)
	addresses = []string{first, mirror.addresses[0], cache.addresses[0], front.addresses[0]}
	for i, wanted := range []string{
		"\nnarherder_scrub_oldest_verification_timestamp_seconds ", "\nnarherder_mirror_last_success_timestamp_seconds ",
		"\nnarherder_upstream_up{", "\nnarherder_storage_cache_ready 1",
	} {
		until(t, wanted, func() bool {
			body := get(t, addresses[i], "/metrics").body
			return strings.Contains(body, wanted) && strings.Contains(body, "narherder_ready 1")
		})
	}
	return addresses
}

// metricGroups are the groups of the table in docs/monitoring.md, with the beginnings of the
// names of their metrics. The last beginning that matches counts.
var metricGroups = []struct {
	title    string
	prefixes []string
}{
	{"health", []string{"healthy", "ready", "build_info", "faults", "damaged_nars", "index_damaged", "log_"}},
	{"requests", []string{"http_requests", "http_request_", "http_time", "http_response", "http_cut", "answer_cache", "remote_nars"}},
	{"[connections](security.md#connections)", []string{"http_connections", "http_unread", "tls_"}},
	{"[memory](security.md#memory)", []string{"decoder"}},
	{"items", []string{"items", "pins", "withdrawn_items", "stored_", "import_", "authorized_keys", "search_"}},
	{"database", []string{"database_", "check_"}},
	{"storage", []string{"storage_"}},
	{"object store", []string{"s3_"}},
	{"cache in front of a storage", []string{"storage_cache_"}},
	{"[scrub](operations.md#scrub)", []string{"scrub_"}},
	{"[removal](removing.md)", []string{"removal_", "eviction_"}},
	{"[mirror](mirroring.md)", []string{"mirror_", "change_streams"}},
	{"nars of a mirror or cache", []string{"mirror_nars_", "nars_passed"}},
	{"[upstreams](caching.md)", []string{"upstream_", "lookups_"}},
	{"[cached compressions](compressions.md)", []string{"cached_"}},
	{"[dumps](mirroring.md)", []string{"dump_"}},
}

// groupOf returns the index of a metric's group, or -1.
func groupOf(name string) int {
	found, longest := -1, 0
	for i, group := range metricGroups {
		for _, prefix := range group.prefixes {
			if strings.HasPrefix(name, "narherder_"+prefix) && len(prefix) > longest {
				found, longest = i, len(prefix)
			}
		}
	}
	return found
}

// table returns the table of docs/monitoring.md.
func (f *families) table(t *testing.T) string {
	t.Helper()
	var ours []*metricFamily
	for name, family := range f.byName {
		if strings.HasPrefix(name, "narherder_") {
			ours = append(ours, family)
			if groupOf(name) < 0 {
				t.Errorf("%s is in no group", name)
			}
		}
	}
	slices.SortFunc(ours, func(a, b *metricFamily) int {
		return cmp.Or(cmp.Compare(groupOf(a.name), groupOf(b.name)), cmp.Compare(a.name, b.name))
	})
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	group := -1
	for _, m := range ours {
		if now := groupOf(m.name); now != group && now >= 0 {
			group = now
			fmt.Fprintf(&table, "| **%s** | | | |\n", metricGroups[group].title)
		}
		labels := make([]string, len(m.labels))
		for i, label := range m.labels {
			labels[i] = "`" + label + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", m.name, m.kind, strings.Join(labels, ", "), strings.TrimSuffix(m.help, "."))
	}
	return table.String()
}

const (
	tableBegin = "<!-- generated by go test ./cmd/nar-herder -run TestMonitoring -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestMonitoring compares the metrics of servers in all roles with docs/monitoring.md, and tests
// the rules and the dashboard in contrib with them. It doesn't run in parallel, as Prometheus
// expects answers in time.
func TestMonitoring(t *testing.T) {
	addresses := metricServers(t)
	all := &families{make(map[string]*metricFamily), make(map[string]map[string]bool)}
	for _, address := range addresses {
		all.add(t, get(t, address, "/metrics").body)
	}
	for part := range all.values["narherder_healthy part"] {
		if overview.Advice(part) == "" {
			t.Errorf("the status page has no advice for %s", part)
		}
		if !strings.Contains(read(t, root, "docs/monitoring.md"), "`"+part+"`") {
			t.Errorf("docs/monitoring.md doesn't explain the part %s", part)
		}
	}
	t.Run("document", func(t *testing.T) {
		page := filepath.Join(root, "docs", "monitoring.md")
		text := read(t, page)
		before, rest, ok := strings.Cut(text, tableBegin)
		old, after, ok2 := strings.Cut(rest, tableEnd)
		if !ok || !ok2 {
			t.Fatal("docs/monitoring.md lacks the table")
		}
		table := all.table(t)
		if *update {
			if err := os.WriteFile(page, []byte(before+tableBegin+table+tableEnd+after), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if old != table {
			t.Errorf("the table of docs/monitoring.md is out of date: run 'go test ./cmd/nar-herder -run TestMonitoring -update'\ngot:\n%s", table)
		}
	})
	t.Run("conventions", func(t *testing.T) {
		promtool := required(t, "promtool")
		for _, address := range addresses {
			check := exec.Command(promtool, "check", "metrics")
			check.Stdin = strings.NewReader(get(t, address, "/metrics").body)
			if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v: %s", err, out)
			}
		}
		for key, values := range all.values {
			for value := range values {
				name, _, _ := strings.Cut(key, " ")
				if strings.HasPrefix(name, "narherder_") && !strings.HasPrefix(name, "narherder_build_info") && strings.ContainsAny(value, " \t") {
					t.Errorf("%s: %q", key, value)
				}
			}
		}
	})
	t.Run("rules", func(t *testing.T) { testRules(t, all, startPrometheus(t, addresses)) })
}
