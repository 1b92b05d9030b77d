package main

import (
	"crypto/sha256"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/faultproxy"
	"nar-herder/internal/originalstub"
	"nar-herder/narinfo"
	"nar-herder/peer"
)

// asker requests items from a mirror continuously, and checks the answers.
type asker struct {
	t       *testing.T
	address string
	texts   map[string]string // by target
	removed sync.Map          // targets that may be removed
	whole   atomic.Int64      // complete nars
}

func (a *asker) ask(target string) {
	got, err := tryGet(a.address, target)
	if err != nil || got.StatusCode != 200 {
		return
	}
	text := a.texts[target]
	if got.body != text {
		a.t.Errorf("%s is served as\n%s\nwant\n%s", target, got.body, text)
		return
	}
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		a.t.Error(err)
		return
	}
	got, err = tryGet(a.address, "/"+n.Files[0].URL)
	switch _, mayBeGone := a.removed.Load(target); {
	case err != nil || got.StatusCode >= 500: // cut, or not available now
	case got.StatusCode == 404 && mayBeGone:
	case got.StatusCode != 200:
		a.t.Errorf("/%s: %s, after its narinfo was served", n.Files[0].URL, got.Status)
	case n.Files[0].Compression == "none" && narinfo.NarHash(sha256.Sum256([]byte(got.body))) != n.NarHash, int64(len(got.body)) != n.Files[0].Size:
		a.t.Errorf("/%s: wrong nar", n.Files[0].URL)
	default:
		a.whole.Add(1)
	}
}

// run sends requests until it is stopped.
func (a *asker) run() (stop func()) {
	targets := slices.Sorted(maps.Keys(a.texts))
	var asking sync.WaitGroup
	ended := make(chan struct{})
	asking.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-ended:
				return
			case <-time.After(2 * time.Millisecond):
				a.ask(targets[n%len(targets)])
			}
		}
	})
	return func() {
		close(ended)
		asking.Wait()
	}
}

// faulty injects random faults of all kinds until calm is called. Those that stall continue
// after a moment.
func faulty(t *testing.T, target string, first func(*http.Request) (faultproxy.Fault, bool)) (p *faultproxy.Proxy, calm func()) {
	seed := rand.Uint64()
	t.Logf("the seed of the faults is %d", seed)
	random := faultproxy.Random(seed, 0.4, append([]faultproxy.Kind{faultproxy.StallHead, faultproxy.StallBody}, faultproxy.All...)...)
	var isCalm atomic.Bool
	p = faultproxy.New(target, func(r *http.Request) faultproxy.Fault {
		if first != nil {
			if fault, yes := first(r); yes {
				return fault
			}
		}
		if isCalm.Load() {
			return faultproxy.Fault{}
		}
		return random(r)
	})
	ended := make(chan struct{})
	var releasing sync.WaitGroup
	releasing.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(200 * time.Millisecond):
				p.Release()
			}
		}
	})
	t.Cleanup(func() {
		close(ended)
		releasing.Wait()
		p.Close()
	})
	return p, func() { isCalm.Store(true) }
}

// TestMirrorFaults: a mirror follows a source behind a proxy that injects faults for a
// while. It serves nothing wrong, and ends up equal to the source without intervention.
func TestMirrorFaults(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(*http.Request) (faultproxy.Fault, bool){
		"from the index": nil,
		"from the dump": func(r *http.Request) (faultproxy.Fault, bool) {
			return faultproxy.Fault{Kind: faultproxy.Status, Status: http.StatusNotFound}, r.URL.Path == peer.IndexPath
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const nars = 60
			dir := t.TempDir()
			texts := generate(t, dir, nars)
			targets := slices.Sorted(maps.Keys(texts))
			file := func(n int) string { return filepath.Join(dir, strings.TrimPrefix(targets[n], "/")) }
			source := newPlace(t)
			source.imports(t, file(0), file(1), file(2), file(3))
			s := source.serve(t, "--log-level=INFO", "--ttl=1s", "--database-dump-interval=1s")
			proxy, calm := faulty(t, "http://"+s.addresses[0], first)
			mirror := newPlace(t)
			address := ownHost() + ":" + instancePort
			host, _, _ := strings.Cut(address, ":")
			m := &server{process: within(mirror.args("run-server", "--log-level=INFO", "--ttl=1s", "--mirror="+proxy.URL, "--host="+host, "--port="+instancePort)...)}
			m.start(t)
			asker := &asker{t: t, address: address, texts: texts}
			stopAsking := asker.run()
			for n := 4; n < nars; n += 2 {
				source.imports(t, file(n), file(n+1))
				if n%6 == 0 {
					gone := rand.IntN(n)
					asker.removed.Store(targets[gone], true)
					hash := strings.TrimSuffix(strings.TrimPrefix(targets[gone], "/"), ".narinfo")
					runProgram(t, source.args("remove", "--now", hash)...) // the item may be removed already
				}
			}
			until(t, "enough faults", func() bool { return proxy.Counts().Faulty() > 12 })
			calm()
			proxy.Release()
			until(t, "the mirror is equal", func() bool {
				sorted := func(p place) []string {
					return slices.Sorted(strings.Lines(runProgram(t, "list", "--database="+p.database).out))
				}
				return slices.Equal(sorted(mirror), sorted(source))
			})
			until(t, "all nars", func() bool {
				return !strings.Contains(succeed(t, "list", "--database="+mirror.database, "--json"), `"stored":false`)
			})
			stopAsking()
			t.Logf("%+v; %d complete nars meanwhile", proxy.Counts(), asker.whole.Load())
			m.stop(t, syscall.SIGTERM)
			if r := runProgram(t, mirror.args("check", "--verify", "--no-closures")...); r.status != 0 {
				t.Errorf("check: %+v", r)
			}
		})
	}
}

// TestMirrorOriginal: a mirror and a mirror of it follow an original that injects faults
// for a while.
func TestMirrorOriginal(t *testing.T) {
	t.Parallel()
	published := filepath.Join(testdata, "published")
	files, err := filepath.Glob(filepath.Join(published, "*.narinfo"))
	if err != nil || len(files) < 8 {
		t.Fatalf("%q, %v", files, err)
	}
	original := originalstub.New(nil)
	defer original.Close()
	texts := make(map[string]string)
	add := func(file string) *narinfo.Narinfo {
		t.Helper()
		text := read(t, file)
		n, err := narinfo.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var nars []string
		for _, f := range n.Files {
			name, err := f.Path()
			if err != nil {
				t.Fatal(err)
			}
			nars = append(nars, filepath.Join(published, name))
		}
		if err := original.Add([]byte(text), nars...); err != nil {
			t.Fatal(err)
		}
		texts["/"+n.StorePath.Hash.String()+".narinfo"] = text
		return n
	}
	first := add(files[0])
	for _, file := range files[1:4] {
		add(file)
	}
	if err := original.MakeDump(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	proxy, calm := faulty(t, original.URL, nil)
	a, b := newPlace(t), newPlace(t)
	start := func(p place, host, source string) *server {
		s := &server{process: command(p.args("run-server", "--log-level=INFO", "--ttl=1s", "--mirror="+source, "--mirror-interval=1s", "--database-dump-interval=1s", "--host="+host, "--port="+instancePort)...)}
		s.addresses = []string{host + ":" + instancePort}
		s.start(t)
		return s
	}
	host := ownHost()
	middle := start(a, host, proxy.URL)
	last := start(b, ownHost(), "http://"+middle.addresses[0])
	list := func(p place) string {
		return strings.Join(slices.Sorted(strings.Lines(runProgram(t, "list", "--database="+p.database).out)), "")
	}
	has := func(want []string) func() bool {
		slices.Sort(want)
		text := strings.Join(want, "\n") + "\n"
		return func() bool { return list(a) == text && list(b) == text }
	}
	path := func(file string) string {
		n, err := narinfo.Parse([]byte(read(t, file)))
		if err != nil {
			t.Fatal(err)
		}
		return n.StorePath.String()
	}
	paths := func(files ...string) (paths []string) {
		for _, file := range files {
			paths = append(paths, path(file))
		}
		return paths
	}
	until(t, "the first items", has(paths(files[:4]...)))
	succeed(t, "pin", "--database="+a.database, first.StorePath.String())
	for _, file := range files[4:7] { // within a second
		add(file)
	}
	until(t, "further items", has(paths(files[:7]...)))
	// A pin keeps stored nars. A failed fetch is retried after a minute, or when a
	// client requests the nar.
	pinned := "/" + first.Files[0].URL
	for database, s := range map[string]*server{a.database: middle, b.database: last} {
		until(t, "the pinned nar", func() bool {
			_, _ = tryGet(s.addresses[0], pinned)
			for line := range strings.Lines(succeed(t, "list", "--database="+database, "--json")) {
				if strings.Contains(line, first.StorePath.String()+`"`) && strings.Contains(line, `"stored":true`) {
					return true
				}
			}
			return false
		})
	}
	for _, path := range paths(files[0], files[1]) {
		if err := original.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "removals, without the pinned items", has(paths(append([]string{files[0]}, files[2:7]...)...)))
	if faults := proxy.Counts().Faulty(); faults < 3 {
		t.Errorf("only %d answers had faults", faults)
	}
	calm()
	// The original's log loses changes that no mirror has followed.
	middle.kill(t)
	for _, file := range files[7:] {
		add(file)
	}
	if err := original.Remove(path(files[2])); err != nil {
		t.Fatal(err)
	}
	if err := original.MakeDump(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	original.TrimChanges(time.Now().Add(time.Hour))
	middle = start(a, host, proxy.URL)
	// Failed fetches are retried after a minute, or at once by another process.
	last.stop(t, syscall.SIGTERM)
	last = start(b, ownHost(), "http://"+middle.addresses[0])
	until(t, "the gap is closed", has(paths(append([]string{files[0]}, files[3:]...)...)))
	for _, p := range []place{a, b} {
		until(t, "all nars", func() bool {
			return !strings.Contains(succeed(t, "list", "--database="+p.database, "--json"), `"stored":false`)
		})
	}
	for _, s := range []*server{middle, last} {
		for target, text := range texts {
			got := get(t, s.addresses[0], target)
			if got.StatusCode == 200 && got.body != text {
				t.Errorf("%s: %q", target, got.body)
			}
		}
		until(t, "mirror-status succeeds", func() bool {
			return runProgram(t, "mirror-status", "--max-lag=30s", "http://"+s.addresses[0]).status == 0
		})
		s.stop(t, syscall.SIGTERM)
	}
	for _, p := range []place{a, b} {
		if r := runProgram(t, p.args("check", "--verify", "--no-closures")...); r.status != 0 {
			t.Errorf("check: %+v", r)
		}
	}
}
