package httpapi

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/httpapi/measured"
)

// accessLog keeps the answers.
type accessLog struct {
	mu  sync.Mutex
	got []measured.Answer
}

func (l *accessLog) Finished(answers []measured.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, slices.Clone(answers)...)
}

// next waits for an answer, and forgets those before and it.
func (l *accessLog) next(t *testing.T, target string) (found measured.Answer) {
	t.Helper()
	until(t, "the answer to "+target, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, a := range l.got {
			if a.Request.Target == target {
				found, l.got = a, l.got[i+1:]
				return true
			}
		}
		return false
	})
	if found.Count != 1 || found.FirstByte < 0 || found.Duration < found.FirstByte || found.Duration > patience {
		t.Errorf("%s: %+v", target, found)
	}
	return found
}

func loggedOptions() (Options, *accessLog) {
	o, log := options(), new(accessLog)
	o.AccessLog = log
	return o, log
}

func TestFinishedAnswers(t *testing.T) {
	t.Parallel()
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	m := make1(t, "large", string(random), "gzip")
	plain := make1(t, "plain", string(random), "none")
	store := newStore(t, m.write(t, t.TempDir()), plain.write(t, t.TempDir()))
	o, log := loggedOptions()
	server := start(t, store, o)
	c := dial(t, server.address)
	text := c.ask("GET", "/"+m.path.Hash.String()+".narinfo").body
	log.next(t, "/"+m.path.Hash.String()+".narinfo")
	url := text[strings.Index(text, "URL: ")+len("URL: "):]
	url = "/" + url[:strings.IndexByte(url, '\n')]
	for _, test := range []struct {
		method, target, header string
		status                 int
		hit                    bool
		sent                   int
	}{
		{"GET", "/" + m.path.Hash.String() + ".narinfo", "", 200, true, len(text)},
		{"GET", "/" + nobody + ".narinfo", "", 404, false, -1},
		{"HEAD", url, "", 200, false, 0},
		{"GET", url, "", 200, false, len(m.file)},                                // with sendfile
		{"GET", url, "Range: bytes=100000-", 206, false, len(m.file) - 100000},   // with sendfile
		{"GET", url, "Range: bytes=0-999", 206, false, 1000},                     // through the buffer
		{"GET", url, "Range: bytes=9999999-", 416, false, -1},                    // an error
		{"GET", "/nar/" + m.path.BaseName(), "", 200, false, len(m.nar)},         // decompressed
		{"GET", "/nar/" + plain.path.BaseName(), "", 200, false, len(plain.nar)}, // verified while it is sent
		{"GET", "/file/large/sha256/" + m.digest, "", 200, false, len(random)},   // its content
		{"GET", "/metrics", "", 200, false, -1},                                  // longer than the buffer
		{"DELETE", url, "", 405, false, -1},
	} {
		header := []string{"User-Agent: GNU Guile", "Referer: http://x.example/"}
		if test.header != "" {
			header = append(header, test.header)
		}
		answer := c.ask(test.method, test.target, header...)
		if answer.StatusCode != test.status || answer.err != nil {
			t.Fatalf("%s %s: %s %v", test.method, test.target, answer.Status, answer.err)
		}
		if test.sent < 0 {
			test.sent = len(answer.body)
		}
		a := log.next(t, test.target)
		if int(a.Status) != test.status || a.Hit != test.hit || a.Cut || a.Sent != int64(test.sent) {
			t.Errorf("%s %s: %+v, want %d bytes", test.method, test.target, a, test.sent)
		}
		if peer, err := netip.ParseAddrPort(a.Request.Peer); err != nil || peer.Addr().String() != "127.0.0.1" {
			t.Errorf("the peer is %q", a.Request.Peer)
		}
		want := measured.Request{
			Peer: a.Request.Peer,
			Time: a.Request.Time, Client: "127.0.0.1", Method: test.method, Target: test.target, Protocol: "HTTP/1.1", Host: "herder.example",
			Range: strings.TrimPrefix(test.header, "Range: "), Referer: "http://x.example/", UserAgent: "GNU Guile",
		}
		if *a.Request != want {
			t.Errorf("got %+v\nwant %+v", *a.Request, want)
		}
		if since := time.Since(a.Request.Time); since < 0 || since > patience {
			t.Errorf("the time was %v ago", since)
		}
	}
}

func TestFinishedPipelinedAnswers(t *testing.T) {
	t.Parallel()
	o, log := loggedOptions()
	server := start(t, corpus(), o)
	c := dial(t, server.address)
	narinfo, nar := "/"+hashOf(greeting)+".narinfo", "/nar/lzip/"+entropy
	var want []string
	for i := range 600 {
		want = append(want, []string{narinfo, "/" + nobody + ".narinfo", "/nar/lzip/" + greeting}[i%3])
	}
	want[300] = nar
	var all strings.Builder
	for _, target := range want {
		all.WriteString(request("GET", target))
	}
	go io.WriteString(c.Conn, all.String())
	sizes := make([]int, len(want))
	for i := range want {
		sizes[i] = len(c.receive("GET").body)
	}
	for i, target := range want {
		if a := log.next(t, target); a.Sent != int64(sizes[i]) || a.Cut {
			t.Fatalf("answer %d to %s: %+v, want %d bytes", i, target, a, sizes[i])
		}
	}
	if len(log.got) > 0 {
		t.Errorf("%d more", len(log.got))
	}
}

// TestFinishedBrokenAnswers: clients that leave, malformed requests, HTTP/1.0, and proxies.
func TestFinishedBrokenAnswers(t *testing.T) {
	t.Parallel()
	o, log := loggedOptions()
	m := make1(t, "zeros", strings.Repeat("\x00", 16<<20), "none")
	store := newStore(t, m.write(t, t.TempDir()))
	for name, nar := range map[string]string{"verified": "/nar/" + m.path.BaseName(), "file": "/file/zeros/sha256/" + m.digest} {
		t.Run(name, func(t *testing.T) {
			server := startOn(t, store, o, smallSockets{listenTCP(t)}, nil)
			c := connectSmall(t, server.listener)
			response := c.begin(nar)
			if _, err := io.ReadFull(response.Body, make([]byte, 100_000)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			a := log.next(t, nar)
			if !a.Cut || a.Status != 200 || a.Sent < 100_000 || a.Sent >= response.ContentLength {
				t.Errorf("%+v of %d bytes", a, response.ContentLength)
			}
			c = dial(t, server.address)
			c.send("GET / HTTP/1.1\r\n\r\n")
			if got := c.receive("GET"); got.StatusCode != http.StatusBadRequest {
				t.Errorf("%s", got.Status)
			}
			until(t, "the malformed request is counted", func() bool {
				snapshot := server.Snapshot()
				return snapshot.Requests == 2 && snapshot.Bytes > a.Sent
			})
		})
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	server := start(t, corpus(), options())
	c := dial(t, server.address)
	for range 3 {
		c.ask("GET", "/"+hashOf(greeting)+".narinfo")
	}
	nar := c.ask("GET", "/nar/lzip/"+greeting)
	c.ask("PUT", "/")
	c.ask("GET", "/health")
	c.ask("GET", "/metrics")
	s := server.Snapshot()
	var timed int64
	for _, n := range s.FirstByte {
		timed += n
	}
	if s.Requests != 5 || s.Hits != 2 || s.Misses != 1 || s.Bytes < int64(len(nar.body)) || timed != 4 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}
