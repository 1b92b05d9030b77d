package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/health"
	"nar-herder/narinfo"
)

// readStatuses reads the answers to a burst: all have the status, and none closes the
// connection.
func readStatuses(c *client, count, status int) error {
	for n := range count {
		response, err := http.ReadResponse(c.r, nil)
		if err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err != nil || response.StatusCode != status || response.Close {
			return fmt.Errorf("answer %d: %s, closes: %v, %w", n, response.Status, response.Close, err)
		}
	}
	return nil
}

// TestStopWithBurst stops the server within a burst: each request is answered on its
// connection, even if it arrives later.
func TestStopWithBurst(t *testing.T) {
	t.Parallel()
	for _, arrived := range []int{1, burst / 2, burst} {
		t.Run(fmt.Sprint(arrived), func(t *testing.T) {
			t.Parallel()
			items := everySecond()
			text := items.text
			asked, answer := make(chan struct{}), make(chan struct{})
			first := true
			items.text = func(hash narinfo.PathHash) ([]byte, error) {
				if first {
					first = false
					close(asked)
					<-answer
				}
				return text(hash)
			}
			s := startWith(t, items, options(), func(s *Server) { s.engine.Grace, s.engine.QuietTime = time.Hour, time.Hour })
			c := dial(t, s.address)
			raw := burstRequests(burst)
			cut := len(raw)
			if arrived < burst {
				cut = len(burstRequests(arrived)) + 20 // within a request
			}
			c.send(raw[:cut])
			<-asked
			s.stop()
			until(t, "the server stops", s.stops)
			close(answer)
			c.send(raw[cut:])
			if err := readBurst(c, burst); err != nil {
				t.Fatal(err)
			}
			c.stillOpen()
			c.Close()
			s.stopped(t)
		})
	}
}

// TestStopEndsQuietConnection: idle connections, with or without an earlier request, are
// closed without an answer.
func TestStopEndsQuietConnection(t *testing.T) {
	t.Parallel()
	s := startWith(t, corpus(), options(), func(s *Server) { s.engine.Grace = time.Hour })
	fresh, half, idle := dial(t, s.address), dial(t, s.address), dial(t, s.address)
	half.send("GET /nix-cache-info HT")
	idle.stillOpen()
	until(t, "the server has them", func() bool {
		return strings.Contains(idle.ask("GET", "/metrics").body, "narherder_http_connections 3\n")
	})
	s.stopped(t)
	for name, c := range map[string]*client{"fresh": fresh, "half": half, "idle": idle} {
		if b, err := c.r.ReadByte(); err == nil {
			t.Errorf("%s: got %q", name, b)
		}
	}
}

// TestStopBusyConnection: a client that always sends another request finally gets Connection:
// close.
func TestStopBusyConnection(t *testing.T) {
	t.Parallel()
	s := startWith(t, corpus(), options(), func(s *Server) { s.engine.Grace = 3 * time.Second })
	c := dial(t, s.address)
	c.stillOpen()
	s.stop()
	for {
		a := c.ask("GET", "/nix-cache-info")
		if a.StatusCode != 200 || a.body != narinfo.CacheInfo || a.err != nil {
			t.Fatalf("%s %q %v", a.Status, a.body, a.err)
		}
		if a.Close {
			break
		}
	}
	c.closed()
	s.stopped(t)
}

// startingPhase is a phase of the start, in which requests get 503.
type startingPhase struct {
	done, ended chan struct{}
}

func startPhase(ctx context.Context, starting *health.Starting, status string, listener net.Listener) *startingPhase {
	p := &startingPhase{make(chan struct{}), make(chan struct{})}
	starting.SetState(stateOf(status))
	go func() {
		defer close(p.ended)
		starting.Serve(ctx, p.done, listener)
	}()
	return p
}

func stateOf(status string) func() any {
	return func() any { return map[string]string{"status": status} }
}

// wait waits for the phase to end.
func (p *startingPhase) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// end ends the phase.
func (p *startingPhase) end(t *testing.T) {
	t.Helper()
	close(p.done)
	p.wait(t)
}

// TestStarting checks the answers while the server starts, on connections that the server then
// takes over with the listener.
func TestStarting(t *testing.T) {
	t.Parallel()
	for name, listener := range map[string]net.Listener{"tcp": listenTCP(t), "unix": listenUnix(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			starting := health.NewStarting(false, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler))
			phase := startPhase(t.Context(), starting, "syncing", listener)
			fresh, c := connect(t, listener), connect(t, listener)
			for path, want := range map[string]int{"/health": 503, "/health/ready": 503, "/health/live": 200, "/" + hashOf(greeting) + ".narinfo": 503, "/nar/x": 503} {
				a := c.ask("GET", path)
				if a.StatusCode != want || a.err != nil || a.Close || a.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s: %s, %v, closes: %v", path, a.Status, a.err, a.Close)
				}
				if path == "/health" && a.body != `{"status":"syncing"}`+"\n" {
					t.Errorf("health is %q", a.body)
				}
			}
			malformed := connect(t, listener)
			malformed.send("nonsense\r\n\r\n")
			if a := malformed.receive("GET"); a.StatusCode != 400 {
				t.Errorf("nonsense: %s", a.Status)
			}
			// The client of Guix writes as much before it reads.
			c.send(burstRequests(burst))
			if err := readStatuses(c, burst, 503); err != nil {
				t.Fatal(err)
			}
			// Between the phases, only /health does not wait.
			starting.SetState(nil)
			for path, want := range map[string]int{"/health": 503, "/health/ready": 503, "/health/live": 200} {
				if a := c.ask("GET", path); a.StatusCode != want || want == 503 && a.body != `{"status":"starting"}`+"\n" {
					t.Errorf("%s: %s %q", path, a.Status, a.body)
				}
			}
			c.send(request("GET", "/nar/x"))
			starting.SetState(stateOf("converting"))
			if a := c.receive("GET"); a.StatusCode != 503 || a.Header.Get("Retry-After") != "60" || a.Close {
				t.Errorf("%s, closes: %v", a.Status, a.Close)
			}
			if a := c.ask("GET", "/health"); a.body != `{"status":"converting"}`+"\n" {
				t.Errorf("%q", a.body)
			}
			starting.SetState(nil)
			phase.end(t)
			if a := c.ask("GET", "/health/live"); a.StatusCode != 200 {
				t.Errorf("before the server serves: %s", a.Status)
			}
			for _, c := range []*client{fresh, c} {
				c.send(request("GET", "/"+hashOf(greeting)+".narinfo"))
			}
			opts := options()
			opts.Starting = starting
			s := newStarted(corpus(), opts)
			s.serve(t, listener)
			late := connect(t, listener)
			late.send(request("GET", "/"+hashOf(greeting)+".narinfo"))
			for _, c := range []*client{fresh, c, late} {
				if a := c.receive("GET"); a.StatusCode != http.StatusOK {
					t.Errorf("then %s", a.Status)
				}
			}
			s.stopped(t)
			for _, c := range []*client{fresh, c} {
				if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("in the end: %v", err)
				}
			}
		})
	}
}

// TestStartingBurst ends the start within a burst: the server answers the rest on the same
// connection.
func TestStartingBurst(t *testing.T) {
	t.Parallel()
	listener := listenTCP(t)
	starting := health.NewStarting(false, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler))
	phase := startPhase(t.Context(), starting, "syncing", listener)
	c := connect(t, listener)
	raw := burstRequests(burst) + burstRequests(burst)
	half := len(raw)/2 + 20 // within a request
	c.send(raw[:half])
	if err := readStatuses(c, burst, 503); err != nil {
		t.Fatal(err)
	}
	phase.end(t)
	opts := options()
	opts.Starting = starting
	s := newStarted(everySecond(), opts)
	s.serve(t, listener)
	until(t, "the server answers", func() bool {
		return connect(t, listener).ask("GET", "/nix-cache-info").StatusCode == http.StatusOK
	})
	c.send(raw[half:])
	if err := readBurst(c, burst); err != nil {
		t.Fatal(err)
	}
	c.stillOpen()
}

// TestStartingStopped stops the program while it starts.
func TestStartingStopped(t *testing.T) {
	t.Parallel()
	listener := listenTCP(t)
	ctx, stop := context.WithCancel(t.Context())
	starting := health.NewStarting(false, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler))
	starting.Engine.Grace = time.Hour
	phase := startPhase(ctx, starting, "syncing", listener)
	c := connect(t, listener)
	c.send(burstRequests(burst))
	c.send("GET /half HT")
	stop()
	phase.wait(t)
	if err := readStatuses(c, burst, 503); err != nil {
		t.Error(err)
	}
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("in the end: %v", err)
	}
}
