package mirror

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage/index"
)

// gets counts the requests for the instance's dump.
func (i *instance) gets() *atomic.Int64 {
	n := new(atomic.Int64)
	i.through(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == peer.DumpPath && r.Method == http.MethodGet {
			n.Add(1)
		}
		return false
	})
	return n
}

// shrunk makes a mirror's index, and a source that it refuses because it has lost most
// items.
func shrunk(t *testing.T) (own, source *instance) {
	source, own = newInstance(t), newInstance(t)
	infos := make([]*narinfo.Narinfo, 300)
	for n := range infos {
		infos[n] = testInfo(n, 1, n)
	}
	source.add(at(1), infos...)
	source.dump(true)
	// Compare step by step, because comparing long lists repeatedly is slow.
	if _, err := mirrorOf2(t, own, source, filepath.Join(t.TempDir(), "first")).step(t.Context()); err != nil {
		t.Fatal(err)
	}
	source = newInstance(t)
	source.add(at(1), infos[:100]...)
	source.add(at(9), testInfo(5000, 1, 1))
	source.dump(true)
	return own, source
}

// TestRefusedOnce: a refused dump is downloaded once, until there is another or it is
// accepted.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	own, source := shrunk(t)
	gets := source.gets()
	clock := new(atomic.Int64)
	clock.Store(at(0).Unix())
	f := &following{instance: own, logged: new(testlog.Buffer)}
	f.Mirror = mirrorOf(t, own, source, f.logged, func() time.Time { return time.Unix(clock.Add(1), 0) })
	var refused *health.RefusedError
	for range 5 {
		if _, err := f.step(t.Context()); !errors.As(err, &refused) {
			t.Fatalf("a source that has lost most: %v", err)
		}
	}
	if n := gets.Load(); n != 1 {
		t.Errorf("its dump was downloaded %d times", n)
	}
	if _, err := os.Stat(f.Downloads + ".dump"); err != nil {
		t.Errorf("the download was removed: %v", err)
	}
	// After a restart, the download is still complete.
	if _, err := mirrorOf2(t, own, source, f.Downloads).step(t.Context()); !errors.As(err, &refused) {
		t.Fatal(err)
	}
	source.dump(true) // another, as it seems
	if _, err := f.step(t.Context()); !errors.As(err, &refused) || gets.Load() != 3 {
		t.Errorf("another dump: %v, %d questions", err, gets.Load())
	}
	if err := Accept(t.Context(), own.index, f.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.step(t.Context()); err != nil {
		t.Fatalf("accepted: %v", err)
	}
	f.same(source)
	leftNothing(t, f.Downloads)
}

func leftNothing(t *testing.T, name string) {
	t.Helper()
	if left, err := filepath.Glob(name + "*"); err != nil || len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}
}

// mirrorOf makes a mirror that runs when the test says so.
func mirrorOf(t *testing.T, own, source *instance, log *testlog.Buffer, now func() time.Time) *Mirror {
	return mirrorWith(t, own, source, Options{Downloads: filepath.Join(t.TempDir(), "download"), Log: slog.New(slog.NewTextHandler(log, nil)), Now: now})
}

func mirrorOf2(t *testing.T, own, source *instance, downloads string) *Mirror {
	return mirrorWith(t, own, source, Options{Downloads: downloads})
}

func mirrorWith(t *testing.T, own, source *instance, options Options) *Mirror {
	t.Helper()
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	options.Storage, options.Source = own.storage, peer.New(base, peer.Self{Instance: own.index.Instance()})
	m := New(options)
	m.negligible = 100
	return m
}

// TestDumpTooOld: if the log of a source begins after its dump, the mirror waits for
// another dump and doesn't download the old one repeatedly.
func TestDumpTooOld(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	clock := new(atomic.Int64)
	clock.Store(at(0).Unix())
	f := &following{instance: own, logged: new(testlog.Buffer)}
	f.Mirror = mirrorOf(t, own, source, f.logged, func() time.Time { return time.Unix(clock.Add(1), 0) })
	if _, err := f.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	source.add(at(2), testInfo(2, 1, 2))
	source.add(at(3), testInfo(3, 1, 3))
	source.trim(2)
	gets := source.gets()
	for range 5 {
		clock.Add(int64(resyncPause.Seconds()))
		if _, err := f.step(t.Context()); !errors.Is(err, health.ErrOldDump) || !strings.Contains(err.Error(), "nar-herder dump") {
			t.Errorf("%v", err)
		}
	}
	if n := gets.Load(); n != 1 {
		t.Errorf("the dump was downloaded %d times", n)
	}
	if n := len(own.list()); n != 1 {
		t.Errorf("%d items, want the same as before", n)
	}
	source.dump(true)
	if _, err := f.step(t.Context()); err != nil {
		t.Error(err)
	}
	f.same(source)
}

// TestDumpKept: a download is kept if the program stops or a merge fails for unrelated
// reasons, and is not downloaded again.
func TestDumpKept(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	for n := range 1500 {
		source.add(at(n/10), testInfo(n, 1, n))
	}
	source.dump(true)
	gets := source.gets()
	m := mirrorOf2(t, own, source, filepath.Join(t.TempDir(), "download"))
	ctx, stop := context.WithCancel(t.Context())
	m.Wanted = func([]narinfo.PathHash) { stop() } // in the middle
	if _, err := m.step(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("it was stopped: %v", err)
	}
	if n := len(own.list()); n == 0 || n == 1500 {
		t.Fatalf("%d items are there, want some", n)
	}
	m = mirrorOf2(t, own, source, m.Downloads)
	db, err := m.dumps.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.dumps.Close(t.Context(), db, index.ErrFull); err != index.ErrFull {
		t.Error(err)
	}
	if _, err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gets.Load() != 3 || len(own.list()) != 1500 {
		t.Errorf("%d items after %d questions", len(own.list()), gets.Load())
	}
	leftNothing(t, m.Downloads)
	// As if the process was killed just before removing it.
	for _, suffix := range []string{".dump", ".dump.json", ".dump.db", ".index", ".index.json", ".new", ".new-wal", ".new-shm"} {
		if err := os.WriteFile(m.Downloads+suffix, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source.add(at(200), testInfo(2000, 1, 1))
	f := follow(t, own, source, func(o *Options) { o.Downloads = m.Downloads })
	f.same(source)
	leftNothing(t, m.Downloads)
}

// TestBadDump: an invalid dump with a matching digest is not downloaded repeatedly; one
// without a digest is downloaded once more.
func TestBadDump(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	source.publish([]byte("this is no database" + strings.Repeat(".", 1000)))
	gets := source.gets()
	now := at(0)
	m := mirrorOf(t, own, source, new(testlog.Buffer), func() time.Time { return now })
	step := func(want int64, why string) {
		t.Helper()
		_, err := m.step(t.Context())
		if !errors.Is(err, health.ErrBadDump) || gets.Load() != want {
			t.Errorf("%s: %d questions, want %d: %v", why, gets.Load(), want, err)
		}
		m.status.ended(m.Log, err)
		if text := m.Status().Error; strings.Contains(text, m.Downloads) {
			t.Errorf("the health tells of files here: %s", text)
		}
	}
	step(1, "at first")
	step(2, "since it may have been damaged on its way")
	step(2, "no more")
	now = now.Add(time.Hour)
	step(3, "an hour later")
	leftNothing(t, m.Downloads)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	if _, err := m.step(t.Context()); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// TestOriginalFromOurDump: an original that started from a dump of this program repeats that
// dump's numbers, which the mirror ignores.
func TestOriginalFromOurDump(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"another's", "our own"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, own := newOriginal(t), newInstance(t)
			o.added(at(100), 1, 1)
			o.added(at(101), 2, 1)
			// It has the numbers of another instance.
			o.dumpAs(o.index.Instance())
			if name == "our own" {
				o.dumpAs(own.index.Instance())
			}
			f := follow(t, own, o.instance, nil)
			f.same(o.instance)
			o.added(at(300), 3, 1)
			f.same(o.instance)
			f.stop()
			if place, err := cursor.Read(t.Context(), own.index); err != nil || place.Instance != "" || f.status.resyncs != 1 {
				t.Errorf("it follows the numbers of instance %q, %v", place.Instance, err)
			}
		})
	}
}

// TestUnknownNumbers: the mirror checks whether the numbers are the source's own before it
// writes a cursor.
func TestUnknownNumbers(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	broken := true
	source.through(func(w http.ResponseWriter, r *http.Request) bool {
		if broken && r.URL.Path == peer.ChangesPath {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	m := mirrorOf2(t, own, source, filepath.Join(t.TempDir(), "download"))
	if _, err := m.step(t.Context()); err == nil {
		t.Error("it continues without an answer")
	}
	if place, err := cursor.Read(t.Context(), own.index); err != nil || !place.IsZero() {
		t.Errorf("a place is written: %+v, %v", place, err)
	}
	broken = false
	if _, err := m.step(t.Context()); err != nil {
		t.Error(err)
	}
	if place, err := cursor.Read(t.Context(), own.index); err != nil || place.Instance != source.index.Instance() {
		t.Errorf("the place is %+v, %v", place, err)
	}
}

// TestNoProgress: the health report warns of a mirror that makes no progress, and of skipped
// changes.
func TestNoProgress(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	now := at(0)
	log := new(testlog.Buffer)
	m := mirrorOf(t, own, source, log, func() time.Time { return now })
	for range 100 {
		_, err := m.step(t.Context())
		m.status.ended(m.Log, err)
		if !errors.Is(err, download.ErrNotReady) {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("waiting for the first dump is logged in %d lines:\n%s", n, log)
	}
	if warnings := m.Warnings(); len(warnings) != 0 {
		t.Errorf("at first: %q", warnings)
	}
	now = now.Add(worryAfter + time.Second)
	if warnings := m.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "has none yet") {
		t.Errorf("after minutes: %q", warnings)
	}
	m.status.polled(now)
	if warnings := m.Warnings(); len(warnings) != 0 {
		t.Errorf("up to date: %q", warnings)
	}
	m.status.skipped()
	if warnings := m.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "were skipped") {
		t.Errorf("something was skipped: %q", warnings)
	}
}
