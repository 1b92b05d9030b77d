package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

var controlLine = regexp.MustCompile(`(?m)^time=\S+ level=INFO msg="control listener" address=(\S*)$`)

// controlAddress waits for the control listener and returns its address.
func controlAddress(t testing.TB, s *process) string {
	t.Helper()
	var match []string
	until(t, "the control listener", func() bool {
		match = controlLine.FindStringSubmatch(s.err.String())
		return match != nil
	})
	return match[1]
}

func TestControlListener(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	socket := filepath.Join(p.dir, "control")
	for _, test := range []struct {
		args   []string
		public int // the status of /metrics and /health there
	}{
		{[]string{"--control-port=0"}, 200},
		{[]string{"--control-port=0", "--control-host=127.0.0.1", "--public-metrics=yes"}, 200},
		{[]string{"--control-port=0", "--public-metrics=no"}, 404},
		{[]string{"--control-host=unix:" + socket}, 200},
		{[]string{"--control-host=unix:" + socket, "--control-port=8735", "--public-metrics=no"}, 404},
	} {
		s := p.serve(t, test.args...)
		control := controlAddress(t, s.process)
		for _, path := range []string{"/metrics", "/health", "/health/ready", "/health/live", "/debug/pprof/heap"} {
			// Requests of the tests have the host herder.example.
			if got, err := ask(control, "GET", path, nil); err != nil || got.StatusCode != 200 && control[0] == '/' || got.StatusCode != 403 && control[0] != '/' {
				t.Errorf("%v: %s: %s, %v", test.args, path, got.Status, err)
			}
			if control[0] != '/' {
				if got := askByAddress(t, control, path); got.StatusCode != 200 {
					t.Errorf("%v: %s: %s", test.args, path, got.Status)
				}
			}
		}
		for path, status := range map[string]int{"/metrics": test.public, "/health": test.public, "/health/ready": 200, "/health/live": 200, "/debug/pprof/heap": 404, "/" + narinfoName(greeting): 200} {
			if got := get(t, s.addresses[0], path); got.StatusCode != status {
				t.Errorf("%v: public %s: %s", test.args, path, got.Status)
			}
		}
		s.stop(t, syscall.SIGTERM)
		if _, err := os.Stat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket: %v", err)
		}
	}
	// Without the option, there is no control listener.
	s := p.serve(t)
	if controlLine.MatchString(s.err.String()) {
		t.Error(s.err.String())
	}
}

// askByAddress sends a request with the address as its Host, instead of herder.example.
func askByAddress(t testing.TB, address, path string) answer {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response, string(body)}
}

// TestControlPortInUse: if the control listener can't be opened, nothing is changed.
func TestControlPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := newPlace(t)
	host := ownHost()
	public := "--host=unix:" + filepath.Join(p.dir, "public")
	for _, test := range []struct {
		args   []string
		wanted string
	}{
		{[]string{public, "--control-port=" + port}, "--control-host=127.0.0.1 --control-port=" + port},
		{[]string{"--host=" + host, "--port=" + instancePort, "--control-host=" + host, "--control-port=" + instancePort}, "--control-host=" + host + " --control-port=" + instancePort},
		{[]string{public, "--control-host=unix:/nonexistent/x"}, "--control-host=unix:/nonexistent/x"},
		{[]string{public, "--control-host=no.such.host.invalid", "--control-port=0"}, "--control-host=no.such.host.invalid"},
	} {
		fail(t, p.args("run-server", append(test.args, "--pid-file="+filepath.Join(p.dir, "pid"))...), test.wanted)
	}
	isEmpty(t, p.storage)
	if entries, err := os.ReadDir(p.dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestControlBesideSockets gets the public socket from systemd.
func TestControlBesideSockets(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s := serve(t, withSockets([]*os.File{file}, []string{"LISTEN_FDS=1"}, p.args("run-server", "--control-port=0", "--public-metrics=no")...))
	if len(s.addresses) != 1 || s.addresses[0] != listener.Addr().String() {
		t.Errorf("%v", s.addresses)
	}
	if got := get(t, s.addresses[0], "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	if got := askByAddress(t, controlAddress(t, s.process), "/health"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestControlWhileStarting starts a mirror of an unreachable instance.
func TestControlWhileStarting(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	address := ownHost() + ":" + instancePort
	host, port, _ := strings.Cut(address, ":")
	s := &server{process: within("run-server", "--host="+host, "--port="+port, "--database="+p.database, "--mirror=http://127.0.0.1:1",
		"--control-host=unix:"+filepath.Join(p.dir, "control"), "--public-metrics=no")}
	s.start(t)
	control := controlAddress(t, s.process)
	until(t, "the failure", func() bool {
		got := get(t, control, "/health")
		return got.StatusCode == 503 && strings.Contains(got.body, `"status":"syncing"`) && strings.Contains(got.body, "connection refused")
	})
	if got := get(t, control, "/metrics"); got.StatusCode != 503 {
		t.Errorf("%s", got.Status)
	}
	until(t, "the public listener", func() bool {
		got, err := tryGet(address, "/health")
		return err == nil && got.StatusCode == 503 && !strings.Contains(got.body, "syncing")
	})
	if got := get(t, address, "/health/live"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestStopWithProfile stops a server that records a profile for an hour.
func TestStopWithProfile(t *testing.T) {
	t.Parallel()
	s := newPlace(t).serveProcess(t, "--control-port=0") // a process records one profile at a time
	control := controlAddress(t, s.process)
	conn, err := net.Dial("tcp", control)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /debug/pprof/profile?seconds=3600 HTTP/1.1\r\nHost: %s\r\n\r\n", control)
	until(t, "the profile is being recorded", func() bool {
		return strings.Contains(askByAddress(t, control, "/debug/pprof/goroutine?debug=2").body, "net/http/pprof.Profile")
	})
	s.stop(t, syscall.SIGTERM)
}
