package dependence

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/peer"
)

// An instance of the model has a nar or not. It asks, decides and removes like the program,
// in steps between which others take theirs.
type modelInstance struct {
	id       string
	has      bool
	on       []string // its criteria
	tracker  *Tracker
	downTill time.Time
	asking   []question // in flight: for the batch, or to refresh
	batch    int        // unanswered questions of the batch; 0 without one
	begun    time.Time  // when the batch sent its first question
	heard    map[string]said
}

// question is a question in flight.
type question struct {
	of      string
	at      time.Time
	batch   bool
	sent    bool // the other instance has answered
	answer  peer.Introduction
	has, up bool
}

// model is some instances with one nar.
type model struct {
	random    *rand.Rand
	now       time.Time
	instances map[string]*modelInstance
	ids       []string
	trace     []string
	removals  int
	restarts  int  // one of so many steps is a restart
	hasty     bool // instances don't wait for ten minutes
}

func newModel(seed uint64, hasty bool) *model {
	m := &model{random: rand.New(rand.NewPCG(seed, 2)), now: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), instances: make(map[string]*modelInstance), hasty: hasty}
	m.restarts = 15 + m.random.IntN(150)
	count := 2 + m.random.IntN(5)*m.random.IntN(2)
	if m.random.IntN(30) == 0 {
		count = 7 + m.random.IntN(2) // longer cycles than the proof is about
	}
	for n := range count {
		m.ids = append(m.ids, string(rune('A'+n)))
	}
	for _, id := range m.ids {
		m.instances[id] = &modelInstance{id: id, has: true}
		m.start(m.instances[id])
	}
	if hasty {
		m.restarts = 6
	} else if m.random.IntN(3) > 0 {
		m.pass(time.Hour / 3)
	}
	return m
}

// pass lets time pass. Instances request statements now and then.
func (m *model) pass(d time.Duration) {
	for ; d > 0; d -= 40 * time.Second {
		m.now = m.now.Add(min(d, 40*time.Second))
		for _, id := range m.ids {
			i := m.instances[id]
			if m.now.Before(i.downTill) {
				continue
			}
			for _, url := range i.on {
				if other := m.behind(url); m.random.IntN(5) > 0 && !m.now.Before(other.downTill) {
					i.tracker.Hear(url, m.now, m.introduce(other))
				}
			}
		}
	}
}

// behind is the instance that answers at a URL; now and then it changes.
func (m *model) behind(url string) *modelInstance {
	if m.random.IntN(500) == 0 {
		url = m.ids[m.random.IntN(len(m.ids))]
	}
	return m.instances[url]
}

func (m *model) introduce(i *modelInstance) peer.Introduction {
	if m.hasty {
		i.tracker.AssumeSettled()
	}
	return peer.Introduction{Instance: i.id, ReliesOn: i.tracker.Statement()}
}

func (m *model) log(format string, args ...any) {
	m.trace = append(m.trace, m.now.Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

// start starts an instance with other criteria.
func (m *model) start(i *modelInstance) {
	*i = modelInstance{id: i.id, has: i.has}
	others := m.random.IntN(3)
	for _, id := range m.ids {
		if id != i.id && m.random.IntN(3) <= others {
			i.on = append(i.on, id)
		}
	}
	if m.random.IntN(3) == 0 {
		i.on = nil
	}
	i.tracker = New(i.id, i.on, 0, func() time.Time { return m.now })
	m.log("%s starts with %v", i.id, i.on)
}

// step runs one step of an instance.
func (m *model) step() {
	i := m.instances[m.ids[m.random.IntN(len(m.ids))]]
	if m.now.Before(i.downTill) {
		return
	}
	switch action := m.random.IntN(60); {
	case m.random.IntN(m.restarts) == 0:
		m.start(i)
		if m.random.IntN(2) == 0 {
			i.downTill = m.now.Add(m.duration())
		}
	case action < 4 && !i.has:
		// It fetches the nar again.
		for _, other := range m.instances {
			i.has = i.has || other.has
		}
	case action < 20 && i.batch == 0 && i.has && len(i.on) > 0:
		i.begun, i.heard = m.now, make(map[string]said)
		for _, id := range i.on {
			i.asking = append(i.asking, question{of: id, at: m.now, batch: true})
			i.batch++
		}
	case len(i.asking) > 0:
		m.progress(i, m.random.IntN(len(i.asking)))
	}
}

// progress lets the other instance answer a question, or the answer arrive.
func (m *model) progress(i *modelInstance, n int) {
	q := &i.asking[n]
	if !q.sent {
		other := m.behind(q.of)
		q.sent, q.up, q.has = true, other != i && !m.now.Before(other.downTill), other.has
		q.answer = m.introduce(other)
		return
	}
	answered := *q
	i.asking = slices.Delete(i.asking, n, n+1)
	if answered.up {
		i.tracker.Hear(answered.of, answered.at, answered.answer)
	}
	if m.hasty {
		i.tracker.AssumeSettled()
	}
	if !answered.batch {
		return
	}
	i.batch--
	if answered.up && answered.has && i.tracker.Refusal(answered.of, answered.answer) == "" {
		i.heard[answered.of] = said{answered.at, answered.answer}
	}
	if i.batch > 0 || len(i.heard) == 0 || !i.has {
		return
	}
	if !i.tracker.IsLate(i.begun) {
		i.has = false
		m.removals++
		m.log("%s removes it, as one of %v has it, which it asked at %s", i.id, i.heard, i.begun.Format("15:04:05"))
	}
}

// duration returns a random duration, at which something may happen.
func (m *model) duration() time.Duration {
	return []time.Duration{time.Second, time.Second, 10 * time.Second, 10 * time.Second, 30 * time.Second, 59 * time.Second, time.Minute, 5 * time.Minute, SettleTime}[m.random.IntN(9)]
}

// run runs steps, and reports whether the nar was lost.
func (m *model) run() (lost bool) {
	for range 400 {
		m.step()
		if m.random.IntN(10) == 0 {
			m.pass(m.duration())
		}
		lost = true
		for _, i := range m.instances {
			lost = lost && !i.has
		}
		if lost {
			return true
		}
	}
	return false
}

// modelRuns is the number of seeds in TestModel; 0 with the race detector.
var modelRuns uint64 = 6000

// TestModel: instances with random criteria ask, remove, fetch again, crash, and start with
// other criteria. At least one must keep the nar. Without the ten minutes of waiting, it
// gets lost.
func TestModel(t *testing.T) {
	t.Parallel()
	if modelRuns == 0 {
		t.Skip("the model is one goroutine: scripts/test runs it without the race detector")
	}
	first, removals := rand.Uint64N(1<<32), 0
	t.Log("first seed", first)
	for seed := range modelRuns {
		m := newModel(first+seed, false)
		if m.run() {
			t.Fatalf("seed %d: lost:\n%s", first+seed, strings.Join(m.trace, "\n"))
		}
		removals += m.removals
	}
	if removals < int(modelRuns) {
		t.Errorf("%d removals: the model tests nothing", removals)
	}
	for seed := range uint64(20_000) {
		if newModel(first+seed, true).run() {
			t.Logf("%d removals; without the waiting times, lost with seed %d", removals, first+seed)
			return
		}
	}
	t.Error("nothing is lost without the waiting times: the model tests nothing")
}

// TestSteps: instances depend on the next one, in a chain and in a ring, and have run for
// long. The first has the smallest id. Another with the greatest id depends on it, and must
// not if that depends on it too, or may do so too far away.
func TestSteps(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for count := 1; count <= mostSteps+3; count++ {
		for _, ring := range []bool{false, true} {
			var all []*Tracker
			for n := range count {
				all = append(all, New(string(rune('A'+n)), nil, 0, func() time.Time { return now }))
			}
			last := New("Z", []string{"first"}, 0, func() time.Time { return now })
			introduce := func(r *Tracker) peer.Introduction {
				return peer.Introduction{Instance: r.self, ReliesOn: r.Statement()}
			}
			for range count + 1 {
				for n, r := range all {
					if n+1 < count {
						r.Hear("next", now, introduce(all[n+1]))
					} else if ring {
						r.Hear("next", now, introduce(last))
					}
					r.AssumeSettled()
				}
				last.Hear("first", now, introduce(all[0]))
				last.AssumeSettled()
			}
			want := ""
			switch {
			case ring && count <= mostSteps:
				want = "keeps the nars"
			case ring || count > mostSteps:
				want = "is not known"
			}
			got := last.Refusal("first", introduce(all[0]))
			if (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("%d instances, in a ring: %v: %q, want %q", count, ring, got, want)
			}
			if got := all[count-1].Refusal("next", introduce(last)); ring && got != "" {
				t.Errorf("%d instances: the greatest is not relied on: %s", count, got)
			}
			// The first has not heard from its peer for some time.
			now = now.Add(SettleTime/stateShare + 1)
			if got := last.Refusal("first", introduce(all[0])); count > 1 && got == "" {
				t.Errorf("%d instances: an old statement counts", count)
			}
		}
	}
}
