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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// attackDescriptors is the limit of open files in tests of attacks, where there are more.
const attackDescriptors = 1024

// serveWithin is serve with limits of open files, of which the soft one is lower at first.
func (p place) serveWithin(t *testing.T, descriptors int, more ...string) *server {
	t.Helper()
	shell := required(t, "sh")
	script := fmt.Sprintf(`ulimit -Sn %d && ulimit -Hn %d && exec "$0" "$@"`, descriptors*2/3, descriptors)
	args := append([]string{"-c", script, binary}, p.args("run-server", append(more, "--port=0")...)...)
	return serve(t, commandOf(exec.Command(shell, args...)))
}

// dialFrom connects from one of the addresses of the loopback interface.
func dialFrom(from, address string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	return dialer.Dial("tcp", address)
}

// TestFewDescriptors: with more clients than the process may have descriptors, new ones
// are served, and files can be opened.
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

// narURLs are the URLs of all nars of lzip in the corpus.
func narURLs(t testing.TB) (urls []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testdata, "published", "nar", "lzip", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no nars: %v", err)
	}
	for _, file := range files {
		urls = append(urls, "/nar/lzip/"+strings.NewReplacer("+", "%2B", "=", "%3D", "?", "%3F").Replace(filepath.Base(file)))
	}
	return urls
}

// goodClient asks for narinfos and nars from an address of its own, and connects anew where
// its connection was closed between two requests.
type goodClient struct {
	address string
	want    map[string]string
	targets []string // of narinfos
	nars    []string
	took    []time.Duration
}

func newGoodClient(t *testing.T, address string) *goodClient {
	t.Helper()
	g := &goodClient{address: address, want: make(map[string]string)}
	files, err := filepath.Glob(filepath.Join(testdata, "published", "*.narinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		g.want["/"+filepath.Base(file)] = read(t, file)
		g.targets = append(g.targets, "/"+filepath.Base(file))
	}
	for _, url := range narURLs(t) {
		if body := get(t, address, url).body; len(body) < 1<<20 {
			g.want[url] = body
			g.nars = append(g.nars, url)
		}
	}
	return g
}

// run asks for narinfos until the time is over, and returns the rate. After each
// thousand it asks for a nar.
func (g *goodClient) run(while time.Duration) (float64, error) {
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Timeout: patience}).DialContext, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	g.took = nil
	begun := time.Now()
	for n := 0; time.Since(begun) < while; n++ {
		target := g.targets[n%len(g.targets)]
		if n%1000 == 999 {
			target = g.nars[n/1000%len(g.nars)]
		}
		asked := time.Now()
		response, err := client.Get("http://" + g.address + target)
		if err != nil {
			return 0, fmt.Errorf("request %d: %w", n, err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || string(body) != g.want[target] {
			return 0, fmt.Errorf("request %d, %s: %s, %d bytes, %w", n, target, response.Status, len(body), err)
		}
		g.took = append(g.took, time.Since(asked))
	}
	return float64(len(g.took)) / time.Since(begun).Seconds(), nil
}

func (g *goodClient) p99() time.Duration {
	slices.Sort(g.took)
	return g.took[len(g.took)*99/100]
}

// burst writes a thousand requests before it reads, as the client of Guix does.
func (g *goodClient) burst() error {
	c, err := dialFrom("127.0.0.1", g.address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var raw strings.Builder
	var wanted []string
	for n := range 1000 {
		target := g.targets[n%len(g.targets)]
		fmt.Fprintf(&raw, "GET %s HTTP/1.1\r\nHost: herder.example\r\nX-Padding: %s\r\n\r\n", target, strings.Repeat("x", 150))
		wanted = append(wanted, g.want[target])
	}
	if _, err := io.WriteString(c, raw.String()); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for n, want := range wanted {
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("answer %d of a burst: %w", n, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK || string(body) != want {
			return fmt.Errorf("answer %d of a burst: %s, %w", n, response.Status, err)
		}
	}
	return nil
}

// resident is the memory of a process in bytes, at its highest.
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

// attackMemory bounds the server's memory: a quarter of the memory of the control group or
// machine is for decoders and their garbage, and the rest is some 30 KB a connection.
const attackMemory = 400 << 20

// TestAttacks has all attacks at once beside a good client. NAR_HERDER_ATTACK is for how
// long.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds, and much of the machine")
	}
	while := 3 * time.Second
	if text := os.Getenv("NAR_HERDER_ATTACK"); text != "" {
		var err error
		if while, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlace(t)
	hostile := t.TempDir()
	hostileNars(t, hostile)
	p.imports(t, filepath.Join(testdata, "published"), hostile)
	s := p.serveWithin(t, attackDescriptors, "--trusted-proxies=none", "--log-level=INFO")
	address := s.addresses[0]
	good := newGoodClient(t, address)
	before, err := good.run(min(while, 3*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	p99Before := good.p99()

	end := attack(t, address)
	defer end()
	mirrors := make(chan error, 1)
	go func() {
		// A mirror follows from an address of its own.
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
	bursts := make(chan error, 1)
	go func() {
		for begun := time.Now(); time.Since(begun) < while/2; {
			if err := good.burst(); err != nil {
				bursts <- err
				return
			}
		}
		bursts <- nil
	}()
	during, err := good.run(while)
	if err != nil {
		t.Error(err)
	}
	if err := <-bursts; err != nil {
		t.Error(err)
	}
	if err := <-mirrors; err != nil {
		t.Errorf("a mirror: %v", err)
	}
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(s.Process.Pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	if len(open) > attackDescriptors*3/4 {
		t.Errorf("%d descriptors of %d are open", len(open), attackDescriptors)
	}
	memory := resident(t, s.Process.Pid)
	if memory > attackMemory+ownMemory()/(decoderShare/2) {
		t.Errorf("%d MiB were resident", memory>>20)
	}
	if len(good.took) > 0 {
		t.Logf("%.0f requests/s before, %.2f of that during the attacks; p99 %v before, %v during; %d MiB resident at the most, %d descriptors open",
			before, during/before, p99Before, good.p99(), memory>>20, len(open))
	}
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
