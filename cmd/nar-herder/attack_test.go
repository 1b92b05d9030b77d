package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// attackDescriptors is the limit of open files in tests of attacks. There are more
// attackers.
const attackDescriptors = 1024

// serveWithin is serve with a limit of open files. The soft limit is lower at the start.
func (p place) serveWithin(t *testing.T, descriptors int, more ...string) *server {
	t.Helper()
	shell := required(t, "sh")
	script := fmt.Sprintf(`ulimit -Sn %d && ulimit -Hn %d && exec "$0" "$@"`, descriptors*2/3, descriptors)
	args := append([]string{"-c", script, programOf(t)}, p.args("run-server", append(more, "--port=0")...)...)
	return serve(t, commandOf(exec.Command(shell, args...)))
}

// dialFrom connects from an address of the loopback interface.
func dialFrom(from, address string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	return dialer.Dial("tcp", address)
}

// TestFewDescriptors: with more clients than the process may have descriptors, new clients
// are served, and the server can open files.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serveWithin(t, 60, "--log-level=INFO")
	if limits := read(t, "/proc", strconv.Itoa(s.Process.Pid), "limits"); !regexp.MustCompile(`Max open files +(59|60) +60 `).MatchString(limits) {
		t.Errorf("the soft limit was not raised: %s", limits)
	}
	for range 100 {
		c, err := dialFrom("127.0.0.1", s.addresses[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for _, name := range narURLs(t) {
		if got := get(t, s.addresses[0], name); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %q", name, got.Status, got.body)
		}
	}
}

// narURLs returns the URLs of all lzip nars in the corpus.
func narURLs(t testing.TB) (urls []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testdata, "published", "nar", "lzip", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no nars: %v", err)
	}
	for _, file := range files {
		urls = append(urls, "/nar/lzip/"+narEscapes.Replace(filepath.Base(file)))
	}
	return urls
}

// resident returns the peak resident memory of a process in bytes.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	match := regexp.MustCompile(`VmHWM:\s+([0-9]+) kB`).FindStringSubmatch(read(t, "/proc", strconv.Itoa(pid), "status"))
	if match == nil {
		t.Fatal("no VmHWM")
	}
	n, err := strconv.ParseInt(match[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// attackMemory bounds the server's memory: decoders and their garbage may use a quarter of
// the memory of the control group or machine, and each connection about 30 KB.
const attackMemory = 400 << 20

// TestAttacks runs all attacks at once beside a good client. NAR_HERDER_ATTACK sets the
// duration.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds and most of the machine")
	}
	while := 3 * time.Second
	if text := variables["NAR_HERDER_ATTACK"]; text != "" {
		var err error
		if while, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlace(t)
	hostile := t.TempDir()
	hostileNars(t, hostile)
	p.imports(t, "--no-verify", filepath.Join(testdata, "published"), hostile)
	s := p.serveWithin(t, attackDescriptors, "--trusted-proxies=none", "--log-level=INFO")
	address := s.addresses[0]
	before := runGoodClient(t, address, min(while, time.Second))

	end := attack(t, address)
	defer end()
	mirrors := make(chan error, 1)
	go func() {
		// The mirror has a separate address.
		c, err := dialFrom("127.0.0.7", address)
		if err == nil {
			defer c.Close()
			_, err = io.WriteString(c, "GET /recent-changes/stream?after=0 HTTP/1.1\r\nHost: herder.example\r\n\r\n")
		}
		if err == nil {
			var response *http.Response
			if response, err = http.ReadResponse(bufio.NewReader(c), nil); err == nil && response.StatusCode != http.StatusOK {
				err = errors.New(response.Status)
			}
		}
		mirrors <- err
	}()
	during := runGoodClient(t, address, while)
	if err := <-mirrors; err != nil {
		t.Errorf("a mirror: %v", err)
	}
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(s.Process.Pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	if len(open) > attackDescriptors*3/4 {
		t.Errorf("%d of %d descriptors are open", len(open), attackDescriptors)
	}
	memory := resident(t, s.Process.Pid)
	if memory > attackMemory+ownMemory()/(decoderShare/2) {
		t.Errorf("%d MiB are resident", memory>>20)
	}
	t.Logf("%.0f requests/s before, %.2f of that during the attacks; p99 %v before, %v during; %d MiB resident at most, %d descriptors open",
		before.Rate, during.Rate/before.Rate, before.P99, during.P99, memory>>20, len(open))
	for line := range strings.Lines(get(t, address, "/metrics").body) {
		if strings.HasPrefix(line, "narherder_http_connections") || strings.HasPrefix(line, "narherder_http_unread") {
			t.Log(strings.TrimSpace(line))
		}
	}
	end()
	if got := get(t, address, "/nix-cache-info"); got.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", got.Status)
	}
}
