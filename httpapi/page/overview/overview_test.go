package overview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/html"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/metrics"
	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/httpapi/page/history"
	"nar-herder/internal/recentlog"
	mirror "nar-herder/mirror/health"
	"nar-herder/narinfo"
	"nar-herder/storage/census"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// evil is what must be escaped wherever it comes from.
const evil = `<img src=x onerror="alert('1')">&`

const key = "(public-key \n (ecc \n  (curve Ed25519)\n  (q #AB#)\n  )\n )\n"

// full returns sources of a server that has everything, whose texts are evil.
func full(t *testing.T) *Sources {
	t.Helper()
	registry := prometheus.NewRegistry()
	for name, value := range map[string]float64{
		"narherder_items": 1234567, "narherder_stored_nars": 1000, "narherder_stored_bytes": 5 << 30, "narherder_cached_nars_running": 2,
		"narherder_storage_usage_bytes": 6 << 30, "narherder_storage_withdrawn_bytes": 1 << 30, "narherder_storage_limit_bytes": 8 << 30, "narherder_storage_free_bytes": 9 << 30,
		"narherder_scrub_never_verified_items": 17, "narherder_scrub_oldest_verification_timestamp_seconds": 0,
	} {
		gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: name})
		gauge.Set(value)
		registry.MustRegister(gauge)
	}
	asked := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "narherder_upstream_narinfo_requests_total"}, []string{"upstream", "outcome"})
	registry.MustRegister(asked)
	asked.WithLabelValues(evil, "found").Add(41)
	asked.WithLabelValues(evil, "failed").Add(43)
	cached := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "narherder_cached_bytes"}, []string{"type"})
	registry.MustRegister(cached)
	cached.WithLabelValues("zstd").Set(3 << 20)
	n := int64(0)
	h := history.New(func() history.Sample {
		n++
		return history.Sample{At: time.Now().Add(time.Duration(n-5) * time.Minute), Snapshot: metrics.Snapshot{Requests: n * 600, Bytes: n << 20}}
	})
	for range 3 {
		h.Add(history.Sample{At: time.Now().Add(time.Duration(n-5) * time.Minute), Snapshot: metrics.Snapshot{Requests: n * 600, Bytes: n << 20}})
		n++
	}
	return &Sources{
		Keys:    page.Keys{key, `(public-key "` + evil + `\")`},
		Figures: func() figures.Figures { return figures.Read(registry) }, History: h,
		Health: func(context.Context) []health.State {
			return []health.State{{Part: "database"}, {Part: "upstreams", Problems: []string{evil}}, {Part: "storage", Problems: []string{"is it mounted?"}, Fails: true, Detail: "stat /srv/nars " + evil}}
		},
		Census: func() census.Counts {
			return census.Counts{ByCompression: map[string]census.Nars{"lzip": {Named: 700, Stored: 600, StoredSize: 4 << 30}, evil: {Named: 1}}, Items: 1234567, At: time.Now()}
		},
		Mirror: func() mirror.Status {
			return mirror.Status{Source: "https://source.example/" + evil, State: mirror.Failing, LagSeconds: 90, Error: evil, Doing: evil}
		},
		Upstreams: func() []upstream.Status {
			return []upstream.Status{{URL: "file:///srv/nars/" + evil, Label: evil, Err: fmt.Errorf("dial: %s: %w", evil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "inside.example", Server: "10.0.0.53:53"}})}, {URL: "https://up.example", Label: "https://up.example", Up: true}}
		},
		Newest: func(context.Context, int) ([]*index.Item, error) {
			text := "StorePath: /gnu/store/00000000000000000000000000000001-newest_1.0\nNarHash: sha256:0000000000000000000000000000000000000000000000000000\nNarSize: 1\nReferences: \nURL: nar/x\nCompression: none\n"
			hash, err := narinfo.ParsePathHash([]byte("00000000000000000000000000000001"))
			return []*index.Item{{Hash: hash, Text: []byte(text)}, {Text: []byte("damaged")}}, err
		},
		Events: func() []recentlog.Event {
			return []recentlog.Event{{Message: "event " + evil, Attributes: "private=" + evil, Level: slog.LevelWarn}}
		},
		Options: []Option{{"storage", "/srv/nars", "the command line"}, {"title", evil, evil}}, Workers: &Workers{Index: emptyIndex(t)},
	}
}

func emptyIndex(t *testing.T) *index.Index {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// render returns a page as it is shown with the options.
func render(t *testing.T, sources *Sources, options page.Options, path string) string {
	t.Helper()
	site := page.New(options)
	Add(site, sources)
	request := httptest.NewRequest("GET", path, nil)
	request.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	site.Private(slog.New(slog.DiscardHandler)).ServeHTTP(w, request)
	if w.Code != 200 {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// public returns the text of a page as all clients see it.
func public(t *testing.T, sources *Sources, r page.Request, path string) string {
	t.Helper()
	makers := map[string]page.Handler{"/": sources.home, "/status": sources.status}
	made, err := makers[path](t.Context(), &r)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%+v", made.Data)
}

// TestStructure checks what a screen reader and a narrow screen need.
func TestStructure(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/status"} {
		for name, sources := range map[string]*Sources{"full": full(t), "empty": empty(t)} {
			text := render(t, sources, page.Options{Size: page.Full, URL: "https://x.example", Title: evil, Contact: evil}, path)
			document, err := html.Parse(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			level, count := 0, make(map[string]int)
			for node := range document.Descendants() {
				if node.Type != html.ElementNode {
					continue
				}
				attributes := make(map[string]string)
				for _, a := range node.Attr {
					attributes[a.Key] = a.Val
					if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
						t.Errorf("%s %s: attribute %s of %s", name, path, a.Key, node.Data)
					}
					if strings.Contains(a.Val, "NaN") {
						t.Errorf("%s %s: %s=%s", name, path, a.Key, a.Val)
					}
				}
				count[node.Data]++
				switch node.Data {
				case "h1", "h2", "h3", "h4":
					n := int(node.Data[1] - '0')
					if n > level+1 {
						t.Errorf("%s %s: h%d after h%d", name, path, n, level)
					}
					level = n
				case "pre":
					if attributes["tabindex"] != "0" || attributes["aria-label"] == "" {
						t.Errorf("%s %s: the keyboard can't scroll a pre", name, path)
					}
				case "svg":
					if attributes["role"] != "img" || attributes["aria-label"] == "" {
						t.Errorf("%s %s: a picture has no label", name, path)
					}
				case "img":
					if src := attributes["src"]; !strings.HasPrefix(src, "./page/") {
						t.Errorf("%s %s: image %s", name, path, src)
					}
				case "table":
					if node.FirstChild == nil || firstElement(node) != "caption" {
						t.Errorf("%s %s: a table has no caption", name, path)
					}
				case "th":
					if attributes["scope"] == "" {
						t.Errorf("%s %s: a th has no scope", name, path)
					}
				case "a", "link", "script":
					target := attributes["href"] + attributes["src"]
					if !regexp.MustCompile(`^(\./|#|https://guix\.gnu\.org/$)`).MatchString(target) {
						t.Errorf("%s %s: link to %q", name, path, target)
					}
				}
			}
			for _, once := range []string{"h1", "main", "header", "nav", "footer", "title"} {
				if count[once] != 1 {
					t.Errorf("%s %s: %d × %s", name, path, count[once], once)
				}
			}
		}
	}
}

func firstElement(node *html.Node) string {
	for child := range node.ChildNodes() {
		if child.Type == html.ElementNode {
			return child.Data
		}
	}
	return ""
}

// empty returns sources of a server that has only just started, without anything.
func empty(t *testing.T) *Sources {
	t.Helper()
	return &Sources{
		Figures: func() figures.Figures { return nil }, History: history.New(func() history.Sample { return history.Sample{} }),
		Health: func(context.Context) []health.State { return nil }, Census: func() census.Counts { return census.Counts{} },
		Newest: func(context.Context, int) ([]*index.Item, error) { return nil, nil }, Events: func() []recentlog.Event { return nil }, Workers: &Workers{Index: emptyIndex(t)},
	}
}

func TestHome(t *testing.T) {
	t.Parallel()
	text := html.UnescapeString(render(t, full(t), page.Options{Size: page.Full, URL: "https://guix.example.org/sub", Title: "Ours"}, "/"))
	for _, want := range []string{
		"<dd>1,234,567</dd>", `wget -O signing-key.pub "https://guix.example.org/sub/signing-key.pub"`, "guix archive --authorize < signing-key-2.pub",
		`guix build --substitute-urls="https://guix.example.org/sub" hello`, `(cons "https://guix.example.org/sub" %default-substitute-urls)`,
		"\"(public-key (ecc (curve Ed25519)\n         (q #AB#)))\"", `\"<img src=x onerror=\"alert('1')\">&\\\")"`, `--substitute-urls="https://guix.example.org/sub https://bordeaux`,
		"6.0 GiB of 8.0 GiB are used (75 %)", "1.0 GiB of that are withdrawn", "9.0 GiB are free", `<rect class="used" x="0" y="0" width="375"`, `<rect class="pending" x="375" y="0" width="75"`,
		"2 problems", "90 s", "3.0 MiB", "4.0 GiB", "Requests", "10/s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	// Each command has the public URL.
	if commands := regexp.MustCompile(`(?m)(^|<code>)(wget|guix [bw]|--sub).*$`).FindAllString(text, -1); len(commands) != 5 || slices.ContainsFunc(commands, func(c string) bool { return !strings.Contains(c, "https://guix.example.org/sub") }) {
		t.Errorf("%q", commands)
	}
	if text := render(t, empty(t), page.Options{Size: page.Full}, "/"); !strings.Contains(text, "KEY-OF-THE-SIGNER") || strings.Contains(text, "authorized-keys") || !strings.Contains(text, "Nothing yet") {
		t.Errorf("without keys and items: %s", text)
	}
}

func TestMinimal(t *testing.T) {
	t.Parallel()
	text := render(t, full(t), page.Options{Size: page.Minimal, URL: "https://x.example"}, "/")
	if strings.Contains(text, "status") || strings.Contains(text, "search") || strings.Contains(text, "<figure") || !strings.Contains(text, "guix build") {
		t.Error(text)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	text := render(t, full(t), page.Options{Size: page.Full}, "/status")
	for _, want := range []string{"Failing: storage", "is it mounted?", "stat /srv/nars", "Warning: upstreams", "being compressed", ">2</td>", "newest_1.0", "event &lt;img", "--storage", "the command line", "dial: &lt;img", "lookup inside.example on 10.0.0.53:53", ">41</td>", ">43</td>", "never", "file:///srv/nars/&lt;img"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, "<img src=x") {
		t.Error("it is not escaped")
	}
}

// TestPublic: the public pages have neither names of files nor the log and the options, and
// with --public-metrics=no nothing of /metrics and /health.
func TestPublic(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/status"} {
		text := public(t, full(t), page.Request{ShowsMetrics: true}, path)
		if strings.Contains(text, "/srv/nars") || strings.Contains(text, "event ") || strings.Contains(text, "private=") || strings.Contains(text, "inside.example") || strings.Contains(text, "10.0.0.53") || strings.Contains(text, "command line") {
			t.Errorf("%s: %s", path, text)
		}
		if !strings.Contains(text, "is it mounted?") {
			t.Errorf("%s has no problems: %s", path, text)
		}
		text = public(t, full(t), page.Request{}, path)
		for _, hidden := range []string{"mounted", "1234567", "source.example", "up.example", "lzip", "Plots:[{", "being compressed"} {
			if strings.Contains(text, hidden) {
				t.Errorf("%s shows %s although metrics are hidden: %s", path, hidden, text)
			}
		}
	}
}

func TestFault(t *testing.T) {
	t.Parallel()
	sources := full(t)
	sources.Newest = func(context.Context, int) ([]*index.Item, error) { return nil, errors.New("the disk is broken") }
	if _, err := sources.status(t.Context(), &page.Request{}); err == nil {
		t.Error("no error")
	}
}

func TestStoragePicture(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		usage, withdrawn, limit, free float64 // -1 for no metric
		want                          StoragePicture
	}{
		"below the limit":     {25, 5, 100, 7, StoragePicture{Used: 120, Pending: 30, LimitAt: -1, Share: "25 %", Whole: 100}},
		"above the limit":     {200, 0, 100, -1, StoragePicture{Used: 600, LimitAt: 300, Share: "200 %", Whole: 100}},
		"without a limit":     {30, 0, -1, 70, StoragePicture{Used: 180, LimitAt: -1, Share: "30 %", Whole: 100}},
		"nearly empty":        {1, 0, 1 << 40, 5, StoragePicture{Used: leastShown, LimitAt: -1, Share: "0.0 %", Whole: 1 << 40}},
		"bucket":              {30, 0, -1, -1, StoragePicture{LimitAt: -1}},
		"empty":               {0, 0, 100, 5, StoragePicture{LimitAt: -1, Share: "0 %", Whole: 100}},
		"limit of 0":          {5, 0, 0, 5, StoragePicture{Used: 600, LimitAt: 0, Share: "–"}},
		"withdrawn are stale": {5, 10, 10, 5, StoragePicture{Pending: 300, LimitAt: -1, Share: "50 %", Whole: 10}},
	} {
		registry := prometheus.NewRegistry()
		for metric, value := range map[string]float64{"usage": test.usage, "withdrawn": test.withdrawn, "limit": test.limit, "free": test.free} {
			if metric == "free" && value < 0 {
				continue
			}
			gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "narherder_storage_" + metric + "_bytes"})
			gauge.Set(value)
			registry.MustRegister(gauge)
		}
		got := *storagePicture(figures.Read(registry))
		test.want.Usage, test.want.Withdrawn, test.want.Limit, test.want.Free, test.want.Width = int64(test.usage), int64(test.withdrawn), int64(test.limit), int64(test.free), pictureWidth
		if got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	if storagePicture(nil) != nil {
		t.Error("a picture without a storage")
	}
}
