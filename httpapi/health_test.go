package httpapi

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage/index"
)

// slowItems are items whose health a test decides on.
type slowItems struct {
	fakeItems
	healthyCtx func(context.Context) (indexErr, bytesErr error)
	totalsCtx  func(context.Context) (index.Totals, error)
}

func (s *slowItems) Healthy(ctx context.Context) (indexErr, bytesErr error) { return s.healthyCtx(ctx) }

func (s *slowItems) Totals(ctx context.Context) (index.Totals, error) {
	if s.totalsCtx == nil {
		return index.Totals{}, nil
	}
	return s.totalsCtx(ctx)
}

// askHealth returns the answer, and how long it took.
func askHealth(t *testing.T, s *Server) (status int, body string, took time.Duration) {
	t.Helper()
	begun := time.Now()
	status, text, err := s.healthAnswer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text), time.Since(begun)
}

const (
	healthOK      = `"database":"ok","status":"ok","storage":"ok"`
	storageFails  = `"database":"ok","status":"failing","storage":"failing"`
	databaseFails = `"database":"failing","status":"failing","storage":"unknown"`
)

// TestHealthHanging has a storage that doesn't answer: the first request waits for the
// deadline, and no other waits at all, whether the storage heeds its context or not.
func TestHealthHanging(t *testing.T) {
	t.Parallel()
	for name, heeds := range map[string]bool{"heeds its context": true, "hangs": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var probes, atOnce, most atomic.Int32
				items := &slowItems{healthyCtx: func(ctx context.Context) (error, error) {
					probes.Add(1)
					most.Store(max(most.Load(), atOnce.Add(1)))
					defer atOnce.Add(-1)
					done := ctx.Done()
					if !heeds {
						done = nil
					}
					select {
					case <-release:
						return nil, nil
					case <-done:
						return nil, ctx.Err()
					}
				}}
				s := New(items, options())
				status, body, took := askHealth(t, s)
				if status != 503 || !strings.Contains(body, storageFails) || took > healthDeadline {
					t.Errorf("first: %d %s after %s", status, body, took)
				}
				for range 100 {
					time.Sleep(100 * time.Millisecond)
					status, body, took := askHealth(t, s)
					if status != 503 || !strings.Contains(body, storageFails) || took != 0 {
						t.Fatalf("%d %s after %s", status, body, took)
					}
				}
				if most.Load() != 1 || !heeds && probes.Load() != 1 || probes.Load() > 5 {
					t.Errorf("%d probes, %d at once", probes.Load(), most.Load())
				}
				close(release)
				synctest.Wait()
				askHealth(t, s)
				synctest.Wait()
				if status, body, took := askHealth(t, s); status != 200 || !strings.Contains(body, healthOK) || took != 0 {
					t.Errorf("after the end of it: %d %s after %s", status, body, took)
				}
			})
		})
	}
}

// TestHealthOfDatabase has an index that hangs, before which the storage isn't looked at.
func TestHealthOfDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer synctest.Wait()
		defer close(release)
		hang := func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		s := New(&slowItems{
			healthyCtx: func(ctx context.Context) (error, error) { <-release; return hang(ctx), nil },
			totalsCtx:  func(ctx context.Context) (index.Totals, error) { return index.Totals{}, hang(ctx) },
		}, options())
		if status, body, took := askHealth(t, s); status != 503 || !strings.Contains(body, databaseFails) || took > healthDeadline {
			t.Errorf("%d %s after %s", status, body, took)
		}
	})
}

// TestHealthAge has results that get old while nobody asks.
func TestHealthAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var fails atomic.Bool
		s := New(&slowItems{healthyCtx: func(ctx context.Context) (error, error) {
			time.Sleep(100 * time.Millisecond)
			if fails.Load() {
				return nil, errBroken
			}
			return nil, nil
		}}, options())
		for _, test := range []struct {
			after  time.Duration
			fails  bool
			status int
			age    string
			took   time.Duration
		}{
			{0, false, 200, "0", 100 * time.Millisecond},
			{500 * time.Millisecond, false, 200, "0", 0},
			{5 * time.Second, true, 200, "5", 0},        // at once, and looked at anew
			{200 * time.Millisecond, true, 503, "0", 0}, // which was found
			{2 * time.Second, false, 503, "2", 0},
			{time.Hour, false, 200, "0", 100 * time.Millisecond}, // too old to be of use
			{time.Hour, true, 503, "0", 100 * time.Millisecond},
		} {
			time.Sleep(test.after)
			fails.Store(test.fails)
			status, body, took := askHealth(t, s)
			if status != test.status || !strings.Contains(body, `"age_seconds":`+test.age+`,`) || took != test.took {
				t.Errorf("after %s: %d %s after %s, want %d, age %s, after %s", test.after, status, body, took, test.status, test.age, test.took)
			}
			synctest.Wait()
		}
	})
}

// TestHealthOfStopping doesn't take the end of the server for a failure.
func TestHealthOfStopping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStarted(&slowItems{healthyCtx: func(ctx context.Context) (error, error) {
			<-ctx.Done()
			return ctx.Err(), ctx.Err()
		}}, options())
		go func() {
			time.Sleep(time.Second)
			s.end()
		}()
		if _, _, took := askHealth(t, s.Server); took > time.Second {
			t.Errorf("after %s", took)
		}
		synctest.Wait()
		if log := s.log.String(); strings.Contains(log, "not usable") {
			t.Errorf("%s", log)
		}
	})
}

// TestTotalsBounded has an index that hangs while the metrics are read.
func TestTotalsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(&slowItems{totalsCtx: func(ctx context.Context) (index.Totals, error) {
			<-ctx.Done()
			return index.Totals{}, ctx.Err()
		}}, options())
		begun := time.Now()
		families, err := s.Registry().Gather()
		if err != nil || len(families) == 0 || time.Since(begun) > healthDeadline {
			t.Errorf("%d metrics after %s, %v", len(families), time.Since(begun), err)
		}
		if _, err := s.totals(); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
