package upstream_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/mirrortest"
	"nar-herder/internal/selfsigned"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/upstream"
)

// switchable is a handler that can be silent.
type switchable struct {
	http.HandlerFunc
	silent atomic.Bool
	asked  atomic.Int64
	probed atomic.Int64
}

func (s *switchable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/nix-cache-info" {
		s.probed.Add(1)
	} else {
		s.asked.Add(1)
	}
	if s.silent.Load() {
		// The context doesn't end with the connection while other requests wait in it.
		time.Sleep(30 * time.Minute)
		return
	}
	s.HandlerFunc(w, r)
}

// TestOutage: clients wait once for an upstream that is silent. Then it is skipped, until it
// answers a probe.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := &switchable{HandlerFunc: has(9, 1)}, &switchable{HandlerFunc: has(9, 2)}
		var logged testlog.Buffer
		s := network{"0.example": first, "1.example": second}.open(t, slog.New(slog.NewTextHandler(&logged, nil)))
		running := make(chan struct{})
		ctx, stop := context.WithCancel(t.Context())
		go func() { defer close(running); s.Run(ctx) }()
		synctest.Wait()
		expect := func(want string, within time.Duration) {
			t.Helper()
			begun := time.Now()
			a := ask(t, s, hashes(1, 2))[hash(1)]
			if got, took := describe(s, a), time.Since(begun); got != want || took > within {
				t.Errorf("%s after %s (%v), want %s", got, took, a.Err, want)
			}
		}
		expect("version 1 of 0, 1h0m0s", 0)
		first.silent.Store(true)
		expect("version 2 of 1, 1h0m0s", time.Second)
		time.Sleep(10 * time.Second)
		asked := first.asked.Load()
		for range 10 {
			expect("version 2 of 1, 1h0m0s", 0)
		}
		if status := s.Status()[0]; status.Up || status.Err == nil || status.URL != "http://0.example" || time.Since(status.Since) > 10*time.Second || s.Upstreams()[0].IsUp() {
			t.Errorf("%+v", status)
		}
		second.silent.Store(true)
		expect("unknown, unsaid", 5*time.Second)
		expect("unknown, unsaid", 0)
		if first.asked.Load() != asked {
			t.Errorf("asked %d more times", first.asked.Load()-asked)
		}
		probed := first.probed.Load()
		time.Sleep(10 * time.Minute)
		if probed = first.probed.Load() - probed; probed < 5 || probed > 20 {
			t.Errorf("%d probes in 10 minutes", probed)
		}
		first.silent.Store(false)
		time.Sleep(2 * time.Minute)
		expect("version 1 of 0, 1h0m0s", 0)
		if status := s.Status(); !status[0].Up || status[0].Err != nil || status[1].Up {
			t.Errorf("%+v", status)
		}
		if text := logged.String(); strings.Count(text, "can't be reached") != 2 || strings.Count(text, "answers again") != 1 {
			t.Error(text)
		}
		stop()
		<-running
		time.Sleep(time.Hour)
	})
}

// TestProbesOnly: an upstream that answers probes only is asked more and more seldom.
func TestProbesOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := &switchable{HandlerFunc: has(9, 1)}
		asked.silent.Store(true)
		s := network{"0.example": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/nix-cache-info" {
				fails(404)(w, r)
				return
			}
			asked.ServeHTTP(w, r)
		})}.open(t, nil)
		ctx, stop := context.WithCancel(t.Context())
		go s.Run(ctx)
		slow := 0
		for begun := time.Now(); time.Since(begun) < time.Hour; time.Sleep(time.Second) {
			at := time.Now()
			ask(t, s, hashes(1, 2))
			if time.Since(at) > 0 {
				slow++
			}
		}
		if slow > 80 || slow < 10 {
			t.Errorf("%d of the questions of an hour were slow", slow)
		}
		stop()
		time.Sleep(time.Hour)
	})
}

// TestGone: with all upstreams gone, the first answer comes within the limit and the others at
// once, without a goroutine for each.
func TestGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, options(t, "http://0.example", "https://1.example").WithDial(func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		for n, within := range []time.Duration{5 * time.Second, 0, 0} {
			begun := time.Now()
			for _, a := range ask(t, s, hashes(0, 1000)) {
				if got := describe(s, a); got != "unknown, unsaid" {
					t.Fatal(got)
				}
			}
			if time.Since(begun) > within {
				t.Errorf("%d: after %s", n, time.Since(begun))
			}
		}
	})
}

// TestCanceled: Ask ends with its context.
func TestCanceled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := &switchable{HandlerFunc: has(9, 1)}
		silent.silent.Store(true)
		s := network{"0.example": silent}.open(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun, count := time.Now(), 0
		s.Ask(ctx, hashes(0, 100), nil, func(_ narinfo.PathHash, a upstream.Answer) {
			if count++; !errors.Is(a.Err, upstream.ErrUnknown) || !errors.Is(a.Err, context.DeadlineExceeded) {
				t.Error(a.Err)
			}
		})
		if count != 100 || time.Since(begun) != time.Second {
			t.Errorf("%d answers after %s", count, time.Since(begun))
		}
		if !s.Upstreams()[0].IsUp() {
			t.Error("it counts as a failure of the upstream")
		}
		time.Sleep(time.Hour)
	})
}

// TestLoop: a question that has passed this server isn't asked again, and says so.
func TestLoop(t *testing.T) {
	t.Parallel()
	var s *upstream.Set
	var inner atomic.Int64
	url := start(t, func(w http.ResponseWriter, r *http.Request) { // this very server
		inner.Add(1)
		for _, a := range ask(t, s, hashes(1, 2), r.Header.Values("Via")...) {
			if !errors.Is(a.Err, upstream.ErrLoop) || !errors.Is(a.Err, upstream.ErrUnknown) || a.MaxAge >= 0 {
				t.Error(a.Err)
			}
		}
		w.WriteHeader(http.StatusBadGateway)
	})
	s = open(t, options(t, url))
	if got := describe(s, ask(t, s, hashes(1, 2), "1.1 nar-herder-other")[hash(1)]); got != "unknown, unsaid" || inner.Load() != 1 {
		t.Errorf("%s after %d questions", got, inner.Load())
	}
}

// TestCertificate: the reason for a refused certificate is given.
func TestCertificate(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		until time.Duration
		known bool
		want  string
	}{
		"valid":   {time.Hour, true, ""},
		"expired": {-time.Minute, true, "expired"},
		"unknown": {time.Hour, false, "install CA certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().Add(test.until), "127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			roots := cert.Pool()
			if !test.known {
				roots = x509.NewCertPool()
			}
			server := httptest.NewUnstartedServer(has(9, 1))
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert.Certificate}}
			server.Config.ErrorLog = quiet
			server.StartTLS()
			t.Cleanup(server.Close)
			s := open(t, options(t, server.URL).WithTLS(&tls.Config{RootCAs: roots}))
			a := ask(t, s, hashes(1, 2))[hash(1)]
			if (a.Err == nil) != (test.want == "") || a.Err != nil && (!errors.Is(a.Err, upstream.ErrUnknown) || !strings.Contains(a.Err.Error(), test.want)) {
				t.Error(a.Err)
			}
		})
	}
}

// TestUpgrade: an upstream that redirects everything to https is asked there from then on.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		location string
		want     string
		isAsked  bool // over http in the second round
	}{
		"same":         {"https://0.examplePATH", "version 1 of 0, 1h0m0s", false},
		"with port":    {"https://0.example:443PATH", "version 1 of 0, 1h0m0s", false},
		"another path": {"https://0.example/xPATH", "absent, 5m0s", true},
		"another host": {"https://127.0.0.2PATH", "unknown, unsaid", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1", "0.example")
			if err != nil {
				t.Fatal(err)
			}
			var asked atomic.Int64
			insecure := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				redirects(301, test.location)(w, r)
			}))
			t.Cleanup(insecure.Close)
			secure := httptest.NewUnstartedServer(has(200, 1))
			secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert.Certificate}}
			secure.Config.ErrorLog = quiet
			secure.StartTLS()
			t.Cleanup(secure.Close)
			s := open(t, options(t, "http://0.example").WithTLS(&tls.Config{RootCAs: cert.Pool()}).WithDial(func(ctx context.Context, network, address string) (net.Conn, error) {
				host, port, _ := net.SplitHostPort(address)
				switch to := secure.Listener.Addr(); {
				case host != "0.example":
					return nil, errors.New("another host is asked")
				case port == "80" || port == "http":
					to = insecure.Listener.Addr()
					fallthrough
				default:
					return new(net.Dialer).DialContext(ctx, network, to.String())
				}
			}))
			for range 2 {
				asked.Store(0)
				for _, a := range ask(t, s, hashes(0, 100)) {
					if got := describe(s, a); got != test.want || a.Narinfo != nil && a.Upstream.String() != "http://0.example" {
						t.Fatalf("%s (%v), want %s", got, a.Err, test.want)
					}
				}
			}
			if n := asked.Load(); (n > 0) != test.isAsked {
				t.Errorf("%d questions over http", n)
			}
		})
	}
}

// TestPassword: a user and password are sent, and appear nowhere else.
func TestPassword(t *testing.T) {
	t.Parallel()
	url := start(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "user" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		has(9, 1)(w, r)
	})
	var logged testlog.Buffer
	for user, want := range map[string]string{"user:secret": "version 1 of 0, 1h0m0s", "user:Secret1": "unknown, unsaid"} {
		o := options(t, strings.Replace(url, "http://", "http://"+user+"@", 1))
		o.Log = slog.New(slog.NewTextHandler(&logged, nil))
		s := open(t, o)
		a := ask(t, s, hashes(1, 2))[hash(1)]
		if got := describe(s, a); got != want {
			t.Errorf("%s (%v), want %s", got, a.Err, want)
		}
		if s.Upstreams()[0].String() != url || s.Find(url) != s.Upstreams()[0] || s.Find("http://x") != nil || s.Status()[0].URL != url || strings.Contains(logged.String(), "ecret") {
			t.Errorf("%s: %s", s.Upstreams()[0], logged.String())
		}
	}
}

// TestKeys: with keys, only narinfos count that one of them has signed. Guix judges the cases
// alike.
func TestKeys(t *testing.T) {
	t.Parallel()
	cases := filepath.Join("..", "testdata", "cases")
	acl, err := os.ReadFile(filepath.Join(cases, "keys", "acl"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := signing.ParseKeys(acl)
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(cases, "*.narinfo"))
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(name, err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, n.StorePath.Hash.String()+".narinfo"), text, 0o644); err != nil {
			t.Fatal(err)
		}
		o := options(t, "file://"+dir)
		o.Keys = keys
		a := ask(t, open(t, o), []narinfo.PathHash{n.StorePath.Hash})[n.StorePath.Hash]
		if (a.Err == nil) != strings.HasPrefix(filepath.Base(name), "ok-") || a.Err != nil && (!errors.Is(a.Err, upstream.ErrUnknown) || storage.Reason(a.Err) == "") {
			t.Errorf("%s: %v", name, a.Err)
		}
	}
}

// TestDirectory: a directory of files is an upstream.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(n int, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, hash(n).String()+".narinfo"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, options(t, "file://"+dir))
	expect := func(n int, want, reason string) {
		t.Helper()
		a := ask(t, s, hashes(n, n+1))[hash(n)]
		if got := describe(s, a); got != want || reason != "" && !strings.Contains(a.Err.Error(), reason) {
			t.Errorf("%d: %s (%v), want %s", n, got, a.Err, want)
		}
	}
	expect(1, "unknown, unsaid", "is it mounted")
	write(1, string(mirrortest.Narinfo(1, 1, 1).Text))
	write(2, "garbage\n")
	write(3, string(mirrortest.Narinfo(4, 1, 4).Text))
	write(6, strings.Repeat("A: b\n", narinfo.MaxSize))
	expect(1, "version 1 of 0, unsaid", "")
	expect(2, "unknown, unsaid", "narinfo: line 1")
	expect(3, "unknown, unsaid", "asked for the narinfo of")
	expect(4, "absent, unsaid", "")
	if err := os.Mkdir(filepath.Join(dir, hash(5).String()+".narinfo"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect(5, "unknown, unsaid", "is not a file")
	expect(6, "unknown, unsaid", "too large")
	if err := syscall.Mkfifo(filepath.Join(dir, hash(7).String()+".narinfo"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(7, "unknown, unsaid", "is not a file")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	expect(1, "unknown, unsaid", "is it mounted")
}

// TestMetrics: each outcome is counted, from 0 on.
func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	first, second := start(t, has(9, 1)), start(t, fails(500))
	s := open(t, options(t, first, second, first))
	registry.MustRegister(s)
	count := func() (n int, values map[string]float64) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values = make(map[string]float64)
		for _, family := range families {
			for _, metric := range family.Metric {
				n++
				value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
				for _, label := range metric.Label {
					if name := label.GetName(); name != "upstream" {
						values[label.GetValue()] += value
					} else if family.GetName() == "narherder_upstream_up" {
						values["up"] += value
					}
				}
			}
		}
		return n, values
	}
	if n, values := count(); n != 2*(6+len(storage.RefusalReasons)+1) || values["up"] != 2 || values["found"] != 0 {
		t.Errorf("%d metrics: %v", n, values)
	}
	ask(t, s, hashes(0, 10))
	if _, values := count(); values["found"] != 9 || values["absent"] != 1 || values["status"] < 1 || values["status"] > 10 {
		t.Error(values)
	}
}
