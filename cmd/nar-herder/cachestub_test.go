package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
)

// upstreamStub is an upstream that counts requests, and can be killed and started again.
type upstreamStub struct {
	address string
	handler http.Handler

	mu          sync.Mutex
	asked       map[string]int // by path
	connections int
	server      *http.Server
}

func startStub(t *testing.T, handler http.Handler) *upstreamStub {
	t.Helper()
	s := &upstreamStub{address: ownHost() + ":" + instancePort, handler: handler, asked: make(map[string]int)}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *upstreamStub) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			s.connections++
			s.mu.Unlock()
		}
	}}
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	go server.Serve(listener)
}

// kill closes all connections, like the end of a process. Handlers may call it.
func (s *upstreamStub) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.server.Close()
}

func (s *upstreamStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked[r.URL.Path]++
	s.mu.Unlock()
	s.handler.ServeHTTP(w, r)
}

// counts returns the requests by path, without those of probes, and the connections since the
// last call.
func (s *upstreamStub) counts() (asked map[string]int, connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, connections = maps.Clone(s.asked), s.connections
	delete(asked, "/nix-cache-info")
	clear(s.asked)
	s.connections = 0
	return asked, connections
}

// numbered returns the target of the narinfo of the Nth item of [mirrortest.Narinfo].
func numbered(n int) string { return "/" + mirrortest.Path(n).Hash.String() + ".narinfo" }

// hasNumbered serves the narinfos of the items with numbers below count.
func hasNumbered(count int) http.Handler {
	texts := make(map[string][]byte, count)
	for n := range count {
		texts[numbered(n)] = mirrortest.Narinfo(n, 1, n).Text
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := texts[r.URL.Path]
		if !ok {
			w.Header().Set("Cache-Control", "max-age=300")
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "max-age=3600")
		_, _ = w.Write(text)
	})
}

// pipelined writes requests to a connection before it reads their answers, which it passes to
// check in order.
func pipelined(c net.Conn, r *bufio.Reader, targets []string, check func(n int, got answer)) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var raw strings.Builder
	for _, target := range targets {
		fmt.Fprintf(&raw, "GET %s HTTP/1.1\r\nHost: herder.example\r\n\r\n", target)
	}
	if _, err := io.WriteString(c, raw.String()); err != nil {
		return err
	}
	for n, target := range targets {
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("answer %d, %s: %w", n, target, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return fmt.Errorf("answer %d, %s: %w", n, target, err)
		}
		check(n, answer{response, string(body)})
	}
	return nil
}

// burst is pipelined with a new connection.
func burst(t *testing.T, address string, targets []string, check func(n int, got answer)) {
	t.Helper()
	c, err := dialFrom("127.0.0.1", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := pipelined(c, bufio.NewReader(c), targets, check); err != nil {
		t.Error(err)
	}
}

// maxAgeOf returns the max-age of an answer in seconds, or -1.
func maxAgeOf(got answer) int {
	text, ok := strings.CutPrefix(got.Header.Get("Cache-Control"), "max-age=")
	if seconds, err := strconv.Atoi(text); ok && err == nil {
		return seconds
	}
	return -1
}

// wantUnsure asserts that an answer is an error, or a 404 that clients forget within a minute.
func wantUnsure(t *testing.T, what string, got answer) {
	t.Helper()
	isShort := got.StatusCode == http.StatusNotFound && (got.Header.Get("Cache-Control") == "no-store" || maxAgeOf(got) >= 0 && maxAgeOf(got) <= 60)
	if got.StatusCode < 500 && !isShort {
		t.Errorf("%s: %s, %v", what, got.Status, got.Header)
	}
}
