package removal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
	"nar-herder/removal/removaltest"
	"nar-herder/storage"
	storagecheck "nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// TestLimit: no more is removed than necessary, the longest unused first.
func TestLimit(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	b.imports(many(20, 10_000)...)
	restore := c.back(400 * day)
	a.imports(many(20, 10_000)...)
	restore()
	// All were added long ago, and used since.
	ages := map[int]time.Duration{19: 400, 4: 380, 7: 100, 12: 100, 1: 40}
	for n := range 20 {
		a.used(n, c.now().Add(-max(ages[n], 10)*day))
	}
	per := int64(12 << 10)
	usage := a.onDisk()
	r := a.remover(usage-5*per, b, "stored-on=B")
	round(t, r)
	const gone = "srssrssrssssrssssssr"
	a.wantState(gone)
	if now := a.onDisk(); now != usage-5*per {
		t.Errorf("%d are left of %d, each has %d", now, usage, per)
	}
	var latest []string
	for _, one := range r.Latest() {
		latest = append(latest, one.Path.BaseName())
		if one.Bytes != 10_000 || !one.At.Equal(c.now()) {
			t.Errorf("removed: %+v", one)
		}
	}
	slices.Sort(latest)
	if want := []string{spec{n: 1}.base(), spec{n: 4}.base(), spec{n: 7}.base(), spec{n: 12}.base(), spec{n: 19}.base()}; !slices.Equal(latest, want) {
		t.Errorf("removed: %q, want %q", latest, want)
	}
	for name, want := range map[string]float64{
		"narherder_removal_nars_total": 5, "narherder_removal_withdrawn_total": 0, "narherder_removal_bytes_total": float64(5 * per),
		"narherder_removal_decisions_total": 5, "narherder_removal_failed_questions_total": 0, "narherder_storage_limit_bytes": float64(usage - 5*per),
	} {
		if got := counted(t, r, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	b.asked()
	for range 5 {
		c.advance(time.Hour)
		round(t, r)
	}
	a.wantState(gone)
	if n := b.asked(); n > 0 || r.Warnings() != nil {
		t.Errorf("%d questions below the limit, warnings %v", n, r.Warnings())
	}
	// The limit is lowered, and removed, while it runs.
	r.SetLimit(usage - 7*per)
	round(t, r)
	if got := strings.Count(a.state(20), "r"); got != 7 {
		t.Errorf("%d were removed after the limit was lowered", got)
	}
	r.SetLimit(-1)
	round(t, r)
	b.wantState(strings.Repeat("s", 20))
	if got := strings.Count(a.state(20), "r"); got != 7 || counted(t, r, "narherder_storage_excess_bytes") != 0 {
		t.Errorf("%d were removed without a limit", got)
	}
}

// TestLimitRaised: if the limit is raised during a removal, only the page in progress is
// finished.
func TestLimitRaised(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	count := 3 * chunkItems * chunksAtOnce
	items := many(count, 1)
	a.imports(items...)
	b.imports(items...)
	r := a.remover(0, b, "stored-on=B")
	b.intercept(func(w http.ResponseWriter, _ *http.Request) {
		r.SetLimit(-1)
		pass(w)
	})
	round(t, r)
	if gone := strings.Count(a.state(count), "r"); gone == 0 || gone > pageItems {
		t.Errorf("%d of %d were removed", gone, count)
	}
	if r.Warnings() != nil {
		t.Errorf("%v", r.Warnings())
	}
}

type usesOf map[narinfo.PathHash]bool

func (u usesOf) IsPending(hash narinfo.PathHash) bool { return u[hash] }

// TestCriteria: with a limit of zero, everything allowed is removed.
func TestCriteria(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare  func(a, b *instance)
		criteria []string
		want     string
		warned   bool
	}{
		"none":                {want: "ssss"},
		"stored-on":           {criteria: []string{"stored-on=B"}, want: "rrrs"}, // the last is not on B
		"stored-on, pinned":   {prepare: func(a, _ *instance) { a.pin(0) }, criteria: []string{"stored-on=B"}, want: "ssrs"},
		"pinned and unknown":  {prepare: func(a, _ *instance) { a.pin(77) }, criteria: []string{"unpinned"}, want: "wwww"},
		"unpinned":            {prepare: func(a, _ *instance) { a.pin(0) }, criteria: []string{"unpinned"}, want: "ssww"},
		"unused-for":          {criteria: []string{"unused-for=10d"}, want: "wwww"},
		"used lately":         {prepare: func(a, _ *instance) { a.used(2, a.clock.now().Add(-9*day)) }, criteria: []string{"unused-for=10d"}, want: "wwsw"},
		"used, long ago":      {prepare: func(a, _ *instance) { a.used(2, a.clock.now().Add(-10*day)) }, criteria: []string{"unused-for=10d"}, want: "wwww"},
		"unused for too long": {criteria: []string{"unused-for=100d"}, want: "ssss"},
		"used just now":       {criteria: []string{"unused-for=10d"}, want: "wwsw"}, // and not written to the index: see below
		"tag":                 {prepare: func(a, _ *instance) { a.tag(1, "k=v"); a.tag(2, "k=w") }, criteria: []string{"tag=k=v"}, want: "swss"},
		"no-tag":              {prepare: func(a, _ *instance) { a.tag(1, "k=v"); a.tag(2, "k=w") }, criteria: []string{"no-tag=k=v"}, want: "wsww"},
		"tag, stored-on":      {prepare: func(a, _ *instance) { a.tag(1, "k=v"); a.tag(3, "k=v") }, criteria: []string{"tag=k=v,stored-on=B"}, want: "srss"},
		"added-before":        {criteria: []string{"added-before=20d"}, want: "wwww"},
		"added later":         {criteria: []string{"added-before=20d,added-before=2024-01-01"}, want: "ssss"},
		"unreferenced":        {criteria: []string{"unreferenced"}, want: "wwww"}, // each after its predecessor is removed
		"unreferenced, kept":  {prepare: func(a, _ *instance) { a.tag(0, "keep=1") }, criteria: []string{"unreferenced,no-tag=keep=1"}, want: "ssww"},
		"unreferenced there":  {criteria: []string{"unreferenced,stored-on=B"}, want: "rrrs"},
		// Nars that others have stored stay available; the rest is not.
		"stored-on or not": {criteria: []string{"stored-on=B", "unused-for=10d"}, want: "rrrw"},
		"not or stored-on": {criteria: []string{"unused-for=10d", "stored-on=B"}, want: "rrrw"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			a, b := newInstance(t, c), newInstance(t, c)
			restore := c.back(30 * day)
			items := []spec{{n: 0, bytes: 100, refs: []int{0, 1}}, {n: 1, bytes: 100}, {n: 2, bytes: 100, refs: []int{3}}, {n: 3, bytes: 100}}
			a.imports(items...)
			b.imports(items[:3]...)
			restore()
			if test.prepare != nil {
				test.prepare(a, b)
			}
			r := a.remover(0, b, test.criteria...)
			if name == "used just now" {
				r.options.Uses = usesOf{hashNumber(2): true}
			}
			round(t, r)
			a.wantState(test.want)
			b.wantState("sss")
			if got := counted(t, r, "narherder_removal_withdrawn_total"); got != float64(strings.Count(test.want, "w")) {
				t.Errorf("%v withdrawn", got)
			}
			if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "above its limit") {
				t.Errorf("warnings: %v", warnings)
			}
			// Nothing has changed, so nobody is asked again for a while.
			b.asked()
			for range 10 {
				round(t, r)
				c.advance(fullPause / 20)
			}
			if n := b.asked(); n > 0 {
				t.Errorf("%d questions before the pause is over", n)
			}
			r.SetLimit(-1)
			round(t, r)
			if r.Warnings() != nil {
				t.Errorf("still warned: %v", r.Warnings())
			}
		})
	}
}

// TestWithdrawNoMore: withdrawn nars count as removed, by blocks for small nars, and
// nothing more is withdrawn during the grace period.
func TestWithdrawNoMore(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := newInstance(t, c)
	a.imports(many(20, 100)...)
	usage := a.onDisk()
	r := a.remover(usage-5*4096, nil, "unpinned")
	for range 10 {
		round(t, r)
		c.advance(time.Hour)
	}
	state := a.state(20)
	if strings.Count(state, "w") != 5 || strings.Count(state, "s") != 15 {
		t.Errorf("%s", state)
	}
	warnings := strings.Join(r.Warnings(), "\n")
	if strings.Count(warnings, "\n") > 0 || !strings.Contains(warnings, "above its limit of") || !strings.Contains(warnings, "20480 bytes are withdrawn nars, which are freed from 20") {
		t.Errorf("warnings: %s", warnings)
	}
	if excess, withdrawn := counted(t, r, "narherder_storage_excess_bytes"), counted(t, r, "narherder_storage_withdrawn_bytes"); excess != 0 || withdrawn != 5*4096 {
		t.Errorf("%v bytes above the limit, %v withdrawn", excess, withdrawn)
	}
	// A hard limit is lowered below the usage.
	if err := a.SetHardLimit(t.Context(), usage/2); err != nil {
		t.Fatal(err)
	}
	round(t, r)
	if warnings := r.Warnings(); len(warnings) != 2 || !strings.Contains(warnings[1], "above its hard limit of") || !strings.Contains(warnings[1], "are refused; 20480 bytes are withdrawn") {
		t.Errorf("warnings: %q", warnings)
	}
	for n := range state {
		if _, err := a.Text(t.Context(), hashNumber(n)); (err == nil) != (state[n] == 's') {
			t.Errorf("%d is served: %v", n, err)
		}
	}
}

// TestChangeAfterDecision: something changes while the other instance is asked.
func TestChangeAfterDecision(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		criterion string
		change    func(a *instance)
		want      string
	}{
		"pinned":               {"stored-on=B", func(a *instance) { a.pin(0) }, "ssr"},
		"referred to by a pin": {"stored-on=B", func(a *instance) { a.imports(spec{n: 5, bytes: 10, refs: []int{2}}); a.pin(5) }, "rrs"},
		"another narinfo":      {"stored-on=B", func(a *instance) { a.imports(spec{n: 1, bytes: 100, note: "again"}) }, "rrr"}, // seen by another look
		"referrer comes":       {"stored-on=B,unreferenced", func(a *instance) { a.imports(spec{n: 5, bytes: 10, refs: []int{2}}) }, "rrr"},
		"referrer's nar comes": {"stored-on=B,unreferenced", func(a *instance) { a.imports(spec{n: 6, bytes: 10, refs: []int{2}}) }, "rrs"},
		"bytes are deleted": {"stored-on=B", func(a *instance) {
			if err := os.Remove(spec{n: 1}.file(a.directory)); err != nil {
				a.t.Error(err)
			}
		}, "rrr"},
		"row is removed and comes again": {"stored-on=B", func(a *instance) {
			a.update(func(tx *index.Tx) error { return tx.Remove(hashNumber(1), a.clock.now()) })
			a.imports(spec{n: 1, bytes: 100})
		}, "rrr"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			a, b := newInstance(t, c), newInstance(t, c)
			items := []spec{{n: 0, bytes: 100, refs: []int{1}}, {n: 1, bytes: 100}, {n: 2, bytes: 100}}
			a.imports(items...)
			b.imports(items...)
			// A known one: its nar is added again in one of the tests.
			a.imports(spec{n: 6, bytes: 10, refs: []int{2}})
			a.evict(6)
			changed := false
			b.intercept(func(w http.ResponseWriter, _ *http.Request) {
				if !changed {
					changed = true
					test.change(a)
				}
				pass(w)
			})
			r := a.remover(0, b, test.criterion)
			round(t, r)
			if strings.Contains(test.want, "s") {
				a.wantState(test.want)
			} else if got := a.state(3); strings.Contains(got, "!") || strings.Contains(got, "w") {
				t.Errorf("%s", got)
			}
			b.wantState("sss")
			if findings := check(t, a); len(findings) > 0 {
				t.Errorf("check finds %q", findings)
			}
		})
	}
}

// check returns the findings of the check, except the storage's name.
func check(t *testing.T, i *instance) (found []string) {
	t.Helper()
	for finding, err := range storagecheck.New(i.Storage).Compare(context.Background(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if finding.Name != "nar-herder-storage" {
			found = append(found, finding.Kind.String()+" "+finding.Name)
		}
	}
	return found
}

// TestFaults: the other instance is in various faulty states. Only nars that it certainly
// has stored are removed, it is not asked endlessly, and when it works again the limit is
// reached.
func TestFaults(t *testing.T) {
	t.Parallel()
	const count = 30
	for name, fault := range map[string]func(b *instance) http.HandlerFunc{
		"refuses": func(*instance) http.HandlerFunc {
			return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		},
		"slow": func(*instance) http.HandlerFunc {
			return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		},
		"HTML": func(*instance) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Welcome</html>") }
		},
		"500": func(*instance) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }
		},
		"another hash": func(b *instance) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				hashes := strings.Split(strings.TrimPrefix(r.URL.Path, "/stored-nars/"), ",")
				hashes[0], hashes[len(hashes)-1] = hashes[len(hashes)-1], hashes[0]
				r.URL.Path = "/stored-nars/" + strings.Join(hashes, ",")
				pass(w)
			}
		},
		"old answer": func(b *instance) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				r.URL.RawQuery = "nonce=old"
				pass(w)
			}
		},
		"storage is gone": func(b *instance) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if err := os.Rename(filepath.Join(b.directory, "nar"), filepath.Join(b.directory, "away")); err != nil && !errors.Is(err, os.ErrNotExist) {
					b.t.Error(err)
				}
				pass(w)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			a, b := newInstance(t, c), newInstance(t, c)
			a.imports(many(count, 1000)...)
			b.imports(many(count, 1000)...)
			b.intercept(fault(b))
			usage := a.onDisk()
			r := a.remover(usage-10*4096, b, "stored-on=B")
			for n := range 3 {
				round(t, r)
				if asked := b.asked(); asked == 0 || asked > chunksAtOnce {
					t.Errorf("%d questions in round %d", asked, n)
				}
				round(t, r)
				if asked := b.asked(); asked > 0 {
					t.Errorf("%d questions just after round %d", asked, n)
				}
				if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "above its limit") {
					t.Errorf("warnings: %v", warnings)
				}
				c.advance(fullPause)
			}
			a.wantState(strings.Repeat("s", count))
			if failed := counted(t, r, "narherder_removal_failed_questions_total"); name != "storage is gone" && failed != 3 {
				t.Errorf("%v failed questions", failed)
			}
			if n := strings.Count(a.log.String(), "is above its limit for now"); n != 1 {
				t.Errorf("the missed limit was logged %d times", n)
			}
			if name == "storage is gone" {
				if err := os.Rename(filepath.Join(b.directory, "away"), filepath.Join(b.directory, "nar")); err != nil {
					t.Fatal(err)
				}
			}
			b.between.Store(nil)
			round(t, r)
			if state := a.state(count); strings.Count(state, "r") != 10 || strings.Count(state, "s") != count-10 {
				t.Errorf("%s", state)
			}
			b.wantState(strings.Repeat("s", count))
			if r.Warnings() != nil {
				t.Errorf("warnings: %v", r.Warnings())
			}
		})
	}
}

// TestPeerStops: the other instance answers one question and then stops.
func TestPeerStops(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	count := 3 * chunkItems
	a.imports(many(count, 1)...)
	b.imports(many(count, 1)...)
	var answered atomic.Bool
	b.intercept(func(w http.ResponseWriter, _ *http.Request) {
		if answered.Swap(true) { // several questions are sent at once
			panic(http.ErrAbortHandler)
		}
		pass(w)
	})
	r := a.remover(0, b, "stored-on=B")
	round(t, r)
	state := a.state(count)
	if gone := strings.Count(state, "r"); gone != chunkItems || strings.Contains(state, "!") {
		t.Errorf("%d were removed, and the one answer was about %d", gone, chunkItems)
	}
	// The transport may send each again on a new connection.
	if asked := b.asked(); asked > 2*chunksAtOnce || len(r.Warnings()) != 1 {
		t.Errorf("%d questions, warnings %v", asked, r.Warnings())
	}
	b.between.Store(nil)
	c.advance(fullPause)
	round(t, r)
	a.wantState(strings.Repeat("r", count))
	b.wantState(strings.Repeat("s", count))
}

// TestPausedPeerAmongCriteria: one criterion has a peer that can't be asked, and another
// never matches. The pass over all items is not repeated without a pause.
func TestPausedPeerAmongCriteria(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(10, 1)...)
	b.intercept(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	r := a.remover(0, b, "stored-on=B", "tag=never=1")
	round(t, r)
	passes := 0
	for range 60 {
		before := r.passAt
		c.advance(time.Second)
		round(t, r)
		if r.passAt != before {
			passes++
		}
	}
	if passes > 15 {
		t.Errorf("%d looks at all items in a minute", passes)
	}
	a.wantState(strings.Repeat("s", 10))
}

// TestFewQuestions: only one of many nars may be removed. It is found with few questions,
// and only it is removed.
func TestFewQuestions(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	restore := c.back(time.Hour)
	a.imports(many(300, 1)...)
	restore()
	items := many(500, 1)[300:]
	a.imports(items...)
	b.imports(items...)
	r := a.remover(a.onDisk()-1, b, "stored-on=B")
	round(t, r)
	if asked := b.asked(); asked > 10 {
		t.Errorf("%d questions about %d nars", asked, 500)
	}
	if gone := strings.Count(a.state(500), "r"); gone != 1 || r.Warnings() != nil {
		t.Errorf("%d were removed, warnings %v", gone, r.Warnings())
	}
}

// TestEachOther: two instances name each other, and remove at the same time.
func TestEachOther(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	const count = 500
	a.imports(many(count, 1)...)
	b.imports(many(count, 1)...)
	removers := []*Remover{a.remover(0, b, "stored-on=B"), b.remover(0, a, "stored-on=B")}
	ended := make(chan error)
	for _, r := range removers {
		go func() {
			var err error
			for range 5 {
				err = errors.Join(err, r.Round(context.Background()))
				c.advance(fullPause)
			}
			ended <- err
		}()
	}
	for range removers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	// Both rounds advance the shared clock, so a concurrent round may find that answers
	// are too old.
	here, there := a.state(count), b.state(count)
	for range 10 {
		if strings.Count(here+there, "r") == count {
			break
		}
		for _, r := range removers {
			if err := r.Round(t.Context()); err != nil {
				t.Error(err)
			}
		}
		c.advance(fullPause)
		here, there = a.state(count), b.state(count)
	}
	for n := range count {
		if here[n] != 's' && there[n] != 's' {
			t.Fatalf("%d is lost: %c %c", n, here[n], there[n])
		}
	}
	if gone := strings.Count(here+there, "r"); gone != count {
		t.Errorf("%d were removed, want at most one of two", gone)
	}
}

// TestReadOnlyStorage: if nothing can be deleted, rows stay.
func TestReadOnlyStorage(t *testing.T) {
	t.Parallel()
	c := newClock()
	dir := testfs.Small(t, 16<<20)
	a, b := newInstanceIn(t, c, dir), newInstance(t, c)
	count := 3 * chunkItems * chunksAtOnce
	a.imports(many(count, 1)...)
	b.imports(many(count, 1)...)
	if _, err := a.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	files := filesBelow(t, dir)
	testfs.Freeze(t, dir)
	r := a.remover(0, b, "stored-on=B")
	for range 5 {
		if err := r.Round(t.Context()); err == nil {
			t.Error("no error")
		}
		c.advance(fullPause)
	}
	totals, err := a.Totals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := int(totals.StoredNars); left < count-chunkItems*chunksAtOnce {
		t.Errorf("%d rows are left of %d", left, count)
	}
	if now := filesBelow(t, dir); now != files {
		t.Errorf("%d files of %d", now, files)
	}
	b.wantState(strings.Repeat("s", count))
}

// TestFilesDisappear: files disappeared before the round: their rows follow, and the limit
// applies to the existing files.
func TestFilesDisappear(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(10, 10_000)...)
	b.imports(many(10, 10_000)...)
	usage := a.onDisk()
	for n := range 3 {
		if err := os.Remove(spec{n: n}.file(a.directory)); err != nil {
			t.Fatal(err)
		}
	}
	r := a.remover(usage-5*(12<<10), b, "stored-on=B")
	round(t, r)
	state := a.state(10)
	if strings.Contains(state[3:], "!") || a.onDisk() > usage-5*(12<<10) || strings.Count(state, "s") < 5 {
		t.Errorf("%s", state)
	}
	if r.Warnings() != nil {
		t.Errorf("%v", r.Warnings())
	}
	// A file that the other instance lost too is not certainly stored there.
	stays := strings.Index(state, "s")
	if err := os.Remove(spec{n: stays}.file(b.directory)); err != nil {
		t.Fatal(err)
	}
	r.SetLimit(0)
	c.advance(time.Hour)
	round(t, r)
	a.wantState(strings.Repeat("r", stays) + "s" + strings.Repeat("r", 9-stays))
}

// TestCountedTwice: bytes that are in the storage before rows claim them count once, and no
// more is removed than necessary.
func TestCountedTwice(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(10, 10_000)...)
	b.imports(many(20, 10_000)...)
	// Like an administrator's copy.
	for n := 10; n < 20; n++ {
		if err := os.WriteFile(spec{n: n}.file(a.directory), bytes.Repeat([]byte{byte(n)}, 10_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := a.remover(a.onDisk()+10_000, b, "stored-on=B")
	round(t, r)
	a.imports(many(20, 10_000)[10:]...)
	for range 5 {
		c.advance(time.Second)
		round(t, r)
	}
	a.wantState(strings.Repeat("s", 20))
}

// TestCountedTwiceAbove is the same above the limit: a second scan prevents further
// removals.
func TestCountedTwiceAbove(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(10, 10_000)...)
	b.imports(many(20, 10_000)...)
	for n := 10; n < 20; n++ {
		if err := os.WriteFile(spec{n: n}.file(a.directory), bytes.Repeat([]byte{byte(n)}, 10_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := a.remover(-1, b, "stored-on=B")
	round(t, r)
	a.imports(many(20, 10_000)[10:]...)
	r.SetLimit(a.onDisk() - 3*(12<<10))
	for range 5 {
		c.advance(time.Second)
		round(t, r)
	}
	if gone := strings.Count(a.state(20), "r"); gone != 3 {
		t.Errorf("%d were removed, want 3", gone)
	}
}

// TestReferredToByEvicted: an item without its nar is still served, so its references are
// kept.
func TestReferredToByEvicted(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(spec{n: 0, bytes: 10_000}, spec{n: 1, bytes: 10_000, refs: []int{0}})
	b.imports(spec{n: 1, bytes: 10_000, refs: []int{0}})
	round(t, a.remover(0, b, "stored-on=B", "unreferenced"))
	a.wantState("sr")
}

// TestNotMounted: the storage is replaced by an empty directory.
func TestNotMounted(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(5, 1)...)
	b.imports(many(5, 1)...)
	for _, name := range []string{"nar", "nar-herder-storage"} {
		if err := os.RemoveAll(filepath.Join(a.directory, name)); err != nil {
			t.Fatal(err)
		}
	}
	if name, err := a.Identity(t.Context()); err == nil || !strings.Contains(err.Error(), "is it mounted") {
		t.Errorf("it has a name now: %q, %v", name, err)
	}
	if _, err := os.Stat(filepath.Join(a.directory, "nar-herder-storage")); err == nil {
		t.Error("a name was written where no storage is")
	}
	a.asked()
	if err := a.remover(0, b, "stored-on=B").Round(t.Context()); err != nil && !strings.Contains(err.Error(), "mounted") {
		t.Error(err)
	}
	totals, err := a.Totals(t.Context())
	if err != nil || totals.StoredNars != 5 {
		t.Errorf("%+v, %v", totals, err)
	}
}

// TestResolvesReplacements: a round resolves the file of an import that ended while it
// replaced a nar.
func TestResolvesReplacements(t *testing.T) {
	t.Parallel()
	c := newClock()
	i := newInstance(t, c)
	i.imports(spec{n: 1, bytes: 1000})
	name := "storage.replacing/nar/lzip/" + spec{n: 1}.base()
	i.update(func(tx *index.Tx) error {
		return errors.Join(tx.SetStored(hashNumber(1), 0, nil, time.Time{}), tx.SetSetting(name, c.now().Add(-time.Hour).Format(time.RFC3339)+" x"))
	})
	r := i.remover(-1, nil)
	r.options.Decode = func(context.Context, string, io.Reader, int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("another nar")), nil
	}
	round(t, r)
	if noted, err := i.index.Setting(t.Context(), name); err != nil || noted != "" {
		t.Errorf("%q, %v\n%s", noted, err, i.log)
	}
}

// TestNamesStorage: an empty storage gets its name from its owner only.
func TestNamesStorage(t *testing.T) {
	t.Parallel()
	p := removaltest.Open(t, t.TempDir())
	files, err := directory.Open(filepath.Join(p.Dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	refused := storage.ErrNotOwner
	s := storage.New(p.Index, files, storage.Options{MayWrite: func(context.Context) error { return refused }})
	r := New(s, Options{Limit: -1, MinimumFree: -1})
	for _, refused = range []error{storage.ErrNotOwner, nil} {
		if err := r.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if name, err := s.StorageName(t.Context()); (err == nil) != (refused == nil) {
			t.Errorf("%v: the name is %q, %v", refused, name, err)
		}
	}
}
