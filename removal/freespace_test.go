package removal

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// volume is a file system of limited size, which an instance's storage shares with others.
type volume struct {
	i      *instance
	size   int64
	others atomic.Int64
	export string // a directory on it with links; "" for none
}

// onVolume is a directory on a volume.
type onVolume struct {
	*directory.Directory
	v *volume
}

func (d onVolume) FreeSpace() (free, size int64, err error) { return d.v.space() }

// onVolume moves the storage of an instance to its own file system.
func (i *instance) onVolume(size int64) *volume {
	i.t.Helper()
	v := &volume{i: i, size: size}
	store, err := directory.Open(i.directory)
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() {
		if err := store.Close(); err != nil {
			i.t.Error(err)
		}
	})
	i.Storage = storage.New(i.index, onVolume{store, v}, storage.Options{Now: i.clock.now})
	return v
}

func (v *volume) space() (free, size int64, err error) {
	taken := make(map[uint64]int64) // by inode
	for _, dir := range []string{filepath.Join(v.i.directory, "nar/lzip"), v.export} {
		entries, _ := os.ReadDir(dir)
		for _, entry := range entries {
			if info, err := entry.Info(); err == nil {
				taken[info.Sys().(*syscall.Stat_t).Ino] = (info.Size() + 4095) / 4096 * 4096
			}
		}
	}
	free = v.size - v.others.Load()
	for _, bytes := range taken {
		free -= bytes
	}
	return free, v.size, nil
}

func (v *volume) free() int64 {
	free, _, _ := v.space()
	return free
}

// spaced makes a remover with a minimum of free space.
func (i *instance) spaced(limit, minimum int64, other *instance, criteria ...string) *Remover {
	i.t.Helper()
	r := i.remover(limit, other, criteria...)
	r.space.minimum = minimum
	return r
}

const (
	giga     = 1 << 30
	narBytes = 100 << 10 // what each nar of these tests takes
)

func gone(state string) int { return strings.Count(state, "r") }

// TestMinimumFree: no more is removed than necessary, the longest unused first, and nothing
// while the minimum is free.
func TestMinimumFree(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	b.imports(many(20, narBytes)...)
	restore := c.back(400 * day)
	a.imports(many(20, narBytes)...)
	restore()
	for n := range 20 {
		a.used(n, c.now().Add(-map[bool]time.Duration{true: 300, false: 10}[n < 5]*day))
	}
	v := a.onVolume(giga)
	r := a.spaced(-1, v.free(), b, "stored-on=B")
	round(t, r)
	a.wantState(strings.Repeat("s", 20))
	if b.asked() > 0 || r.Warnings() != nil {
		t.Errorf("the minimum is free, and yet: %v", r.Warnings())
	}
	v.others.Store(5*narBytes - 10_000)
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "refused") || strings.Contains(warnings[0], a.directory) {
		t.Errorf("warnings below the minimum: %q", warnings)
	}
	for range 5 {
		round(t, r)
		c.advance(time.Hour)
	}
	a.wantState("rrrrrsssssssssssssss")
	if r.Warnings() != nil || counted(t, r, "narherder_removal_nars_total") != 5 {
		t.Errorf("%v", r.Warnings())
	}
	if free, least := counted(t, r, "narherder_storage_free_bytes"), counted(t, r, "narherder_storage_minimum_free_bytes"); free != float64(v.free()) || free < least {
		t.Errorf("free %v, minimum %v", free, least)
	}
	for _, text := range []string{"less than the minimum is free", "the minimum is free again"} {
		if n := strings.Count(a.log.String(), text); n != 1 {
			t.Errorf("the log has %q %d times", text, n)
		}
	}
}

// TestTwoGoals: one pass reaches both the limit and the minimum.
func TestTwoGoals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ limit, minimum, want int }{
		"limit needs more":   {5, 3, 5},
		"minimum needs more": {3, 5, 5},
		"only the limit":     {4, -1, 4},
		"only the minimum":   {-1, 4, 4},
		"neither":            {0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			a, b := newInstance(t, c), newInstance(t, c)
			a.imports(many(12, narBytes)...)
			b.imports(many(12, narBytes)...)
			v := a.onVolume(giga)
			limit, minimum := int64(-1), int64(-1)
			if test.limit >= 0 {
				limit = a.onDisk() - int64(test.limit)*narBytes
			}
			if test.minimum >= 0 {
				minimum = v.free() + int64(test.minimum)*narBytes
			}
			r := a.spaced(limit, minimum, b, "stored-on=B")
			round(t, r)
			if n := gone(a.state(12)); n != test.want {
				t.Errorf("%d were removed, want %d\n%s", n, test.want, a.log)
			}
			for range 3 {
				c.advance(time.Hour)
				round(t, r)
			}
			if n := gone(a.state(12)); n != test.want || r.Warnings() != nil {
				t.Errorf("%d were removed later, want %d; %v", n, test.want, r.Warnings())
			}
		})
	}
}

// TestMinimumFreeWithdraws: withdrawn nars count as free, so nothing more is withdrawn
// during the grace period.
func TestMinimumFreeWithdraws(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := newInstance(t, c)
	a.imports(many(20, narBytes)...)
	v := a.onVolume(giga)
	r := a.spaced(-1, v.free()+5*narBytes, nil, "unpinned")
	for range 30 {
		round(t, r)
		c.advance(time.Hour)
	}
	if state := a.state(20); strings.Count(state, "w") != 5 || strings.Count(state, "s") != 15 {
		t.Errorf("%s", state)
	}
	// The date is that of the first withdrawal, which was before the first of 30 hours.
	freed := c.now().Add(6*time.Hour + time.Second).UTC().Format(time.RFC3339)
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "bytes are withdrawn nars, which are freed from "+freed) {
		t.Errorf("too little is free until %s, and the warnings are %q", freed, warnings)
	}
	if bytes := counted(t, r, "narherder_storage_withdrawn_bytes"); bytes < 5*narBytes || bytes > 6*narBytes {
		t.Errorf("%v bytes are withdrawn", bytes)
	}
	if log := a.log.String(); strings.Count(log, "withdrew items") != 1 || !strings.Contains(log, "items=5 ") || !strings.Contains(log, "freed_from="+freed) || strings.Contains(log, "made room") {
		t.Errorf("the log: %s", log)
	}
	if _, err := deletion.RemoveWithdrawn(t.Context(), a.Storage, c.now().Add(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		round(t, r)
		c.advance(time.Hour)
	}
	if left := v.free() - r.space.minimum; left != 0 || r.Warnings() != nil {
		t.Errorf("%d bytes above the minimum, %v", left, r.Warnings())
	}
}

// TestLinkedNars: removing nars that have other names, as in an export, frees nothing, and
// no others are removed instead.
func TestLinkedNars(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(20, narBytes)...)
	b.imports(many(20, narBytes)...)
	v := a.onVolume(giga)
	v.export = memoryDir(t)
	exported := func(n int) string { return filepath.Join(v.export, spec{n: n}.base()) }
	for n := range 20 {
		if err := os.Link(spec{n: n}.file(a.directory), exported(n)); err != nil {
			t.Fatal(err)
		}
	}
	r := a.spaced(-1, v.free()+3*narBytes, b, "stored-on=B")
	for range 60 * 23 { // less than a day
		round(t, r)
		c.advance(time.Minute)
	}
	if n := gone(a.state(20)); n != 3 {
		t.Errorf("%d were removed, want 3\n%s", n, a.log)
	}
	// The export is updated.
	for n := range 20 {
		if _, err := os.Stat(spec{n: n}.file(a.directory)); err != nil {
			if err := os.Remove(exported(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 60 * 48 {
		round(t, r)
		c.advance(time.Minute)
	}
	if n := gone(a.state(20)); n != 3 || r.Warnings() != nil {
		t.Errorf("%d were removed, want 3; %v\n%s", n, r.Warnings(), a.log)
	}
}

// TestOthersFill: another program fills the file system for hours. At most half of the nars
// is removed for it in a day.
func TestOthersFill(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(20, narBytes)...)
	b.imports(many(20, narBytes)...)
	v := a.onVolume(giga)
	r := a.spaced(-1, v.free(), b, "stored-on=B")
	for range 60 * 20 {
		round(t, r)
		c.advance(time.Minute)
		v.others.Add(narBytes / 70)
	}
	if n := gone(a.state(20)); n < 9 || n > 11 {
		t.Errorf("%d of 20 were removed on the first day\n%s", n, a.log)
	}
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "other programs") {
		t.Errorf("warnings %q", warnings)
	}
	if n := strings.Count(a.log.String(), "level=ERROR"); n == 0 || n > 24 {
		t.Errorf("the log has %d errors\n%s", n, a.log)
	}
	// It stops, and frees all of it.
	v.others.Store(0)
	round(t, r)
	if r.Warnings() != nil {
		t.Errorf("%v", r.Warnings())
	}
}

// TestUnreachableMinimum: nothing is removed if all nars together would not be enough.
func TestUnreachableMinimum(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := newInstance(t, c)
	a.imports(many(10, narBytes)...)
	v := a.onVolume(giga)
	r := a.spaced(-1, giga/2, nil, "unpinned")
	v.others.Store(giga/2 + 1<<20)
	round(t, r)
	a.wantState(strings.Repeat("s", 10))
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "even without any nar") {
		t.Errorf("warnings %q", warnings)
	}
}

// TestMinimumFreeWithoutCriteria: it warns, and removes nothing.
func TestMinimumFreeWithoutCriteria(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := newInstance(t, c)
	a.imports(many(10, narBytes)...)
	v := a.onVolume(giga)
	r := a.spaced(-1, v.free()+narBytes, nil)
	round(t, r)
	a.wantState(strings.Repeat("s", 10))
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "no --storage-nar-removal-criteria") {
		t.Errorf("warnings %q", warnings)
	}
}

// TestMinimumFreeOnDisk uses a real file system.
func TestMinimumFreeOnDisk(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	disk := testfs.Small(t, size)
	c := newClock()
	a, b := newInstanceIn(t, c, filepath.Join(disk, "storage")), newInstance(t, c)
	a.imports(many(20, narBytes)...)
	b.imports(many(20, narBytes)...)
	free, total, err := a.FreeSpace()
	if err != nil || total != size || free > size-20*narBytes {
		t.Fatalf("%d of %d bytes are free, %v", free, total, err)
	}
	r := a.spaced(-1, free, b, "stored-on=B")
	round(t, r)
	a.wantState(strings.Repeat("s", 20))
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 3*narBytes), 0o644); err != nil {
		t.Fatal(err)
	}
	if len(r.Warnings()) != 1 {
		t.Errorf("warnings %q", r.Warnings())
	}
	for range 3 {
		round(t, r)
	}
	if n := gone(a.state(20)); n != 3 || r.Warnings() != nil {
		t.Errorf("%d were removed, want 3; %v", n, r.Warnings())
	}
	if now, _, err := a.FreeSpace(); err != nil || now < free {
		t.Errorf("%d bytes are free, %v; the minimum is %d", now, err, free)
	}
}

// TestSpace: which bytes count as free, and how many must be removed.
func TestSpace(t *testing.T) {
	t.Parallel()
	type step struct {
		after time.Duration
		look
		lacking int64
		reason  string
	}
	const minute = time.Minute
	for name, steps := range map[string][]step{
		"enough":        {{0, look{free: 200, stored: 1000}, 0, ""}, {minute, look{free: 100, stored: 1100}, 0, ""}},
		"own growth":    {{0, look{free: 150, stored: 1000}, 0, ""}, {minute, look{free: 90, stored: 1060}, 10, ""}},
		"pending":       {{0, look{free: 60, stored: 1000, pending: 30}, 10, ""}},
		"freed at once": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 100, stored: 960, evicted: 40}, 0, ""}},
		"freed late": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 60, stored: 960, evicted: 40}, 0, ""},
			{minute, look{free: 100, stored: 960, evicted: 40}, 0, ""}, {25 * time.Hour, look{free: 100, stored: 960, evicted: 40}, 0, ""}},
		"freed late after the grace": {{0, look{free: 60, stored: 1000, pending: 40}, 0, ""}, {minute, look{free: 60, stored: 960}, 0, ""},
			{minute, look{free: 100, stored: 960}, 0, ""}},
		"freed late, while growing": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 60, stored: 960, evicted: 40}, 0, ""},
			{minute, look{free: 90, stored: 970, evicted: 40}, 10, ""}},
		"never freed": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 60, stored: 960, evicted: 40}, 0, ""},
			{lateFor - 1, look{free: 60, stored: 960, evicted: 40}, 0, ""}, {1, look{free: 60, stored: 960, evicted: 40}, 40, ""}},
		"linked": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 60, stored: 960, evicted: 40, linked: 40}, 0, ""},
			{linkedFor - 1, look{free: 60, stored: 960, evicted: 40, linked: 40}, 0, ""}, {1, look{free: 60, stored: 960, evicted: 40, linked: 40}, 40, ""}},
		"some linked": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 60, stored: 960, evicted: 40, linked: 10}, 0, ""},
			{lateFor, look{free: 60, stored: 960, evicted: 40, linked: 10}, 30, ""}},
		"an administrator removes, while others grow": {{0, look{free: 100, stored: 1000}, 0, ""}, {minute, look{free: 60, stored: 900}, 40, ""}},
		"others grow": {{0, look{free: 100, stored: 1000}, 0, ""}, {minute, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 100, stored: 960, evicted: 40}, 0, ""}},
		"others grow too much": {{0, look{free: 100, stored: 1000}, 0, ""}, {minute, look{free: -500, stored: 1000}, 500, spaceTaken},
			{minute, look{free: 0, stored: 500, evicted: 500}, 0, spaceTaken}, {25 * time.Hour, look{free: 0, stored: 500, evicted: 500}, 100, ""}},
		"much that was never used": {{0, look{free: 9000, stored: 1000}, 0, ""}, {minute, look{free: 0, stored: 1000}, 100, ""}},
		"own growth, then others": {{0, look{free: 9000, stored: 1000}, 0, ""}, {minute, look{free: 5000, stored: 5000}, 0, ""}, {minute, look{free: -5000, stored: 5000}, 0, spaceUnreachable},
			{minute, look{free: -3000, stored: 5000}, 2500, spaceTaken}},
		"others shrink": {{0, look{free: 60, stored: 1000}, 40, ""}, {minute, look{free: 500, stored: 1000}, 0, ""}},
		"unreachable":   {{0, look{free: 10, stored: 80}, 0, spaceUnreachable}},
		"nearly all":    {{0, look{free: 10, stored: 100}, 90, ""}},
	} {
		s := space{minimum: 100}
		now := time.Unix(1_700_000_000, 0)
		for n, step := range steps {
			now = now.Add(step.after)
			s.observe(now, step.look)
			if lacking, reason := s.lacking(); lacking != step.lacking || reason != step.reason {
				t.Errorf("%s, step %d: %d lack, %q; want %d, %q", name, n, lacking, reason, step.lacking, step.reason)
			}
		}
	}
}
