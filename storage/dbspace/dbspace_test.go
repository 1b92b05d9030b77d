package dbspace

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/testfs"
	"nar-herder/internal/testlog"
	"nar-herder/storage/index"
)

func openAt(t testing.TB, path string) *index.Index {
	t.Helper()
	x, err := index.Open(context.Background(), path, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func gaugeOf(t testing.TB, w *Watch) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(w)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "narherder_database_free_bytes" {
		t.Fatalf("%v, %v", families, err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

// TestWatch logs each change once, and returns the present warnings.
func TestWatch(t *testing.T) {
	t.Parallel()
	x := openAt(t, filepath.Join(t.TempDir(), "db"))
	synctest.Test(t, func(t *testing.T) {
		const giga = 1 << 30
		type room struct {
			free    int64
			failure error
		}
		var now atomic.Value
		now.Store(room{50 * giga, nil})
		log := new(testlog.Buffer)
		w := New(x, func(string) (int64, int64, error) {
			r := now.Load().(room)
			return r.free, 100 * giga, r.failure
		}, slog.New(slog.NewTextHandler(log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		for _, step := range []struct {
			room
			log     string // a new line with this text; none if ""
			warning string
		}{
			{room{50 * giga, nil}, "", ""},
			{room{giga, nil}, "", ""},
			{room{giga - 1, nil}, "nearly full", "1073741823 bytes are free"},
			{room{giga / 2, nil}, "", "nearly full"},
			{room{2 * giga, nil}, "has room again", ""},
			{room{giga / 2, nil}, "nearly full", "nearly full"},
			{room{0, errors.New("stale handle")}, "stale handle", "see the log"},
			{room{giga / 2, nil}, "is known again", "nearly full"},
			{room{50 * giga, nil}, "has room again", ""},
		} {
			before := len(log.String())
			now.Store(step.room)
			time.Sleep(5 * interval)
			synctest.Wait()
			news := log.String()[before:]
			lines := 0
			if step.log != "" {
				lines = 1
			}
			if strings.Count(news, "\n") != lines || !strings.Contains(news, step.log) {
				t.Errorf("with %d bytes the log has %q, want %q once", step.free, news, step.log)
			}
			warnings := strings.Join(w.Warnings(), "\n")
			if (warnings == "") != (step.warning == "") || !strings.Contains(warnings, step.warning) || strings.Contains(warnings, filepath.Dir(x.Path())) {
				t.Errorf("with %d bytes the warnings are %q, want %q", step.free, warnings, step.warning)
			}
			if step.failure == nil && gaugeOf(t, w) != float64(step.free) {
				t.Errorf("the gauge is %v, want %d", gaugeOf(t, w), step.free)
			}
		}
	})
}

// TestFull uses a real file system: the reserve is created, used and created again.
func TestFull(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 8<<20)
	// The database is where the link points.
	link := filepath.Join(t.TempDir(), "db")
	if err := os.Symlink(filepath.Join(disk, "db"), link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "db"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	x := openAt(t, link)
	log := new(testlog.Buffer)
	w := New(x, nil, slog.New(slog.NewTextHandler(log, nil)))
	// Except the one about the size; see TestSmall.
	warnings := func() []string { return w.Warnings()[1:] }
	w.step(t.Context())
	if state, err := x.Reserve(); state != index.ReserveKept || err != nil || len(warnings()) > 0 {
		t.Errorf("the reserve is %d, %v; warnings %q", state, err, warnings())
	}
	free := testfs.Fill(t, disk)
	w.step(t.Context())
	if warnings := warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "nearly full") {
		t.Errorf("warnings %q", warnings)
	}
	if err := x.Reclaim(t.Context(), func(tx *index.Tx) error { return tx.SetSetting("a", strings.Repeat("a", 400_000)) }); err != nil {
		t.Fatal(err)
	}
	w.step(t.Context())
	if warnings := warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "only removals are possible") || !strings.Contains(warnings[0], "or remove items until") {
		t.Errorf("warnings %q", warnings)
	}
	free()
	w.step(t.Context())
	if state, err := x.Reserve(); state != index.ReserveKept || err != nil || len(warnings()) > 0 {
		t.Errorf("the reserve is %d, %v; warnings %q", state, err, warnings())
	}
	for _, text := range []string{"nearly full", "is full", "has room again"} {
		if n := strings.Count(log.String(), text); n != 1 {
			t.Errorf("the log has %q %d times:\n%s", text, n, log)
		}
	}
}

// TestSmall warns that the reserve may be too small.
func TestSmall(t *testing.T) {
	t.Parallel()
	x := openAt(t, filepath.Join(testfs.Small(t, index.LeastDisk-1<<20), "db"))
	log := new(testlog.Buffer)
	w := New(x, nil, slog.New(slog.NewTextHandler(log, nil)))
	for range 2 {
		w.step(t.Context())
	}
	const want = "smaller than 512 MiB"
	if n := strings.Count(log.String(), want); n != 1 {
		t.Errorf("the log has %q %d times:\n%s", want, n, log)
	}
	if warnings := w.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], want) {
		t.Errorf("warnings %q", warnings)
	}
}
