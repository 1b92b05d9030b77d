package httpapi

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/health"
)

// newControl serves a Control until the test ends, and returns its address.
func newControl(t *testing.T, network, address string) (*health.Control, string) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	c := health.ServeControl("herder.local", slog.New(slog.DiscardHandler), listener)
	t.Cleanup(c.Close)
	return c, listener.Addr().String()
}

// askControl sends a request with a Host header, and an optional header line.
func askControl(t *testing.T, conn net.Conn, method, host, target, line string) *answer {
	t.Helper()
	c := newClient(t, conn)
	raw := method + " " + target + " HTTP/1.1\r\nConnection: close\r\n"
	if host != "" {
		raw += "Host: " + host + "\r\n"
	}
	if line != "" {
		raw += line + "\r\n"
	}
	c.send(raw + "\r\n")
	return c.receive(method)
}

func dialOn(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestControl(t *testing.T) {
	t.Parallel()
	s := start(t, corpus(), options())
	for network, listen := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "socket")} {
		control, address := newControl(t, network, listen)
		ask := func(method, target string) *answer {
			t.Helper()
			return askControl(t, dialOn(t, network, address), method, "localhost:8735", target, "")
		}
		// Before there is a server.
		for _, test := range []struct {
			state func() any
			body  string
		}{
			{nil, `{"status":"starting"}` + "\n"},
			{func() any { return map[string]int{"done": 5} }, `{"done":5}` + "\n"},
			{nil, `{"status":"starting"}` + "\n"},
		} {
			control.Starting(test.state)
			for target, body := range map[string]string{"/health": test.body, "/health/ready": `{"status":"starting"}` + "\n"} {
				if got := ask("GET", target); got.StatusCode != 503 || got.body != body || got.Header.Get("Retry-After") == "" {
					t.Errorf("%s %q", got.Status, got.body)
				}
			}
		}
		if got := ask("GET", "/metrics"); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s", got.Status)
		}
		for _, attached := range []bool{false, true} {
			if attached {
				control.Attach(s.Health(), s.Registry(), nil)
			}
			if got := ask("GET", "/health/live"); got.StatusCode != 200 {
				t.Errorf("%s", got.Status)
			}
			if got := ask("GET", "/debug/pprof/goroutine?debug=1"); got.StatusCode != 200 || !strings.Contains(got.body, "goroutine profile: total") {
				t.Errorf("%s", got.Status)
			}
		}
		if got := ask("GET", "/health"); got.StatusCode != 200 || got.body != `{"status":"ok"}`+"\n" ||
			got.Header.Get("Content-Type") != "application/json" || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %v %q", got.Status, got.Header, got.body)
		}
		if got := ask("GET", "/metrics"); got.StatusCode != 200 || !strings.Contains(got.body, "\nnarherder_items 1") || !strings.Contains(got.body, "\ngo_goroutines ") {
			t.Errorf("%s %.1000s", got.Status, got.body)
		}
		if got := ask("HEAD", "/metrics"); got.StatusCode != 200 || got.body != "" {
			t.Errorf("%s", got.Status)
		}
		for target, status := range map[string]int{"/": 404, "/nix-cache-info": 404, "/" + hashOf(greeting) + ".narinfo": 404, "/debug/pprof/cmdline": 404, "/debug/pprof/": 200, "/debug/vars": 404} {
			if got := ask("GET", target); got.StatusCode != status {
				t.Errorf("%s: %s", target, got.Status)
			}
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			if got := ask(method, "/health"); got.StatusCode != 405 || got.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: %s", method, got.Status)
			}
		}
	}
	// None of it is on the public listener.
	if got := dial(t, s.address).ask("GET", "/debug/pprof/"); got.StatusCode != 404 {
		t.Errorf("%s", got.Status)
	}
}

// TestControlOfPages sends requests as web pages do.
func TestControlOfPages(t *testing.T) {
	t.Parallel()
	_, address := newControl(t, "tcp", "127.0.0.1:0")
	port := address[strings.LastIndex(address, ":"):]
	_, socket := newControl(t, "unix", filepath.Join(t.TempDir(), "socket"))
	for _, test := range []struct {
		network, host, line string
		status              int
	}{
		{"tcp", "127.0.0.1" + port, "", 200},
		{"tcp", "127.0.0.1", "", 200},
		{"tcp", "[::1]" + port, "", 200},
		{"tcp", "10.0.0.1", "", 200}, // through a tunnel
		{"tcp", "Localhost" + port, "", 200},
		{"tcp", "herder.local" + port, "", 200},
		{"tcp", "herder.example" + port, "", 403},
		{"tcp", "localhost.herder.example", "", 403},
		{"unix", "herder.example", "", 200},
		{"tcp", "localhost", "Sec-Fetch-Site: none", 200},
		{"tcp", "localhost", "Sec-Fetch-Site: same-origin", 200},
		{"tcp", "localhost", "Sec-Fetch-Site: same-site", 403},
		{"tcp", "localhost", "Sec-Fetch-Site: cross-site", 403},
		{"unix", "localhost", "Sec-Fetch-Site: cross-site", 403},
	} {
		to := address
		if test.network == "unix" {
			to = socket
		}
		got := askControl(t, dialOn(t, test.network, to), "GET", test.host, "/health/live", test.line)
		if got.StatusCode != test.status {
			t.Errorf("%+v: %s", test, got.Status)
		}
		if got.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%+v: %v", test, got.Header)
		}
	}
}

// TestControlCloses: Close does not wait for a profile of an hour, or for connections without
// a request.
func TestControlCloses(t *testing.T) {
	t.Parallel()
	control, address := newControl(t, "tcp", "127.0.0.1:0")
	profile := newClient(t, dialOn(t, "tcp", address))
	profile.send("GET /debug/pprof/profile?seconds=3600 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	newClient(t, dialOn(t, "tcp", address))
	half := newClient(t, dialOn(t, "tcp", address))
	half.send("GET /hea")
	until(t, "the profile is being made", func() bool {
		return strings.Contains(askControl(t, dialOn(t, "tcp", address), "GET", "localhost", "/debug/pprof/goroutine?debug=2", "").body, "net/http/pprof.Profile")
	})
	closed := make(chan struct{})
	go func() {
		control.Close()
		control.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close waits")
	}
	if _, err := io.ReadAll(profile.r); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the profile's connection: %v", err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

// TestHideMetrics: metrics and health are only on the control listener.
func TestHideMetrics(t *testing.T) {
	t.Parallel()
	o := options()
	o.HideMetrics = true
	s := start(t, corpus(), o)
	for target, status := range map[string]int{"/metrics": 404, "/health": 404, "/health/ready": 200, "/health/live": 200, "/nix-cache-info": 200} {
		if got := dial(t, s.address).ask("GET", target); got.StatusCode != status {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
	control, address := newControl(t, "tcp", "127.0.0.1:0")
	control.Attach(s.Health(), s.Registry(), nil)
	for _, target := range []string{"/metrics", "/health", "/health/ready"} {
		if got := askControl(t, dialOn(t, "tcp", address), http.MethodGet, "localhost", target, ""); got.StatusCode != 200 {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
}
