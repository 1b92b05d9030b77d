package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/compression"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// decodersWithin makes decoders that have a budget for themselves.
func decodersWithin(processors int, bytes int64) *decoders {
	return newDecoders(processors, compression.NewBudget(bytes))
}

// left is zero once all decoders have given back what they had.
func (d *decoders) left() int64 { return d.memory() }

// take reserves n bytes as a new decoder does, without a piece.
func (d *decoders) take(ctx context.Context, n int64) (release func(), err error) {
	z := &decoder{decoders: d, memory: n}
	err = d.wait(ctx, d.requests, z, 0, nil)
	return func() { d.release(z) }, err
}

// memoryFile is a [compressedFile] in memory that is not compressed.
type memoryFile struct {
	content []byte
	closed  bool
}

func (f *memoryFile) Reader() (io.Reader, error) {
	if f.closed {
		return nil, errBroken
	}
	return bytes.NewReader(f.content), nil
}

func (f *memoryFile) Suspend() io.Closer { return nil }

func (f *memoryFile) Close() error { f.closed = true; return nil }

// plainly counts decompressors that do nothing.
type plainly struct {
	open, most, reading, mostReading atomic.Int32
}

// plainDecompressor fails when it is used after Close.
type plainDecompressor struct {
	p      *plainly
	r      io.Reader
	closed atomic.Bool
}

func (p *plainly) decompress(_ string, r io.Reader, _ int64) (io.ReadCloser, error) {
	p.most.Store(max(p.most.Load(), p.open.Add(1)))
	return &plainDecompressor{p: p, r: r}, nil
}

func (z *plainDecompressor) Read(b []byte) (int, error) {
	if z.closed.Load() {
		return 0, compression.ErrClosed
	}
	z.p.mostReading.Store(max(z.p.mostReading.Load(), z.p.reading.Add(1)))
	time.Sleep(time.Millisecond) // of work
	z.p.reading.Add(-1)
	return z.r.Read(b[:min(len(b), 1000)])
}

func (z *plainDecompressor) Close() error {
	if !z.closed.Swap(true) {
		z.p.open.Add(-1)
	}
	return nil
}

// decompressorMemory is that of each in these tests: all pieces take less.
const decompressorMemory = 100 << 20

// new opens a decoder, or fails within the usual time.
func (p *plainly) new(t *testing.T, d *decoders, content []byte) (*decoder, error) {
	ready, cancel := context.WithTimeout(t.Context(), decoderWait)
	defer cancel()
	return d.new(ready, t.Context(), "none", &memoryFile{content: content}, decompressorMemory, p.decompress)
}

func randomContent(n int) []byte {
	content := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(content)
	return content
}

// TestDecodersSuspended has far more slow clients than there is memory for. Each gets
// all bytes, and the memory is never exceeded.
func TestDecodersSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, fit = 30, 4 // all are open before the first has waited for decoderWait
		d := decodersWithin(2, fit*decompressorMemory+clients*copyPiece)
		var p plainly
		content := randomContent(100_000)
		var all sync.WaitGroup
		for n := range clients {
			all.Go(func() {
				z, err := p.new(t, d, content)
				if err != nil {
					t.Errorf("client %d: %v", n, err)
					return
				}
				defer z.Close()
				var got []byte
				for piece := make([]byte, 10_000); ; {
					k, err := io.ReadFull(z, piece)
					got = append(got, piece[:k]...)
					if d.memory() > d.budget.Total() {
						t.Errorf("%d bytes are taken of %d", d.memory(), d.budget.Total())
					}
					if err == io.EOF {
						break
					} else if err != nil {
						t.Errorf("client %d: %v", n, err)
						return
					}
					time.Sleep(time.Minute)
				}
				if !bytes.Equal(got, content) {
					t.Errorf("client %d: other bytes", n)
				}
			})
		}
		all.Wait()
		if p.most.Load() > fit || p.open.Load() != 0 || d.left() != 0 || len(d.turns)+len(d.restarts)+len(d.requests.first)+len(d.restarting.first) != 0 {
			t.Errorf("at most %d decompressors, %d left with %d bytes", p.most.Load(), p.open.Load(), d.left())
		}
		if d.restarted.Load() == 0 {
			t.Error("none was suspended")
		}
		if p.mostReading.Load() > 2 {
			t.Errorf("%d worked at a time", p.mostReading.Load())
		}
	})
}

// TestDecodersBusy: clients that keep up keep their decoders, and another one waits,
// until one of them is slow or done.
func TestDecodersBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := decodersWithin(2, 2*decompressorMemory+10*copyPiece)
		var p plainly
		var busy [2]*decoder
		for i := range busy {
			var err error
			if busy[i], err = p.new(t, d, make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		var stop [2]func()
		for i, z := range busy {
			ctx, cancel := context.WithCancel(t.Context())
			var reading sync.WaitGroup
			stop[i] = func() { cancel(); reading.Wait() }
			reading.Go(func() {
				for ctx.Err() == nil {
					if _, err := z.Read(make([]byte, 100)); err != nil {
						t.Error(err)
					}
					time.Sleep(d.slowAfter / 2)
				}
			})
		}
		begun := time.Now()
		if _, err := p.new(t, d, nil); !errors.Is(err, errTooManyDecoders) || time.Since(begun) != decoderWait {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if d.restarted.Load() != 0 || p.open.Load() != 2 {
			t.Error("one that was in use was suspended")
		}
		stop[0]() // which is slow from now on
		begun = time.Now()
		third, err := p.new(t, d, []byte("third"))
		if took := time.Since(begun); err != nil || took > 2*d.slowAfter {
			t.Fatalf("after %v: %v", took, err)
		}
		time.AfterFunc(5*time.Second, func() { third.Close() })
		if got, err := io.ReadAll(third); string(got) != "third" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		// The one that was suspended gets on when another has ended.
		if _, err := busy[0].Read(make([]byte, 100)); err != nil || d.restarted.Load() != 1 {
			t.Errorf("%d restarts, %v", d.restarted.Load(), err)
		}
		stop[1]()
		for _, z := range busy {
			z.Close()
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if d.left() != 0 || p.open.Load() != 0 {
			t.Errorf("%d bytes, %d decompressors are left", d.left(), p.open.Load())
		}
	})
}

// TestDecodersPieces: what clients have not taken counts as well, also of suspended
// decoders.
func TestDecodersPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := decodersWithin(2, 3*copyPiece)
		var p plainly
		var open []*decoder
		for range 3 {
			z, err := p.new(t, d, nil)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, z)
		}
		if _, err := p.new(t, d, nil); !errors.Is(err, errTooManyDecoders) {
			t.Error(err)
		}
		time.AfterFunc(time.Second, func() { open[0].Close() })
		z, err := p.new(t, d, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, z := range append(open[1:], z) {
			z.Close()
		}
		if d.left() != 0 {
			t.Errorf("%d bytes are left", d.left())
		}
	})
}

// TestDecodersHangingFile: a decoder that waits for compressed bytes has no turn.
func TestDecodersHangingFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := decodersWithin(1, 1<<30)
		var p plainly
		hanging, write := io.Pipe()
		slow, err := d.new(t.Context(), t.Context(), "none", readerFile{hanging}, decompressorMemory, p.decompress)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		read := make(chan string)
		go func() {
			got, _ := io.ReadAll(slow)
			read <- string(got)
		}()
		synctest.Wait() // it hangs
		z, err := p.new(t, d, []byte("content"))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		if got, err := io.ReadAll(z); string(got) != "content" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		_, _ = io.WriteString(write, "at last")
		write.Close()
		if got := <-read; got != "at last" {
			t.Errorf("%q", got)
		}
	})
}

type readerFile struct{ io.ReadCloser }

func (f readerFile) Reader() (io.Reader, error) { return f.ReadCloser, nil }
func (f readerFile) Suspend() io.Closer         { return nil }

// TestDecodersEnlarged has a second stream that needs more memory than the first.
func TestDecodersEnlarged(t *testing.T) {
	first, second := randomContent(1000), randomContent(1<<20)
	packed := append([]byte(compress(t, "zstd", first)), compress(t, "zstd", second)...)
	d := decodersWithin(1, 256<<20)
	memory := compression.Memory("zstd", packed, -1)
	if memory >= compression.MaxMemory("zstd") {
		t.Fatalf("%d bytes for the first", memory)
	}
	z, err := d.new(t.Context(), t.Context(), "zstd", &memoryFile{content: packed}, memory, compression.NewReaderWithin)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); !bytes.Equal(got, append(first, second...)) || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	z.Close()
	if d.left() != 0 {
		t.Errorf("%d bytes are left", d.left())
	}
}

// begin asks for a nar, and reads no more than the head of the answer.
func (c *client) begin(target string) *http.Response {
	c.t.Helper()
	c.send(request("GET", target))
	response, err := http.ReadResponse(c.r, nil)
	if err != nil || response.StatusCode != 200 {
		c.t.Fatalf("%s: %v, %v", target, response, err)
	}
	return response
}

// TestSlowClients: clients that take little or nothing of nars that are decompressed for them, more than there could be
// decoders, don't keep another client from its nar.
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

// TestSuspendedClients has memory for two decoders and many clients that stop in the
// middle. Each gets all of its nar when it goes on, from a file and from elsewhere.
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
					s.decoders = decodersWithin(2, clientCount*copyPiece+2*compression.Memory(how, m.file[:compression.HeadBytes], m.narSize))
					s.decoders.slowAfter = 0
				})
				clients, answers := make([]*client, clientCount), make([]*http.Response, clientCount)
				for i := range clients {
					clients[i] = connectSmall(t, server.listener)
					answers[i] = clients[i].begin([]string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest}[i%2])
				}
				until(t, "most are suspended", func() bool {
					server.decoders.mu.Lock()
					defer server.decoders.mu.Unlock()
					return server.decoders.idle.Len() <= 2 && server.decoders.pieces == clientCount*copyPiece
				})
				for i, answer := range answers {
					body, err := io.ReadAll(answer.Body)
					if want := []string{string(m.nar), content}[i%2]; string(body) != want || err != nil {
						t.Errorf("client %d: %d bytes of %d, %v", i, len(body), len(want), err)
					}
					clients[i].stillOpen()
				}
				if server.decoders.restarted.Load() == 0 {
					t.Error("none was restarted")
				}
				until(t, "all is given back", func() bool { return server.decoders.left() == 0 })
			})
		}
	}
}

// TestNotRestarted has a nar that is gone when a suspended client goes on: its
// connection is cut, and the nar is not called damaged.
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
		s.decoders = decodersWithin(2, 10*copyPiece)
		s.decoders.slowAfter = 0
	})
	c := connectSmall(t, server.listener)
	c.begin("/nar/" + m.path.BaseName())
	until(t, "the decoder is idle", func() bool {
		release, err := server.decoders.take(t.Context(), 10*copyPiece)
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
	until(t, "all is given back", func() bool { return server.decoders.left() == 0 })
}
