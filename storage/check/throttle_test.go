package check

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestThrottle has a clock that runs as fast as all wait for it.
func TestThrottle(t *testing.T) {
	for _, test := range []struct {
		rate int64
		size int
		want time.Duration
	}{
		{1000, 10_000, 10 * time.Second}, {1, 5, 5 * time.Second}, {1 << 40, 1 << 20, 0}, {0, 1 << 20, 0}, {-1, 1 << 20, 0}, {10, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			all := &throttle{rate: test.rate}
			begin := time.Now()
			// Several readers share the rate.
			for range 4 {
				n, err := io.Copy(io.Discard, all.reader(t.Context(), strings.NewReader(strings.Repeat("x", test.size/4))))
				if err != nil || n != int64(test.size/4) {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
			if took := time.Since(begin); took > test.want+10*time.Millisecond || took < test.want*3/4 {
				t.Errorf("%d bytes at %d took %v, want %v", test.size, test.rate, took, test.want)
			}
		})
	}
	// Who rests does not run faster later.
	synctest.Test(t, func(t *testing.T) {
		all := &throttle{rate: 100}
		read := func() time.Duration {
			begin := time.Now()
			_, _ = io.Copy(io.Discard, all.reader(t.Context(), strings.NewReader(strings.Repeat("x", 1000))))
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
		_, err := io.Copy(io.Discard, (&throttle{rate: 1}).reader(ctx, strings.NewReader("slow as it is")))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}
