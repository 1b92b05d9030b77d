package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"nar-herder/storage"
)

func TestIsPublic(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"1.1.1.1": true, "141.80.181.40": true, "172.32.0.1": true, "100.128.0.1": true, "2606:4700::1111": true, "2a01:4f8::1": true, "2001:4860:4860::8888": true,
		"64:ff9b::101:101": true, "::ffff:1.1.1.1": true,
		// This machine, its network, and nobody's.
		"127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.100.100.200": false, "192.0.0.192": false, "168.63.129.16": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false,
		"192.0.2.1": false, "198.18.0.1": false, "198.51.100.1": false, "203.0.113.1": false, "192.88.99.1": false,
		"::1": false, "::": false, "fe80::1": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false, "fec0::1": false, "2001:db8::1": false, "3fff::1": false, "100::1": false,
		// IPv4 addresses within.
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false,
		"64:ff9b:1::7f00:1": false, "2002:7f00:1::1": false, "2001:0:7f00:1::1": false,
	} {
		if got := isPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// TestPrivateRedirects has a peer that redirects to another server of this machine, in
// one way after the other: it is never asked.
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
		p.servers.other.TLSClientConfig = encrypted.Client().Transport.(*http.Transport).TLSClientConfig
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

// TestOwnRedirects has a peer that redirects to other paths of its own, and laboratories
// where any redirect is wanted.
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

func TestIsOwn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		base, to string
		want     bool
	}{
		{"http://h/sub", "http://h/other", true}, {"http://h", "http://H:80/", true}, {"http://h", "https://h/", true}, {"https://h", "https://h:443/x", true},
		{"http://h:8734", "http://h:8734/", true}, {"http://[::1]:8734", "http://[::1]:8734/", true},
		{"https://h", "http://h/", false}, {"http://h", "http://h:22/", false}, {"http://h:8734", "https://h/", false}, {"http://h", "https://h:8443/", false},
		{"http://h", "http://h.example/", false}, {"http://127.0.0.1:8734", "http://127.0.0.1:6379/", false}, {"http://h", "ftp://h/", false},
	} {
		base, baseErr := url.Parse(test.base)
		to, err := url.Parse(test.to)
		if err := errors.Join(baseErr, err); err != nil {
			t.Fatal(err)
		}
		if got := (&servers{base: base}).isOwn(to); got != test.want {
			t.Errorf("%s to %s: %v", test.base, test.to, got)
		}
	}
}

// TestRebinding has a name whose address is a public one when it is looked at, and of
// this machine when it is dialed.
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
	if err := p.checkRedirect(next, []*http.Request{next}); err != nil {
		t.Errorf("a name was refused: %v", err)
	}
	if conn, err := p.servers.other.DialContext(context.Background(), "tcp", at); err == nil || !errors.Is(err, errPrivateRedirect) {
		t.Errorf("dialed %v, %v", conn, err)
	}
	conn, err := p.servers.own.DialContext(context.Background(), "tcp", at)
	if err != nil {
		t.Fatalf("the peer's own address: %v", err)
	}
	conn.Close()
}
