package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
)

// TestCacheBurst: a client sends all requests before it reads. The answers are in order, whether
// the items are stored, unknown, or nowhere. The upstream is asked once for each, over few
// connections, and not at all the second time.
func TestCacheBurst(t *testing.T) {
	t.Parallel()
	const count = 1000
	dir, texts, known := generated(t, 20)
	stub := startStub(t, hasNumbered(count))
	p := newPlace(t)
	p.imports(t, dir)
	s := p.serveProcess(t, "--ttl=1d", "--negative-ttl=10min", "--upstream=http://"+stub.address)
	var targets []string
	want := make(map[string]string) // no text for a 404
	for n := range count {
		switch n % 5 {
		case 0:
			targets = append(targets, known[n/5%len(known)])
			want[targets[n]] = texts[targets[n]]
		case 1: // twice in the burst
			targets = append(targets, numbered(n/10*10+3000))
		default:
			targets = append(targets, numbered(n+200))
			want[targets[n]] = string(mirrortest.Narinfo(n+200, 1, n+200).Text)
			if n+200 >= count {
				want[targets[n]] = ""
			}
		}
	}
	check := func(n int, got answer) {
		status, age := 200, 3600
		switch {
		case n%5 == 0:
			age = 86400
		case want[targets[n]] == "":
			status, age = 404, 300
		}
		if got.StatusCode != status || status == 200 && got.body != want[targets[n]] || maxAgeOf(got) > age || maxAgeOf(got) < age-60 {
			t.Errorf("answer %d, %s: %s, %v, %s", n, targets[n], got.Status, got.Header, got.body)
		}
	}
	stub.counts()
	var asking sync.WaitGroup
	for range 3 { // several clients at once
		asking.Go(func() { burst(t, s.addresses[0], targets, check) })
	}
	asking.Wait()
	asked, connections := stub.counts()
	for _, target := range targets {
		times := asked[target]
		if isKnown := slices.Contains(known, target); times > 1 || times == 1 && isKnown || times == 0 && !isKnown {
			t.Errorf("%d questions about %s", times, target)
		}
	}
	if connections > 8 {
		t.Errorf("%d connections to the upstream", connections)
	}
	burst(t, s.addresses[0], targets, check)
	if asked, connections := stub.counts(); len(asked) > 0 || connections > 0 {
		t.Errorf("the second time: %d connections, %d questions", connections, len(asked))
	}
	s.stop(t, syscall.SIGTERM)
}

// TestCacheFlood: a client that asks for many random items gets 503 above its share, and never a
// 404 that the upstream didn't say. Another client gets its answers meanwhile, and the memory is
// bounded.
func TestCacheFlood(t *testing.T) {
	t.Parallel()
	const connections, rounds, size = 6, 10, 1000
	// share is the burst that one client may ask, and rate what it may ask in a second.
	const share, rate = 20_000, 2_000
	var questions atomic.Int64
	files := http.FileServer(http.Dir(filepath.Join(testdata, "published")))
	stub := startStub(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		questions.Add(1)
		if strings.HasPrefix(r.URL.Path, "/000") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		files.ServeHTTP(w, r)
	}))
	p := newPlace(t)
	p.imports(t, published(greeting))
	s := p.serveProcess(t, "--upstream=http://"+stub.address)
	var flood, good sync.WaitGroup
	ended := make(chan struct{})
	var slowest time.Duration
	var asked int
	good.Go(func() {
		for base := range cycle(greeting, libgreet, greet) {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
			}
			begun := time.Now()
			got, err := tryGet(s.addresses[0], "/"+narinfoName(base))
			if err != nil || got.body != read(t, published(base)) {
				t.Errorf("%s for another client: %v, %v", base, got.Response, err)
				return
			}
			if asked++; asked > 3 { // until all are known
				slowest = max(slowest, time.Since(begun))
			}
		}
	})
	var statuses [600]atomic.Int64
	begun := time.Now()
	for range connections {
		flood.Go(func() {
			c, err := dialFrom("127.0.3.1", s.addresses[0])
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			for range rounds {
				targets := make([]string, size)
				for i := range targets {
					targets[i] = numbered(rand.IntN(1 << 50))
				}
				err := pipelined(c, r, targets, func(n int, got answer) {
					statuses[got.StatusCode].Add(1)
					if seconds, err := strconv.Atoi(got.Header.Get("Retry-After")); got.StatusCode == 503 && (err != nil || seconds < 1) {
						t.Errorf("a 503 without Retry-After: %v", got.Header)
					}
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	flood.Wait()
	took := time.Since(begun)
	close(ended)
	good.Wait()
	found, refused := statuses[404].Load(), statuses[503].Load()
	if found+refused != connections*rounds*size || found > questions.Load() {
		t.Errorf("%d answers of 404, %d of 503, for %d requests and %d questions", found, refused, connections*rounds*size, questions.Load())
	}
	if limit := share + rate*(took.Seconds()+1); float64(questions.Load()) > limit {
		t.Errorf("%d questions within %s", questions.Load(), took)
	}
	memory := resident(t, s.Process.Pid)
	if memory > 200<<20 {
		t.Errorf("%d MiB are resident", memory>>20)
	}
	t.Logf("%d answers of 404, %d of 503 in %s; %d MiB; %d requests of another client, the slowest took %s", found, refused, took, memory>>20, asked, slowest)
	s.stop(t, syscall.SIGTERM)
}

// cycle iterates over the texts again and again.
func cycle(texts ...string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for n := 0; yield(texts[n%len(texts)]); n++ {
		}
	}
}

// TestCacheOutage: the upstream ends in the middle of a burst, and of a nar. What is known is
// served, everything else is answered at once, and all is well when the upstream is back.
func TestCacheOutage(t *testing.T) {
	t.Parallel()
	const count = 1000
	corpus := filepath.Join(testdata, "published")
	items, files := hasNumbered(count), http.FileServer(http.Dir(corpus))
	var stub *upstreamStub
	var narinfos atomic.Int64
	var cutNar, back atomic.Bool
	stub = startStub(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/0000000000") && !back.Load() && narinfos.Add(1) > 300:
			stub.kill()
		case strings.HasPrefix(r.URL.Path, "/0000000000"):
			items.ServeHTTP(w, r)
		case r.URL.Path == "/nar/lzip/"+gosrc && cutNar.CompareAndSwap(false, true):
			nar := read(t, corpus, r.URL.Path)
			w.Header().Set("Content-Length", strconv.Itoa(len(nar)))
			_, _ = w.Write([]byte(nar[:len(nar)/2]))
			_ = http.NewResponseController(w).Flush()
			stub.kill()
		default:
			files.ServeHTTP(w, r)
		}
	}))
	p := newPlace(t)
	s := p.serveProcess(t, "--upstream=http://"+stub.address)
	address := s.addresses[0]
	wantFetched(t, address, corpus, greeting)
	until(t, "its nar is stored", func() bool { return len(p.nars(t, "lzip")) == 1 })
	for _, base := range []string{gosrc, libgreet} {
		if got := get(t, address, "/"+narinfoName(base)); got.StatusCode != 200 {
			t.Errorf("%s: %s", base, got.Status)
		}
	}
	// In the middle of a nar, which must not look complete.
	if got, err := tryGet(address, "/nar/lzip/"+gosrc); err == nil && got.StatusCode < 500 {
		t.Errorf("a nar that was cut: %s, %d bytes", got.Status, len(got.body))
	}
	stub.start(t)
	until(t, "the upstream is asked again", func() bool {
		got, err := tryGet(address, "/nar/lzip/"+gosrc)
		if err == nil && got.StatusCode == 200 && got.body != read(t, corpus, "nar/lzip", gosrc) {
			t.Errorf("%d bytes after it was cut", len(got.body))
		}
		return err == nil && got.StatusCode == 200
	})
	// In the middle of a burst.
	var targets []string
	known := make(map[string]string)
	for n := range count {
		targets = append(targets, numbered(n))
	}
	burst(t, address, targets, func(n int, got answer) {
		switch {
		case got.StatusCode == 200 && got.body == string(mirrortest.Narinfo(n, 1, n).Text):
			known[targets[n]] = got.body
		case got.StatusCode != http.StatusBadGateway:
			t.Errorf("answer %d: %s, %s", n, got.Status, got.body)
		}
	})
	if len(known) == 0 || len(known) > 300 {
		t.Errorf("%d answers before the end of the upstream", len(known))
	}
	health := func(want string) func() bool {
		return func() bool {
			got := get(t, address, "/health")
			if got.StatusCode != 200 {
				t.Errorf("health: %s", got.Status)
			}
			return strings.Contains(got.body, want)
		}
	}
	unknown := 4000
	until(t, "the health warns", func() bool {
		unknown++ // an outage is noticed when the upstream is asked
		if got := get(t, address, numbered(unknown)); got.StatusCode != http.StatusBadGateway {
			t.Errorf("an unknown item: %s", got.Status)
		}
		return health("no upstream can be reached")()
	})
	begun := time.Now()
	for target, text := range known {
		if got := get(t, address, target); got.body != text {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
	wantFetched(t, address, corpus, greeting)
	t.Logf("%d known items took %s", len(known), time.Since(begun))
	for _, target := range []string{numbered(5000), numbered(5001), "/nar/lzip/" + libgreet, "/nar/" + libgreet, "/nar/lzip/" + mirrortest.Path(5002).BaseName()} {
		begun = time.Now()
		got := get(t, address, target)
		if got.StatusCode != http.StatusBadGateway {
			t.Errorf("%s: %s", target, got.Status)
		}
		t.Logf("%s took %s", target, time.Since(begun))
	}
	begun = time.Now()
	burst(t, address, targets, func(n int, got answer) {
		if want := known[targets[n]]; got.StatusCode != 200 && want != "" || got.StatusCode != http.StatusBadGateway && want == "" {
			t.Errorf("answer %d: %s", n, got.Status)
		}
	})
	t.Logf("a burst without an upstream took %s", time.Since(begun))
	back.Store(true)
	stub.start(t)
	until(t, "the health is good again", func() bool { return !health("upstream")() })
	until(t, "unknown items are found again", func() bool { return get(t, address, numbered(count-1)).StatusCode == 200 })
	burst(t, address, targets, func(n int, got answer) {
		if got.StatusCode != 200 || got.body != string(mirrortest.Narinfo(n, 1, n).Text) {
			t.Errorf("answer %d at the end: %s", n, got.Status)
		}
	})
	wantFetched(t, address, corpus, libgreet)
	s.stop(t, syscall.SIGTERM)
	succeed(t, p.args("check", "--verify", "--no-closures")...)
}

// TestCacheKilled kills the cache right after it has answered for unknown items, and while it
// fetches a nar. Nothing wrong is served afterwards: with the upstream, everything; without it,
// what was written.
func TestCacheKilled(t *testing.T) {
	t.Parallel()
	const count = 600
	corpus := filepath.Join(testdata, "published")
	items, files := hasNumbered(count), http.FileServer(http.Dir(corpus))
	stub := startStub(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/0000000000") {
			items.ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	var targets []string
	for n := range count {
		targets = append(targets, numbered(n))
	}
	p := newPlace(t)
	args := []string{"--upstream=http://" + stub.address}
	rounds, written := kills(t), 0
	for round := range rounds {
		s := p.serveProcess(t, args...)
		part := targets[:count*(round+1)/rounds]
		burst(t, s.addresses[0], part, func(n int, got answer) {
			if got.StatusCode != 200 || got.body != string(mirrortest.Narinfo(n, 1, n).Text) {
				t.Errorf("answer %d: %s", n, got.Status)
			}
		})
		if got := get(t, s.addresses[0], "/"+narinfoName(gosrc)); got.StatusCode != 200 {
			t.Errorf("%s: %s", gosrc, got.Status)
		}
		c, err := net.Dial("tcp", s.addresses[0])
		noError(t, err)
		_, err = fmt.Fprintf(c, "GET /nar/lzip/%s HTTP/1.1\r\nHost: herder.example\r\n\r\n", gosrc)
		noError(t, err)
		_, err = c.Read(make([]byte, 1+rand.IntN(100_000)))
		noError(t, err)
		s.kill(t)
		c.Close()
		stub.kill()
		s = p.serveProcess(t, args...)
		now := 0
		burst(t, s.addresses[0], part, func(n int, got answer) {
			switch {
			case got.StatusCode == 200 && got.body == string(mirrortest.Narinfo(n, 1, n).Text):
				now++
			case got.StatusCode != http.StatusBadGateway:
				t.Errorf("answer %d without the upstream: %s", n, got.Status)
			}
		})
		if now < written {
			t.Errorf("%d items are known, %d before", now, written)
		}
		written = now
		got, err := tryGet(s.addresses[0], "/nar/lzip/"+gosrc)
		if err == nil && got.StatusCode == 200 && got.body != read(t, corpus, "nar/lzip", gosrc) || err == nil && got.StatusCode == 404 {
			t.Errorf("the nar without the upstream: %s, %d bytes", got.Status, len(got.body))
		}
		s.kill(t)
		stub.start(t)
	}
	s := p.serveProcess(t, args...)
	burst(t, s.addresses[0], targets, func(n int, got answer) {
		if got.StatusCode != 200 || got.body != string(mirrortest.Narinfo(n, 1, n).Text) {
			t.Errorf("answer %d at the end: %s", n, got.Status)
		}
	})
	wantFetched(t, s.addresses[0], corpus, gosrc, greeting)
	s.stop(t, syscall.SIGTERM)
	succeed(t, p.args("check", "--verify", "--no-closures")...)
	if listed := p.listed(t); len(listed) != count+2 {
		t.Errorf("%d items", len(listed))
	}
	t.Logf("%d of %d items were written before a kill", written, count)
}
