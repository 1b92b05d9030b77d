package decoders

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/compression"
)

// newWith opens a decoder with the memory of that many pieces, or fails within the usual time.
func (p *plainly) newWith(t *testing.T, d *Pool, pieces int64, content []byte) (*Decoder, error) {
	ready, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	return d.Open(ready, t.Context(), "none", &memoryFile{content: content}, pieces*Piece, p.decompress)
}

// keepReading reads byte by byte, so that the decoder is never slow, until stop is called.
func keepReading(t *testing.T, z *Decoder) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		for ctx.Err() == nil {
			if _, err := z.Read(make([]byte, 1)); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(z.pool.SlowAfter / 2)
		}
	})
	return func() { cancel(); reading.Wait(); z.Close() }
}

// resumeSuspended returns a decoder with 6 of 10 pieces that was suspended and waits for
// memory, as another one has 3 and keeps up with its client until stop is called. The channel
// receives the first read's error.
func resumeSuspended(t *testing.T, d *Pool, p *plainly) (resumed *Decoder, read chan error, stop func()) {
	resumed, err := p.newWith(t, d, 6, make([]byte, 1000))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * d.SlowAfter)
	busy, err := p.newWith(t, d, 3, make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	stop = keepReading(t, busy)
	read = make(chan error, 1)
	go func() {
		_, err := resumed.Read(make([]byte, 100))
		read <- err
	}()
	synctest.Wait()
	if p.open.Load() != 1 || len(read) != 0 {
		t.Fatalf("%d decompressors are open, so none waits", p.open.Load())
	}
	return resumed, read, stop
}

// TestDecodersRestartWaits: a suspended decoder that waits for much memory doesn't block a
// request that needs less.
func TestDecodersRestartWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := poolWithin(2, 10*Piece)
		var p plainly
		resumed, read, stop := resumeSuspended(t, d, &p)
		time.Sleep(time.Minute)
		small, err := p.newWith(t, d, 1, []byte("small"))
		if err != nil {
			t.Fatalf("with %d of 10 pieces in use: %v", d.Memory()/Piece, err)
		}
		if got, err := io.ReadAll(small); string(got) != "small" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		small.Close()
		if len(read) != 0 {
			t.Error("the other one got memory")
		}
		stop()
		if err := <-read; err != nil {
			t.Error(err)
		}
		resumed.Close()
		if d.Memory() != 0 {
			t.Errorf("%d bytes are left", d.Memory())
		}
	})
}

// TestDecodersRestartNotStarved: endless new requests don't keep a suspended decoder from its
// memory, and none of them is refused.
func TestDecodersRestartNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := poolWithin(2, 10*Piece)
		var p plainly
		resumed, read, stop := resumeSuspended(t, d, &p)
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var ends sync.WaitGroup
		clients.Go(func() {
			for ctx.Err() == nil {
				z, err := p.newWith(t, d, 1, make([]byte, 1<<20))
				if err != nil {
					t.Error(err)
					return
				}
				end := keepReading(t, z)
				ends.Go(func() { time.Sleep(9 * time.Second); end() })
				time.Sleep(2 * time.Second)
			}
		})
		time.Sleep(time.Minute)
		stop()
		begun := time.Now()
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Hour):
			t.Errorf("no memory within %v", time.Since(begun))
			cancel()
			<-read
		}
		cancel()
		clients.Wait()
		ends.Wait()
		if got, err := io.ReadAll(resumed); len(got) < 900 || !bytes.Equal(got, make([]byte, len(got))) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		resumed.Close()
		if d.Memory() != 0 || p.open.Load() != 0 {
			t.Errorf("%d bytes, %d decompressors are left", d.Memory(), p.open.Load())
		}
	})
}

// TestDecodersShareBudget: a client waits for memory of background work, and gets it when that
// is finished, or is refused after a while.
func TestDecodersShareBudget(t *testing.T) {
	var packed bytes.Buffer
	w, err := compression.NewWriter("lzip", 0, &packed)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		budget := compression.NewBudget(10 * Piece)
		d := New(2, budget)
		var p plainly
		first, err := p.newWith(t, d, 1, make([]byte, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		stop := keepReading(t, first)
		background, err := budget.NewReader(t.Context(), "lzip", bytes.NewReader(packed.Bytes()), -1)
		if err != nil {
			t.Fatal(err)
		}
		left := budget.Total() - budget.Background() - d.Memory()
		if left >= 10*Piece {
			t.Fatal("nothing is reserved")
		}
		fitting := left/Piece + 1 // with a piece, it fits without the background work alone
		if _, err := p.newWith(t, d, fitting, nil); !errors.Is(err, ErrTooMany) {
			t.Errorf("beside background work: %v", err)
		}
		time.AfterFunc(Wait/2, func() { background.Close() })
		if z, err := p.newWith(t, d, fitting, nil); err != nil {
			t.Errorf("after background work: %v", err)
		} else {
			z.Close()
		}
		stop()
		if d.Memory() != 0 || budget.Background() != 0 {
			t.Errorf("%d and %d bytes are left", d.Memory(), budget.Background())
		}
	})
}

// TestDecodersBesideLargeBackground: while a background decoder takes more than the budget, a
// new or restarting decoder for a client is admitted.
func TestDecodersBesideLargeBackground(t *testing.T) {
	var packed bytes.Buffer
	w, err := compression.NewWriter("lzip", 0, &packed)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed.Bytes()[5] = 20 // a dictionary of 1 MiB
	synctest.Test(t, func(t *testing.T) {
		budget := compression.NewBudget(4 * Piece)
		inBackground := func() io.Closer {
			r, err := budget.NewReader(t.Context(), "lzip", bytes.NewReader(packed.Bytes()), -1)
			if err != nil {
				t.Fatal(err)
			}
			if budget.Background() < budget.Total() {
				t.Fatalf("it takes only %d bytes", budget.Background())
			}
			return r
		}
		d := New(2, budget)
		var p plainly
		background := inBackground()
		first, err := p.newWith(t, d, 1, make([]byte, 1000))
		if err != nil {
			t.Fatalf("a new one: %v", err)
		}
		if _, err := p.newWith(t, d, 1, nil); !errors.Is(err, ErrTooMany) {
			t.Errorf("a second: %v", err)
		}
		background.Close()
		time.Sleep(2 * d.SlowAfter)
		second, err := p.newWith(t, d, 2, nil) // which suspends the first
		if err != nil {
			t.Fatal(err)
		}
		second.Close()
		background = inBackground()
		if _, err := first.Read(make([]byte, 100)); err != nil {
			t.Errorf("one that restarts: %v", err)
		}
		first.Close()
		background.Close()
		if d.restarted.Load() != 1 || d.Memory() != 0 || budget.Background() != 0 {
			t.Errorf("%d restarts; %d and %d bytes are left", d.restarted.Load(), d.Memory(), budget.Background())
		}
	})
}
