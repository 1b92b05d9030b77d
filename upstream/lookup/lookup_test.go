package lookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// TestFound: an item is answered before it is written, asked for once, and still known after a
// restart.
func TestFound(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	hash := numbered(1)
	for range 3 {
		b.wants(hash, text(hash, 100), time.Hour)
		if !b.IsPending(hash) {
			t.Error("the item is not pending")
		}
	}
	if _, err := b.index.Item(t.Context(), hash); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("the index has the item before it was written: %v", err)
	}
	b.write()
	if b.IsPending(hash) {
		t.Error("the item is pending although the index has it")
	}
	row := b.row(hash)
	origins, err := b.index.Origins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := origins[row.Origin]; got != "http://upstream.example" {
		t.Errorf("origin %d, %q of %v", row.Origin, got, origins)
	}
	if !bytes.Equal(row.Text, text(hash, 100)) || row.Stored != 0 || row.Mirrored {
		t.Errorf("the row is %+v", row)
	}
	b.wantsTTL(row.FreshUntil, time.Hour)
	b.wants(hash, text(hash, 100), time.Hour) // from the index
	b.wantsAsked(1)

	b.later(2 * time.Hour)
	b.Close()
	again := openBed(t, b.dir, Options{})
	again.set(func(narinfo.PathHash) upstream.Answer { return upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown} })
	again.wants(hash, text(hash, 100), time.Hour)
	again.wantsAsked(0)
}

// TestTTL checks how long answers are kept that name times of all kinds.
func TestTTL(t *testing.T) {
	t.Parallel()
	minutes := func(n int) *time.Duration {
		d := time.Duration(n) * time.Minute
		return &d
	}
	for name, test := range map[string]struct {
		negative *time.Duration
		answer   upstream.Answer
		err      error
		ttl      time.Duration
		again    time.Duration // when it is asked for again; 0 for ttl
	}{
		"found":                 {answer: found(text(numbered(1), 1), 10*time.Minute), ttl: 10 * time.Minute},
		"found, no time":        {answer: found(text(numbered(1), 1), -1), ttl: unsaidTTL},
		"found, not to be kept": {answer: found(text(numbered(1), 1), 0), ttl: burstTime},
		"found, for ever":       {answer: found(text(numbered(1), 1), 1<<62), ttl: LongestTTL},

		"missing":                 {answer: missing(5 * time.Minute), err: storage.ErrNotFound, ttl: 5 * time.Minute},
		"missing, shorter here":   {negative: minutes(2), answer: missing(5 * time.Minute), err: storage.ErrNotFound, ttl: 2 * time.Minute},
		"missing, longer here":    {negative: minutes(60), answer: missing(5 * time.Minute), err: storage.ErrNotFound, ttl: 5 * time.Minute},
		"missing, no time":        {answer: missing(-1), err: storage.ErrNotFound, ttl: negativeTTL},
		"missing, only time here": {negative: minutes(60), answer: missing(-1), err: storage.ErrNotFound, ttl: time.Hour},
		"missing, not to be kept": {answer: missing(0), err: storage.ErrNotFound, ttl: 0, again: burstTime},
		"missing, for ever":       {answer: missing(1 << 62), err: storage.ErrNotFound, ttl: LongestTTL},

		"unknown": {answer: upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown}, err: upstream.ErrUnknown, ttl: -1, again: downPause},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, Options{NegativeTTL: test.negative})
			b.set(func(narinfo.PathHash) upstream.Answer { return test.answer })
			check := func() {
				t.Helper()
				if test.err != nil {
					b.lacks(numbered(1), test.err, test.ttl)
				} else {
					b.wants(numbered(1), text(numbered(1), 1), test.ttl)
					b.write()
				}
			}
			check()
			check()
			b.wantsAsked(1)
			again := test.again
			if again == 0 {
				again = test.ttl
			}
			b.later(again + time.Millisecond)
			check()
			b.wantsAsked(2)
		})
	}
}

// TestDownIsNotFound: with this option, unknown items are missing, for a short time.
func TestDownIsNotFound(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{DownIsNotFound: true})
	b.set(func(narinfo.PathHash) upstream.Answer { return upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown} })
	b.lacks(numbered(1), storage.ErrNotFound, DownTTL)
	b.later(downPause + time.Millisecond)
	b.set(has)
	b.wants(numbered(1), text(numbered(1), 100), time.Hour)

	// An item that is known and expired is not missing.
	b.put(text(numbered(2), 100), 1, b.now().Add(-time.Second), 0)
	b.set(func(narinfo.PathHash) upstream.Answer { return upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown} })
	b.lacks(numbered(2), upstream.ErrUnknown, -1)
}

// TestExpired checks what is answered and written about an item whose answer has expired.
func TestExpired(t *testing.T) {
	t.Parallel()
	hash := numbered(1)
	old, other := text(hash, 100), text(hash, 200)
	sameNar := append(bytes.Clone(old), "Deriver: x.drv\n"...)
	down := upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown}
	for name, test := range map[string]struct {
		stored     uint64
		answer     upstream.Answer
		text       []byte // nil for an error
		err        error
		ttl        time.Duration
		row        []byte
		rowExpired bool
		rowStored  uint64
	}{
		"same":                {answer: found(old, time.Hour), text: old, ttl: time.Hour, row: old},
		"same, stored":        {stored: 1, answer: found(old, time.Hour), text: old, ttl: time.Hour, row: old, rowStored: 1},
		"other text":          {stored: 1, answer: found(sameNar, time.Hour), text: sameNar, ttl: time.Hour, row: sameNar, rowStored: 1},
		"other nar":           {stored: 1, answer: found(other, time.Hour), text: other, ttl: time.Hour, row: other},
		"gone":                {answer: missing(time.Minute), err: storage.ErrNotFound, ttl: time.Minute, row: old, rowExpired: true},
		"gone, stored":        {stored: 1, answer: missing(time.Minute), text: old, ttl: keptTTL, row: old, rowStored: 1},
		"unreachable":         {answer: down, err: upstream.ErrUnknown, ttl: -1, row: old, rowExpired: true},
		"unreachable, stored": {stored: 1, answer: down, err: upstream.ErrUnknown, ttl: -1, row: old, rowExpired: true, rowStored: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, Options{})
			file := filepath.Join(b.dir, "storage", "nar", "lzip", hash.String()+"-item")
			if test.stored != 0 {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, make([]byte, 100), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b.put(old, 7, b.now().Add(-time.Second), test.stored)
			b.set(func(narinfo.PathHash) upstream.Answer { return test.answer })
			for range 2 {
				if test.err != nil {
					b.lacks(hash, test.err, test.ttl)
				} else {
					b.wants(hash, test.text, test.ttl)
				}
			}
			b.wantsAsked(1)
			b.write()
			row := b.row(hash)
			if !bytes.Equal(row.Text, test.row) || row.Stored != test.rowStored || row.Origin == 0 {
				t.Errorf("the row is %+v, %q", row, row.Text)
			}
			if expired := !b.now().Before(row.FreshUntil); expired != test.rowExpired {
				t.Errorf("the row expires at %v", row.FreshUntil)
			}
			_, err := os.Stat(file)
			if exists := err == nil; exists != (test.rowStored != 0) {
				t.Errorf("the nar's file: %v, but Stored is %d", err, row.Stored)
			}
		})
	}
}

// TestNotOfUpstream: nobody is asked about items that were imported or removed here, and they
// stay as they are.
func TestNotOfUpstream(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	imported, removed := numbered(1), numbered(2)
	b.put(text(imported, 1), 0, time.Time{}, 0)
	b.put(text(removed, 1), 1, b.now().Add(-time.Hour), 0)
	if _, err := b.storage.WithdrawAll(t.Context(), []narinfo.PathHash{removed}, nil); err != nil {
		t.Fatal(err)
	}
	b.wants(imported, text(imported, 1), -1)
	b.lacks(removed, storage.ErrNotFound, -1)
	b.wantsAsked(0)

	// They are imported and removed between the answer and its writing.
	imported, removed = numbered(3), numbered(4)
	b.wants(imported, text(imported, 100), time.Hour)
	b.wants(removed, text(removed, 100), time.Hour)
	b.put(text(imported, 1), 0, time.Time{}, 0)
	b.put(text(removed, 1), 1, b.now().Add(-time.Hour), 0)
	if _, err := b.storage.WithdrawAll(t.Context(), []narinfo.PathHash{removed}, nil); err != nil {
		t.Fatal(err)
	}
	b.write()
	if row := b.row(imported); row.Origin != 0 || !bytes.Equal(row.Text, text(imported, 1)) {
		t.Errorf("the imported item is %+v", row)
	}
	if row := b.row(removed); row.WithdrawnAt.IsZero() {
		t.Errorf("the removed item is %+v", row)
	}

	// An expired item is removed with its row meanwhile.
	gone := numbered(5)
	b.put(text(gone, 100), 1, b.now().Add(-time.Hour), 0)
	b.wants(gone, text(gone, 100), time.Hour)
	if _, err := b.storage.Remove(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	b.write()
	if _, err := b.index.Item(t.Context(), gone); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("the item that was removed is back: %v", err)
	}
}

// TestOnce: many clients that ask for the same items at once cause one question about each, and
// one that leaves stops nobody else.
func TestOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.hold = make(chan struct{})
	left, leave := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for n := range 50 {
		clients.Go(func() {
			ctx := t.Context()
			if n%2 == 0 {
				ctx = left
			}
			hash := numbered(n / 2 % 5)
			answer, err := b.LookUp(ctx, hash, Asker{})
			if hasLeft := n%2 == 0 && errors.Is(err, context.Canceled); !hasLeft && (err != nil || !bytes.Equal(answer.Text, text(hash, 100))) {
				t.Errorf("client %d: %q, %v", n, answer.Text, err)
			}
		})
	}
	for _, items := b.questions(); items < 5; _, items = b.questions() {
		runtime.Gosched()
	}
	leave()
	close(b.hold)
	clients.Wait()
	b.wantsAsked(5)
}

// TestAhead: what a client has requested ahead is asked for in few questions, in its order, and
// what arrives while it waits is asked for at once.
func TestAhead(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.hold = make(chan struct{})
	const burst = 1000
	all := numberedTo(burst)
	b.put(text(all[10], 100), 0, time.Time{}, 0)
	b.put(text(all[20], 100), 1, b.now().Add(time.Hour), 0)
	b.put(text(all[30], 100), 1, b.now().Add(-time.Hour), 0)
	rest := all
	calls := 0
	next := func() (some []narinfo.PathHash) {
		switch calls++; {
		case calls <= 2: // at once, and when it waits
			some, rest = rest[:burst/2], rest[burst/2:]
		case calls == 5:
			close(b.hold)
		}
		return some
	}
	for n, hash := range all {
		answer, err := b.LookUp(t.Context(), hash, Asker{Next: next})
		if err != nil || !bytes.Equal(answer.Text, text(hash, 100)) {
			t.Errorf("answer %d: %q, %v", n, answer.Text, err)
		}
	}
	if questions, items := b.questions(); questions != 4 || items != burst-2 {
		t.Errorf("%d questions about %d items", questions, items)
	}
	if !slices.IsSortedFunc(b.asked[0], func(a, c narinfo.PathHash) int { return slices.Index(all, a) - slices.Index(all, c) }) {
		t.Error("the items are not asked for in the client's order")
	}
}

// TestVia: a question that other instances have forwarded does not wait for one that waits for
// them, and a negative answer to it is not one for everybody.
func TestVia(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.hold = make(chan struct{})
	via := []string{"1.1 nar-herder-x"}
	own := make(chan error, 1)
	go func() {
		_, err := b.LookUp(t.Context(), numbered(1), Asker{Via: []string{"1.1 proxy"}})
		own <- err
	}()
	for calls, _ := b.questions(); calls == 0; calls, _ = b.questions() {
		runtime.Gosched()
	}
	hold := b.hold
	b.mu.Lock()
	b.hold = nil
	b.answer = func(narinfo.PathHash) upstream.Answer { return missing(time.Hour) }
	b.mu.Unlock()
	if _, err := b.LookUp(t.Context(), numbered(1), Asker{Via: via}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("forwarded: %v", err)
	}
	close(hold)
	if err := <-own; err != nil {
		t.Errorf("own: %v", err)
	}
	if !slices.Equal(b.vias[1], via) {
		t.Errorf("asked with Via %q", b.vias)
	}
}

// TestLimits: a client that asks for very many unknown items is refused at some point, in bounded
// memory. Others, and items that are known or remembered, are answered.
func TestLimits(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	const share = 500
	b.limits.total = rate.NewLimiter(0, 3*share/2)
	b.limits.share = func() *rate.Limiter { return rate.NewLimiter(0, share) }
	b.set(func(narinfo.PathHash) upstream.Answer { return missing(time.Hour) })
	known := numbered(-1)
	b.put(text(known, 100), 1, b.now().Add(time.Hour), 0)
	one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	refused := 0
	for n := range 2 * share {
		_, err := b.LookUp(t.Context(), numbered(n), Asker{Client: one})
		switch {
		case errors.Is(err, ErrBusy):
			refused++
		case !errors.Is(err, storage.ErrNotFound):
			t.Fatalf("question %d: %v", n, err)
		}
	}
	if refused != share {
		t.Errorf("%d of %d questions were refused", refused, 2*share)
	}
	if answer, err := b.LookUp(t.Context(), known, Asker{Client: one}); err != nil || answer.Text == nil {
		t.Errorf("known: %v", err)
	}
	if _, err := b.LookUp(t.Context(), numbered(0), Asker{Client: one}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("remembered: %v", err)
	}
	if _, err := b.LookUp(t.Context(), numbered(-2), Asker{Client: other}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("another client: %v", err)
	}
	b.limits.total.SetBurst(0)
	if _, err := b.LookUp(t.Context(), numbered(-3), Asker{Client: other}); !errors.Is(err, ErrBusy) {
		t.Errorf("beyond the limit of all: %v", err)
	}
	b.wantsAsked(share + 1)
	got := metricsOf(t, b)
	if got["missing"] != share+1 || got["refused"] != share+1 || got["found"] != 1 || got["narherder_lookups_in_flight"] != 0 || got["narherder_lookups_remembered"] == 0 {
		t.Errorf("the metrics are %v", got)
	}
}

// metricsOf returns the values of the metrics, and of narherder_lookups_total by outcome.
func metricsOf(t *testing.T, b *bed) map[string]float64 {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Finder)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.Metric {
			if len(metric.Label) > 0 {
				values[metric.Label[0].GetValue()] = metric.Counter.GetValue()
			} else {
				values[family.GetName()] = metric.Gauge.GetValue()
			}
		}
	}
	return values
}

// TestBounded: remembered answers and questions in flight are bounded.
func TestBounded(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.set(func(narinfo.PathHash) upstream.Answer { return missing(time.Hour) })
	const remembered, asking = 500, 1000
	b.answers.Resize(remembered)
	b.limits.asking = asking
	for n := 0; n < 2*remembered; n += 100 {
		hashes := numberedTo(n + 100)[n:]
		b.Prefetch(hashes, Asker{})
		if _, err := b.LookUp(t.Context(), hashes[99], Asker{}); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
	}
	b.Finder.mu.Lock()
	if n := b.answers.Len(); n != remembered {
		t.Errorf("%d answers are remembered", n)
	}
	b.Finder.mu.Unlock()

	b.mu.Lock()
	b.hold = make(chan struct{})
	b.mu.Unlock()
	b.Prefetch(numberedTo(2*asking + 2*remembered)[2*remembered:], Asker{})
	b.Finder.mu.Lock()
	if n := len(b.Finder.questions); n != asking/2 {
		t.Errorf("%d questions are in flight", n)
	}
	b.Finder.mu.Unlock()
	// Somebody who waits for one has room.
	done := make(chan error)
	go func() {
		_, err := b.LookUp(t.Context(), numbered(-1), Asker{})
		done <- err
	}()
	for b.lastAsked() != numbered(-1) {
		runtime.Gosched()
	}
	close(b.hold)
	if err := <-done; !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

func (b *bed) lastAsked() narinfo.PathHash {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := b.asked[len(b.asked)-1]
	return last[len(last)-1]
}

// TestAdd waits until an item is written.
func TestAdd(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.run()
	for n := range 20 {
		if _, err := b.Add(t.Context(), numbered(n), Asker{}); err != nil {
			t.Fatal(err)
		}
		if row := b.row(numbered(n)); row.Origin == 0 {
			t.Errorf("the row is %+v", row)
		}
	}
	b.set(func(narinfo.PathHash) upstream.Answer { return missing(time.Hour) })
	if _, err := b.Add(t.Context(), numbered(-1), Asker{}); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

// TestDatabaseFails: while the database can't be written, items are served from memory. They are
// written when it can be written again.
func TestDatabaseFails(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	release := lock(t, b)
	for n := range 10 {
		b.wants(numbered(n), text(numbered(n), 100), time.Hour)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if err := b.writeAll(ctx); err == nil {
		t.Fatal("written to a locked database")
	}
	cancel()
	b.wants(numbered(3), text(numbered(3), 100), time.Hour)
	b.wantsAsked(10)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := b.Add(short, numbered(3), Asker{}); !errors.Is(err, ErrBusy) {
		t.Errorf("an item that can't be written: %v", err)
	}
	release()
	b.write()
	for n := range 10 {
		b.row(numbered(n))
	}
	if n := unwritten(b); n != 0 {
		t.Errorf("%d items are left", n)
	}
}

// lock makes writing to the database wait until release.
func lock(t *testing.T, b *bed) (release func()) {
	locked, released, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		err := b.index.Update(context.Background(), func(*index.Tx) error {
			close(locked)
			<-released
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-locked
	return sync.OnceFunc(func() {
		close(released)
		<-done
	})
}

func unwritten(b *bed) int {
	b.Finder.mu.Lock()
	defer b.Finder.mu.Unlock()
	return len(b.Finder.found)
}

// TestMemory: a database that can't be written for long doesn't make the memory grow.
func TestMemory(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	const most = 500
	b.limits.unwritten = most
	b.Finder.mu.Set(func() { b.failing = true })
	for n := 0; n < 2*most; n += 100 {
		hashes := numberedTo(n + 100)[n:]
		b.Prefetch(hashes, Asker{})
		b.wants(hashes[99], text(hashes[99], 100), time.Hour)
	}
	if n := unwritten(b); n != most {
		t.Errorf("%d items are in memory", n)
	}
	b.write()
	if n := unwritten(b); n != 0 {
		t.Errorf("%d items are left", n)
	}
}

// TestClose: the last items are written, questions in flight end, and later ones are refused.
func TestClose(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	stop := b.run()
	b.wants(numbered(1), text(numbered(1), 100), time.Hour)
	b.mu.Lock()
	b.hold = make(chan struct{})
	b.mu.Unlock()
	waiting := make(chan error)
	go func() {
		_, err := b.LookUp(t.Context(), numbered(2), Asker{})
		waiting <- err
	}()
	for _, items := b.questions(); items < 2; _, items = b.questions() {
		runtime.Gosched()
	}
	stop()
	begun := time.Now()
	b.Close()
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
	if err := <-waiting; !errors.Is(err, upstream.ErrUnknown) {
		t.Errorf("in flight: %v", err)
	}
	b.row(numbered(1))
	if _, err := b.LookUp(t.Context(), numbered(3), Asker{}); !errors.Is(err, ErrBusy) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCloseLocked: another process holds the lock at shutdown.
func TestCloseLocked(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.wants(numbered(1), text(numbered(1), 100), time.Hour)
	release := lock(t, b)
	defer release()
	begun := time.Now()
	b.Close()
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
	if !strings.Contains(b.log.String(), "will be asked for again") {
		t.Errorf("the log: %s", b.log)
	}
}

// TestCloseWhileWriting: Close doesn't write what Run is just writing.
func TestCloseWhileWriting(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	for n := range 10 {
		b.wants(numbered(n), text(numbered(n), 100), time.Hour)
	}
	release := lock(t, b)
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := b.writeAll(t.Context()); err != nil {
			t.Error(err)
		}
	})
	writing.Go(b.Close)
	time.AfterFunc(100*time.Millisecond, release) // when both wait
	writing.Wait()
	for n := range 10 {
		b.row(numbered(n))
	}
	if n := unwritten(b); n != 0 {
		t.Errorf("%d items are left", n)
	}
}

// TestSourceForgets: a source that delivers no answer is a fault, and nobody waits for ever.
func TestSourceForgets(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	b.source = forgetful{}
	b.lacks(numbered(1), upstream.ErrUnknown, -1)
}

type forgetful struct{}

func (forgetful) Ask(context.Context, []narinfo.PathHash, []string, func(narinfo.PathHash, upstream.Answer)) {
}

// TestDropped: the answers are without the blocks of files that were dropped here.
func TestDropped(t *testing.T) {
	t.Parallel()
	hash := numbered(1)
	base := hash.String() + "-item"
	full := fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 100\nReferences: \nSignature: 1;host;AAAA\n", base, 1)
	for _, kind := range []string{"lzip", "gzip"} {
		full = fmt.Appendf(full, "URL: nar/%s/%s\nCompression: %[1]s\nFileSize: 100\n", kind, base)
	}
	announced, _, _ := bytes.Cut(full, []byte("URL: nar/gzip"))
	for name, test := range map[string]struct {
		origin int64
		fresh  time.Duration
		answer upstream.Answer
		ttl    time.Duration
	}{
		"imported": {ttl: -1},
		"fresh":    {origin: 1, fresh: time.Hour, ttl: time.Hour},
		"same":     {origin: 1, answer: found(full, 2*time.Hour), ttl: 2 * time.Hour},
		"gone":     {origin: 1, answer: missing(time.Minute), ttl: keptTTL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, Options{})
			b.put(full, test.origin, b.now().Add(test.fresh), 0b11)
			err := b.index.Update(t.Context(), func(tx *index.Tx) error { return tx.SetDropped(hash, 0b10, b.now()) })
			if err != nil {
				t.Fatal(err)
			}
			b.set(func(narinfo.PathHash) upstream.Answer { return test.answer })
			b.wants(hash, announced, test.ttl)
			b.write()
			if row := b.row(hash); row.Dropped != 0b10 || !bytes.Equal(row.Text, full) {
				t.Errorf("the row is %+v, %q", row, row.Text)
			}
		})
	}
}

// TestSameKey: an item that can't be written, since the hash of another begins with the same 64
// bits, keeps no others from being written.
func TestSameKey(t *testing.T) {
	t.Parallel()
	b := newBed(t, Options{})
	first, same, next := numbered(1), numbered(1), numbered(2)
	same[len(same)-1] = 1
	b.put(text(first, 1), 0, time.Time{}, 0)
	for _, hash := range []narinfo.PathHash{same, next} {
		b.wants(hash, text(hash, 100), time.Hour)
	}
	b.write()
	if row := b.row(next); row.Origin == 0 {
		t.Errorf("%+v", row)
	}
	if row := b.row(first); row.Origin != 0 || !bytes.Equal(row.Text, text(first, 1)) {
		t.Errorf("%+v", row)
	}
	if n := unwritten(b); n != 0 {
		t.Errorf("%d items are unwritten", n)
	}
	if !strings.Contains(b.log.String(), "same first 64 bits") {
		t.Errorf("the log: %s", b.log)
	}
}
