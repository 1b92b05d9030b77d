package httpapi

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/peerapi"
)

// connectionsEnded reports whether no connection is left.
func (s *started) connectionsEnded() bool {
	u := s.engine.Usage()
	return u.Open+u.Closing == 0
}

// dialFrom connects from an address of the loopback interface.
func dialFrom(t testing.TB, from, address string) *client {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// isOpen reports whether an idle connection is still open.
func (c *client) isOpen() bool {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, request("GET", "/nix-cache-info")); err != nil {
		return false
	}
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil
}

// waitIdle waits until that many connections are idle.
func (s *started) waitIdle(t testing.TB, count int) {
	t.Helper()
	until(t, "connections to be idle", func() bool {
		return len(s.engine.Usage().Idle) == count
	})
}

// TestMaxConnections: a new connection replaces the one that has been idle for longest, of any
// client.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.Limits = admission.Limits{Connections: 4, PerAddress: 4}
	s := start(t, corpus(), opts)
	var clients []*client
	for n := range 4 {
		c := dial(t, s.address)
		if n != 1 { // the other never sends a request
			c.stillOpen()
		}
		s.waitIdle(t, n+1)
		clients = append(clients, c)
	}
	clients[0].stillOpen()
	s.waitIdle(t, 4)
	dial(t, s.address).stillOpen() // replaces the second
	clients[1].closed()
	s.waitIdle(t, 4)
	dial(t, s.address).stillOpen()
	clients[2].closed()
	for _, n := range []int{0, 3} {
		clients[n].stillOpen()
	}
	if got := s.engine.Usage().Closed["idle"]; got != 2 || s.engine.Usage().Open != 4 {
		t.Errorf("%d were closed, %d are open", got, s.engine.Usage().Open)
	}
	metrics := dial(t, s.address).ask("GET", "/metrics").body
	for _, want := range []string{`narherder_http_connections_closed_total{reason="idle"} 3`, `{reason="stalled"} 0`, "narherder_http_connections_limit 4", "narherder_http_unread_bytes 0"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// TestMaxConnectionsStalled: if none is idle, a stalled connection is closed.
func TestMaxConnectionsStalled(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.Limits = admission.Limits{Connections: 3}
	opts.TrustedProxies = clients.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	m := make1(t, "large", strings.Repeat("0123456789abcdef", 1<<19), "none")
	s := startOn(t, m.items(t), opts, smallSockets{listenTCP(t)}, nil)
	for range 3 {
		connectSmall(t, s.listener).send(request("GET", "/"+m.url()))
	}
	until(t, "all to be stalled", func() bool { return len(s.engine.Usage().Stalled) == 3 })
	for range 2 {
		dial(t, s.address).stillOpen()
	}
	if got := s.engine.Usage().Closed["stalled"]; got != 1 {
		t.Errorf("%d were closed", got) // the second time, the idle one
	}
}

// TestIdleBeforeCrowd: an address with many busy connections keeps them while others have idle
// ones.
func TestIdleBeforeCrowd(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.Limits = admission.Limits{Connections: 5, PerAddress: 5}
	opts.TrustedProxies = clients.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.77/32")}}
	m := make1(t, "large", strings.Repeat("0123456789abcdef", 1<<19), "none")
	s := startOn(t, m.items(t), opts, smallSockets{listenTCP(t)}, nil)
	for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
		dialFrom(t, from, s.address).stillOpen()
	}
	s.waitIdle(t, 2)
	until(t, "both to be idle for long", func() bool {
		idle := s.engine.Usage().Idle
		for _, since := range idle {
			if time.Since(since) < time.Second { // idleTime of the engine
				return false
			}
		}
		return len(idle) == 2
	})
	for range 3 {
		c := connectSmall(t, s.listener)
		c.send(request("GET", "/"+m.url()))
		if _, err := http.ReadResponse(c.r, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []string{"127.0.0.4", "127.0.0.5"} {
		dialFrom(t, from, s.address).stillOpen()
	}
	if idle, all := s.engine.Usage().Closed["idle"], s.engine.Usage().Open; idle != 2 || all != 5 {
		t.Errorf("%d idle ones were closed, and %d are open", idle, all)
	}
}

// TestMaxConnectionsPerAddress: only an address with too many connections is limited, not
// others or proxies.
func TestMaxConnectionsPerAddress(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.Limits = admission.Limits{Connections: 40, PerAddress: 2}
	opts.TrustedProxies = clients.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}}
	m := make1(t, "large", strings.Repeat("0123456789abcdef", 1<<19), "none")
	s := startOn(t, m.items(t), opts, smallSockets{listenTCP(t)}, nil)
	var proxies []*client
	for range 5 {
		proxies = append(proxies, dialFrom(t, "127.0.0.3", s.address))
		proxies[len(proxies)-1].stillOpen()
	}
	other := dialFrom(t, "127.0.0.2", s.address)
	other.stillOpen()
	first := dial(t, s.address)
	first.stillOpen()
	s.waitIdle(t, 7)
	for range 2 { // these are not idle
		c := connectSmall(t, s.listener)
		c.send(request("GET", "/"+m.url()))
		if _, err := http.ReadResponse(c.r, nil); err != nil {
			t.Fatal(err)
		}
	}
	first.closed()
	refused := dial(t, s.address)
	if refused.isOpen() {
		t.Error("a third connection was served")
	}
	if got := s.engine.Usage().Closed["refused"]; got != 1 {
		t.Errorf("%d were refused", got)
	}
	for _, c := range append(proxies, other) {
		c.stillOpen()
	}
}

// TestUnread: clients that send requests for ever and read nothing are closed once they take
// too much memory together. A client that reads in the end is not.
func TestUnread(t *testing.T) {
	t.Parallel()
	opts := options()
	opts.Limits.Unread = 5 << 20 // fair shares of ten connections
	s := startOn(t, everySecond(), opts, smallSockets{listenTCP(t)}, nil)
	raw := burstRequests(burst)
	good := connectSmall(t, s.listener)
	if _, err := io.WriteString(good.Conn, raw); err != nil {
		t.Fatal(err)
	}
	var attackers sync.WaitGroup
	for range 8 {
		c := connectSmall(t, s.listener)
		attackers.Go(func() {
			for n := 0; n < 1000; n++ {
				if _, err := io.WriteString(c.Conn, raw); err != nil {
					return
				}
			}
			t.Error("all was read ahead")
		})
	}
	until(t, "connections to be closed", func() bool { return s.engine.Usage().Closed["unread"] >= 6 })
	if err := readBurst(good, burst); err != nil {
		t.Error(err)
	}
	good.stillOpen()
	if got := s.engine.Usage().Unread; got > opts.Limits.Unread {
		t.Errorf("%d bytes are reserved", got)
	}
	s.stop()
	attackers.Wait()
	until(t, "all memory to be released", func() bool { return s.engine.Usage().Unread == 0 })
}

// TestStreamsOfOneClient: one address can't use up all streams.
func TestStreamsOfOneClient(t *testing.T) {
	t.Parallel()
	s, _ := startPublishing(t)
	for n := range peerapi.ClientStreams + 2 {
		c := dial(t, s.address)
		c.send(request("GET", "/recent-changes/stream?after=0"))
		response, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := http.StatusOK
		if n >= peerapi.ClientStreams {
			want = http.StatusServiceUnavailable
		}
		if response.StatusCode != want || want != http.StatusOK && response.Header.Get("Retry-After") == "" {
			t.Errorf("stream %d: %s", n, response.Status)
		}
	}
	c := dialFrom(t, "127.0.0.2", s.address)
	c.send(request("GET", "/recent-changes/stream?after=0"))
	if response, err := http.ReadResponse(c.r, nil); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("another client: %v, %v", response, err)
	}
}

// TestLinger: a client that still sends a body or requests gets its answer.
func TestLinger(t *testing.T) {
	t.Parallel()
	s := start(t, corpus(), options())
	const body = 8 << 20
	for name, test := range map[string]struct {
		raw    string
		status int
	}{
		"POST": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n", 405},
		"GET":  {"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n", 413},
		"head": {"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", 431},
		"bad":  {"GARBAGE\r\n\r\n", 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, s.address)
			c.send(test.raw)
			for sent := 0; sent < body; sent += 64 << 10 {
				if _, err := c.Write([]byte(strings.Repeat("x", 64<<10))); err != nil {
					t.Fatalf("after %d bytes: %v", sent, err)
				}
			}
			if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got := c.receive("GET"); got.StatusCode != test.status || got.err != nil {
				t.Errorf("%s, %v", got.Status, got.err)
			}
			if n, err := io.Copy(io.Discard, c.r); n != 0 || err != nil {
				t.Errorf("%d bytes more, %v", n, err)
			}
		})
	}
}

// TestLingerEnds: the server does not wait for ever for a client that lingers.
func TestLingerEnds(t *testing.T) {
	t.Parallel()
	s := start(t, corpus(), options())
	c := dial(t, s.address)
	if got := c.ask("POST", "/", "Content-Length: 10"); got.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%s", got.Status)
	}
	until(t, "the connection to end", func() bool { return s.connectionsEnded() })
}

// TestStopWhileLingering: a server that stops does not wait for such a client.
func TestStopWhileLingering(t *testing.T) {
	t.Parallel()
	s := start(t, corpus(), options())
	if got := dial(t, s.address).ask("POST", "/", "Content-Length: 10"); got.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%s", got.Status)
	}
	s.stop()
	err := <-s.ended
	s.ended <- err
	if !s.connectionsEnded() {
		t.Error("a connection is open")
	}
}

// TestAcceptMakesRoom: an idle connection is closed when file descriptors are short.
func TestAcceptMakesRoom(t *testing.T) {
	t.Parallel()
	l := &lackingListener{Listener: listenTCP(t)}
	s := startOn(t, corpus(), options(), l, nil)
	idle := dial(t, s.address)
	idle.stillOpen()
	s.waitIdle(t, 1)
	l.mu.Lock()
	l.errors = []error{syscall.EMFILE}
	l.mu.Unlock()
	dial(t, s.address).stillOpen() // accepted before
	dial(t, s.address).stillOpen()
	idle.closed()
	if log := s.log.String(); strings.Contains(log, "can't accept") || !strings.Contains(log, "closing connections") {
		t.Errorf("logged: %s", log)
	}
}
