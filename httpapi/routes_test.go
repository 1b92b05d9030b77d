package httpapi

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/httpapi/page/history"
	"nar-herder/httpapi/page/overview"
	"nar-herder/storage"
	"nar-herder/storage/census"
	"nar-herder/storage/index"

	"github.com/prometheus/client_golang/prometheus"
)

func seconds(n int) *time.Duration {
	d := time.Duration(n) * time.Second
	return &d
}

// narHashOf returns the NarHash of a narinfo's text.
func narHashOf(text string) string {
	_, rest, _ := strings.Cut(text, "NarHash: ")
	hash, _, _ := strings.Cut(rest, "\n")
	return hash
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.TTL, opts.NegativeTTL, opts.SigningKeys, opts.Version = seconds(1000), seconds(60), []string{"(public-key (ecc))\n", "(public-key (rsa))\n"}, "1.2.3"
	address := startWithPages(t, opts).address

	const narinfoType, textType, binary = "application/x-nix-narinfo", "text/plain; charset=utf-8", "application/octet-stream"
	text := func(base string) string { return contents(t, published, hashOf(base)+".narinfo") }
	const unknown, noNar, none = "there is no narinfo for that hash\n", "there is no such nar\n", "there is nothing of that name\n"
	const malformed = "the path of the URL is malformed\n"
	for _, test := range []struct {
		target string
		status int
		kind   string
		cache  string
		body   string // "*" for any
		header []string
	}{
		{target: "/" + hashOf(greeting) + ".narinfo", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "/" + hashOf(odd) + ".narinfo", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(odd)},
		{target: "/%66" + hashOf(greeting)[1:] + "%2enarinfo", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "/" + hashOf(greeting) + ".narinfo?x=y", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "/" + hashOf(greeting) + ".narinfo?", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "http://other.example/" + hashOf(greeting) + ".narinfo", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "http://other.example:8080/" + hashOf(greeting) + ".narinfo?q", status: 200, kind: narinfoType, cache: "max-age=1000", body: text(greeting)},
		{target: "/" + nobody + ".narinfo", status: 404, kind: textType, cache: "max-age=60", body: unknown},
		{target: "/" + nobody[1:] + "%30.narinfo", status: 404, kind: textType, cache: "max-age=60", body: unknown},
		{target: "/" + strings.ToUpper(hashOf(greeting)) + ".narinfo", status: 404, kind: textType, body: none},
		{target: "/" + nobody[1:] + "e.narinfo", status: 404, kind: textType, body: none}, // no e in base32
		{target: "/" + nobody + "0.narinfo", status: 404, kind: textType, body: none},
		{target: "/.narinfo", status: 404, kind: textType, body: none},
		{target: "/" + hashOf(greeting), status: 404, kind: textType, body: none},
		{target: "/" + hashOf(greeting) + ".narinfo/", status: 404, kind: textType, body: none},
		{target: "/" + hashOf(greeting) + ".narinfo/other", status: 404, kind: textType, body: none},
		{target: "/" + hashOf(greeting) + ".narinfo.narinfo", status: 404, kind: textType, body: none},

		{target: "/" + hashOf(greeting) + ".narinfo/info", status: 200, kind: "application/json", cache: "no-store", body: `{"stored": true}`},
		{target: "/" + hashOf(greeting) + ".narinfo/info?x", status: 200, kind: "application/json", cache: "no-store", body: `{"stored": true}`},
		{target: "/" + nobody + ".narinfo/info", status: 404, kind: textType, cache: "max-age=60", body: unknown},
		{target: "/" + hashOf(greeting) + ".narinfo/info/", status: 404, kind: textType, body: none},

		{target: "/stored-nars/" + hashOf(greeting) + "," + nobody + "?nonce=7", status: 200, kind: "application/json", cache: "no-store",
			body: `{"instance":"","storage":"","nonce":"7","nars":[{"hash":"` + hashOf(greeting) + `","stored":true,"nar_hash":"` + narHashOf(text(greeting)) +
				`","files":[{"url":"nar/lzip/` + greeting + `","size":` + strconv.Itoa(len(contents(t, published, "nar/lzip", greeting))) + `}]},{"hash":"` + nobody + `","stored":false}]}` + "\n"},
		{target: "/stored-nars/" + hashOf(greeting) + ",x", status: 400, kind: textType, body: "not a list of hashes\n"},
		{target: "/stored-nars/", status: 400, kind: textType, body: "not a list of hashes\n"},
		{target: "/stored-nars/" + strings.Repeat(nobody+",", 200) + nobody, status: 400, kind: textType, body: "that is too many hashes\n"},
		{target: "/stored-nars", status: 404, kind: textType, body: none},

		{target: "/nar/lzip/" + greeting, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", greeting)},
		{target: "/nar/lzip/" + oddURL, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", odd)},
		{target: "/nar/lzip/" + strings.ToLower(oddURL), status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", odd)},
		{target: "/nar/lzip/" + strings.Replace(odd, "?", "%3f", 1), status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", odd)},
		{target: "/nar/lzip/" + gtk, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", gtk)},
		{target: "/%6ear/%6Czip/" + gtk, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar/lzip", gtk)},
		{target: "/nar/" + hello, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar", hello)},
		{target: "/nar/" + greeting, status: 200, kind: binary, cache: "public, max-age=1000", body: string(flatNar("Hello, herder!\n"))},
		{target: "/nar/" + gtk, status: 200, kind: binary, cache: "public, max-age=1000", body: "*"},
		{target: "/nar/gzip/" + greeting, status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/none/" + hello, status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/lzip/" + hello, status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/lzip/" + hashOf(greeting) + "-other-name", status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/" + hashOf(greeting) + "-other-name", status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/lzip/" + nobody + "-x", status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/" + nobody + "-x", status: 404, kind: textType, cache: "max-age=60", body: noNar},
		{target: "/nar/lzip/greeting", status: 404, kind: textType, cache: "max-age=60", body: "that is not the name of a nar\n"},
		{target: "/nar/lzip/" + hashOf(greeting), status: 404, kind: textType, cache: "max-age=60", body: "that is not the name of a nar\n"},
		{target: "/nar/", status: 404, kind: textType, cache: "max-age=60", body: "that is not the name of a nar\n"},
		{target: "/nar", status: 404, kind: textType, body: none},
		{target: "/nar/x/lzip/" + greeting, status: 404, kind: textType, body: none},
		{target: "/nar/lzip/" + greeting + "/", status: 404, kind: textType, body: none},

		{target: "/file/hello-2.10.tar.gz/sha256/" + helloHash, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar", hello)[96 : 96+1329]},
		{target: "/file/hello-2.10%2Etar.gz/sha256/" + helloHash, status: 200, kind: binary, cache: "public, max-age=1000", body: contents(t, published, "nar", hello)[96 : 96+1329]},
		{target: "/file/hello-2.10.tar.gz/sha512/" + helloHash, status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.10.tar.gz/SHA256/" + helloHash, status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.11.tar.gz/sha256/" + helloHash, status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.10.tar.gz/sha256/" + helloHash[1:], status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.10.tar.gz/sha256/e" + helloHash[1:], status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.10.tar.gz/sha256/z" + helloHash[1:], status: 404, kind: textType, cache: "max-age=60", body: "*"}, // more than 256 bits
		{target: "/file/hello-2.10.tar.gz/sha256/", status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/.hidden/sha256/" + helloHash, status: 404, kind: textType, cache: "max-age=60", body: "*"},
		{target: "/file/hello-2.10.tar.gz/sha256/" + helloHash + "/", status: 404, kind: textType, body: none},
		{target: "/file/hello-2.10.tar.gz", status: 404, kind: textType, body: none},

		{target: "/nix-cache-info", status: 200, kind: textType, body: "StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 100\n"},
		{target: "/nix-cache-info/", status: 404, kind: textType, body: none},
		{target: "/signing-key.pub", status: 200, kind: textType, body: "(public-key (ecc))\n"},
		{target: "/signing-key-2.pub", status: 200, kind: textType, body: "(public-key (rsa))\n"},
		{target: "/health/live", status: 200, kind: "application/json", cache: "no-store", body: "{\"status\": \"ok\"}\n"},
		{target: "/health", status: 200, kind: "application/json", cache: "no-store", body: `{"status":"ok"}` + "\n"},
		{target: "/health/ready", status: 200, kind: "application/json", cache: "no-store", body: `{"status":"ok"}` + "\n"},
		{target: "/health/dead", status: 404, kind: textType, body: none},

		{target: "/", status: 404, kind: textType, body: "this is a substitute server: ask for /HASH.narinfo\n"},
		{target: "/?x", status: 404, kind: textType, body: "this is a substitute server: ask for /HASH.narinfo\n"},
		{target: "/", status: 404, kind: textType, body: "*", header: []string{"Accept: */*"}},
		{target: "/", status: 200, kind: "text/html; charset=utf-8", cache: "no-cache", body: "*", header: []string{"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}},
		{target: "http://other.example", status: 404, kind: textType, body: "*"},

		{target: "/api/queue?nr=100", status: 404, kind: textType, body: none},
		{target: "/api/latestbuilds?nr=10", status: 404, kind: textType, body: none},
		{target: "/api", status: 404, kind: textType, body: none},
		{target: "/favicon.ico", status: 404, kind: textType, body: none},
		{target: "/robots.txt", status: 404, kind: textType, body: none},
		{target: "/nar/lzip", status: 404, kind: textType, cache: "max-age=60", body: "that is not the name of a nar\n"},

		{target: "/../etc/passwd", status: 400, kind: textType, body: malformed},
		{target: "/nar/../index.db", status: 400, kind: textType, body: malformed},
		{target: "/nar/%2e%2e/index.db", status: 400, kind: textType, body: malformed},
		{target: "/nar/%2E./%2e/" + greeting, status: 400, kind: textType, body: malformed},
		{target: "/nar%2flzip%2f" + greeting, status: 400, kind: textType, body: malformed},
		{target: "/nar//lzip/" + greeting, status: 400, kind: textType, body: malformed},
		{target: "/nar/lzip/%00" + greeting, status: 400, kind: textType, body: malformed},
		{target: "/nar/lzip/" + greeting + "%", status: 400, kind: textType, body: malformed},
		{target: "/nar/lzip/" + greeting + "%4", status: 400, kind: textType, body: malformed},
		{target: "/nar/lzip/" + greeting + "%zz", status: 400, kind: textType, body: malformed},
		{target: "/" + hashOf(greeting) + "%0d%0aX:%20y.narinfo", status: 400, kind: textType, body: malformed},
	} {
		t.Run(test.target+" "+strings.Join(test.header, " "), func(t *testing.T) {
			t.Parallel()
			c := dial(t, address)
			got := c.ask("GET", test.target, test.header...)
			check := func(what string, got, want any) {
				t.Helper()
				if got != want {
					t.Errorf("%s = %q, want %q", what, got, want)
				}
			}
			check("status", got.StatusCode, test.status)
			check("Content-Type", got.Header.Get("Content-Type"), test.kind)
			check("Cache-Control", got.Header.Get("Cache-Control"), test.cache)
			check("Content-Length", got.Header.Get("Content-Length"), strconv.Itoa(len(got.body)))
			if test.body != "*" {
				check("body", got.body, test.body)
			}
			check("Connection", got.Header.Get("Connection"), "")
			check("Server", got.Header.Get("Server"), "")
			if _, err := http.ParseTime(got.Header.Get("Date")); err != nil {
				t.Error(err)
			}

			head := c.ask("HEAD", test.target, test.header...)
			check("HEAD: status", head.StatusCode, test.status)
			head.Header.Del("Date")
			got.Header.Del("Date")
			check("HEAD: header", fmt.Sprint(head.Header), fmt.Sprint(got.Header))
			c.stillOpen()
		})
	}
}

// TestTTL checks the headers of narinfos and of 404s for each combination.
func TestTTL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		ttl, newTTL, negative *time.Duration
		want, wantNegative    string
	}{
		{nil, nil, nil, "", ""},
		{seconds(5), nil, nil, "max-age=5", ""},
		{seconds(500), seconds(5), nil, "max-age=5", ""},
		{nil, seconds(7), seconds(3), "max-age=7", "max-age=3"},
		{seconds(0), nil, seconds(0), "max-age=0", "max-age=0"},
		{nil, nil, seconds(86400), "", "max-age=86400"},
	} {
		opts := options()
		opts.TTL, opts.NewTTL, opts.NegativeTTL = test.ttl, test.newTTL, test.negative
		c := dial(t, start(t, corpus(), opts).address)
		for range 2 { // the second comes from memory
			if got := c.ask("GET", "/"+hashOf(gtk)+".narinfo").Header.Get("Cache-Control"); got != test.want {
				t.Errorf("Cache-Control: %q, want %q", got, test.want)
			}
		}
		for _, target := range []string{"/" + nobody + ".narinfo", "/" + nobody + ".narinfo/info"} {
			if got := c.ask("GET", target).Header.Get("Cache-Control"); got != test.wantNegative {
				t.Errorf("%s: Cache-Control: %q, want %q", target, got, test.wantNegative)
			}
		}
		// Other paths have no TTL.
		if got := c.ask("GET", "/favicon.ico").Header.Get("Cache-Control"); got != "" {
			t.Errorf("what is not a nar: Cache-Control: %q", got)
		}
	}
}

// brokenPages are pages that can't be made.
func brokenPages() *page.Site {
	site := page.New(page.Options{Size: page.Full})
	site.Add(page.Route{Label: "Home", Minimal: true, Make: func(context.Context, *page.Request) (*page.Page, error) {
		return nil, errBroken
	}})
	return site
}

// homePage is a site with a home page alone.
func homePage() *page.Site {
	site := page.New(page.Options{Size: page.Minimal})
	overview.Add(site, &overview.Sources{
		Figures: func() figures.Figures { return figures.Read(prometheus.NewRegistry()) }, Health: func(context.Context) []health.State { return nil },
		Census: func() census.Counts { return census.Counts{} }, History: history.New(func() history.Sample { return history.Sample{} }),
	})
	return site
}

// startWithPages starts a server of the corpus with its pages.
func startWithPages(t *testing.T, opts Options) (server *started) {
	opts.Pages = page.New(page.Options{Size: page.Full, Version: opts.Version})
	overview.Add(opts.Pages, &overview.Sources{
		Keys: opts.SigningKeys, History: history.New(func() history.Sample { return history.Sample{At: time.Now(), Snapshot: server.Snapshot()} }),
		Figures: func() figures.Figures { return figures.Read(server.Registry()) }, Health: func(ctx context.Context) []health.State { return server.Health().States(ctx) },
		Census: func() census.Counts { return census.Counts{} }, Newest: func(context.Context, int) ([]*index.Item, error) { return nil, nil },
	})
	server = start(t, corpus(), opts)
	return server
}

func TestHomePage(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]string{nil, {"(public-key)"}, {"(public-key)", "(public-key)"}} {
		opts := options()
		opts.SigningKeys, opts.Version = keys, "<1.2.3>"
		server := startWithPages(t, opts)
		c := dial(t, server.address)
		page := c.ask("GET", "/", "Accept: text/html")
		if page.StatusCode != 200 || !strings.Contains(page.body, "<dd>13</dd>") || !strings.Contains(page.body, "&lt;1.2.3&gt;") {
			t.Errorf("%s %s", page.Status, page.body)
		}
		if head := c.ask("HEAD", "/", "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"); head.StatusCode != 200 || head.ContentLength < 1000 || head.body != "" {
			t.Errorf("HEAD: %s, %d bytes", head.Status, head.ContentLength)
		}
		for _, path := range []string{"/", "/status"} {
			for _, accept := range []string{"*/*", "text/*", "text/html;q=0", "application/json"} {
				if got := c.ask("GET", path, "Accept: "+accept); got.StatusCode != 404 || got.Header.Get("Vary") != "Accept" {
					t.Errorf("%s with Accept: %s: %s, %v", path, accept, got.Status, got.Header)
				}
			}
		}
		if got := c.ask("GET", "/"); got.StatusCode != 404 || !strings.Contains(got.body, "substitute server") {
			t.Errorf("without Accept: %s %s", got.Status, got.body)
		}
		for _, path := range []string{"/x", "/status/", "/nar", "/" + hashOf(greeting), "/file/x"} {
			if got := c.ask("GET", path, "Accept: text/html"); got.StatusCode != 404 || !strings.Contains(got.body, "<h1>Not found</h1>") || got.Header.Get("Vary") != "Accept" {
				t.Errorf("%s: %s %s", path, got.Status, got.body)
			}
			if got := c.ask("GET", path); got.StatusCode != 404 || got.body != "there is nothing of that name\n" {
				t.Errorf("%s without Accept: %s %s", path, got.Status, got.body)
			}
		}
		if got := c.ask("GET", "/"+nobody+".narinfo", "Accept: text/html"); got.StatusCode != 404 || got.body != "there is no narinfo for that hash\n" {
			t.Errorf("an unknown narinfo in a browser: %s %s", got.Status, got.body)
		}
		if got := c.ask("GET", "/status", "Accept: text/html"); got.StatusCode != 200 || !strings.Contains(got.body, "<h1>Status</h1>") {
			t.Errorf("status: %s", got.Status)
		}
		_, style, _ := strings.Cut(page.body, `<link rel="stylesheet" href=".`)
		style, _, _ = strings.Cut(style, `"`)
		got := c.ask("GET", style)
		if got.StatusCode != 200 || got.Header.Get("Content-Type") != "text/css; charset=utf-8" || !strings.Contains(got.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %s, %v", style, got.Status, got.Header)
		}
		if again := c.ask("GET", style, "If-None-Match: "+got.Header.Get("ETag")); again.StatusCode != 304 || again.body != "" {
			t.Errorf("%s again: %s", style, again.Status)
		}
		if got := strings.Contains(page.body, "signing-key.pub"); got != (keys != nil) {
			t.Errorf("the page names the key: %v", got)
		}
		if got := strings.Contains(page.body, "signing-key-2.pub"); got != (len(keys) == 2) {
			t.Errorf("the page names the second key: %v", got)
		}
		if page.Header.Get("Vary") != "Accept" || page.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("header %v", page.Header)
		}
		want := map[bool]int{true: 200, false: 404}[keys != nil]
		if got := c.ask("GET", "/signing-key.pub"); got.StatusCode != want {
			t.Errorf("key: %s", got.Status)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	server := start(t, corpus(), options())
	c := dial(t, server.address)
	before := c.ask("GET", "/metrics")
	for _, line := range []string{
		`narherder_http_requests_total{method="GET",route="/HASH.narinfo",status="200"} 0`,
		`narherder_http_requests_total{method="GET",route="/nar/",status="404"} 0`,
		"narherder_faults_total 0", "narherder_damaged_nars_total 0",
		"narherder_items 13", "narherder_stored_nars 13", "narherder_http_connections 1",
	} {
		if !strings.Contains(before.body, line+"\n") {
			t.Errorf("no line %q at the start", line)
		}
	}
	for range 3 {
		c.ask("GET", "/"+hashOf(greeting)+".narinfo")
	}
	c.ask("GET", "/"+nobody+".narinfo")
	c.ask("GET", "/nar/lzip/"+greeting)
	c.ask("HEAD", "/nar/lzip/"+greeting)
	c.ask("GET", "/nar/lzip/"+greeting, "Range: bytes=0-9")
	c.ask("POST", "/", "Content-Length: 0")
	after := c.ask("GET", "/metrics")
	for _, line := range []string{
		`narherder_http_requests_total{method="GET",route="/HASH.narinfo",status="200"} 3`,
		`narherder_http_requests_total{method="GET",route="/HASH.narinfo",status="404"} 1`,
		`narherder_http_requests_total{method="GET",route="/nar/",status="200"} 1`,
		`narherder_http_requests_total{method="HEAD",route="/nar/",status="200"} 1`,
		`narherder_http_requests_total{method="GET",route="/nar/",status="206"} 1`,
		`narherder_http_requests_total{method="other",route="other",status="405"} 1`,
		`narherder_http_requests_total{method="GET",route="/metrics",status="200"} 1`,
		`narherder_http_response_body_bytes_total{route="/nar/"} 117`,
		"narherder_answer_cache_entries 1", "narherder_answer_cache_hits_total 2", "narherder_answer_cache_misses_total 2",
		`narherder_http_request_duration_seconds_count{route="/nar/"} 3`,
		`narherder_http_time_to_first_byte_seconds_bucket{route="/HASH.narinfo",le="+Inf"} 4`,
	} {
		if !strings.Contains(after.body, line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	for line := range strings.Lines(after.body) {
		if strings.Contains(line, hashOf(greeting)) {
			t.Errorf("a hash in the metrics: %s", line)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if !strings.HasPrefix(name, "narherder_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("foreign metric: %s", line)
		}
	}
}

// TestMetricsWithoutIndex: other metrics are served if the index can't be read.
func TestMetricsWithoutIndex(t *testing.T) {
	t.Parallel()
	items := &fakeItems{totals: func() (index.Totals, error) { return index.Totals{}, errBroken }}
	c := dial(t, start(t, items, options()).address)
	got := c.ask("GET", "/metrics")
	if got.StatusCode != 200 || !strings.Contains(got.body, "narherder_faults_total 0\n") || strings.Contains(got.body, "narherder_items") {
		t.Errorf("%s %s", got.Status, got.body)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	full := &fs.PathError{Op: "write", Path: "/srv/nars/x", Err: syscall.ENOSPC}
	missing := fmt.Errorf("storage /srv/nars: %w: is it mounted?", storage.ErrAllMissing)
	for _, test := range []struct {
		needed, other error
		status        int
		body, log     string
	}{
		{nil, nil, 200, `{"status":"ok"}`, ""},
		{errBroken, nil, 503, `{"status":"failing","failing":{"needed":["see the log"]}}`, "level=ERROR"},
		{missing, nil, 503, `{"status":"failing","failing":{"needed":["none of the stored nars are there: is it mounted?"]}}`, "/srv/nars"},
		{nil, full, 200, `{"status":"ok","warnings":{"other":["no space left on device: see the log"]}}`, "level=WARN"},
		{nil, health.Warnings{"a", "b"}, 200, `{"status":"ok","warnings":{"other":["a","b"]}}`, ""},
		{health.Warnings{"a", "b"}, nil, 200, `{"status":"ok","warnings":{"needed":["a","b"]}}`, ""},
		{context.DeadlineExceeded, errBroken, 503, `{"status":"failing","failing":{"needed":["no answer within 3s"]},"warnings":{"other":["see the log"]}}`, "level=ERROR"},
	} {
		looks := 0
		opts := options()
		opts.Health = []health.Part{
			{Name: "needed", Needed: true, Look: func(context.Context) error { looks++; return test.needed }},
			{Name: "other", Look: func(context.Context) error { return test.other }},
		}
		s := start(t, &fakeItems{}, opts)
		c := dial(t, s.address)
		for range 10 { // none of which checks
			if got := c.ask("GET", "/health"); got.StatusCode != test.status || got.body != test.body+"\n" {
				t.Errorf("%s %s", got.Status, got.body)
			}
		}
		status, _, _ := strings.Cut(test.body, ",")
		if got := c.ask("GET", "/health/ready"); got.StatusCode != test.status || got.body != strings.TrimSuffix(status, "}")+"}\n" {
			t.Errorf("ready: %s %s", got.Status, got.body)
		}
		if got := c.ask("GET", "/health/live"); got.StatusCode != 200 {
			t.Errorf("live: %s", got.Status)
		}
		if log := s.log.String(); !strings.Contains(log, test.log) || test.log == "" && log != "" {
			t.Errorf("the log: %s", log)
		}
		metrics := c.ask("GET", "/metrics").body
		for name, err := range map[string]error{"needed": test.needed, "other": test.other} {
			value := "1"
			if err != nil {
				value = "0"
			}
			if !strings.Contains(metrics, "\nnarherder_healthy{part=\""+name+"\"} "+value+"\n") {
				t.Errorf("the metric of %s is not %s", name, value)
			}
		}
		s.stop()
		<-s.ended
		s.ended <- nil
		if looks > 5 {
			t.Errorf("10 requests looked %d times", looks)
		}
	}
}

// TestInfoLooks checks that the bytes are looked up, not only the row.
func TestInfoLooks(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", "content", "gzip")
	for _, test := range []struct {
		err    error
		status int
		body   string
	}{
		{nil, 200, `{"stored": true}`},
		{storage.ErrNotStored, 200, `{"stored": false}`},
		{fmt.Errorf("x: %w", storage.ErrNotStored), 200, `{"stored": false}`},
		{storage.ErrMismatch, 500, ""},
		{errBroken, 500, ""},
	} {
		items := m.items(t)
		if test.err != nil {
			items.open = failingOpen(test.err)
		}
		got := dial(t, start(t, items, options()).address).ask("GET", "/"+m.path.Hash.String()+".narinfo/info")
		if got.StatusCode != test.status || test.body != "" && got.body != test.body {
			t.Errorf("%v: %s %s", test.err, got.Status, got.body)
		}
	}
}
