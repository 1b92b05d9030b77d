package upstream_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/upstream"
)

// number returns the number of a test item.
var numbers = func() map[string]int {
	numbers := make(map[string]int)
	for n := range 2000 {
		numbers[mirrortest.Path(n).Hash.String()] = n
	}
	return numbers
}()

func hash(n int) narinfo.PathHash { return mirrortest.Path(n).Hash }

// hashes returns the hashes of the test items from first to before.
func hashes(first, before int) (hashes []narinfo.PathHash) {
	for n := first; n < before; n++ {
		hashes = append(hashes, hash(n))
	}
	return hashes
}

// has is a handler with the items below a number, in a version.
func has(below, version int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		digits, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo")
		n, known := numbers[digits]
		if !ok || !known || n >= below {
			w.Header().Set("Cache-Control", "max-age=300")
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Write(mirrortest.Narinfo(n, version, n).Text)
	}
}

// start starts a server.
func start(t *testing.T, handler http.HandlerFunc) string {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// options are those of tests with the upstreams.
func options(t testing.TB, urls ...string) upstream.Options {
	t.Helper()
	o := upstream.Options{Instance: "own"}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		o.URLs = append(o.URLs, u)
	}
	return o
}

// quiet is a log that nobody reads.
var quiet = log.New(io.Discard, "", 0)

// network is a network in memory, for tests with a clock of their own: each host has a server.
type network map[string]http.Handler

// open makes a set of all hosts, http://0.example and so on, in that order.
func (n network) open(t *testing.T, log *slog.Logger) *upstream.Set {
	listeners := make(map[string]*listener)
	var urls []string
	for host, handler := range n {
		l := &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
		listeners[host] = l
		server := &http.Server{Handler: handler, ErrorLog: quiet}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		urls = append(urls, "http://"+host)
	}
	slices.Sort(urls)
	o := options(t, urls...)
	o.Log = log
	return open(t, o.WithDial(func(ctx context.Context, _, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil || listeners[host] == nil {
			return nil, fmt.Errorf("%s is unreachable", address)
		}
		return listeners[host].dial(ctx)
	}))
}

// listener is one host of a network.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

func open(t *testing.T, o upstream.Options) *upstream.Set {
	s := upstream.New(o)
	t.Cleanup(s.Close)
	return s
}

// ask returns the answer about each item.
func ask(t *testing.T, s *upstream.Set, hashes []narinfo.PathHash, via ...string) map[narinfo.PathHash]upstream.Answer {
	t.Helper()
	answers := make(map[narinfo.PathHash]upstream.Answer)
	var mu sync.Mutex
	s.Ask(t.Context(), hashes, via, func(hash narinfo.PathHash, a upstream.Answer) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := answers[hash]; twice {
			t.Errorf("%s is answered twice", hash)
		}
		answers[hash] = a
	})
	mu.Lock()
	defer mu.Unlock()
	if len(answers) != len(hashes) {
		t.Errorf("%d answers to %d questions", len(answers), len(hashes))
	}
	return answers
}

// describe returns an answer as text: the version and upstream of the narinfo, or the error.
func describe(s *upstream.Set, a upstream.Answer) string {
	age := "unsaid"
	if a.MaxAge >= 0 {
		age = a.MaxAge.String()
	}
	switch {
	case a.Narinfo != nil && a.Err == nil:
		_, version, _ := strings.Cut(string(a.Narinfo.Text), "Version: ")
		return fmt.Sprintf("version %c of %d, %s", version[0], slices.Index(s.Upstreams(), a.Upstream), age)
	case errors.Is(a.Err, upstream.ErrUnknown) && a.Narinfo == nil && a.Upstream == nil:
		return "unknown, " + age
	case errors.Is(a.Err, storage.ErrNotFound) && a.Narinfo == nil && a.Upstream == nil:
		return "absent, " + age
	}
	return fmt.Sprintf("%+v", a)
}

func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

// cached sends a header with each answer of a handler.
func cached(handler http.HandlerFunc, name, value string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		recorder := httptest.NewRecorder()
		handler(recorder, r)
		w.Header().Set(name, value)
		w.WriteHeader(recorder.Code)
		w.Write(recorder.Body.Bytes())
	}
}

// after answers late.
func after(delay time.Duration, handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(delay):
			handler(w, r)
		case <-r.Context().Done():
		}
	}
}

// TestPreference: the first upstream in order that has an item is the answer, and the others
// count if it can't tell.
func TestPreference(t *testing.T) {
	t.Parallel()
	none := cached(fails(404), "X", "y")
	forged := func(w http.ResponseWriter, r *http.Request) {
		text := string(mirrortest.Narinfo(1, 8, 1).Text)
		io.WriteString(w, strings.Replace(text, "Version: 8", "Version: 9", 1))
	}
	baking := fails(http.StatusAccepted)
	for name, test := range map[string]struct {
		upstreams []http.HandlerFunc
		want      string
		after     time.Duration
	}{
		"only one":                  {[]http.HandlerFunc{has(9, 1)}, "version 1 of 0, 1h0m0s", 0},
		"both":                      {[]http.HandlerFunc{has(9, 1), has(9, 2)}, "version 1 of 0, 1h0m0s", 0},
		"the first is later":        {[]http.HandlerFunc{after(900*time.Millisecond, has(9, 1)), has(9, 2)}, "version 1 of 0, 1h0m0s", 900 * time.Millisecond},
		"the first is too late":     {[]http.HandlerFunc{after(4*time.Second, has(9, 1)), has(9, 2), after(2*time.Second, has(9, 3))}, "version 2 of 1, 1h0m0s", time.Second},
		"the second":                {[]http.HandlerFunc{has(0, 1), has(9, 2)}, "version 2 of 1, 1h0m0s", 0},
		"the third is later":        {[]http.HandlerFunc{has(0, 1), has(0, 2), after(4*time.Second, has(9, 3))}, "version 3 of 2, 1h0m0s", 4 * time.Second},
		"none":                      {[]http.HandlerFunc{has(0, 1), has(0, 2)}, "absent, 5m0s", 0},
		"the smallest":              {[]http.HandlerFunc{has(0, 1), cached(fails(410), "Cache-Control", "max-age=2"), none}, "absent, 2s", 0},
		"unsaid":                    {[]http.HandlerFunc{none, none}, "absent, unsaid", 0},
		"baking":                    {[]http.HandlerFunc{none, baking, has(0, 1)}, "absent, 2m0s", 0},
		"baking, with age":          {[]http.HandlerFunc{cached(baking, "Cache-Control", "public, max-age=7")}, "absent, 7s", 0},
		"one fails":                 {[]http.HandlerFunc{fails(500), has(9, 2)}, "version 2 of 1, 1h0m0s", 0},
		"one fails, none":           {[]http.HandlerFunc{fails(503), has(0, 2)}, "absent, 1m0s", 0},
		"one fails, unsaid":         {[]http.HandlerFunc{fails(403), none}, "absent, 1m0s", 0},
		"one fails, short":          {[]http.HandlerFunc{fails(429), cached(none, "Cache-Control", "max-age=3")}, "absent, 3s", 0},
		"all fail":                  {[]http.HandlerFunc{fails(500), fails(302)}, "unknown, unsaid", 0},
		"one is silent":             {[]http.HandlerFunc{after(time.Minute, has(9, 1)), has(0, 1)}, "absent, 1m0s", 5 * time.Second},
		"one is refused":            {[]http.HandlerFunc{forged, has(9, 2)}, "version 2 of 1, 1h0m0s", 0},
		"refused, the rest is late": {[]http.HandlerFunc{after(2*time.Second, has(9, 1)), forged}, "version 1 of 0, 1h0m0s", 2 * time.Second},
		"refused, none":             {[]http.HandlerFunc{forged, has(0, 1)}, "absent, 1m0s", 0},
		"no upstream":               {nil, "unknown, unsaid", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hosts := make(network)
				for i, handler := range test.upstreams {
					hosts[fmt.Sprintf("%d.example", i)] = handler
				}
				s := hosts.open(t, nil)
				begun := time.Now()
				a := ask(t, s, hashes(1, 2))[hash(1)]
				if got := describe(s, a); got != test.want || time.Since(begun) != test.after {
					t.Errorf("%s after %s (%v), want %s after %s", got, time.Since(begun), a.Err, test.want, test.after)
				}
			})
		})
	}
}

// TestBurst: 1,000 questions are answered over few connections, each with the item's own
// narinfo, and once.
func TestBurst(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		serve  func(*httptest.Server)
		before int
	}{
		"HTTP/1.1": {(*httptest.Server).Start, 1700},
		"TLS":      {(*httptest.Server).StartTLS, 1700},
		"HTTP/2":   {func(server *httptest.Server) { server.EnableHTTP2 = true; server.StartTLS() }, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var accepted, version atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				version.Store(int64(r.ProtoMajor))
				has(900, 1)(w, r)
			}))
			server.Config.ErrorLog = quiet // connections that aren't needed are closed
			server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					accepted.Add(1)
				}
			}
			test.serve(server)
			t.Cleanup(server.Close)
			roots := x509.NewCertPool()
			if server.Certificate() != nil {
				roots.AddCert(server.Certificate())
			}
			s := open(t, options(t, server.URL).WithTLS(&tls.Config{RootCAs: roots}))
			for range 2 {
				for hash, a := range ask(t, s, hashes(700, test.before)) {
					want := "absent, 5m0s"
					if numbers[hash.String()] < 900 {
						want = "version 1 of 0, 1h0m0s"
					}
					if got := describe(s, a); got != want || a.Narinfo != nil && a.Narinfo.StorePath.Hash != hash {
						t.Fatalf("%s (%v), want %s", got, a.Err, want)
					}
				}
			}
			if accepted.Load() > 20 || (version.Load() == 2) != (name == "HTTP/2") {
				t.Errorf("%d connections, HTTP/%d", accepted.Load(), version.Load())
			}
		})
	}
}
