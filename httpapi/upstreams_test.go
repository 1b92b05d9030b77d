package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/respond"
	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/upstream"
	"nar-herder/upstream/lookup"
)

// fakeUpstreams have every item but those that a test excludes.
type fakeUpstreams struct {
	mu     sync.Mutex
	answer func(narinfo.PathHash) upstream.Answer
	hold   chan struct{} // closed to let answers pass; nil for none
	asked  [][]narinfo.PathHash
	vias   [][]string
}

var anUpstream = upstream.New(upstream.Options{URLs: []*url.URL{{Scheme: "http", Host: "upstream.example"}}}).Upstreams()[0]

func upstreamText(hash narinfo.PathHash) []byte {
	return fmt.Appendf(nil, "StorePath: /gnu/store/%s-item\nNarHash: sha256:%052d\nNarSize: 100\nReferences: \nURL: nar/lzip/%[1]s-item\nCompression: lzip\nFileSize: 50\n", hash, 1)
}

func upstreamHas(maxAge time.Duration) func(narinfo.PathHash) upstream.Answer {
	return func(hash narinfo.PathHash) upstream.Answer {
		n, err := narinfo.Parse(upstreamText(hash))
		if err != nil {
			panic(err)
		}
		return upstream.Answer{Narinfo: n, Upstream: anUpstream, MaxAge: maxAge}
	}
}

func upstreamLacks(maxAge time.Duration) func(narinfo.PathHash) upstream.Answer {
	return func(narinfo.PathHash) upstream.Answer {
		return upstream.Answer{MaxAge: maxAge, Err: storage.ErrNotFound}
	}
}

func upstreamDown(narinfo.PathHash) upstream.Answer {
	return upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown}
}

func (f *fakeUpstreams) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, upstream.Answer)) {
	f.mu.Lock()
	f.asked, f.vias = append(f.asked, hashes), append(f.vias, via)
	answer, hold := f.answer, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			answer = upstreamDown
		}
	}
	for _, hash := range hashes {
		deliver(hash, answer(hash))
	}
}

func (f *fakeUpstreams) set(answer func(narinfo.PathHash) upstream.Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fakeUpstreams) questions() (calls, items int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, hashes := range f.asked {
		items += len(hashes)
	}
	return len(f.asked), items
}

// caching is a server that caches fakeUpstreams.
type caching struct {
	*started
	*fakeUpstreams
	store  *store
	finder *lookup.Finder
}

func startCaching(t *testing.T, opts Options) *caching { return startCachingIn(t, newStore(t), opts) }

func startCachingIn(t *testing.T, s *store, opts Options) *caching {
	t.Helper()
	c := &caching{fakeUpstreams: &fakeUpstreams{answer: upstreamHas(time.Hour)}, store: s}
	c.finder = lookup.New(s.Storage, c, lookup.Options{NegativeTTL: opts.NegativeTTL})
	opts.Upstreams = c.finder
	c.started = start(t, s, opts)
	watcher, err := s.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Close() })
	c.follow(t, watcher)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.finder.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		c.finder.Close()
	})
	return c
}

// maxAgeOf returns the max-age of an answer; -1 for none.
func maxAgeOf(a *answer) (seconds int) {
	if _, err := fmt.Sscanf(a.Header.Get("Cache-Control"), "max-age=%d", &seconds); err != nil {
		return -1
	}
	return seconds
}

func (c *caching) wants(t *testing.T, client *client, target string, status, least, most int) *answer {
	t.Helper()
	a := client.ask("GET", target)
	if age := maxAgeOf(a); a.StatusCode != status || age < least || age > most {
		t.Errorf("%s: %s, %q, want %d with max-age from %d to %d", target, a.Status, a.Header.Get("Cache-Control"), status, least, most)
	}
	return a
}

// TestUnknownAtUpstream: unknown narinfos come from the upstream, with what remains of their
// time, at most --ttl.
func TestUnknownAtUpstream(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		ttl, negative *time.Duration
		maxAge        time.Duration
		most          int
	}{
		"upstream's":        {maxAge: time.Hour, most: 3600},
		"ttl":               {ttl: seconds(100), maxAge: time.Hour, most: 100},
		"without any":       {maxAge: -1, most: 24 * 3600},
		"longer than known": {maxAge: 1000 * time.Hour, most: int(narinfo.UnadvertisedTTL / time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := options()
			opts.TTL = test.ttl
			c := startCaching(t, opts)
			c.set(upstreamHas(test.maxAge))
			client := dial(t, c.address)
			hash := numbered(1)
			target := "/" + hash.String() + ".narinfo"
			for range 3 {
				if a := c.wants(t, client, target, 200, test.most-10, test.most); a.body != string(upstreamText(hash)) || a.Header.Get("Content-Type") != "application/x-nix-narinfo" {
					t.Errorf("%q", a.body)
				}
			}
			if a := client.ask("HEAD", target); a.StatusCode != 200 || a.ContentLength != int64(len(upstreamText(hash))) {
				t.Errorf("HEAD: %s, %d", a.Status, a.ContentLength)
			}
			until(t, "the item is written", func() bool { _, err := c.store.Item(t.Context(), hash); return err == nil })
			c.wants(t, client, target, 200, test.most-10, test.most)
			if _, items := c.questions(); items != 1 {
				t.Errorf("asked %d times", items)
			}
			client.stillOpen()
		})
	}
}

// TestMissingAtUpstream checks the answers without a narinfo, for narinfos, nars and files.
func TestMissingAtUpstream(t *testing.T) {
	t.Parallel()
	hash := numbered(1).String()
	for name, test := range map[string]struct {
		answer      func(narinfo.PathHash) upstream.Answer
		negative    *time.Duration
		status      int
		least, most int
	}{
		"baking":           {answer: upstreamLacks(5 * time.Minute), negative: seconds(3600), status: 404, least: 295, most: 300},
		"shorter here":     {answer: upstreamLacks(time.Hour), negative: seconds(100), status: 404, least: 95, most: 100},
		"without any time": {answer: upstreamLacks(-1), status: 404, least: 55, most: 60},
		"down":             {answer: upstreamDown, status: 502, least: -1, most: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := options()
			opts.NegativeTTL = test.negative
			c := startCaching(t, opts)
			c.set(test.answer)
			client := dial(t, c.address)
			for _, target := range []string{"/" + hash + ".narinfo", "/nar/lzip/" + hash + "-item", "/nar/" + hash + "-item"} {
				a := c.wants(t, client, target, test.status, test.least, test.most)
				if test.status >= 500 && a.Header.Get("Cache-Control") != respond.NoStore {
					t.Errorf("Cache-Control: %s", a.Header.Get("Cache-Control"))
				}
			}
			if _, items := c.questions(); items != 1 {
				t.Errorf("asked %d times", items)
			}
			c.wants(t, client, "/file/hello/sha256/"+helloHash, test.status, test.least, test.most)
			if _, items := c.questions(); items != 2 {
				t.Errorf("asked %d times with the file", items)
			}
			// Only what is known here is said about the item.
			for target, status := range map[string]int{"/" + hash + ".narinfo/info": 404} {
				if a := client.ask("GET", target); a.StatusCode != status {
					t.Errorf("%s: %s", target, a.Status)
				}
			}
			if strings.Contains(c.log.String(), "ERROR") {
				t.Errorf("the log: %s", c.log)
			}
		})
	}
}

// TestImportedBesideUpstream: items that were imported are answered as ever, and an import is
// visible at once although the upstreams lacked the item.
func TestImportedBesideUpstream(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.TTL, opts.NegativeTTL = seconds(1000), seconds(500)
	c := startCaching(t, opts)
	c.set(upstreamLacks(time.Hour))
	client := dial(t, c.address)
	target := "/" + hashOf(greeting) + ".narinfo"
	c.wants(t, client, target, 404, 490, 500)
	c.store.importAll(t, importer.Options{Keep: true}, published+"/"+hashOf(greeting)+".narinfo")
	for range 2 {
		if a := client.ask("GET", target); a.StatusCode != 200 || a.Header.Get("Cache-Control") != "max-age=1000" {
			t.Errorf("%s, %s", a.Status, a.Header.Get("Cache-Control"))
		}
	}
	if a := client.ask("GET", "/nar/lzip/"+greeting); a.StatusCode != 200 {
		t.Errorf("its nar: %s", a.Status)
	}
	if _, items := c.questions(); items != 1 {
		t.Errorf("asked %d times", items)
	}
	// A withdrawn item is gone, whatever the upstreams have.
	c.set(upstreamHas(time.Hour))
	if _, err := c.store.WithdrawAll(t.Context(), []narinfo.PathHash{mustHash(t, greeting)}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the item is hidden", func() bool { return client.ask("GET", target).StatusCode == 404 })
	if _, items := c.questions(); items != 1 {
		t.Errorf("asked %d times", items)
	}
}

// TestExpiredAtUpstream: an expired answer is renewed; if the upstreams are gone, it is served
// for a minute.
func TestExpiredAtUpstream(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1 << 20} { // of the memory for answers
		opts := options()
		opts.AnswerCache = size
		c := startCaching(t, opts)
		client := dial(t, c.address)
		hash := numbered(1)
		target := "/" + hash.String() + ".narinfo"
		expire := func() {
			t.Helper()
			n, err := narinfo.Parse(upstreamText(hash))
			if err != nil {
				t.Fatal(err)
			}
			entry := c.store.index.Prepare(n)
			entry.AddedAt, entry.Origin, entry.FreshUntil = time.Now(), 1, time.Now().Add(-time.Second)
			err = c.store.index.Update(t.Context(), func(tx *index.Tx) error {
				old, err := tx.Item(hash)
				if errors.Is(err, index.ErrNotFound) {
					old = nil
				} else if err != nil {
					return err
				}
				return tx.Put(entry, old)
			})
			if err != nil {
				t.Fatal(err)
			}
			c.Forget(hash)
		}
		expire()
		c.set(upstreamDown)
		for range 2 {
			if a := c.wants(t, client, target, 200, 58, 60); a.body != string(upstreamText(hash)) {
				t.Errorf("%q", a.body)
			}
		}
		expire()
		c.set(upstreamHas(time.Hour))
		until(t, "the upstream is asked again", func() bool {
			c.Forget(hash) // which is kept for a minute
			return maxAgeOf(client.ask("GET", target)) > 60
		})
		c.wants(t, client, target, 200, 3590, 3600)
		until(t, "the time is written", func() bool {
			row, err := c.store.index.Item(t.Context(), hash)
			return err == nil && row.FreshUntil.After(time.Now())
		})
		c.Forget(hash)
		c.wants(t, client, target, 200, 3590, 3600)
		expire()
		c.set(upstreamLacks(10 * time.Minute))
		c.wants(t, client, target, 404, 590, 600)
	}
}

// TestBurstAtUpstream: the client of Guix sends a thousand requests before it reads, of which
// some are for known items and some for no narinfos. The upstreams are asked in few questions
// while the first one waits.
func TestBurstAtUpstream(t *testing.T) {
	t.Parallel()
	for _, small := range []bool{false, true} {
		c := startCaching(t, options())
		hold := make(chan struct{})
		c.hold = hold
		c.set(func(hash narinfo.PathHash) upstream.Answer {
			if hash[0]%2 == 1 {
				return upstreamLacks(time.Minute)(hash)
			}
			return upstreamHas(time.Hour)(hash)
		})
		for _, known := range []int{0, 100, 998} {
			n, err := narinfo.Parse(upstreamText(numbered(known)))
			if err != nil {
				t.Fatal(err)
			}
			entry := c.store.index.Prepare(n)
			if err := c.store.index.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(entry, nil) }); err != nil {
				t.Fatal(err)
			}
		}
		var client *client
		if small {
			client = connectSmall(t, c.listener)
		} else {
			client = dial(t, c.address)
		}
		var raw strings.Builder
		for n := range burst {
			raw.WriteString(request("GET", "/"+numbered(n).String()+".narinfo", "User-Agent: GNU Guile", "Accept: application/x-nix-narinfo,*/*", "Connection: keep-alive"))
			if n%100 == 50 {
				raw.WriteString(request("HEAD", "/nix-cache-info"))
				raw.WriteString(request("GET", "/nonsense.narinfo"))
			}
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			client.send(raw.String())
		}()
		// All are asked for before any is answered.
		until(t, "all are asked for", func() bool { _, items := c.questions(); return items >= burst-3 })
		<-sent
		close(hold)
		for n := range burst {
			a := client.receive("GET")
			want := 200
			if n%2 == 1 {
				want = 404
			}
			if a.StatusCode != want || want == 200 && a.body != string(upstreamText(numbered(n))) {
				t.Fatalf("answer %d: %s, %q", n, a.Status, a.body)
			}
			if n%100 == 50 {
				if a := client.receive("HEAD"); a.StatusCode != 200 {
					t.Fatalf("HEAD: %s", a.Status)
				}
				if a := client.receive("GET"); a.StatusCode != 404 {
					t.Fatalf("nonsense: %s", a.Status)
				}
			}
		}
		client.stillOpen()
		calls, items := c.questions()
		if items != burst-3 || !small && calls > 20 {
			t.Errorf("%d questions about %d items", calls, items)
		}
		t.Logf("%d questions", calls)
		if unread := c.engine.Usage().Unread; unread != 0 {
			t.Errorf("%d bytes are reserved", unread)
		}
	}
}

// TestLoopAtUpstream: a request that has passed this instance is answered from what is known.
func TestLoopAtUpstream(t *testing.T) {
	t.Parallel()
	opts := options()
	s := newStore(t)
	opts.Identity = s
	c := startCachingIn(t, s, opts)
	client := dial(t, c.address)
	via := "Via: 1.1 nar-herder-" + s.Instance()
	for _, target := range []string{"/" + nobody + ".narinfo", "/nar/lzip/" + nobody + "-x"} {
		if a := client.ask("GET", target, via); a.StatusCode != 404 || a.Header.Get("Cache-Control") != respond.NoStore {
			t.Errorf("%s: %s, %s", target, a.Status, a.Header.Get("Cache-Control"))
		}
	}
	if _, items := c.questions(); items != 0 {
		t.Errorf("asked %d times", items)
	}
	if a := client.ask("GET", "/"+nobody+".narinfo", "Via: 1.1 nar-herder-other"); a.StatusCode != 200 {
		t.Errorf("through another instance: %s", a.Status)
	}
	if !slices.Equal(c.vias[0], []string{"1.1 nar-herder-other"}) {
		t.Errorf("asked with Via %q", c.vias)
	}
}

// refusing refuses all questions.
type refusing struct {
	mu      sync.Mutex
	clients []netip.Prefix
}

func (r *refusing) LookUp(_ context.Context, _ narinfo.PathHash, asker lookup.Asker) (lookup.Answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, asker.Client)
	return lookup.Answer{}, lookup.ErrBusy
}

func (r *refusing) IsPending(narinfo.PathHash) bool { return false }

func (r *refusing) Add(ctx context.Context, hash narinfo.PathHash, asker lookup.Asker) (lookup.Answer, error) {
	return r.LookUp(ctx, hash, asker)
}

// TestRefusedAtUpstream: a client that asks for too many unknown items gets 503, never 404, and
// known items as ever.
func TestRefusedAtUpstream(t *testing.T) {
	t.Parallel()
	opts := options()
	r := new(refusing)
	opts.Upstreams = r
	opts.TrustedProxies = clients.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	s := start(t, corpus(), opts)
	client := dial(t, s.address)
	for _, target := range []string{"/" + nobody + ".narinfo", "/nar/lzip/" + nobody + "-x"} {
		a := client.ask("GET", target, "X-Forwarded-For: 2001:db8::1:2:3:4")
		if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" || a.Header.Get("Cache-Control") != respond.NoStore {
			t.Errorf("%s: %s, %v", target, a.Status, a.Header)
		}
	}
	if a := client.ask("GET", "/"+hashOf(greeting)+".narinfo"); a.StatusCode != 200 {
		t.Errorf("known: %s", a.Status)
	}
	if want := netip.MustParsePrefix("2001:db8::/64"); len(r.clients) != 2 || r.clients[0] != want {
		t.Errorf("the clients are %v, want %v", r.clients, want)
	}
	client.stillOpen()
}

// TestStopInBurst: the server stops while a burst waits for the upstreams.
func TestStopInBurst(t *testing.T) {
	t.Parallel()
	for range rounds.Of(1) {
		c := startCaching(t, options())
		c.hold = make(chan struct{})
		client := dial(t, c.address)
		client.send(burstRequests(burst))
		until(t, "the upstreams are asked", func() bool { _, items := c.questions(); return items > 0 })
		begun := time.Now()
		c.stop()
		if err := <-c.ended; err != nil {
			t.Error(err)
		}
		c.ended <- nil
		c.finder.Close()
		if took := time.Since(begun); took > patience/2 {
			t.Errorf("stopping took %v", took)
		}
	}
}

// TestCachedBlocksStay: renewing an answer keeps the blocks of cached nars.
func TestCachedBlocksStay(t *testing.T) {
	t.Parallel()
	hash := numbered(1)
	opts := options()
	opts.Cached = expiredCached{hash: hash}
	c := startCaching(t, opts)
	a := c.wants(t, dial(t, c.address), "/"+hash.String()+".narinfo", 200, 40, 50)
	if want := append(bytes.Clone(upstreamText(hash)), "URL: nar/zstd/x\n"...); a.body != string(want) {
		t.Errorf("%q", a.body)
	}
}

// expiredCached has an expired item with a cached nar.
type expiredCached struct {
	cachedFake
	hash narinfo.PathHash
}

func (c expiredCached) Text(context.Context, narinfo.PathHash) ([]byte, []string, time.Time, error) {
	return append(bytes.Clone(upstreamText(c.hash)), "URL: nar/zstd/x\n"...), []string{"zstd"}, time.Now().Add(-time.Second), nil
}

func (c expiredCached) TTL([]string) *time.Duration { return seconds(50) }

// TestImportedMeanwhile: an item is imported before that of the upstream is written. The answer
// of the upstream isn't kept in memory then.
func TestImportedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	opts := options()
	finder := lookup.New(s.Storage, &fakeUpstreams{answer: upstreamHas(time.Hour)}, lookup.Options{})
	t.Cleanup(finder.Close)
	opts.Upstreams = finder // which writes nothing before Close
	server := start(t, s, opts)
	watcher, err := s.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Close() })
	server.follow(t, watcher)
	client := dial(t, server.address)
	hash, err := narinfo.ParsePathHash(hashOf(greeting))
	if err != nil {
		t.Fatal(err)
	}
	target := "/" + hash.String() + ".narinfo"
	if a := client.ask("GET", target); a.body != string(upstreamText(hash)) {
		t.Fatalf("%s, %q", a.Status, a.body)
	}
	s.importAll(t, importer.Options{Keep: true}, published+"/"+hash.String()+".narinfo")
	until(t, "the server notices the import", func() bool {
		_, ok, _ := server.answers.Get(hash)
		return !ok
	})
	client.ask("GET", target)
	finder.Close()
	text, err := s.Text(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	if a := client.ask("GET", target); a.body != string(text) {
		t.Errorf("%s, %q", a.Status, a.body)
	}
}

// TestNarMissingAtUpstream: an upstream may have a nar later, so clients must not keep for long
// that it doesn't.
func TestNarMissingAtUpstream(t *testing.T) {
	t.Parallel()
	here, there := make1(t, "here", "here", "none"), make1(t, "there", "there", "none")
	s := without(t, here, there)
	err := s.index.Update(t.Context(), func(tx *index.Tx) error {
		origin, err := tx.Origin("http://upstream.example")
		return errors.Join(err, tx.SetOrigin(there.path.Hash, origin, time.Now().Add(time.Hour)))
	})
	if err != nil {
		t.Fatal(err)
	}
	opts := options()
	opts.NegativeTTL = seconds(3600)
	client := dial(t, start(t, s, opts).address)
	for item, want := range map[*made]string{here: "max-age=3600", there: "max-age=120"} {
		if a := client.ask("GET", "/nar/"+item.path.BaseName()); a.StatusCode != 404 || a.Header.Get("Cache-Control") != want {
			t.Errorf("%s: %s, %q, want %q", item.path, a.Status, a.Header.Get("Cache-Control"), want)
		}
	}
}
