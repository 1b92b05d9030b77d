package mirror

import (
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/apply"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/narinfo"
)

// many is a source with 300 items and a dump.
func many(t *testing.T) *instance {
	source := newInstance(t)
	infos := make([]*narinfo.Narinfo, 300)
	for n := range infos {
		infos[n] = testInfo(n, 1, n)
	}
	source.add(at(1), infos...)
	source.dump(true)
	return source
}

// numbers returns the numbers from one up to another.
func numbers(from, to int) (all []int) {
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all
}

// TestRemovalsAtWrongTimes: neither odd times of its changes nor a restart of the mirror hide
// a mass removal at the source.
func TestRemovalsAtWrongTimes(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(n int) time.Time{
		"an hour apart":     func(n int) time.Time { return at(0).Add(time.Duration(n) * 61 * time.Minute) },
		"ever earlier":      func(n int) time.Time { return at(0).Add(-time.Duration(n) * 61 * time.Minute) },
		"yet to come":       func(n int) time.Time { return at(0).AddDate(n, 0, 0) },
		"before everything": func(n int) time.Time { return time.Date(1, 1, 1, n, 0, 0, 0, time.UTC) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, own := many(t), newInstance(t)
			f := follow(t, own, source, nil)
			f.same(source)
			for n := 0; n < 80; n += 20 {
				source.remove(when(n), numbers(n, n+20)...)
				f.same(source)
			}
			f.stop()
			f = follow(t, own, source, nil)
			for n := 80; n < 160; n += 20 {
				source.remove(when(n), numbers(n, n+20)...)
			}
			if why := f.refused(); !strings.Contains(why, "within an hour") {
				t.Errorf("it was refused because %s", why)
			}
			if left := len(f.list()); left < 200 {
				t.Errorf("%d items are left", left)
			}
		})
	}
}

// TestRemovalsByDumps: items that several dumps lack add up, also with removals by changes
// between them.
func TestRemovalsByDumps(t *testing.T) {
	t.Parallel()
	source, own := many(t), newInstance(t)
	downloads := filepath.Join(t.TempDir(), "download")
	// step is a restart of the mirror.
	step := func() error {
		_, err := mirrorOf2(t, own, source, downloads).step(t.Context())
		return err
	}
	lose := func(from, to int) {
		source.remove(at(from), numbers(from, to)...)
		source.add(at(to), testInfo(1000+to, 1, 1))
		source.dump(true)
		source.trim(1 << 60)
	}
	if err := step(); err != nil {
		t.Fatal(err)
	}
	lose(0, 60)
	if err := step(); err != nil {
		t.Fatal(err)
	}
	if left := len(own.list()); left != 241 {
		t.Fatalf("%d items are left", left)
	}
	lose(60, 120)
	var refused *health.RefusedError
	if err := step(); !errors.As(err, &refused) {
		t.Errorf("a second dump that lacks as much: %v", err)
	}
	if left := len(own.list()); left < 241 {
		t.Errorf("%d items are left", left)
	}
	// The cursor was written while items were removed, or it is the one after the dump.
	from, err := cursor.Read(t.Context(), own.index)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, n := range from.Removals {
		sum += n
	}
	if sum != 60 {
		t.Errorf("%d removals are remembered, want 60", sum)
	}
}

// TestRemovalsOfUnknown: removals of unknown items, and accepted removals, don't count
// against a source.
func TestRemovalsOfUnknown(t *testing.T) {
	t.Parallel()
	source, own := many(t), newInstance(t)
	m := mirrorOf2(t, own, source, filepath.Join(t.TempDir(), "download"))
	if _, err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	follow := func(from, to int) (map[int64]int, error) {
		b := &batch{}
		for _, n := range numbers(from, to) {
			b.add(apply.Change{At: at(n), Hash: testPath(n).Hash})
		}
		err := m.apply(t.Context(), b)
		return b.next.Removals, err
	}
	if removals, err := follow(1000, 1400); err != nil || len(removals) != 0 {
		t.Errorf("removals of unknown items: %v, %v are counted", err, removals)
	}
	var refused *health.RefusedError
	if _, err := follow(0, 200); !errors.As(err, &refused) {
		t.Errorf("removals of known items: %v", err)
	}
	if err := Accept(t.Context(), own.index, m.Now()); err != nil {
		t.Fatal(err)
	}
	if removals, err := follow(0, 200); err != nil || len(removals) != 0 {
		t.Errorf("accepted: %v, %v are counted", err, removals)
	}
	if left := len(own.list()); left != 100 {
		t.Errorf("%d items are left", left)
	}
}

// TestWithRemovals: removals count for an hour by the mirror's clock. Those of a clock that
// was ahead count as of now.
func TestWithRemovals(t *testing.T) {
	t.Parallel()
	now := at(0)
	minute := now.Unix() / 60
	done := map[int64]int{minute - 60: 1, minute - 59: 2, minute: 4, minute + 1: 8, minute + 600_000: 16}
	got := withRemovals(done, 32, now)
	if want := map[int64]int{minute - 59: 2, minute: 60}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(done) != 5 {
		t.Error("the earlier removals have changed")
	}
}
