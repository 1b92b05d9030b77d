package httpapi

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/httpapi/health"
	"nar-herder/storage/index"
)

// slowItems has totals that a test controls.
type slowItems struct {
	fakeItems
	totalsCtx func(context.Context) (index.Totals, error)
}

func (s *slowItems) Totals(ctx context.Context) (index.Totals, error) { return s.totalsCtx(ctx) }

// watch makes a server that checks one needed part.
func watch(look func(context.Context) error) *started {
	opts := options()
	opts.Health = []health.Part{{Name: "part", Needed: true, Look: look}, {Name: "good", Needed: true, Look: func(context.Context) error { return nil }}}
	s := newStarted(&fakeItems{}, opts)
	go s.health.Run(s.live)
	return s
}

// wantHealth checks the answer, and how long it took.
func wantHealth(t *testing.T, s *started, status int, text string, took time.Duration) {
	t.Helper()
	begun := time.Now()
	gotStatus, body, err := s.health.Answer(t.Context(), false)
	if err != nil || gotStatus != status || !strings.Contains(string(body), text) || time.Since(begun) != took {
		t.Errorf("%d %s after %s, %v; want %d with %s after %s", gotStatus, body, time.Since(begun), err, status, text, took)
	}
}

// TestHealthHanging: if a part doesn't answer, only requests before the first result wait,
// until the deadline, and the part isn't checked again meanwhile.
func TestHealthHanging(t *testing.T) {
	t.Parallel()
	for name, heeds := range map[string]bool{"heeds its context": true, "hangs": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var looks, atOnce, most atomic.Int32
				s := watch(func(ctx context.Context) error {
					looks.Add(1)
					most.Store(max(most.Load(), atOnce.Add(1)))
					defer atOnce.Add(-1)
					done := ctx.Done()
					if !heeds {
						done = nil
					}
					select {
					case <-release:
						return nil
					case <-done:
						return ctx.Err()
					}
				})
				defer synctest.Wait()
				defer s.end()
				wantHealth(t, s, 503, `"failing":{"part":["no answer within 3s"]}`, health.Deadline)
				for range 100 {
					time.Sleep(100 * time.Millisecond)
					wantHealth(t, s, 503, `"failing":{"part":["no answer within 3s"]}`, 0)
				}
				if most.Load() != 1 || !heeds && looks.Load() != 1 || looks.Load() > 5 {
					t.Errorf("%d looks, %d at once", looks.Load(), most.Load())
				}
				close(release)
				time.Sleep(health.Interval + health.Deadline)
				wantHealth(t, s, 200, `{"status":"ok"}`, 0)
				if log := s.log.String(); strings.Count(log, "level=ERROR") != 1 || strings.Count(log, "works again") != 1 {
					t.Errorf("the log: %s", log)
				}
			})
		})
	}
}

// TestHealthChanges: a part fails and recovers without requests.
func TestHealthChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var fails atomic.Bool
		s := watch(func(ctx context.Context) error {
			time.Sleep(100 * time.Millisecond)
			if fails.Load() {
				return errBroken
			}
			return nil
		})
		defer synctest.Wait()
		defer s.end()
		wantHealth(t, s, 200, `"ok"`, 100*time.Millisecond)
		for range 3 {
			fails.Store(true)
			time.Sleep(health.Interval + 500*time.Millisecond)
			wantHealth(t, s, 200, `"ok"`, 0) // one check has failed
			time.Sleep(health.Interval)
			wantHealth(t, s, 503, `"part"`, 0)
			fails.Store(false)
			time.Sleep(health.Interval)
			wantHealth(t, s, 200, `"ok"`, 0)
		}
		if n := strings.Count(s.log.String(), "level=ERROR"); n != 3 {
			t.Errorf("%d errors are logged, want 3: %s", n, s.log)
		}
	})
}

// TestHealthInterval: a part is checked less often than others, until it fails.
func TestHealthInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		var result atomic.Pointer[error]
		opts := options()
		opts.Health = []health.Part{{Name: "part", Needed: true, Interval: 30 * time.Second, Look: func(context.Context) error {
			looks.Add(1)
			if err := result.Load(); err != nil {
				return *err
			}
			return nil
		}}}
		s := newStarted(&fakeItems{}, opts)
		go s.health.Run(s.live)
		defer synctest.Wait()
		defer s.end()
		for _, test := range []struct {
			result error
			after  time.Duration
			least  int32
			most   int32
			status int
		}{
			{nil, 5 * time.Minute, 9, 11, 200},
			{health.Warnings{"some"}, 5 * time.Minute, 9, 11, 200},
			{errBroken, 30*time.Second + 2*health.Interval, 2, 18, 503}, // the second as soon as others
			{errBroken, time.Minute, 29, 31, 503},
			{nil, health.Interval, 1, 1, 200},
		} {
			looks.Store(0)
			result.Store(&test.result)
			time.Sleep(test.after)
			synctest.Wait()
			if got := looks.Load(); got < test.least || got > test.most {
				t.Errorf("%v: %d looks in %s, want %d to %d", test.result, got, test.after, test.least, test.most)
			}
			wantHealth(t, s, test.status, "", 0)
		}
	})
}

// TestHealthOfStopping: the end of the server is not a failure.
func TestHealthOfStopping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := watch(func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		time.AfterFunc(time.Second, s.end)
		wantHealth(t, s, 503, "starting", time.Second)
		synctest.Wait()
		if log := s.log.String(); log != "" {
			t.Errorf("%s", log)
		}
	})
}

// TestTotalsBounded: an index that hangs does not block the metrics.
func TestTotalsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(&slowItems{totalsCtx: func(ctx context.Context) (index.Totals, error) {
			<-ctx.Done()
			return index.Totals{}, ctx.Err()
		}}, options())
		begun := time.Now()
		families, err := s.Registry().Gather()
		if err != nil || len(families) == 0 || time.Since(begun) > health.Deadline {
			t.Errorf("%d metrics after %s, %v", len(families), time.Since(begun), err)
		}
		if _, err := s.totals.Get(); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
