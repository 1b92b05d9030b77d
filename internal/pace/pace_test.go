package pace

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if err := Sleep(t.Context(), time.Hour); err != nil || time.Since(begin) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Hour+time.Minute {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		for _, duration := range []time.Duration{0, -1, 1} {
			if err := Sleep(ctx, duration); err == nil {
				t.Errorf("%v with a canceled context: no error", duration)
			}
		}
		if err := Sleep(t.Context(), -time.Hour); err != nil {
			t.Error(err)
		}
	})
}

func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &Limiter{Rate: 1000}
		if n := len(p.Bound(make([]byte, 5000))); n != 100 {
			t.Errorf("%d bytes at a time", n)
		}
		if n := len(p.Bound(make([]byte, 7))); n != 7 {
			t.Errorf("%d bytes of 7", n)
		}
		// The bytes of all readers count.
		for n := 1; n <= 3; n++ {
			if pause := p.Consume(500); pause != time.Duration(n)*500*time.Millisecond || p.Pause() != pause {
				t.Errorf("after %d bytes: %v, %v", 500*n, pause, p.Pause())
			}
		}
		time.Sleep(time.Hour)
		if p.Pause() > 0 {
			t.Errorf("later: %v", p.Pause())
		}
		// Unused time doesn't accumulate.
		if pause := p.Consume(500); pause != 500*time.Millisecond {
			t.Errorf("after an hour: %v", pause)
		}
		free := &Limiter{}
		if free.Consume(1<<40) != 0 || free.Pause() != 0 || len(free.Bound(make([]byte, 5000))) != 5000 {
			t.Error("pauses without a rate")
		}
		if n := len((&Limiter{Rate: 1}).Bound(make([]byte, 9))); n != 1 {
			t.Errorf("%d bytes at the slowest rate", n)
		}
	})
}

// TestBackoff: pauses double up to Last, and don't overflow.
func TestBackoff(t *testing.T) {
	t.Parallel()
	b := Backoff{time.Second, time.Minute}
	for failures, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 6: 32 * time.Second, 7: time.Minute, 1000: time.Minute} {
		if got := b.After(failures); got != want {
			t.Errorf("after %d failures: %v, want %v", failures, got, want)
		}
		for range 100 {
			if got := b.Jittered(failures); got < want/2 || got >= want/2+want {
				t.Errorf("after %d failures, jittered: %v", failures, got)
			}
		}
	}
	if got := (Backoff{time.Hour, 24 * time.Hour}).After(100); got != 24*time.Hour {
		t.Errorf("it is %v", got)
	}
}

// TestReader has a clock that advances while all wait for it.
func TestReader(t *testing.T) {
	for _, test := range []struct {
		rate int64
		size int
		want time.Duration
	}{
		{1000, 10_000, 10 * time.Second}, {1, 5, 5 * time.Second}, {1 << 40, 1 << 20, 0}, {0, 1 << 20, 0}, {-1, 1 << 20, 0}, {10, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			all := &Limiter{Rate: test.rate}
			begin := time.Now()
			// Several readers share the rate.
			for range 4 {
				n, err := io.Copy(io.Discard, all.Reader(t.Context(), strings.NewReader(strings.Repeat("x", test.size/4))))
				if err != nil || n != int64(test.size/4) {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
			if took := time.Since(begin); took > test.want+10*time.Millisecond || took < test.want*3/4 {
				t.Errorf("%d bytes at %d took %v, want %v", test.size, test.rate, took, test.want)
			}
		})
	}
	// A reader that pauses isn't faster later.
	synctest.Test(t, func(t *testing.T) {
		all := &Limiter{Rate: 100}
		read := func() time.Duration {
			begin := time.Now()
			_, _ = io.Copy(io.Discard, all.Reader(t.Context(), strings.NewReader(strings.Repeat("x", 1000))))
			return time.Since(begin)
		}
		read()
		time.Sleep(time.Hour)
		if took := read(); took < 8*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := io.Copy(io.Discard, (&Limiter{Rate: 1}).Reader(ctx, strings.NewReader("slow as it is")))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestReaderSlow: the time of reading counts, so that a slow disk or decoder doesn't halve the
// rate.
func TestReaderSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := &Limiter{Rate: 1000}
		begin := time.Now()
		if n, err := io.Copy(io.Discard, all.Reader(t.Context(), slowReader{strings.NewReader(strings.Repeat("x", 10_000))})); err != nil || n != 10_000 {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(begin); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10,000 bytes at 1,000 a second from a slow reader took %v", took)
		}
	})
}

// slowReader takes 80 ms for each read.
type slowReader struct{ io.Reader }

func (r slowReader) Read(p []byte) (int, error) {
	time.Sleep(80 * time.Millisecond)
	return r.Reader.Read(p)
}
