package mirror

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/mirror/original"
	"nar-herder/mirror/sourcedump"
	"nar-herder/peer"
)

// stepped is a mirror that makes a step when the test says so, by a clock that the test
// sets.
type stepped struct {
	*Mirror
	*instance
	t     *testing.T
	clock atomic.Int64
}

func newStepped(t *testing.T, source *instance, now time.Time) *stepped {
	s := &stepped{instance: newInstance(t), t: t}
	s.set(now)
	s.Mirror = mirrorOf(t, s.instance, source, new(testlog.Buffer), func() time.Time { return time.Unix(s.clock.Load(), 0) })
	return s
}

func (s *stepped) set(now time.Time) { s.clock.Store(now.Unix()) }

// steps makes some steps, and returns the error of the last.
func (s *stepped) steps(n int) (err error) {
	for range n {
		_, err = s.step(s.t.Context())
	}
	return err
}

func (s *stepped) same(source *instance) {
	s.t.Helper()
	if err := s.steps(1); err != nil {
		s.t.Error(err)
	}
	if got, want := s.list(), source.list(); !slices.Equal(got, want) {
		s.t.Errorf("the mirror has %d items, the source %d, or others", len(got), len(want))
	}
}

// TestClockBehind: while the clock of a mirror is behind, changes wait, and none is lost.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	for n := range 20 {
		o.added(at(n), n, 1)
	}
	o.dump(false)
	s := newStepped(t, o.instance, at(100))
	if err := s.steps(1); err != nil {
		t.Fatal(err)
	}
	s.same(o.instance)
	days := func(n int) time.Time { return at(0).AddDate(0, 0, n) }
	o.added(days(10), 20, 1)
	o.removed(days(10), 3)
	s.set(days(1))
	var refused *health.RefusedError
	if err := s.steps(5); !errors.As(err, &refused) || !strings.Contains(err.Error(), "ahead of this machine's clock") {
		t.Errorf("by a clock that is behind: %v", err)
	}
	s.set(days(10))
	s.same(o.instance)
	if n := s.Status().PassedOver; n != 0 {
		t.Errorf("%d changes were passed over", n)
	}
	// Now the clock is behind changes that were followed already.
	s.set(days(1))
	if err := s.steps(2); !errors.As(err, &refused) {
		t.Errorf("by a clock that is behind: %v", err)
	}
	o.added(days(10), 21, 1)
	s.set(days(10))
	s.same(o.instance)
}

// TestSourceOnceAhead: a source with a clock that was ahead for a while is followed.
// Changes of that time wait, or are applied if the source is accepted.
func TestSourceOnceAhead(t *testing.T) {
	t.Parallel()
	year := func(n int) time.Time { return at(n).AddDate(1, 0, 0) }
	for name, ordered := range map[string]bool{"as written": false, "by time": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOriginal(t)
			for n := range 20 {
				o.added(at(n), n, 1)
			}
			o.dump(false)
			s := newStepped(t, o.instance, at(100))
			if err := s.steps(1); err != nil {
				t.Fatal(err)
			}
			s.same(o.instance)
			before := len(s.list())
			o.added(year(0), 30, 1)
			o.added(at(100), 31, 1)
			if ordered {
				o.mu.Lock()
				last := len(o.changes) - 1
				o.changes[last], o.changes[last-1] = o.changes[last-1], o.changes[last]
				o.mu.Unlock()
			}
			var refused *health.RefusedError
			if err := s.steps(3); !errors.As(err, &refused) {
				t.Errorf("with a change that is ahead: %v", err)
			}
			if got := len(s.list()); got != before+1 {
				t.Errorf("%d items, want one more than %d", got, before)
			}
			if err := Accept(t.Context(), s.index, s.Now()); err != nil {
				t.Fatal(err)
			}
			if err := s.steps(2); err != nil {
				t.Errorf("accepted: %v", err)
			}
			if got := len(s.list()); got != before+2 {
				t.Errorf("%d items, want two more than %d", got, before)
			}
			s.set(at(100).Add(2 * acceptedFor))
			o.added(at(200), 32, 1)
			o.added(at(4000), 33, 1)
			if err := s.steps(2); err != nil {
				t.Errorf("when the acceptance is over: %v", err)
			}
			if got := len(s.list()); got != before+4 {
				t.Errorf("%d items, want four more than %d", got, before)
			}
		})
	}
}

// TestDumpOnceAhead: times ahead in a dump don't hide later changes from a mirror.
func TestDumpOnceAhead(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	o.added(at(1), 1, 1)
	o.added(at(2).AddDate(1, 0, 0), 2, 1)
	o.added(at(3), 3, 1)
	o.dump(false)
	s := newStepped(t, o.instance, at(100))
	if err := s.steps(1); err != nil {
		t.Fatal(err)
	}
	o.added(at(4), 4, 1)
	if err := s.steps(2); err != nil {
		t.Error(err)
	}
	if got := len(s.list()); got != 4 {
		t.Errorf("%d items, want 4", got)
	}
}

// TestFollowedAhead: a mirror with a cursor ahead of the clock, from an older version,
// reports that, and starts from the dump once it is accepted.
func TestFollowedAhead(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	o.added(at(1), 1, 1)
	o.dump(false)
	s := newStepped(t, o.instance, at(100))
	if err := s.steps(1); err != nil {
		t.Fatal(err)
	}
	c := peer.Change{Datetime: "2027-01-01 00:00:00"}
	ahead := cursor.Cursor{Since: at(0).AddDate(1, 0, 0), Seen: cursor.Seen{cursor.FingerprintOf(c): at(0).AddDate(1, 0, 0)}}
	if err := s.index.Update(t.Context(), ahead.Write); err != nil {
		t.Fatal(err)
	}
	o.added(at(4), 4, 1)
	o.dump(false)
	var refused *health.RefusedError
	if err := s.steps(1); !errors.As(err, &refused) {
		t.Errorf("with a place that is ahead: %v", err)
	}
	if err := Accept(t.Context(), s.index, s.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.steps(1); err != nil {
		t.Error(err)
	}
	s.same(o.instance)
}

// TestBeginClockBehind: a new mirror with a clock that is behind waits, and keeps its
// download.
func TestBeginClockBehind(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	o.added(at(1), 1, 1)
	o.dump(false)
	gets := atomic.Int64{}
	o.instance.mu.Lock()
	before := o.intercept
	o.instance.made = at(2)
	o.instance.mu.Unlock()
	o.through(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == peer.DumpPath && r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			gets.Add(1)
		}
		return before(w, r)
	})
	s := newStepped(t, o.instance, time.Unix(0, 0))
	for range 3 {
		if err := s.steps(1); err == nil || errors.Is(err, health.ErrBadDump) || !strings.Contains(err.Error(), "clock") {
			t.Errorf("by a clock that is behind: %v", err)
		}
	}
	s.set(at(10))
	s.same(o.instance)
	if n := gets.Load(); n != 1 {
		t.Errorf("the dump was downloaded %d times", n)
	}
}

// TestTakeAhead: a change of the stream that is dated ahead counts as made now.
func TestTakeAhead(t *testing.T) {
	t.Parallel()
	m := mirrorOf(t, newInstance(t), newInstance(t), new(testlog.Buffer), func() time.Time { return at(5) })
	b := new(batch)
	m.take(b, peer.Change{Datetime: "2036-01-01 00:00:00", Change: peer.Addition, Data: string(testInfo(1, 1, 1).Text)})
	if len(b.changes) != 1 || !b.changes[0].At.Equal(at(5)) {
		t.Errorf("%+v", b.changes)
	}
	change, err := m.itemOf(sourcedump.Entry{Item: original.Item{Text: testInfo(1, 1, 1).Text, AddedAt: at(5).AddDate(1, 0, 0)}}, &sourcedump.Dump{Verified: true, Sum: "1"})
	if err != nil || !change.At.Equal(at(5)) {
		t.Errorf("%+v, %v", change, err)
	}
}
