package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/compression/decoders"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

// stopped stops the server.
func (s *started) stopped(t *testing.T) {
	t.Helper()
	s.stop()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.ended <- nil
	case <-time.After(patience):
		t.Fatal("Serve does not return")
	}
}

// TestStopIdle: the server does not wait for idle connections.
func TestStopIdle(t *testing.T) {
	t.Parallel()
	s := startWith(t, corpus(), options(), func(s *Server) { s.engine.Grace = time.Hour })
	var clients []*client
	for range 50 {
		c := dial(t, s.address)
		c.stillOpen()
		clients = append(clients, c)
	}
	s.stopped(t)
	for _, c := range clients {
		c.closed()
	}
	if _, err := net.Dial("tcp", s.address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("it still listens: %v", err)
	}
}

// TestStopWithDownloads: downloads of slow clients are cut, and the clients notice.
func TestStopWithDownloads(t *testing.T) {
	t.Parallel()
	m := make1(t, "zeros", strings.Repeat("\x00", 24<<20), "gzip")
	s := start(t, m.items(t), options())
	var answers []*http.Response
	for _, target := range []string{"/nar/" + m.path.BaseName(), "/file/zeros/sha256/" + m.digest, "/nar/" + m.path.BaseName()} {
		c := dial(t, s.address)
		c.send(request("GET", target))
		response, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, response)
	}
	waiting := dial(t, s.address)
	waiting.send("GET /half/a/request HT")
	dial(t, s.address) // has sent nothing
	s.stopped(t)
	// After Serve, the storage is closed and must not be used.
	if got := s.checker.Options.Decoders.Memory(); got != 0 {
		t.Errorf("%d decoders are in use", got)
	}
	for _, response := range answers {
		if n, err := io.Copy(io.Discard, response.Body); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// TestStopLetsFinish: a short download is completed.
func TestStopLetsFinish(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}), make(chan struct{})
	m := make1(t, "x", "content", "none")
	items := m.items(t)
	text := items.text
	items.text = func(hash narinfo.PathHash) ([]byte, error) {
		close(asked)
		<-answer
		return text(hash)
	}
	s := start(t, items, options())
	c := dial(t, s.address)
	c.send(request("GET", "/"+m.path.Hash.String()+".narinfo"))
	<-asked
	s.stop()
	until(t, "it does not listen any more", s.stops)
	close(answer)
	if got := c.receive("GET"); got.StatusCode != 200 || got.body != string(m.text()) {
		t.Errorf("%s %q", got.Status, got.body)
	}
	c.closed()
	s.stopped(t)
}

// TestStopWaitsForMemory: requests wait for a decoder when the server stops.
func TestStopWaitsForMemory(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", "content", "gzip")
	var inUse atomic.Int32
	items := m.items(t)
	item := items.item
	items.item = func(hash narinfo.PathHash) (*storage.Item, error) {
		inUse.Add(1)
		return item(hash)
	}
	s := startWith(t, items, options(), func(s *Server) { s.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece) })
	if _, err := takeMemory(t, s.checker.Options.Decoders, 2*decoders.Piece); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s.address)
	c.send(request("GET", "/nar/"+m.path.BaseName()))
	until(t, "the request waits", func() bool { return inUse.Load() == 1 })
	s.stopped(t)
	isFault(t, c.receive("GET"), 503)
}

// TestStopStuck uses a handler that ignores everything.
func TestStopStuck(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	asked := make(chan struct{})
	items := &fakeItems{text: func(narinfo.PathHash) ([]byte, error) {
		close(asked)
		<-release
		return nil, errBroken
	}}
	s := start(t, items, options())
	dial(t, s.address).send(request("GET", "/"+nobody+".narinfo"))
	<-asked
	s.stopped(t)
}

// TestStopBeforeStart stops the server before Serve.
func TestStopBeforeStart(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(context.Background())
	stop()
	for range 20 {
		l := listenTCP(t)
		ended := make(chan error, 1)
		go func() { ended <- New(corpus(), options()).Serve(ctx, l) }()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Fatal("Serve does not return")
		}
		if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
			conn.Close()
			t.Fatal("the listener is still open")
		}
	}
}

// stops reports whether the server has begun to stop, and no longer listens.
func (s *started) stops() bool {
	conn, err := net.Dial("tcp", s.address)
	if err == nil {
		conn.Close()
	}
	return err != nil
}
