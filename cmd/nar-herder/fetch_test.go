package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nar-herder/internal/faultproxy"
	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
)

const goodKey = "--authorized-key=" + testdata + "/cases/keys/main.pub"

// fetchArgs is the command line of fetch with a key.
func (p place) fetchArgs(more ...string) []string {
	return p.args("fetch", append([]string{goodKey}, more...)...)
}

// filesOf serves a directory.
func filesOf(t *testing.T, dir string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return server
}

// wantFetched requests the narinfo and the nars of items from a server.
func wantFetched(t *testing.T, address, source string, items ...string) {
	t.Helper()
	for _, base := range items {
		got := get(t, address, "/"+narinfoName(base))
		if got.StatusCode != 200 || got.body != read(t, source, narinfoName(base)) {
			t.Errorf("%s: %s, %q", base, got.Status, got.body)
			continue
		}
		n, err := narinfo.Parse([]byte(got.body))
		if err != nil {
			t.Fatal(err)
		}
		got = get(t, address, "/nar/"+base)
		if got.StatusCode != 200 {
			t.Errorf("the nar of %s: %s", base, got.Status)
		}
		checkNar(t, base, n, got.body)
	}
}

// TestFetch fetches a closure from nginx beside a running server. The items are tagged and
// pinned, and complete without nginx.
func TestFetch(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	for corpus, kind := range map[string]string{"published": "lzip", "published-multi": "zstd"} {
		t.Run(corpus, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.serve(t, goodKey)
			dir := publicDir(t)
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(testdata, corpus))); err != nil {
				t.Fatal(err)
			}
			front := ownHost() + ":" + instancePort
			startNginx(t, nginx, front, fmt.Sprintf("server { listen %s; root %s; }", front, dir))
			args := p.fetchArgs("--from=http://"+front, "--closure", "--tag=site=a", "--pin", greet)
			if out := succeed(t, args...); !strings.HasPrefix(out, "3 fetched, 0 known; ") || strings.Contains(out, "; 0 B") {
				t.Errorf("fetch: %q", out)
			}
			until(t, "the server has noticed", func() bool { return get(t, s.addresses[0], "/"+narinfoName(libgreet)).StatusCode == 200 })
			wantFetched(t, s.addresses[0], dir, greet, greeting, libgreet)
			if listed := lines(succeed(t, "list", "--database="+p.database, "--tag=site=a")); len(listed) != 3 {
				t.Errorf("tagged: %q", listed)
			}
			if pins := succeed(t, "pins", "--database="+p.database); !strings.Contains(pins, greet) || strings.Contains(pins, greeting) {
				t.Errorf("pins: %q", pins)
			}
			// Of several files, the smallest is stored.
			stored, err := filepath.Glob(p.storage + "/nar/*/" + greet)
			if err != nil || len(stored) != 1 || !strings.Contains(stored[0], "/"+kind+"/") {
				t.Errorf("stored: %q, %v", stored, err)
			}
			if err := os.RemoveAll(dir); err != nil { // nothing is requested again
				t.Fatal(err)
			}
			if out := succeed(t, args...); out != "0 fetched, 3 known; 0 B of nars added to the storage\n" {
				t.Errorf("fetch again: %q", out)
			}
			p.check(t, "--closure-of="+greet).want(t, 0)
			p.check(t).want(t, 0)
		})
	}
}

// recorded is what "guix build --dry-run hello 2>&1" printed, with other paths.
const recorded = `substitute: updating substitutes from 'https://ci.guix.gnu.org'...   0.0%
substitute: updating substitutes from 'https://ci.guix.gnu.org'... 100.0%
The following derivation would be built:
  /gnu/store/v0xcmhkj2da9jnxjk097vrrqmxba3xy3-greet-1.0.drv

0.0 MB would be downloaded:
   /gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0
   /gnu/store/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z
   /gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0
`

// TestFetchList: a list on standard input, and from a directory. What is missing is shown by
// check, whose findings are a list, too.
func TestFetchList(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	from := "--from=file://" + mustAbs(t, filepath.Join(testdata, "published"))
	input := func(text string, args ...string) result {
		t.Helper()
		process := within(args...)
		process.stdin = text
		return process.run(t)
	}
	for _, last := range [][]string{{"-"}, nil} {
		r := input(recorded, p.fetchArgs(append([]string{from}, last...)...)...)
		if r.status != 0 || r.err != "" || !strings.HasPrefix(r.out, "skipped 1 derivation: ") || strings.Count(r.out, "\n") != 2 {
			t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
		}
	}
	// Its references are missing.
	r := input(recorded, p.args("check", "--closure-of=-")...)
	if r.status != 1 || strings.Count(r.out, "\n") != 2 || !strings.HasPrefix(r.out, "incomplete: /gnu/store/"+greet+": no narinfo for /gnu/store/"+greeting+" /gnu/store/"+libgreet+"\n") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	if r := input(r.out, p.fetchArgs(from, "-")...); r.status != 0 || !strings.HasPrefix(r.out, "2 fetched, 1 known; ") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	p.check(t, "--closure-of="+greet).want(t, 0)
	// Without anything to fetch.
	r = input("3 rows and files compared: nothing is wrong\n", p.fetchArgs(from, "-")...)
	if r.status != 0 || r.out != "0 fetched, 0 known; 0 B of nars added to the storage\n" {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	r = input("", p.fetchArgs(from, "-")...)
	if r.status != 1 || !strings.Contains(r.err, "add 2>&1") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	for text, want := range map[string]string{"": "standard input is empty", "no path": "nothing to check", "/gnu/store/cut": "/gnu/store/cut"} {
		if r := input(text, p.args("check", "--closure-of=-")...); r.status != 2 || r.out != "" || !strings.Contains(r.err, want) {
			t.Errorf("%q: status %d, %q, %q", text, r.status, r.out, r.err)
		}
	}
	r = input("/gnu/store/cut-name\n/gnu/store/"+greet, p.fetchArgs(from)...)
	if r.status != 1 || r.err != "nar-herder: fetch /gnu/store/cut-name: not a store item\n" || !strings.HasPrefix(r.out, "1 failed, 0 fetched, 1 known; ") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
}

func mustAbs(t *testing.T, name string) string {
	t.Helper()
	name, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFetchSources: the upstreams of a server's file; those that are down, or have wrong nars.
func TestFetchSources(t *testing.T) {
	t.Parallel()
	source := filesOf(t, filepath.Join(testdata, "published"))
	wrong := copyCorpus(t, "published")
	nar := filepath.Join(wrong, "nar/lzip", libgreet)
	content := []byte(read(t, nar))
	content[len(content)/2] ^= 1
	if err := os.WriteFile(nar, content, 0o644); err != nil {
		t.Fatal(err)
	}
	unsigned := copyCorpus(t, "published")
	if err := replaceIn(filepath.Join(unsigned, narinfoName(libgreet)), "NarSize: ", "NarSize: 1"); err != nil {
		t.Fatal(err)
	}
	down := httptest.NewServer(nil)
	down.Close()
	empty := filesOf(t, t.TempDir())
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	t.Cleanup(broken.Close)
	for what, test := range map[string]struct {
		from []string
		err  string // of the nar with other sources missing
	}{
		"right":         {[]string{source.URL}, ""},
		"down":          {[]string{down.URL, source.URL}, ""},
		"without it":    {[]string{empty.URL, source.URL}, ""},
		"failing":       {[]string{broken.URL, source.URL}, ""},
		"wrong nar":     {[]string{filesOf(t, wrong).URL, source.URL}, ""},
		"bad signature": {[]string{filesOf(t, unsigned).URL, source.URL}, ""},

		"only down":                {[]string{down.URL}, "connection refused"},
		"only without it":          {[]string{empty.URL, "file://" + t.TempDir()}, "no source has it"},
		"only failing":             {[]string{broken.URL}, "500"},
		"only a wrong nar":         {[]string{filesOf(t, wrong).URL}, "not the nar that the narinfo describes"},
		"only with bad signatures": {[]string{filesOf(t, unsigned).URL}, "hash mismatch"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			var args []string
			for _, from := range test.from {
				args = append(args, "--from="+from)
			}
			r := runProgram(t, p.fetchArgs(append(args, libgreet)...)...)
			if test.err == "" {
				if r.status != 0 || r.err != "" || !strings.HasPrefix(r.out, "1 fetched, 0 known; ") {
					t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
				}
				p.check(t, "--verify", "--no-closures").want(t, 0)
				return
			}
			if r.status != 1 || !strings.HasPrefix(r.err, "nar-herder: fetch ") || !strings.Contains(r.err, libgreet) || !strings.Contains(r.err, test.err) ||
				strings.Count(r.err, "\n") != 1 || r.out != "1 failed, 0 fetched, 0 known; 0 B of nars added to the storage\n" {
				t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
			}
			if listed := succeed(t, "list", "--database="+p.database); listed != "" {
				t.Errorf("listed %q", listed)
			}
		})
	}
	t.Run("of the file", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		config := filepath.Join(p.dir, "options.toml")
		text := fmt.Sprintf("database = %q\nstorage = %q\nupstream = [%q, %q]\nauthorized-key = %q\n", p.database, p.storage, empty.URL, source.URL, filepath.Join(testdata, "cases/keys/main.pub"))
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out := succeed(t, "fetch", "--config="+config, libgreet); !strings.HasPrefix(out, "1 fetched") {
			t.Errorf("%q", out)
		}
		misuse(t, p.fetchArgs(libgreet), "--from=URL")
		misuse(t, []string{"fetch", "--database=" + p.database, "--from=" + source.URL, libgreet}, "--storage")
		misuse(t, p.fetchArgs("--from="+source.URL, "libgreet"), "libgreet")
		misuse(t, p.fetchArgs("--from=ftp://host", libgreet), "ftp://host")
		misuse(t, p.args("check", "--closure-of="+libgreet, "--verify"), "--closure-of")
	})
	t.Run("keys", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		other := "--authorized-key=" + testdata + "/cases/keys/other.pub"
		if r := runProgram(t, p.args("fetch", other, "--from="+source.URL, libgreet)...); r.status != 1 || !strings.Contains(r.err, "authorized") {
			t.Errorf("another key: status %d, %q, %q", r.status, r.out, r.err)
		}
		if r := runProgram(t, p.args("fetch", "--from="+source.URL, libgreet)...); r.status != 0 || !strings.Contains(r.err, "warning: no keys are authorized") {
			t.Errorf("no key: status %d, %q, %q", r.status, r.out, r.err)
		}
	})
}

// TestFetchSecrets: the password of a source is nowhere.
func TestFetchSecrets(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	files := http.FileServer(http.Dir(filepath.Join(testdata, "published")))
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "verysecret" {
			w.WriteHeader(401)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer source.Close()
	from := strings.Replace(source.URL, "http://", "http://user:verysecret@", 1)
	r := runProgram(t, p.fetchArgs("--from="+from, libgreet, "00000000000000000000000000000000-missing")...)
	if r.status != 1 || !strings.HasPrefix(r.out, "1 failed, 1 fetched") || strings.Contains(r.out+r.err, "verysecret") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	if strings.Contains(read(t, p.database), "verysecret") {
		t.Error("the database has the password")
	}
}

// TestFetchResumed: a process is killed in the middle of a nar, and the next one continues; one
// that is interrupted says so.
func TestFetchResumed(t *testing.T) {
	t.Parallel()
	source := newPlace(t)
	source.imports(t, filepath.Join(testdata, "published"))
	server := source.serve(t)
	var mu sync.Mutex
	var ranges []string
	stall := true
	proxy := faultproxy.New("http://"+server.addresses[0], func(r *http.Request) faultproxy.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasSuffix(r.URL.Path, entropy) {
			return faultproxy.Fault{}
		}
		ranges = append(ranges, r.Header.Get("Range"))
		if stall {
			return faultproxy.Fault{Kind: faultproxy.StallBody, At: 0.7}
		}
		return faultproxy.Fault{}
	})
	defer proxy.Close()
	p := newPlace(t)
	args := p.fetchArgs("--from="+proxy.URL, entropy, greeting)
	spooled := func() (size int64) {
		files, err := filepath.Glob(p.storage + "/.nar-herder-spool/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if info, err := os.Stat(name); err == nil {
				size += info.Size()
			}
		}
		return size
	}
	killed := command(args...)
	killed.start(t)
	until(t, "most of the nar has come", func() bool { return spooled() > 2<<20 })
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.wait(t)
	if listed := succeed(t, "list", "--database="+p.database); strings.Contains(listed, entropy) {
		t.Errorf("its narinfo is served: %q", listed)
	}
	interrupted := command(args...)
	interrupted.start(t)
	until(t, "it has resumed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(ranges) == 2 && spooled() > 2<<20
	})
	if err := interrupted.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := interrupted.wait(t); status != 1 || !strings.Contains(interrupted.err.String(), "interrupted: the same command resumes") {
		t.Errorf("interrupted: status %d, %q", status, interrupted.err.String())
	}
	mu.Lock()
	stall = false
	mu.Unlock()
	if out := succeed(t, args...); !strings.Contains(out, "fetched") || strings.Contains(out, "failed") {
		t.Errorf("resumed: %q", out)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ranges) != 3 || ranges[0] != "" || slices.Contains(ranges[1:], "") {
		t.Errorf("requests with the ranges %q", ranges)
	}
	p.check(t, "--verify", "--no-closures").want(t, 0)
	if spooled() != 0 {
		t.Error("a partial file is left")
	}
}

// TestFetchFull: a full disk ends the command with one error; what is done stays, and no partial
// file.
func TestFetchFull(t *testing.T) {
	t.Parallel()
	source := filesOf(t, filepath.Join(testdata, "published"))
	p := newPlace(t)
	p.storage = testfs.Small(t, 3<<20)
	succeed(t, p.fetchArgs("--from="+source.URL, libgreet)...)
	r := runProgram(t, p.fetchArgs("--from="+source.URL, gosrc, libgreet)...)
	if r.status != 1 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "no room for more nars") || !strings.Contains(r.err, "make room, and run the same command again") {
		t.Errorf("status %d, %q, %q", r.status, r.out, r.err)
	}
	p.check(t, "--closure-of="+libgreet).want(t, 0)
	p.check(t).want(t, 0)
	// The hard limit that a server has recorded.
	limited := newPlace(t)
	limited.serve(t, "--storage-hard-limit=1M", "--storage-limit=512K", goodKey).stop(t, syscall.SIGTERM)
	r = runProgram(t, limited.fetchArgs("--from="+source.URL, gosrc)...)
	if r.status != 1 || !strings.Contains(r.err, "no room for more nars") {
		t.Errorf("hard limit: status %d, %q, %q", r.status, r.out, r.err)
	}
}
