package pace

import (
	"context"
	"errors"
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
				t.Errorf("%v with a context that has ended: no error", duration)
			}
		}
		if err := Sleep(t.Context(), -time.Hour); err != nil {
			t.Error(err)
		}
	})
}

func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &Pace{Rate: 1000}
		if n := len(p.Bound(make([]byte, 5000))); n != 100 {
			t.Errorf("%d bytes at a time", n)
		}
		if n := len(p.Bound(make([]byte, 7))); n != 7 {
			t.Errorf("%d bytes of 7", n)
		}
		// Those of all together count.
		for n := 1; n <= 3; n++ {
			if pause := p.Took(500); pause != time.Duration(n)*500*time.Millisecond || p.Pause() != pause {
				t.Errorf("after %d bytes: %v, %v", 500*n, pause, p.Pause())
			}
		}
		time.Sleep(time.Hour)
		if p.Pause() > 0 {
			t.Errorf("later: %v", p.Pause())
		}
		// What was not taken is not made up for.
		if pause := p.Took(500); pause != 500*time.Millisecond {
			t.Errorf("after an hour: %v", pause)
		}
		free := &Pace{}
		if free.Took(1<<40) != 0 || free.Pause() != 0 || len(free.Bound(make([]byte, 5000))) != 5000 {
			t.Error("without a rate, there are pauses")
		}
		if n := len((&Pace{Rate: 1}).Bound(make([]byte, 9))); n != 1 {
			t.Errorf("%d bytes at the slowest rate", n)
		}
	})
}
