package removal

import (
	"testing"
	"time"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// TestClockWasAhead: nars that were added and used while the clock was a year ahead still
// age once it is right, also across restarts.
func TestClockWasAhead(t *testing.T) {
	t.Parallel()
	c := newClock()
	right := c.back(-year)
	a := newInstance(t, c)
	a.imports(many(3, 1)...)
	right()
	r := a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("sss")
	c.advance(9 * day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("sss")
	c.advance(day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("www")
}

// TestClockIsBehind: while the clock is behind, and when it is right again, no more is
// removed than by the right clock.
func TestClockIsBehind(t *testing.T) {
	t.Parallel()
	c := newClock()
	a := newInstance(t, c)
	a.imports(many(3, 1)...)
	right := c.back(10 * year)
	r := a.remover(0, nil, "unused-for=10d")
	round(t, r)
	c.advance(9 * day)
	round(t, r)
	a.wantState("sss")
	c.advance(-9 * day)
	right()
	c.advance(9 * day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("sss")
	c.advance(day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("www")
	if since, err := a.index.Setting(t.Context(), "removal.ahead_since"); err != nil || since != "" {
		t.Errorf("times are ahead since %q, %v", since, err)
	}
}

// TestBeforeClock: nars that were added before the machine's clock was set count as unused
// since then, and not since 1970.
func TestBeforeClock(t *testing.T) {
	t.Parallel()
	c := newClock()
	set := c.back(c.now().Sub(time.Unix(0, 0)))
	a := newInstance(t, c)
	a.imports(many(3, 1)...)
	set()
	r := a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("sss")
	c.advance(9 * day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("sss")
	c.advance(day)
	r = a.remover(0, nil, "unused-for=10d")
	round(t, r)
	a.wantState("www")
}
