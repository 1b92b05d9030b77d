package dump

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/testlog"
	"nar-herder/storage/index"
)

// TestRun: when dumps are made, in simulated days.
func TestRun(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 0)
	synctest.Test(t, func(t *testing.T) {
		var ready atomic.Bool
		m, err := New(x, Options{Path: filepath.Join(t.TempDir(), "dump.db"), Interval: 24 * time.Hour, Ready: ready.Load})
		must(t, err)
		var mu sync.Mutex // of what follows
		var made []time.Duration
		var failure error
		fails := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failure = err
		}
		begin := time.Now()
		m.make = func(ctx context.Context) (Generation, error) {
			mu.Lock()
			made = append(made, time.Since(begin))
			err := failure
			mu.Unlock()
			if err != nil {
				return Generation{}, err
			}
			return m.Make(ctx)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			m.Run(ctx)
			close(ended)
		}()
		// passes lets time pass, and returns when dumps were made meanwhile.
		passes := func(d time.Duration) (times []time.Duration) {
			t.Helper()
			from := time.Since(begin)
			mu.Lock()
			made = nil
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			for _, at := range made {
				times = append(times, at-from)
			}
			return times
		}
		never := func(d time.Duration, why string) {
			t.Helper()
			if times := passes(d); len(times) > 0 {
				t.Errorf("%s: made after %v", why, times)
			}
		}
		once := func(d, from, to time.Duration, why string) {
			t.Helper()
			if times := passes(d); len(times) != 1 || times[0] < from || times[0] > to {
				t.Errorf("%s: made after %v, want once after %v to %v", why, times, from, to)
			}
		}
		const hour, day = time.Hour, 24 * time.Hour
		never(2*day, "an index without items")
		must(t, add(t.Context(), x, 1))
		never(2*day, "a mirror that is not ready")
		ready.Store(true)
		once(hour, 0, lookEvery, "the first")
		must(t, add(t.Context(), x, 2))
		once(day, 22*hour, 23*hour+lookEvery, "the next")
		never(3*day, "an index that has not changed")
		must(t, add(t.Context(), x, 3))
		once(hour, 0, lookEvery, "a change after a long time")
		must(t, add(t.Context(), x, 4))
		time.Sleep(12 * hour)
		if _, err := m.Make(ctx); err != nil { // by hand
			t.Fatal(err)
		}
		must(t, add(t.Context(), x, 5))
		once(day, day-lookEvery, day, "a day after one by hand")

		must(t, add(t.Context(), x, 6))
		once(day, 0, day, "another")
		must(t, add(t.Context(), x, 7))
		time.Sleep(day - 10*time.Minute)
		fails(errors.New("no luck"))
		times := passes(6 * hour)
		if len(times) < 10 || len(times) > 14 {
			t.Errorf("tries that fail: %v", times)
		}
		var pauses []time.Duration
		for i := range times[1:] {
			pauses = append(pauses, times[i+1]-times[i])
		}
		if want := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, hour, hour}; !slices.Equal(pauses[:min(len(pauses), len(want))], want) {
			t.Errorf("pauses are %v, want %v", pauses, want)
		}
		if got := gather(t, m)["narherder_dump_failures_total"]; got != float64(len(times)) {
			t.Errorf("%v failures are counted of %d", got, len(times))
		}
		fails(ErrBusy)
		passes(hour)
		if times := passes(hour); len(times) != 60 {
			t.Errorf("while another process makes one, it is looked %d times an hour", len(times))
		}
		if got := gather(t, m)["narherder_dump_failures_total"]; int(got) < 10 || int(got) > 14 {
			t.Errorf("that counts as %v failures", got)
		}
		fails(nil)
		once(hour, 0, lookEvery, "at last")
		stop()
		<-ended
	})
}

// TestLogIsBounded: the log of changes is bounded even if no dumps are made or all fail.
// Changes that a dump has may leave the log.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		interval time.Duration
		items    int
		first    int64 // the first that is left
		says     string
	}{
		{"no dumps", 0, 0, 501, "no dump has them"},
		{"no dumps, many items", 0, 900, 1, ""}, // twice 900 are more than exist
		{"dumps that fail", time.Hour, 0, 501, "no dump has them"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newIndex(t, test.items)
			must(t, x.Update(t.Context(), func(tx *index.Tx) error {
				for range 1500 - test.items {
					if err := tx.PutChange(index.Change{At: testTime, Kind: index.Removed, Hash: hashOf(9), StorePath: "/gnu/store/x"}); err != nil {
						return err
					}
				}
				return nil
			}))
			synctest.Test(t, func(t *testing.T) {
				log := new(testlog.Buffer)
				m, err := New(x, Options{Path: filepath.Join(t.TempDir(), "dump.db"), Interval: test.interval, Log: slog.New(slog.NewTextHandler(log, nil))})
				must(t, err)
				m.most = 1000
				m.make = func(context.Context) (Generation, error) { return Generation{}, index.ErrFull }
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					m.Run(ctx)
					close(ended)
				}()
				time.Sleep(boundEvery + time.Minute)
				stop()
				<-ended
				page, err := x.ChangesAfter(t.Context(), 0, 1)
				must(t, err)
				if page.First != test.first || (test.says != "") != strings.Contains(log.String(), "the log of changes was too long") || !strings.Contains(log.String(), test.says) {
					t.Errorf("the log begins at %d, want %d\n%s", page.First, test.first, log)
				}
			})
		})
	}
}

// TestMetrics: the metrics are about the newest dump of any process.
func TestMetrics(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 7)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	const name = "narherder_dump_items"
	if values := gather(t, m); values[name] != 0 || values["narherder_dump_created_timestamp_seconds"] != 0 {
		t.Errorf("before the first: %v", values)
	}
	g := mustMake(t, newMaker(t, x, m.options.Path))
	want := map[string]float64{
		name: 7, "narherder_dump_created_timestamp_seconds": float64(g.CreatedAt.Unix()), "narherder_dump_failures_total": 0,
		"narherder_dump_bytes": float64(g.Size()),
	}
	if values := gather(t, m); !maps.Equal(values, want) {
		t.Errorf("%v, want %v", values, want)
	}
}

// gather returns the values of metrics, summed over all labels.
func gather(t testing.TB, m *Maker) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	must(t, registry.Register(m))
	families, err := registry.Gather()
	must(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			values[family.GetName()] += metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return values
}

// TestChanged: a dump is due if the number of items differs, because merged items may not
// be in the log.
func TestChanged(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 2)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	changed := func() bool {
		t.Helper()
		changed, _, err := m.changed(t.Context())
		must(t, err)
		return changed
	}
	if !changed() {
		t.Error("without a dump, no dump is due")
	}
	mustMake(t, m)
	if changed() {
		t.Error("just after a dump, the index has changed")
	}
	must(t, x.Update(t.Context(), func(tx *index.Tx) error {
		entry := x.Prepare(narinfoOf(5))
		entry.AddedAt, entry.Unlogged = testTime, true
		return tx.Put(entry, nil)
	}))
	if !changed() {
		t.Error("an item that is not in the log is not seen")
	}
}
