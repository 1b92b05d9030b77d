package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/storage/bytestore"
)

const (
	greeting = "f7d5xvkf9s1mdnclid1kqndn30nim936-greeting.txt"
	entropy  = "d1srdrndhd8maaz82liwpkdkmbm5rfcm-entropy-1"
	gosrc    = "9w9sqfl3bd49w7samf3xqfvj7h4wgp6m-gosrc-1.26"
)

func narinfoName(base string) string { return base[:32] + ".narinfo" }

func published(base string) string { return filepath.Join(testdata, "published", narinfoName(base)) }

func TestPidFile(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	file := filepath.Join(p.dir, "run", "pid")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil { // of an earlier run
		t.Fatal(err)
	}
	s := p.serveProcess(t, "--pid-file="+file)
	if got, want := read(t, file), strconv.Itoa(s.Process.Pid)+"\n"; got != want {
		t.Errorf("pid file %q, want %q", got, want)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// A second server by mistake must not change the first one's file.
	_, port, _ := net.SplitHostPort(s.addresses[0])
	fail(t, p.args("run-server", "--port="+port, "--pid-file="+file), "--port="+port, "address already in use")
	if got, want := read(t, file), strconv.Itoa(s.Process.Pid)+"\n"; got != want {
		t.Errorf("pid file after a second server failed: %q, want %q", got, want)
	}
	if got := get(t, s.addresses[0], "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	isEmpty(t, filepath.Dir(file))

	for _, bad := range []string{filepath.Join(p.dir, "nonexistent", "pid"), p.storage, "/proc/pid"} {
		fail(t, p.args("run-server", "--port=0", "--pid-file="+bad), "--pid-file="+bad)
	}

	// A file that another process has written meanwhile must stay.
	if err := os.WriteFile(file, make([]byte, 5), 0o600); err != nil { // after a loss of power
		t.Fatal(err)
	}
	s = p.serveProcess(t, "--pid-file="+file)
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.stop(t, syscall.SIGTERM)
	if got := read(t, file); got != "1\n" {
		t.Errorf("pid file %q", got)
	}
}

// download begins a download, and doesn't finish it.
func download(t *testing.T, address, target string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != 200 {
		t.Fatal(response, err)
	}
	return response
}

func TestSignals(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(gosrc), published(entropy))
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		s := p.serveProcess(t)
		address := s.addresses[0]
		// One nar sent as stored, one decompressed; neither client continues to
		// read.
		stored, made := download(t, address, "/nar/lzip/"+gosrc), download(t, address, "/nar/"+gosrc)
		idle, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		for range 3 {
			if err := s.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		if got := get(t, address, "/"+narinfoName(entropy)); got.body != read(t, published(entropy)) {
			t.Errorf("after SIGHUP: %s", got.Status)
		}
		s.stop(t, signal)
		if n, err := io.Copy(io.Discard, made.Body); err == nil {
			t.Errorf("the download ended cleanly after %d bytes", n)
		}
		_, _ = io.Copy(io.Discard, stored.Body) // the buffers of the sockets may hold all of it
		log := s.err.String()
		if !strings.Contains(log, "msg=stopping") || !strings.HasSuffix(log, "msg=stopped\n") {
			t.Errorf("log: %s", tail(log))
		}
		// The write-ahead log is removed, and the next server can start.
		if entries, err := filepath.Glob(p.database + "-*"); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	}
}

// TestSignalAtStart stops the server at different moments of its start.
func TestSignalAtStart(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for n := range 10 {
		file := filepath.Join(p.dir, "pid")
		s := command(p.args("run-server", "--port=0", "--pid-file="+file)...)
		s.start(t)
		time.Sleep(time.Duration(n) * 5 * time.Millisecond) // a different moment each time
		_ = s.Process.Signal(syscall.SIGTERM)
		s.wait(t)
		if _, err := os.Stat(file); err == nil && s.ProcessState.Exited() {
			t.Errorf("the pid file is left")
		}
		_ = os.Remove(file)
	}
	p.serve(t).stop(t, syscall.SIGTERM)
}

func TestHosts(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"} {
		if strings.Contains(host, ":") && !hasIPv6() {
			continue
		}
		p := newPlace(t)
		s := p.serve(t, "--host="+host)
		for _, address := range s.addresses {
			if got := get(t, address, "/nix-cache-info"); got.StatusCode != 200 {
				t.Errorf("%s: %s", address, got.Status)
			}
			if got, _, _ := net.SplitHostPort(address); !net.ParseIP(got).IsLoopback() {
				t.Errorf("--host=%s listens on %s", host, address)
			}
		}
		// An address in use is refused, with host and port.
		_, port, _ := net.SplitHostPort(s.addresses[0])
		fail(t, newPlace(t).args("run-server", "--host="+host, "--port="+port), "--host="+strings.Trim(host, "[]"), "--port="+port)
	}
}

func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// TestAddressesOfAName: a name has an address that this machine lacks.
func TestAddressesOfAName(t *testing.T) {
	t.Parallel()
	const lacking = "192.0.2.254" // from a network for documentation
	for _, test := range []struct {
		addresses []string
		want      int
	}{
		{[]string{"127.0.0.1", lacking}, 1}, {[]string{lacking, "127.0.0.1"}, 1}, {[]string{"127.0.0.1", "127.0.0.2"}, 2}, {[]string{lacking}, 0},
	} {
		listeners, err := listenAll(t.Context(), "", "name", test.addresses, 0)
		defer closeAll(listeners)
		if len(listeners) != test.want || (err == nil) != (test.want > 0) {
			t.Errorf("%v: %d listeners, %v", test.addresses, len(listeners), err)
		}
		for _, l := range listeners {
			if l.Addr().(*net.TCPAddr).Port != listeners[0].Addr().(*net.TCPAddr).Port {
				t.Errorf("%v: several ports", test.addresses)
			}
		}
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	socket := filepath.Join(p.dir, "herder.socket")
	first := p.serveProcess(t, "--host=unix:"+socket)
	if got := get(t, socket, "/nar/lzip/"+greeting); got.body != read(t, testdata, "published/nar/lzip", greeting) {
		t.Errorf("%s", got.Status)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	fail(t, p.args("run-server", "--host=unix:"+socket), "--host=unix:"+socket, "another process listens there")
	if got := get(t, socket, "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("the first server afterwards: %s", got.Status)
	}
	// A killed server leaves its socket behind, which is replaced.
	first.kill(t)
	if _, err := os.Lstat(socket); err != nil {
		t.Fatal(err)
	}
	second := p.serve(t, "--host=unix:"+socket)
	if got := get(t, socket, "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	second.stop(t, syscall.SIGTERM)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	// A file that is not a socket is not replaced.
	for _, file := range []string{filepath.Join(p.dir, "file"), filepath.Join(p.dir, "link")} {
		if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
		fail(t, p.args("run-server", "--host=unix:"+file), "--host=unix:"+file)
		if got := read(t, file); got != "precious" {
			t.Errorf("%s: %q", file, got)
		}
	}
}

// TestGuixSystemTest does the same as Guix's own test of its service: a storage full of other
// files, and a request for "/".
func TestGuixSystemTest(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for name, kind := range map[string]func(string) error{
		"file":         func(name string) error { return os.WriteFile(name, []byte("x"), 0o600) },
		"nar":          func(name string) error { return os.WriteFile(name, []byte("x"), 0o600) },
		"directory":    func(name string) error { return os.Mkdir(name, 0) },
		"pipe":         func(name string) error { return syscall.Mkfifo(name, 0o600) },
		"loop":         func(name string) error { return os.Symlink("loop", name) },
		"link":         func(name string) error { return os.Symlink("/etc", name) },
		"\xff bad\n":   func(name string) error { return os.WriteFile(name, nil, 0o600) },
		".nar-herder-": func(name string) error { return os.WriteFile(name, nil, 0o600) },
	} {
		if err := kind(filepath.Join(p.storage, name)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadDir(p.storage)
	if err != nil {
		t.Fatal(err)
	}
	s := p.serve(t)
	if got := get(t, s.addresses[0], "/"); got.StatusCode != 404 {
		t.Errorf("/: %s", got.Status)
	}
	if got := get(t, s.addresses[0], "/health"); got.StatusCode != 200 {
		t.Errorf("/health: %s %s", got.Status, got.body)
	}
	until(t, "the storage has its name", func() bool {
		_, err := os.Stat(filepath.Join(p.storage, bytestore.IdentityName))
		return err == nil
	})
	after, err := os.ReadDir(p.storage)
	// Except for the server's own files.
	after = slices.DeleteFunc(after, func(e fs.DirEntry) bool { return e.Name() == bytestore.OwnerName || e.Name() == bytestore.IdentityName })
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("before %v, after %v, %v", before, after, err)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestLogLevels: requests are only logged at DEBUG, which is the default.
func TestLogLevels(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"", "DEBUG", "debug", "INFO", "WARN", "ERROR"} {
		var args []string
		if level != "" {
			args = append(args, "--log-level="+level)
		}
		p := newPlace(t)
		socket := filepath.Join(p.dir, "socket")
		s := &server{process: within(p.args("run-server", append(args, "--host=unix:"+socket)...)...)}
		s.start(t)
		until(t, "the server answers", func() bool { got, err := tryGet(socket, "/api/queue"); return err == nil && got.StatusCode == 404 })
		s.stop(t, syscall.SIGTERM)
		log := s.err.String()
		requests := strings.Contains(log, "level=DEBUG msg=request method=GET path=/api/queue status=404")
		if want := level == "" || strings.EqualFold(level, "debug"); requests != want {
			t.Errorf("--log-level=%s: requests logged: %v: %s", level, requests, log)
		}
		if infos := strings.Contains(log, "level=INFO"); infos == (level == "WARN" || level == "ERROR") {
			t.Errorf("--log-level=%s: %s", level, log)
		}
	}
}

// TestTrustedProxies logs the client that a trusted proxy names.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "client=198.51.100.1\n"},
		{[]string{"--trusted-proxies=none"}, "client=127.0.0.1:"},
		{[]string{"--trusted-proxies=192.0.2.0/24,::1", "--trusted-proxies=unix"}, "client=127.0.0.1:"},
		{[]string{"--trusted-proxies=127.0.0.1,198.51.100.0/24"}, "client=8.8.8.8\n"},
	} {
		s := newPlace(t).serve(t, test.args...)
		request, err := http.NewRequest("GET", "http://"+s.addresses[0]+"/asked-through", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Forwarded-For", "8.8.8.8, 198.51.100.1")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		s.stop(t, syscall.SIGTERM)
		logged := ""
		for line := range strings.Lines(s.err.String()) {
			if strings.Contains(line, "/asked-through") {
				logged = line
			}
		}
		if !strings.Contains(logged, test.want) {
			t.Errorf("%q: logged %q, want %q", test.args, logged, test.want)
		}
	}
}
