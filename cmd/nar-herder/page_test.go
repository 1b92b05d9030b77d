package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/httpapi/page/overview"
)

// browse requests a page as a browser does.
func browse(t testing.TB, address, target string) answer {
	t.Helper()
	return request(t, address, "GET", target, "Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
}

// TestPages: a server with everything has pages that show all metrics that they name, on both
// listeners, and no secrets.
func TestPages(t *testing.T) {
	t.Parallel()
	s := &secrets{t: t}
	password := s.word("password")
	p := newPlace(t)
	p.imports(t, published(greeting), published(entropy))
	succeed(t, p.args("remove", "/gnu/store/"+entropy)...)
	key := filepath.Join(p.dir, "key.pub")
	succeed(t, "keygen", filepath.Join(p.dir, "key.sec"), key)
	server := p.serve(t, "--control-host=unix:"+filepath.Join(p.dir, "control"), "--signing-key="+key, "--public-url=https://guix.example.org/sub/",
		"--title=<b>Ours</b>", "--contact=ops@example.org", "--mirror=http://user:"+password+"@127.0.0.1:1", "--upstream=http://user:"+password+"@127.0.0.1:2",
		"--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+filepath.Join(p.dir, "zstd"), "--storage-limit=1T", "--storage-cache="+filepath.Join(p.dir, "cache"),
		"--upstream-keep=1d", "--scrub-interval=90d")
	control := filepath.Join(p.dir, "control")
	until(t, "the nars are counted", func() bool {
		return strings.Contains(browse(t, server.addresses[0], "/").body, `<tr><th scope="row">lzip</th>`)
	})
	for _, address := range []string{server.addresses[0], control} {
		home, status := browse(t, address, "/"), browse(t, address, "/status")
		if home.StatusCode != 200 || status.StatusCode != 200 {
			t.Errorf("%s: %s, %s", address, home.Status, status.Status)
		}
		s.none("the home page", home.body)
		s.none("the status page", status.body)
		for _, want := range []string{
			"&lt;b&gt;Ours&lt;/b&gt;", `href="mailto:ops@example.org"`, `&#34;(public-key (ecc (curve Ed25519)`, "127.0.0.1:1</td>", "127.0.0.1:2</th>",
			`wget -O signing-key.pub "https://guix.example.org/sub/signing-key.pub"`, `guix build --substitute-urls="https://guix.example.org/sub" hello`,
		} {
			if !strings.Contains(home.body, want) {
				t.Errorf("%s: the home page has no %s", address, want)
			}
		}
		if got := strings.Contains(status.body, "withdrawn, to be deleted next") && strings.Contains(status.body, entropy[33:]); got != (address == control) {
			t.Errorf("%s: the status page names what is being removed: %v", address, got)
		}
		if got := strings.Contains(status.body, p.dir); got != (address == control) {
			t.Errorf("%s: the status page names files: %v", address, got)
		}
		if policy := home.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
			t.Errorf("%s: %s", address, policy)
		}
		// Other clients get what they always got.
		if got := get(t, address, "/"); got.StatusCode != 404 {
			t.Errorf("%s without Accept: %s", address, got.Status)
		}
	}
	// Some metrics are missing until they have a value. TestMonitoring compares the document
	// with servers that have all.
	document := read(t, root, "docs/monitoring.md")
	for _, name := range overview.Metrics() {
		if !strings.Contains(document, "\n| `"+name+"` |") {
			t.Errorf("the pages show %s, which is not among the metrics", name)
		}
	}
}

func TestPageOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	for _, test := range []struct {
		args []string
		want map[string]int
	}{
		{nil, map[string]int{"/": 200, "/status": 200, "/page/style.css": 200}},
		{[]string{"--page=minimal"}, map[string]int{"/": 200, "/status": 404, "/search": 404, "/item/" + greeting[:32]: 404, "/page/style.css": 200}},
		{[]string{"--page=off"}, map[string]int{"/": 404, "/status": 404, "/search": 404, "/page/style.css": 404, "/" + narinfoName(greeting): 200}},
		{[]string{"--public-metrics=no"}, map[string]int{"/": 200, "/status": 200, "/metrics": 404}},
	} {
		server := p.serve(t, test.args...)
		for path, status := range test.want {
			if got := browse(t, server.addresses[0], path); got.StatusCode != status {
				t.Errorf("%v: %s: %s, want %d", test.args, path, got.Status, status)
			}
		}
		home := browse(t, server.addresses[0], "/").body
		if len(test.args) > 0 && test.args[0] == "--public-metrics=no" {
			if strings.Contains(home, version()) || strings.Contains(home, "Stored nars") || strings.Contains(browse(t, server.addresses[0], "/status").body, "All parts") {
				t.Errorf("hidden metrics are shown: %s", home)
			}
		}
		// Without --public-url, commands have the address that the browser used, unless a proxy
		// has forwarded the request.
		if test.args == nil {
			if !strings.Contains(home, `substitute-urls="http://herder.example"`) {
				t.Errorf("the address in the request: %s", home)
			}
			forwarded := request(t, server.addresses[0], "GET", "/", "Accept", "text/html", "X-Forwarded-For", "192.0.2.1").body
			if !strings.Contains(forwarded, `substitute-urls="http://THIS-SERVER"`) {
				t.Errorf("the address behind a proxy: %s", forwarded)
			}
		}
		server.stop(t, os.Interrupt)
	}
	for option, says := range map[string]string{
		"--page=some":                                  `"some"`,
		"--title=":                                     "empty",
		"--title=a\nb":                                 "control characters",
		"--contact=" + strings.Repeat("x", 300):        "300 bytes",
		"--public-url=guix.example.org":                "want https://HOST",
		"--public-url=https://u:s3cr3t-x@guix.example": "leave out the user and password",
		"--public-url=https://guix.example/$x":         "want only letters",
		"--public-url=https://guix.example/?x":         "leave out the query",
	} {
		r := runProgram(t, p.args("run-server", option)...)
		if r.status != 64 || !strings.Contains(r.err, says) || strings.Contains(r.err, "s3cr3t") {
			t.Errorf("%s: status %d: %s", option, r.status, r.err)
		}
	}
}
