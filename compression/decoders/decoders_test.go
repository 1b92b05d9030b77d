package decoders

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/compression"
)

// take reserves n bytes as a new decoder does, without a piece.
func (d *Pool) take(ctx context.Context, n int64) (release func(), err error) {
	z := &Decoder{pool: d, memory: n}
	err = d.wait(ctx, d.requests, z, 0, nil)
	return func() { d.release(z) }, err
}

// memoryFile is a [Compressed] in memory without compression.
type memoryFile struct {
	content []byte
	closed  bool
}

func (f *memoryFile) Reader() (io.Reader, error) {
	if f.closed {
		return nil, errRead
	}
	return bytes.NewReader(f.content), nil
}

func (f *memoryFile) Suspend() io.Closer { return nil }

func (f *memoryFile) Close() error { f.closed = true; return nil }

// plainly counts decompressors that return their input.
type plainly struct {
	open, most, reading, mostReading atomic.Int32
}

// plainDecompressor fails if it is used after Close.
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

// decompressorMemory is the memory of each decompressor in these tests, more than all pieces.
const decompressorMemory = 100 << 20

// new opens a decoder, or fails within the usual time.
func (p *plainly) new(t *testing.T, d *Pool, content []byte) (*Decoder, error) {
	ready, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	return d.Open(ready, t.Context(), "none", &memoryFile{content: content}, decompressorMemory, p.decompress)
}

// TestDecodersSuspended has far more slow clients than memory. Each gets all bytes, and the
// budget is never exceeded.
func TestDecodersSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, fit = 30, 4 // all are open before the first has waited for Wait
		d := poolWithin(2, fit*decompressorMemory+clients*Piece)
		var p plainly
		content := randomBytes(100_000)
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
					if d.Memory() > d.budget.Total() {
						t.Errorf("%d of %d bytes are reserved", d.Memory(), d.budget.Total())
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
		if p.most.Load() > fit || p.open.Load() != 0 || d.Memory() != 0 || len(d.Processors)+len(d.restarts)+len(d.requests.first)+len(d.restarting.first) != 0 {
			t.Errorf("at most %d decompressors, %d left with %d bytes", p.most.Load(), p.open.Load(), d.Memory())
		}
		if d.restarted.Load() == 0 {
			t.Error("none was suspended")
		}
		if p.mostReading.Load() > 2 {
			t.Errorf("%d worked at a time", p.mostReading.Load())
		}
	})
}

// TestDecodersBusy: clients that keep up keep their decoders, and another one waits until one
// of them is slow or finished.
func TestDecodersBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := poolWithin(2, 2*decompressorMemory+10*Piece)
		var p plainly
		var busy [2]*Decoder
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
					time.Sleep(d.SlowAfter / 2)
				}
			})
		}
		begun := time.Now()
		if _, err := p.new(t, d, nil); !errors.Is(err, ErrTooMany) || time.Since(begun) != Wait {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if d.restarted.Load() != 0 || p.open.Load() != 2 {
			t.Error("one that was in use was suspended")
		}
		stop[0]() // slow from now on
		begun = time.Now()
		third, err := p.new(t, d, []byte("third"))
		if took := time.Since(begun); err != nil || took > 2*d.SlowAfter {
			t.Fatalf("after %v: %v", took, err)
		}
		time.AfterFunc(5*time.Second, func() { third.Close() })
		if got, err := io.ReadAll(third); string(got) != "third" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		// The suspended decoder continues after another was closed.
		if _, err := busy[0].Read(make([]byte, 100)); err != nil || d.restarted.Load() != 1 {
			t.Errorf("%d restarts, %v", d.restarted.Load(), err)
		}
		stop[1]()
		for _, z := range busy {
			z.Close()
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if d.Memory() != 0 || p.open.Load() != 0 {
			t.Errorf("%d bytes, %d decompressors are left", d.Memory(), p.open.Load())
		}
	})
}

// TestDecodersPieces: unread pieces count as well, even those of suspended decoders.
func TestDecodersPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := poolWithin(2, 3*Piece)
		var p plainly
		var open []*Decoder
		for range 3 {
			z, err := p.new(t, d, nil)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, z)
		}
		if _, err := p.new(t, d, nil); !errors.Is(err, ErrTooMany) {
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
		if d.Memory() != 0 {
			t.Errorf("%d bytes are left", d.Memory())
		}
	})
}

// TestDecodersHangingFile: a decoder that waits for compressed bytes holds no processor.
func TestDecodersHangingFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := poolWithin(1, 1<<30)
		var p plainly
		hanging, write := io.Pipe()
		slow, err := d.Open(t.Context(), t.Context(), "none", readerFile{hanging}, decompressorMemory, p.decompress)
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
	first, second := randomBytes(1000), randomBytes(1<<20)
	packed := append(compressWith(t, "zstd", 64<<10, first), compressWith(t, "zstd", 8<<20, second)...)
	d := poolWithin(1, 256<<20)
	memory := compression.Memory("zstd", packed, -1)
	if memory >= compression.MaxMemory("zstd") {
		t.Fatalf("%d bytes for the first", memory)
	}
	z, err := d.Open(t.Context(), t.Context(), "zstd", &memoryFile{content: packed}, memory, compression.NewReaderWithin)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); !bytes.Equal(got, append(first, second...)) || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	z.Close()
	if d.Memory() != 0 {
		t.Errorf("%d bytes are left", d.Memory())
	}
}
