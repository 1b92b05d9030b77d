package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/compression/decoders"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// begin requests a nar, and reads only the head of the answer.
func (c *client) begin(target string) *http.Response {
	c.t.Helper()
	c.send(request("GET", target))
	response, err := http.ReadResponse(c.r, nil)
	if err != nil || response.StatusCode != 200 {
		c.t.Fatalf("%s: %v, %v", target, response, err)
	}
	return response
}

// TestSlowClients: slow clients of decompressed nars, more than there could be decoders, don't
// block another client.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	m := make1(t, "zeros", strings.Repeat("\x00", 16<<20), "gzip")
	server := start(t, m.items(t), options())
	for i := range 100 {
		dial(t, server.address).begin([]string{"/nar/" + m.path.BaseName(), "/file/zeros/sha256/" + m.digest}[i%2])
	}
	got := fetch(t, server.address, "/nar/"+m.path.BaseName())
	if got.StatusCode != 200 || got.body != string(m.nar) || got.err != nil {
		t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
	}
}

// TestSuspendedClients has memory for two decoders, and many clients that pause in the middle.
// Each gets its whole nar when it continues, from a local file or another instance.
func TestSuspendedClients(t *testing.T) {
	t.Parallel()
	const clientCount = 6
	content := strings.Repeat("0123456789abcdef", 1<<16)
	for _, how := range []string{"lzip", "zstd", "gzip"} {
		m := make1(t, "source", content, how)
		stored := newStore(t, m.write(t, t.TempDir()))
		for name, items := range map[string]Items{"stored": stored, "far": m.items(t)} {
			t.Run(how+" "+name, func(t *testing.T) {
				t.Parallel()
				server := startOn(t, items, options(), smallSockets{listenTCP(t)}, func(s *Server) {
					s.checker.Options.Decoders = decodersWithin(2, clientCount*decoders.Piece+2*compression.Memory(how, m.file[:compression.HeadBytes], m.narSize))
					s.checker.Options.Decoders.SlowAfter = 0
				})
				clients, answers := make([]*client, clientCount), make([]*http.Response, clientCount)
				for i := range clients {
					clients[i] = connectSmall(t, server.listener)
					answers[i] = clients[i].begin([]string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest}[i%2])
				}
				until(t, "most are suspended", func() bool {
					return server.checker.Options.Decoders.Count() == clientCount
				})
				for i, answer := range answers {
					body, err := io.ReadAll(answer.Body)
					if want := []string{string(m.nar), content}[i%2]; string(body) != want || err != nil {
						t.Errorf("client %d: %d bytes of %d, %v", i, len(body), len(want), err)
					}
					clients[i].stillOpen()
				}
				if server.checker.Options.Decoders.Restarted() == 0 {
					t.Error("none was restarted")
				}
				until(t, "all is given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
			})
		}
	}
}

// TestNotRestarted: if the nar is missing when a suspended client continues, its connection is
// cut, and the nar is not reported as damaged.
func TestNotRestarted(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", strings.Repeat("0123456789abcdef", 1<<19), "zstd")
	items := m.items(t)
	open := items.open
	var gone atomic.Bool
	items.open = func(item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		if gone.Load() {
			return nil, bytestore.Info{}, fmt.Errorf("gone: %w", storage.ErrNotStored)
		}
		return open(item, n, offset, length)
	}
	server := startOn(t, items, options(), smallSockets{listenTCP(t)}, func(s *Server) {
		s.checker.Options.Decoders = decodersWithin(2, 10*decoders.Piece)
		s.checker.Options.Decoders.SlowAfter = 0
	})
	c := connectSmall(t, server.listener)
	c.begin("/nar/" + m.path.BaseName())
	until(t, "the decoder is idle", func() bool {
		release, err := takeMemory(t, server.checker.Options.Decoders, 10*decoders.Piece)
		if err != nil {
			return false
		}
		release()
		return true
	})
	gone.Store(true)
	if n, err := io.Copy(io.Discard, c.r); err == nil && n >= m.narSize {
		t.Errorf("%d bytes", n)
	}
	until(t, "the log says why", func() bool { return strings.Contains(server.log.String(), "slow client") })
	if n := damagedCount(t, server); n != 0 || !strings.Contains(server.log.String(), "not in this storage") {
		t.Errorf("%d damaged; the log: %s", n, server.log)
	}
	until(t, "all is given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
}

// TestMemoryBeforeFile: a request that waits for memory keeps no connection to a bucket open.
func TestMemoryBeforeFile(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", "content", "gzip")
	var opened, open atomic.Int32
	items := m.items(t)
	items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
		opened.Add(1)
		open.Add(1)
		return readCloser{bytes.NewReader(m.file), closeFunc(func() { open.Add(-1) })}, bytestore.Info{Size: m.fileSize}, nil
	}
	server := startWith(t, items, options(), func(s *Server) {
		s.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece)
		s.checker.Options.Wait = 2 * patience
	})
	release, err := takeMemory(t, server.checker.Options.Decoders, 2*decoders.Piece)
	if err != nil {
		t.Fatal(err)
	}
	clients := []*client{dial(t, server.address), dial(t, server.address)} // one is the first in the queue
	for i, c := range clients {
		c.send(request("GET", []string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest}[i]))
	}
	until(t, "the requests wait", func() bool { return server.checker.Options.Decoders.Waiting() && opened.Load() == 2 })
	until(t, "the files are closed", func() bool { return open.Load() == 0 })
	release()
	for i, c := range clients {
		if got := c.receive("GET"); got.StatusCode != 200 || got.body != []string{string(m.nar), "content"}[i] {
			t.Errorf("after waiting: %s, %q", got.Status, got.body)
		}
	}
	until(t, "all is given back", func() bool { return open.Load() == 0 && server.checker.Options.Decoders.Memory() == 0 })
}

// decodersWithin makes decoders with their own budget.
func decodersWithin(processors int, bytes int64) *decoders.Pool {
	return decoders.New(processors, compression.NewBudget(bytes))
}

// takeMemory opens a decoder with n bytes of the budget that waits for its file.
func takeMemory(t *testing.T, d *decoders.Pool, n int64) (release func(), err error) {
	t.Helper()
	ready, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	file := hangingFile{make(chan struct{}), make(chan struct{})}
	z, err := d.Open(ready, t.Context(), "none", file, n-decoders.Piece, func(_ string, r io.Reader, _ int64) (io.ReadCloser, error) {
		return io.NopCloser(r), nil
	})
	if err != nil {
		return nil, err
	}
	closed := make(chan struct{})
	go func() {
		_, _ = z.Read(make([]byte, 1))
		z.Close()
		close(closed)
	}()
	<-file.reading
	return func() { close(file.release); <-closed }, nil
}

// hangingFile is a [Compressed] file whose first Read ends with the file once it is released.
type hangingFile struct{ reading, release chan struct{} }

func (f hangingFile) Reader() (io.Reader, error) { return f, nil }
func (f hangingFile) Suspend() io.Closer         { return nil }
func (f hangingFile) Close() error               { return nil }
func (f hangingFile) Read([]byte) (int, error) {
	close(f.reading)
	<-f.release
	return 0, io.EOF
}

func randomContent(n int) []byte {
	content := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(content)
	return content
}
