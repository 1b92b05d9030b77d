package scrub

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// newInternal makes a scrubber of a storage without nars.
func newInternal(t *testing.T, options Options) *Scrubber {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return New(storage.New(x, nil, storage.Options{}), options)
}

// TestRate: a pass ends in half of the interval, and small storages are read at the least rate.
func TestRate(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, test := range []struct {
		interval time.Duration
		stored   int64
		want     int64
	}{
		{90 * day, 0, leastRate},
		{90 * day, 100e9, leastRate},
		{90 * day, 10 << 40, 2 * (10 << 40) / (90 * 86400)},
		{90 * day, 1 << 60, 2 * (1 << 60) / (90 * 86400)},
		{time.Second, 1 << 62, 1 << 62},
		{time.Second, 10 << 20, 20 << 20},
	} {
		s := newInternal(t, Options{Interval: test.interval})
		s.setRate(test.stored)
		if got := s.limiter.Rate; got < test.want-test.want/1000 || got > test.want {
			t.Errorf("%d bytes in %v: %d, want %d", test.stored, test.interval, got, test.want)
		}
	}
}

// TestSpeed warns if an hour's reading was too slow for the interval.
func TestSpeed(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	s := newInternal(t, Options{Interval: 1000 * time.Hour, Now: func() time.Time { return now }})
	totals := index.Totals{StoredSize: 1000 << 30} // needs 1 GiB an hour
	for step, test := range []struct {
		passes time.Duration
		read   int64
		slow   bool
	}{
		{0, 0, false}, {30 * time.Minute, 0, false}, {31 * time.Minute, 900 << 20, true}, {30 * time.Minute, 0, true},
		{31 * time.Minute, 2 << 30, false}, {2 * time.Hour, 1 << 30, true}, {-time.Hour, 0, true}, {time.Hour, 2 << 30, false},
	} {
		now = now.Add(test.passes)
		s.speed.bytes += test.read
		if s.note(totals); (s.slow != "") != test.slow {
			t.Errorf("step %d: %q", step, s.slow)
		}
	}
}

// TestPaced reads at the rate, without a turn while it waits.
func TestPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turns sync.Mutex
		s := &Scrubber{turns: &turns, options: Options{Decode: func(_ context.Context, _ string, r io.Reader, _ int64) (io.ReadCloser, error) {
			return io.NopCloser(r), nil
		}}}
		limiter := &pace.Limiter{Rate: 1000}
		source := limiter.Reader(t.Context(), &checking{t, &turns, strings.NewReader(strings.Repeat("x", 10_000))})
		reader, err := s.decode(t.Context(), "none", source, -1)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		others, served := make(chan struct{}), 0
		go func() { // requests get their turns
			defer close(others)
			for range 100 {
				turns.Lock()
				served++
				turns.Unlock()
				time.Sleep(50 * time.Millisecond)
			}
		}()
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{reader}); n != 10_000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(begun); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("took %v", took)
		}
		if <-others; served != 100 {
			t.Errorf("requests got %d turns, want 100", served)
		}
		if !turns.TryLock() {
			t.Error("a turn was not released")
		}
	})
}

// checking is a reader that fails the test if the turn is held.
type checking struct {
	t     *testing.T
	turns *sync.Mutex
	io.Reader
}

func (c *checking) Read(p []byte) (int, error) {
	if !c.turns.TryLock() {
		c.t.Error("it waits for bytes with a turn")
	} else {
		c.turns.Unlock()
	}
	return c.Reader.Read(p)
}

// TestDecoderPanics: a fault of a decompressor is not damage of the nar.
func TestDecoderPanics(t *testing.T) {
	t.Parallel()
	var turns sync.Mutex
	s := &Scrubber{turns: &turns, options: Options{Decode: func(context.Context, string, io.Reader, int64) (io.ReadCloser, error) {
		return io.NopCloser(panicking{}), nil
	}}}
	reader, err := s.decode(t.Context(), "lzip", strings.NewReader(""), -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, narcheck.ErrUnreadable) {
		t.Errorf("%v", err)
	}
	if !turns.TryLock() {
		t.Error("the turn was not released")
	}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("a fault") }

// TestRest: the rest between passes depends on the interval.
func TestRest(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ interval, rest time.Duration }{{time.Second, time.Second}, {90 * 24 * time.Hour, 10 * time.Minute}, {time.Hour, 36 * time.Second}} {
		if got := rest(test.interval); got != test.rest {
			t.Errorf("%v: rests %v, want %v", test.interval, got, test.rest)
		}
	}
}
