package index

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

// soon is how long a canceled wait may take to end on a busy machine.
const soon = 5 * time.Second

// wantCanceled calls f, which waits for a lock, cancels its context, and asserts that f
// returns the context's error.
func wantCanceled(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	select {
	case err := <-ended:
		t.Errorf("%s did not wait for the lock: %v", what, err)
		cancel()
		return
	case <-time.After(30 * time.Millisecond): // waiting can't be observed
	}
	cancel()
	begun := time.Now()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%s: %v, want context.Canceled", what, err)
	}
	if took := time.Since(begun); took > soon {
		t.Errorf("%s ended %v after its context", what, took)
	}
}

// TestWaitsEndWithTheirContext: every wait for a lock of another process ends with its
// context, and the operation works when the lock is free again.
func TestWaitsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	x, other := openAt(t, path), openAt(t, path)
	nothing := func(*Tx) error { return nil }
	free := errors.New("the lock is free again")
	err := other.Update(t.Context(), func(*Tx) error {
		wantCanceled(t, "Update", func(ctx context.Context) error { return x.Update(ctx, nothing) })
		// One transaction of this process waits for another that waits.
		wantCanceled(t, "an Update behind another", func(ctx context.Context) error {
			first, cancel := context.WithCancel(t.Context())
			waiting := make(chan error, 1)
			go func() { waiting <- x.Update(first, nothing) }()
			err := x.Update(ctx, nothing)
			cancel()
			<-waiting
			return err
		})
		wantCanceled(t, "Hurry behind an Update", func(ctx context.Context) error {
			first, cancel := context.WithCancel(t.Context())
			waiting := make(chan error, 1)
			go func() { waiting <- x.Update(first, nothing) }()
			for len(x.writing) == 0 {
				time.Sleep(time.Millisecond)
			}
			err := x.SetBulk(ctx, true)
			cancel()
			<-waiting
			return err
		})
		wantCanceled(t, "Open of an older database", func(ctx context.Context) error {
			later, err := open(ctx, path, Options{Migrate: true}, nextVersion)
			if err == nil {
				later.Close()
			}
			return err
		})
		wantCanceled(t, "Migrate", func(ctx context.Context) error {
			_, err := migrateWithCopy(ctx, path, nextVersion)
			return err
		})
		return free
	})
	if !errors.Is(err, free) {
		t.Fatal(err)
	}
	put(t, x, testNarinfo(3, 1, nil, 1))
	wantTotals(t, other, Totals{3, 3, 31})
}

// TestExclusiveLock does the same with a lock that blocks readers.
func TestExclusiveLock(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	c, err := connect(t.Context(), fileName(path)+"?_pragma=locking_mode(exclusive)")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.exec("BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	for name, access := range map[string]Access{"Create": Create, "Write": Write} {
		wantCanceled(t, "Open with "+name, func(ctx context.Context) error {
			x, err := Open(ctx, path, Options{Access: access})
			if err == nil {
				x.Close()
			}
			return err
		})
	}
	wantCanceled(t, "Migrate", func(ctx context.Context) error {
		_, err := Migrate(ctx, path)
		return err
	})
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	wantOldData(t, openAt(t, path))
}

// TestLockIsTakenSoon: a waiting writer gets the lock although another process takes it
// repeatedly and leaves it free only for moments.
func TestLockIsTakenSoon(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	busy, x := openAt(t, path), openAt(t, path)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	begun := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		for n := 0; ctx.Err() == nil; n++ {
			// Like an import beside the server's flushes.
			_ = busy.Update(ctx, func(tx *Tx) error {
				select {
				case begun <- struct{}{}:
				default:
				}
				return putIn(tx, busy, testNarinfo(n%100, n, nil, 1), 1, nil)
			})
		}
	}()
	const transactions = 8
	before := time.Now()
	for n := range transactions {
		<-begun
		put(t, x, testNarinfo(1000+n, 1, nil, 1))
	}
	took := time.Since(before)
	stop()
	<-ended
	// With SQLite's own wait, which pauses for up to 100 ms, this took 40 s.
	t.Logf("%d transactions took %v", transactions, took)
	if took > 20*time.Second {
		t.Errorf("%d transactions took %v beside others", transactions, took)
	}
}
