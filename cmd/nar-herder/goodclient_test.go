package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// goodClientVariable makes the test binary a good client of the address in it, for the
// duration after the address.
const goodClientVariable = "NAR_HERDER_TEST_GOOD_CLIENT"

// goodClient requests narinfos one at a time from a separate address, reconnects if its
// connection was closed between two requests, and now and then requests a nar, or many
// narinfos at once.
type goodClient struct {
	address string
	want    map[string]string
	targets []string // of narinfos
	nars    []string
	took    []time.Duration // of single requests
}

// goodResult is the result of a good client.
type goodResult struct {
	Rate  float64 // requests per second
	P99   time.Duration
	Fault string // empty for none
}

func newGoodClient(address string) (*goodClient, error) {
	g := &goodClient{address: address, want: make(map[string]string)}
	published := filepath.Join(testdata, "published")
	narinfos, err := filepath.Glob(filepath.Join(published, "*.narinfo"))
	if err != nil || len(narinfos) == 0 {
		return nil, fmt.Errorf("no narinfos: %w", err)
	}
	for _, file := range narinfos {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		target := "/" + filepath.Base(file)
		g.want[target] = string(text)
		g.targets = append(g.targets, target)
	}
	nars, err := filepath.Glob(filepath.Join(published, "nar", "lzip", "*"))
	if err != nil || len(nars) == 0 {
		return nil, fmt.Errorf("no nars: %w", err)
	}
	for _, file := range nars {
		body, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if len(body) < 1<<20 {
			target := "/nar/lzip/" + narEscapes.Replace(filepath.Base(file))
			g.want[target] = string(body)
			g.nars = append(g.nars, target)
		}
	}
	return g, nil
}

var narEscapes = strings.NewReplacer("+", "%2B", "=", "%3D", "?", "%3F")

// run sends requests for a time, and returns the rate.
func (g *goodClient) run(while time.Duration) (float64, error) {
	const narEach, burstEach = 1000, 10_000
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Timeout: patience}).DialContext, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	bursts, begun := 0, time.Now()
	for n := 0; time.Since(begun) < while; n++ {
		target := g.targets[n%len(g.targets)]
		if n%narEach == narEach-1 {
			target = g.nars[n/narEach%len(g.nars)]
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
		if n%burstEach == burstEach-1 {
			if err := g.burst(); err != nil {
				return 0, err
			}
			bursts++
		}
	}
	return float64(len(g.took)+bursts*burstSize) / time.Since(begun).Seconds(), nil
}

const burstSize = 1000

// burst writes many requests before it reads, as the Guix client does.
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
	for n := range burstSize {
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

// beGoodClient prints a goodResult as JSON. It stands for another machine, to which the
// server's processor time doesn't matter: its threads have short time slices, which Linux
// prefers.
func beGoodClient(address string, while time.Duration) {
	if err := eachThread(unix.SchedAttr{Runtime: 100_000}); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	var result goodResult
	g, err := newGoodClient(address)
	if err == nil {
		result.Rate, err = g.run(while)
	}
	if err != nil {
		result.Fault = err.Error()
	} else if len(g.took) > 0 {
		slices.Sort(g.took)
		result.P99 = g.took[len(g.took)*99/100]
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
}

// runGoodClient runs a good client in a separate process.
func runGoodClient(t *testing.T, address string, while time.Duration) (result goodResult) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(self)
	process.Env = append(os.Environ(), goodClientVariable+"="+address+" "+while.String())
	out, err := process.Output()
	if err == nil {
		err = json.Unmarshal(out, &result)
	}
	if err != nil || result.Fault != "" {
		t.Errorf("a good client: %s, %v, %s", result.Fault, err, out)
	}
	return result
}

// eachThread sets the scheduling of all threads and those that they start.
func eachThread(attributes unix.SchedAttr) error {
	tasks, err := os.ReadDir("/proc/self/task")
	attributes.Size = unix.SizeofSchedAttr
	for _, task := range tasks {
		thread, _ := strconv.Atoi(task.Name())
		if err := unix.SchedSetAttr(thread, &attributes, 0); err != nil {
			return err
		}
	}
	return err
}
