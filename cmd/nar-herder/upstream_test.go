package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"nar-herder/narinfo"
)

// TestUpstreamOptions: upstreams that can't be meant end the start.
func TestUpstreamOptions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args   []string
		wanted []string
	}{
		{[]string{"--upstream=upstream.example"}, []string{"--upstream", `"upstream.example"`, "http://HOST"}},
		{[]string{"--upstream=file://host/dir"}, []string{"--upstream", "file:///DIRECTORY"}},
		{[]string{"--upstream=file:dir"}, []string{"--upstream", "file:///DIRECTORY"}},
		{[]string{"--upstream-keep=1d"}, []string{"--upstream-keep", "need --upstream"}},
		{[]string{"--upstream=https://a.example", "--upstream-down=maybe"}, []string{"--upstream-down", `"maybe"`, "not-found"}},
		{[]string{"--upstream=https://a.example", "--upstream=https://user:secret@a.example/"}, []string{"--upstream=https://a.example", "twice"}},
		{[]string{"--upstream=file:///srv/x", "--upstream=file:///srv/x/"}, []string{"--upstream=file:///srv/x", "twice"}},
		{[]string{"--upstream=https://a.example", "--mirror=https://a.example/"}, []string{"--upstream=https://a.example", "--mirror"}},
		{[]string{"--upstream=http://127.0.0.1:8734", "--port=8734"}, []string{"--upstream=http://127.0.0.1:8734", "itself"}},
		{[]string{"--upstream=http://localhost:8734/guix", "--port=8734", "--host=0.0.0.0"}, []string{"--upstream=http://localhost:8734", "itself"}},
		{[]string{"--upstream=http://[::1]:8734", "--port=8734", "--host=::"}, []string{"--upstream=http://[::1]:8734", "itself"}},
		{[]string{"--upstream=http://farm.example", "--port=80", "--host=farm.example"}, []string{"--upstream=http://farm.example", "itself"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			misuse(t, append([]string{"run-server", "--storage=" + dir, "--database=" + dir + "/index.db", "--pid-file=" + dir + "/pid"}, test.args...), test.wanted...)
			isEmpty(t, dir)
		})
	}
}

// TestUpstreamsDown: a server starts, and is ready, while no upstream can be reached. The health
// warns.
func TestUpstreamsDown(t *testing.T) {
	t.Parallel()
	down := "http://user:secret@" + ownHost() + ":" + instancePort
	for name, args := range map[string][]string{
		"storage":    {},
		"no storage": {"--storage="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.serve(t, append(args, "--upstream="+down, "--upstream=file:///nonexistent/directory")...)
			if got := get(t, s.addresses[0], "/health/ready"); got.StatusCode != 200 {
				t.Errorf("ready: %s, %s", got.Status, got.body)
			}
			var report struct {
				Status   string              `json:"status"`
				Warnings map[string][]string `json:"warnings"`
			}
			until(t, "the health warns", func() bool {
				got := get(t, s.addresses[0], "/health")
				if got.StatusCode != 200 {
					t.Fatalf("health: %s, %s", got.Status, got.body)
				}
				return strings.Contains(got.body, "no upstream can be reached")
			})
			text := get(t, s.addresses[0], "/health").body
			if err := json.Unmarshal([]byte(text), &report); err != nil || strings.Contains(text, "secret") {
				t.Errorf("%v: %s", err, text)
			}
			if log := s.err.String(); strings.Contains(log, "secret") {
				t.Errorf("the log has the password: %s", log)
			}
		})
	}
}

// TestPrivateUpstreams: what everybody can read names neither the directory of an upstream nor an
// address that one redirects to. The pages of the control listener do.
func TestPrivateUpstreams(t *testing.T) {
	t.Parallel()
	const inside, directory = "10.255.255.1", "/nonexistent/inside"
	redirecting := httptest.NewServer(http.RedirectHandler("http://"+inside+"/", http.StatusFound))
	t.Cleanup(redirecting.Close)
	p := newPlace(t)
	control := filepath.Join(p.dir, "control")
	s := p.serve(t, "--control-host=unix:"+control, "--upstream="+redirecting.URL, "--upstream=file://"+directory)
	until(t, "both are down", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, "no upstream can be reached")
	})
	for _, path := range []string{"/health", "/metrics", "/", "/status"} {
		text := browse(t, s.addresses[0], path).body
		if strings.Contains(text, inside) || strings.Contains(text, directory) || !strings.Contains(text, "file:2") {
			t.Errorf("%s: %s", path, text)
		}
	}
	for _, path := range []string{"/", "/status"} {
		if text := browse(t, control, path).body; !strings.Contains(text, inside) || !strings.Contains(text, "file://"+directory+"</th>") {
			t.Errorf("%s of the control listener: %s", path, text)
		}
	}
	if log := s.err.String(); !strings.Contains(log, "upstream=file://"+directory) {
		t.Error(log)
	}
}

// wantAllServed asserts that a server serves the items of a directory: each narinfo, each nar that
// it names, and each nar without compression.
func wantAllServed(t *testing.T, what, address, directory string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(directory, "*.narinfo"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%d narinfos, %v", len(names), err)
	}
	for _, name := range names {
		served := get(t, address, "/"+filepath.Base(name))
		if served.StatusCode != 200 || served.body != read(t, name) {
			t.Errorf("%s: %s: %s, %d bytes", what, name, served.Status, len(served.body))
			continue
		}
		n, err := narinfo.Parse([]byte(served.body))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range n.Files {
			got := get(t, address, "/"+file.URL)
			if got.StatusCode != 200 || file.Size >= 0 && int64(len(got.body)) != file.Size {
				t.Errorf("%s: %s: %s, %d bytes, want %d", what, file.URL, got.Status, len(got.body), file.Size)
			} else if args := decompressors[file.Compression]; args != nil {
				checkDecompressed(t, what+": "+file.URL, n, got.body, required(t, args[0]), args[1:]...)
			} else {
				checkNar(t, what+": "+file.URL, n, got.body)
			}
		}
		target := "/nar/" + url.PathEscape(n.StorePath.BaseName())
		got := get(t, address, target)
		if got.StatusCode != 200 {
			t.Errorf("%s: %s: %s", what, target, got.Status)
		}
		checkNar(t, what+": "+target, n, got.body)
	}
}

// startFiles runs nginx with the files of a directory.
func startFiles(t *testing.T, directory string) (address string, stop func()) {
	t.Helper()
	absolute, err := filepath.Abs(directory)
	if err != nil {
		t.Fatal(err)
	}
	address = ownHost() + ":" + instancePort
	return address, startNginx(t, required(t, "nginx"), address, fmt.Sprintf("server { listen %s; root %s; }", address, absolute))
}

// TestCache: nothing is imported, and everything is served: from nginx with files, a directory,
// this program, or several of them. With a storage, all is still served when the upstreams are
// gone, also after a restart.
func TestCache(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published-multi")
	for name, start := range map[string]func(t *testing.T) (url string, stop func()){
		"nginx": func(t *testing.T) (string, func()) {
			address, stop := startFiles(t, corpus)
			return "http://" + address, stop
		},
		"directory": func(t *testing.T) (string, func()) {
			dir := filepath.Join(t.TempDir(), "files")
			if err := os.CopyFS(dir, os.DirFS(corpus)); err != nil {
				t.Fatal(err)
			}
			return "file://" + dir, func() {
				if err := os.Rename(dir, dir+".gone"); err != nil {
					t.Error(err)
				}
			}
		},
		"this program": func(t *testing.T) (string, func()) {
			p := newPlace(t)
			p.imports(t, corpus)
			s := p.serve(t, "--ttl=1d")
			return "http://" + s.addresses[0], func() { s.stop(t, syscall.SIGTERM) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, stop := start(t)
			down := "--upstream=http://" + ownHost() + ":" + instancePort
			p := newPlace(t)
			s := p.serveProcess(t, down, "--upstream="+url)
			wantAllServed(t, "cold", s.addresses[0], corpus)
			items := strings.Count(succeed(t, "list", "--database="+p.database, "--json"), `"origin":"`+url+`"`)
			if items != 9 {
				t.Errorf("%d items have the upstream as their origin: %s", items, succeed(t, "list", "--database="+p.database, "--json"))
			}
			stop()
			wantAllServed(t, "offline", s.addresses[0], corpus)
			s.stop(t, syscall.SIGTERM)
			s = p.serveProcess(t, down, "--upstream="+url)
			wantAllServed(t, "after a restart", s.addresses[0], corpus)
			s.stop(t, syscall.SIGTERM)
			succeed(t, p.args("check", "--verify", "--no-closures")...)
		})
	}
}

// TestCacheWithoutStorage: nars of upstreams are passed through.
func TestCacheWithoutStorage(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published-multi")
	address, _ := startFiles(t, corpus)
	p := newPlace(t)
	s := p.serveProcess(t, "--storage=", "--upstream=http://"+address)
	wantAllServed(t, "without a storage", s.addresses[0], corpus)
	s.stop(t, syscall.SIGTERM)
}

// TestCacheImported: what was imported without nars is fetched from the upstreams as well.
func TestCacheImported(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published-multi")
	address, _ := startFiles(t, corpus)
	p := newPlace(t)
	succeed(t, "import", "--database="+p.database, "--narinfos-only", corpus)
	s := p.serveProcess(t, "--upstream=http://"+address)
	wantAllServed(t, "imported", s.addresses[0], corpus)
	if got := get(t, s.addresses[0], "/health").body; strings.Contains(got, "without a nar") {
		t.Errorf("health: %s", got)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestCacheOneFetch: a nar that many clients request at once is fetched once, by a cache with a
// storage. The upstream doesn't say how long it is, as guix publish without a cache.
func TestCacheOneFetch(t *testing.T) {
	t.Parallel()
	const clients = 20
	var requests atomic.Int32
	begun := make(chan struct{})
	files := http.FileServer(http.Dir(filepath.Join(testdata, "published")))
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/nar/"):
			requests.Add(1)
			<-begun                  // when all clients wait
			w.(http.Flusher).Flush() // so that there is no length
			_, _ = io.WriteString(w, read(t, testdata, "published", r.URL.Path))
		case r.URL.Path == "/"+narinfoName(entropy):
			text := read(t, published(entropy))
			at := strings.Index(text, "FileSize: ")
			end := at + strings.Index(text[at:], "\n") + 1
			_, _ = io.WriteString(w, text[:at]+text[end:])
		default:
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(upstream.Close)
	p := newPlace(t)
	s := p.serve(t, "--upstream="+upstream.URL)
	n, err := narinfo.Parse([]byte(get(t, s.addresses[0], "/"+narinfoName(entropy)).body))
	if err != nil || n.Files[0].Size >= 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	want := read(t, testdata, "published", n.Files[0].URL)
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			if got, err := tryGet(s.addresses[0], "/"+n.Files[0].URL); err != nil || got.StatusCode != 200 || got.body != want {
				t.Errorf("%v, %d bytes, %v, want %d", got.Response, len(got.body), err, len(want))
			}
		})
	}
	until(t, "all clients are connected", func() bool {
		return metricWith(t, s.addresses[0], "narherder_http_connections") >= clients
	})
	close(begun)
	asking.Wait()
	until(t, "it is stored", func() bool {
		_, err := os.Stat(filepath.Join(p.storage, n.Files[0].URL))
		return err == nil
	})
	if got := get(t, s.addresses[0], "/"+n.Files[0].URL); got.body != want || got.ContentLength != int64(len(want)) {
		t.Errorf("stored: %s, length %d", got.Status, got.ContentLength)
	}
	if got := requests.Load(); got != 1 {
		t.Errorf("%d requests for the nar, want 1", got)
	}
	s.stop(t, syscall.SIGTERM)
	succeed(t, p.args("check", "--verify", "--no-closures")...)
}

// TestCacheAndMirror: a mirror fetches the nars of its source by itself, and those of upstreams
// when clients request them. Cached compressions are made of both.
func TestCacheAndMirror(t *testing.T) {
	t.Parallel()
	farm := newPlace(t)
	farm.imports(t, published(greeting))
	succeed(t, "dump", "--database="+farm.database, "--database-dump="+farm.dumpFile())
	source := farm.serve(t)
	address, _ := startFiles(t, filepath.Join(testdata, "published"))
	p := newPlace(t)
	s := p.serve(t, "--mirror=http://"+source.addresses[0], "--upstream=http://"+address,
		"--enable-cached-compression=zstd", "--cached-compression-min-uses=1", "--cached-compression-directory=zstd="+filepath.Join(p.dir, "zstd"))
	isStored := func(base string) bool {
		_, err := os.Stat(filepath.Join(p.storage, "nar/lzip", base))
		return err == nil
	}
	until(t, "the nar of the source is stored", func() bool { return isStored(greeting) })
	for _, base := range []string{entropy, greeting} {
		if got := get(t, s.addresses[0], "/"+narinfoName(base)); got.StatusCode != 200 || !strings.HasPrefix(got.body, read(t, published(base))) {
			t.Errorf("%s: %s", base, got.Status)
		}
		if base == entropy && isStored(base) {
			t.Error("the nar of the upstream is stored without a request for it")
		}
		if got := get(t, s.addresses[0], "/nar/lzip/"+base); got.body != read(t, testdata, "published/nar/lzip", base) {
			t.Errorf("%s: %s", base, got.Status)
		}
		until(t, "it is stored", func() bool { return isStored(base) })
		until(t, "it is listed in zstd as well", func() bool {
			return strings.Contains(get(t, s.addresses[0], "/"+narinfoName(base)).body, "Compression: zstd")
		})
		n, _ := narOf(t, read(t, published(base)))
		checkDecompressed(t, base, n, get(t, s.addresses[0], "/nar/zstd/"+base).body, required(t, "zstd"), "-dc")
	}
	for base, origin := range map[string]string{entropy: `"origin":"http://` + address + `"`, greeting: ""} {
		list := succeed(t, "list", "--database="+p.database, "--json")
		i := strings.Index(list, base)
		line, _, _ := strings.Cut(list[i:], "\n")
		if strings.Contains(line, `"origin"`) != (origin != "") || !strings.Contains(line, origin) {
			t.Errorf("%s: %s", base, line)
		}
	}
	if out := succeed(t, "stats", "--database="+p.database); !strings.Contains(out, "  of upstream    1, http://"+address+"\n") {
		t.Errorf("stats: %s", out)
	}
}

// gofmtBase is the largest item in several compressions.
const gofmtBase = "vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26"

// TestCacheMissingFile: a file that the narinfo names is missing at the upstream, or always cut.
// The nar comes from another upstream, or from another compression.
func TestCacheMissingFile(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published-multi")
	n, _ := narOf(t, read(t, corpus, narinfoName(gofmtBase)))
	for name, spoil := range map[string]func(w http.ResponseWriter, content string){
		"missing": func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNotFound) },
		"fault":   func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusInternalServerError) },
		"cut": func(w http.ResponseWriter, content string) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = io.WriteString(w, content[:len(content)/2])
		},
	} {
		for _, storage := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, storage %v", name, storage), func(t *testing.T) {
				t.Parallel()
				files := http.FileServer(http.Dir(corpus))
				first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasPrefix(r.URL.Path, "/nar/zstd/") {
						spoil(w, read(t, corpus, r.URL.Path))
						return
					}
					files.ServeHTTP(w, r)
				}))
				t.Cleanup(first.Close)
				second, _ := startFiles(t, corpus)
				p := newPlace(t)
				args := []string{"--upstream=" + first.URL}
				if !storage {
					args = append(args, "--storage=")
				}
				alone := newPlace(t)
				a := alone.serve(t, args...)
				both := p.serve(t, append(args, "--upstream=http://"+second)...)
				for what, s := range map[string]*server{"one": a, "two": both} {
					if got := get(t, s.addresses[0], "/"+narinfoName(gofmtBase)); got.StatusCode != 200 {
						t.Fatalf("%s: %s, %s", what, got.Status, got.body)
					}
					if name != "cut" || s == both { // a cut file may be sent in part
						got := get(t, s.addresses[0], "/nar/"+gofmtBase)
						if got.StatusCode != 200 {
							t.Errorf("%s: %s", what, got.Status)
						}
						checkNar(t, what, n, got.body)
					}
				}
				got := get(t, both.addresses[0], "/nar/zstd/"+gofmtBase)
				if got.body != read(t, corpus, "nar/zstd", gofmtBase) {
					t.Errorf("zstd: %s, %d bytes", got.Status, len(got.body))
				}
			})
		}
	}
}
