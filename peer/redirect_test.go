package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"nar-herder/peer/redirect"
	"nar-herder/storage"
)

// TestPrivateRedirects: a peer redirects to another server of this machine in various ways,
// which never gets a request.
func TestPrivateRedirects(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	var asked atomic.Int32
	secret := func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		sends(w, r)
	}
	plain, encrypted := serve(t, secret), httptest.NewTLSServer(http.HandlerFunc(secret))
	t.Cleanup(encrypted.Close)
	named := func(server *httptest.Server, host string) string {
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = net.JoinHostPort(host, u.Port())
		return u.String()
	}
	for _, target := range []string{
		plain.URL, named(plain, "localhost"), named(plain, "::ffff:127.0.0.1"), named(plain, "::1"), named(plain, "0.0.0.0"), named(plain, "127.1"),
		encrypted.URL, named(encrypted, "localhost"), named(encrypted, "LOCALHOST."), named(encrypted, "::ffff:127.0.0.1"), named(encrypted, "2130706433"), named(encrypted, "0x7f000001"),
		"file:///etc/passwd", "gopher://127.0.0.1/", "http://169.254.169.254/latest/meta-data/",
	} {
		server := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", target+r.URL.Path)
			w.WriteHeader(http.StatusFound)
		})
		p := newPeer(t, server.URL, here())
		p.servers.Other.TLSClientConfig = encrypted.Client().Transport.(*http.Transport).TLSClientConfig
		body, _, err := p.OpenFile(t.Context(), item, 0, 0, -1, nil)
		if err == nil {
			text, _ := io.ReadAll(body)
			body.Close()
			t.Errorf("%s: %q", target, text)
		} else if errors.Is(err, storage.ErrNotStored) {
			t.Errorf("%s: %v", target, err)
		}
		if location, _, err := p.Locate(t.Context(), item, 0, nil); err == nil {
			t.Errorf("%s: it is at %s", target, location)
		}
	}
	if got := asked.Load(); got != 0 {
		t.Errorf("the other servers got %d requests", got)
	}
}

// TestOwnRedirects: a peer redirects to other paths of its own, and redirects to private
// addresses can be allowed.
func TestOwnRedirects(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	other := serve(t, sends)
	var target string
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/files/") {
			sends(w, r)
			return
		}
		http.Redirect(w, r, target+"/files"+r.URL.Path, http.StatusFound)
	})
	for _, test := range []struct {
		target string
		self   func(*Self)
	}{
		{"", func(*Self) {}},
		{server.URL, func(*Self) {}},
		{other.URL, func(s *Self) { s.AllowPrivateRedirects = true }},
	} {
		target = test.target
		self := here()
		test.self(&self)
		body, _, err := newPeer(t, server.URL, self).OpenFile(t.Context(), item, 0, 0, -1, nil)
		if err != nil {
			t.Errorf("to %q: %v", target, err)
			continue
		}
		if text, err := io.ReadAll(body); err != nil || string(text) != narContent {
			t.Errorf("to %q: %q, %v", target, text, err)
		}
		body.Close()
	}
}

// TestRebinding: a name resolves to a public address when it is checked, and to this
// machine when it is dialed.
func TestRebinding(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(sends))
	t.Cleanup(server.Close)
	at := server.Listener.Addr().String()
	base, err := url.Parse("http://peer.example")
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, base.String(), here())
	next, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://rebound.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.servers.Check(next, []*http.Request{next}); err != nil {
		t.Errorf("a name was refused: %v", err)
	}
	if conn, err := p.servers.Other.DialContext(context.Background(), "tcp", at); err == nil || !errors.Is(err, redirect.ErrPrivate) {
		t.Errorf("dialed %v, %v", conn, err)
	}
	conn, err := p.servers.Own.DialContext(context.Background(), "tcp", at)
	if err != nil {
		t.Fatalf("the peer's own address: %v", err)
	}
	conn.Close()
}
