package removal

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"nar-herder/peer"
	"nar-herder/removal/dependence"
)

// TestPlan: the plan matches what the next round removes, and its log.
func TestPlan(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	restore := c.back(30 * day)
	a.imports(many(20, 10_000)...)
	restore()
	b.imports(many(10, 10_000)...)
	a.pin(3)
	a.used(12, c.now())
	usage := a.onDisk()
	limit := usage - 15*(12<<10)
	var planned []Planned
	before := a.everything()
	r := a.remover(limit, b, "stored-on=B", "unused-for=10d")
	reason, err := r.Plan(t.Context(), func(p Planned) { planned = append(planned, p) })
	if err != nil || reason != "" || len(planned) != 15 {
		t.Fatalf("%+v, %q, %v", planned, reason, err)
	}
	if after := a.everything(); before != after || a.state(20) != strings.Repeat("s", 20) {
		t.Errorf("the plan has changed something: %s, then %s", before, after)
	}
	round(t, a.remover(limit, b, "stored-on=B", "unused-for=10d"))
	state := a.state(20)
	for n := range 20 {
		at := slices.IndexFunc(planned, func(p Planned) bool { return p.StorePath.Hash == hashNumber(n) })
		want := byte('s')
		switch {
		case at >= 0 && planned[at].Withdraw:
			want = 'w'
		case at >= 0:
			want = 'r'
		}
		if state[n] != want {
			t.Errorf("item %d was planned as %c, and is %c", n, want, state[n])
		}
		if at < 0 {
			continue
		}
		if p := planned[at]; p.Bytes != 10_000 || p.Criterion == "" || p.Withdraw != (p.Criterion == "unused-for=10d") || p.StorePath.BaseName() != (spec{n: n}).base() {
			t.Errorf("%+v", p)
		}
		if strings.Count(a.log.String(), "criterion=") != len(planned) || !strings.Contains(a.log.String(), "item=/gnu/store/"+(spec{n: n}).base()+" bytes=10000 criterion=") {
			t.Errorf("item %d is not logged: %s", n, a.log)
		}
	}
	// Removing everything allowed is not enough, and nothing is necessary.
	planned = nil
	reason, err = a.remover(0, b, "stored-on=B").Plan(t.Context(), func(p Planned) { planned = append(planned, p) })
	if err != nil || !strings.Contains(reason, "no more nars match") {
		t.Errorf("%q, %v", reason, err)
	}
	if reason, err := a.remover(usage, b, "stored-on=B").Plan(t.Context(), func(p Planned) { t.Errorf("%+v", p) }); err != nil || reason != "" {
		t.Errorf("%q, %v", reason, err)
	}
	b.front.Close()
	if reason, err := a.remover(0, b, "stored-on=B").Plan(t.Context(), func(p Planned) { t.Errorf("%+v", p) }); err != nil || reason != Unasked {
		t.Errorf("%q, %v", reason, err)
	}
}

// everything returns the mutable content of the database.
func (i *instance) everything() string {
	i.t.Helper()
	last, err := i.index.LastChange(i.t.Context())
	if err != nil {
		i.t.Fatal(err)
	}
	settings := ""
	for _, name := range []string{aheadSetting, "removal_relied_on", "storage_survey"} {
		text, err := i.index.Setting(i.t.Context(), name)
		if err != nil {
			i.t.Fatal(err)
		}
		settings += " " + text
	}
	files, err := os.ReadDir(filepath.Join(i.directory, "nar/lzip"))
	if err != nil {
		i.t.Fatal(err)
	}
	return fmt.Sprint(last, settings, len(files))
}

// TestGreatestKeeps: in a ring, only the instance with the greatest id keeps its nars.
// Another one depends on the ring from outside.
func TestGreatestKeeps(t *testing.T) {
	t.Parallel()
	c := newClock()
	ring := []*instance{newInstance(t, c), newInstance(t, c), newInstance(t, c)}
	outside := newInstance(t, c)
	var removers []*Remover
	for _, i := range append(ring, outside) {
		i.imports(many(5, 1)...)
	}
	for n, i := range ring {
		removers = append(removers, i.remover(0, ring[(n+1)%3], "stored-on=B"))
	}
	removers = append(removers, outside.remover(0, ring[0], "stored-on=B"))
	settle := func() {
		for range 2 * len(ring) { // each statement reaches the others
			for _, r := range removers {
				r.dependence.Refresh(t.Context(), r.introduce)
				r.dependence.AssumeSettled()
			}
		}
	}
	settle()
	greatest := slices.MaxFunc(ring, func(a, b *instance) int { return strings.Compare(a.Instance(), b.Instance()) })
	// In any order.
	for _, r := range []*Remover{greatest.running, removers[3], removers[0], removers[1], removers[2]} {
		round(t, r)
	}
	for range 4 {
		c.advance(fullPause)
		settle()
		for _, r := range removers {
			round(t, r)
		}
	}
	greatest.wantState("sssss")
	if warnings := greatest.running.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "the greatest id") {
		t.Errorf("%v", warnings)
	}
	outside.wantState("rrrrr")
	gone := 0
	for _, i := range ring {
		gone += strings.Count(i.state(5), "r")
	}
	if gone < 5 {
		t.Errorf("%d nars of the ring were removed", gone)
	}
}

// TestSettles: nothing is removed before this instance has stated its dependency for ten
// minutes, nor by a late answer, nor for an instance without a statement.
func TestSettles(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	for b.Instance() > a.Instance() { // it must have the smaller id
		b = newInstance(t, c)
		if b.Instance() > a.Instance() {
			a = newInstance(t, c)
		}
	}
	a.imports(many(5, 1)...)
	b.imports(many(5, 1)...)
	r := a.remover(0, b, "stored-on=B")
	r.dependence = dependence.New(a.Instance(), slices.Collect(maps.Keys(r.peers)), 0, c.now)
	for begun := c.now(); c.now().Sub(begun) < dependence.SettleTime; c.advance(refreshTime) {
		r.dependence.Refresh(t.Context(), r.introduce)
		round(t, r)
		if a.wantState("sssss"); r.ReliesOn() != nil {
			t.Errorf("a statement after %s: %v", c.now().Sub(begun), r.ReliesOn())
		}
	}
	if log := a.log.String(); !strings.Contains(log, dependence.Unsettled) || strings.Contains(log, "level=ERROR") {
		t.Errorf("%s", log)
	}
	// The other has just started.
	restarted := b.remover(-1, nil)
	restarted.dependence = dependence.New(b.Instance(), nil, 0, c.now)
	r.dependence.Refresh(t.Context(), r.introduce)
	round(t, r)
	a.wantState("sssss")
	if warnings := r.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "is not known") {
		t.Errorf("%v", warnings)
	}
	if own := r.ReliesOn(); len(own) != 2 || own[b.Instance()] != 1 || own[peer.Unknown] != 1 {
		t.Errorf("%v", r.ReliesOn())
	}
	c.advance(dependence.SettleTime)
	// Its answer is late.
	var late atomic.Bool
	late.Store(true)
	b.intercept(slowly(c, &late))
	round(t, r)
	a.wantState("sssss")
	late.Store(false)
	r.dependence.Refresh(t.Context(), r.introduce)
	c.advance(fullPause)
	r.dependence.Refresh(t.Context(), r.introduce)
	round(t, r)
	a.wantState("rrrrr")
}

const refreshTime = dependence.SettleTime / 30

// slowly lets more time pass than an answer may take, while late is set.
func slowly(c *clock, late *atomic.Bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if late.Load() {
			c.advance(dependence.SettleTime/10 + 1)
		}
		pass(w)
	}
}
