package withdrawal

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/removal/removaltest"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// TestWithdrawnErrors: the database fails for a while.
func TestWithdrawnErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log testlog.Buffer
		begin := time.Now()
		var mu sync.Mutex
		var asked []time.Duration
		failing, freed := false, storage.Freed{}
		w := New(storage.New(nil, nil, storage.Options{}), slog.New(slog.NewTextHandler(&log, nil)))
		w.keep = func(context.Context, time.Time) error { return nil }
		w.drop = func(context.Context, time.Time) (storage.Freed, int, error) { return storage.Freed{}, 0, nil }
		w.remove = func(_ context.Context, now time.Time) (storage.Freed, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, time.Since(begin))
			if now != time.Now() {
				t.Errorf("asked for %v at %v", now, time.Now())
			}
			if failing {
				return storage.Freed{}, errors.New("broken")
			}
			defer func() { freed = storage.Freed{} }()
			return freed, nil
		}
		// pass lets time pass, and returns when remove was called.
		pass := func(d time.Duration, fails bool, frees storage.Freed) []time.Duration {
			mu.Lock()
			failing, freed = fails, frees
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			at := asked
			asked = nil
			return at
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { w.Run(ctx); close(ended) }()
		if at := pass(2500*time.Millisecond, false, storage.Freed{}); len(at) != 3 || at[0] != 0 || at[2] != 2*time.Second || log.String() != "" {
			t.Errorf("asked at %v: %s", at, log.String())
		}
		// After one, two, four seconds and so on, and finally each minute.
		if at := pass(10*time.Minute, true, storage.Freed{}); len(at) < 13 || len(at) > 17 || at[len(at)-1]-at[len(at)-2] != time.Minute {
			t.Errorf("asked at %v", at)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors are logged: %s", n, log.String())
		}
		pass(2*time.Minute, false, storage.Freed{Items: 3, Size: 100})
		for _, line := range []string{"can be removed again", "items=3 bytes=100"} {
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log lacks %q: %s", line, log.String())
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 3 {
			t.Errorf("%d lines are logged: %s", n, log.String())
		}
		stop()
		<-ended
	})
}

// TestWithdrawnRun: with a real storage, due items are removed, including those withdrawn
// before it began, except restored ones.
func TestWithdrawnRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := removaltest.Open(t, dir)
		p.AddItem(t, 1)
		p.AddItem(t, 2)
		p.AddItem(t, 3)
		all := map[string]index.Advertised{index.Narinfos: {TTL: 2*time.Minute - time.Second}}
		if err := p.Index.Advertise(t.Context(), time.Now(), all); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WithdrawAll(t.Context(), removaltest.Hashes(1, 2), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.AddItem(t, 2) // restored
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		var log bytes.Buffer
		go func() {
			New(p.Storage, slog.New(slog.NewTextHandler(&log, nil))).Run(ctx)
			close(ended)
		}()
		time.Sleep(time.Minute - time.Millisecond)
		synctest.Wait()
		if !p.Has(t, 1) {
			t.Error("removed early")
		}
		time.Sleep(withdrawnInterval)
		synctest.Wait()
		if p.Has(t, 1) || !p.Has(t, 2) || !p.Has(t, 3) {
			t.Error("the due items were not removed")
		}
		stop()
		<-ended
		if !strings.Contains(log.String(), "items=1 bytes=5") || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("the log: %s", log.String())
		}
	})
}

// TestWithdrawnAhead: an item that was withdrawn while the clock was a year ahead is
// removed a grace period after that was noticed.
func TestWithdrawnAhead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := removaltest.Open(t, dir)
		p.AddItem(t, 1)
		if _, err := p.WithdrawAll(t.Context(), removaltest.Hashes(1), nil); err != nil {
			t.Fatal(err)
		}
		if err := p.Index.Reclaim(t.Context(), func(tx *index.Tx) error {
			return tx.Postpone(removaltest.Hashes(1)[0], time.Now().AddDate(1, 0, 0))
		}); err != nil {
			t.Fatal(err)
		}
		// It is noticed after an hour. A restart doesn't prolong the grace period, and is
		// quicker than 36 hours of looking each second.
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				New(p.Storage, slog.New(slog.DiscardHandler)).Run(ctx)
				close(ended)
			}()
			return func() { cancel(); <-ended }
		}
		stop := run()
		time.Sleep(boundEvery + time.Minute)
		stop()
		time.Sleep(34*time.Hour + 50*time.Minute)
		stop = run()
		time.Sleep(9 * time.Minute) // 36 hours after the start
		synctest.Wait()
		if !p.Has(t, 1) {
			t.Error("removed early")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if p.Has(t, 1) {
			t.Error("it stays")
		}
		stop()
	})
}

// TestPinKeepsWithdrawn: a pinned item is added that refers to a withdrawn one.
func TestPinKeepsWithdrawn(t *testing.T) {
	t.Parallel()
	p := removaltest.Open(t, t.TempDir())
	p.AddItem(t, 10)
	p.AddItem(t, 11)
	needed, other := removaltest.Path(10).Hash, removaltest.Path(11).Hash
	p.Pin(t, 12) // unknown item
	if _, err := p.WithdrawAll(t.Context(), removaltest.Hashes(10, 11), nil); err != nil {
		t.Fatal(err)
	}
	p.AddItem(t, 12, 10)
	w := New(p.Storage, slog.New(slog.DiscardHandler))
	due := time.Now().AddDate(100, 0, 0)
	if err := w.keep(t.Context(), due); err != nil {
		t.Fatal(err)
	}
	if _, err := w.remove(t.Context(), due); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Text(t.Context(), needed); err != nil {
		t.Errorf("the dependency of the pinned item: %v", err)
	}
	if _, err := p.Item(t.Context(), other); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the unreferenced item: %v", err)
	}
}
