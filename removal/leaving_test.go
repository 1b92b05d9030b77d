package removal

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

func hashNumber(n int) narinfo.PathHash {
	hash, err := narinfo.ParsePathHash(fmt.Sprintf("%032d", n))
	if err != nil {
		panic(err)
	}
	return hash
}

func TestPromise(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, late := range []time.Duration{0, time.Second, promiseFor - 1} { // in a span
		for _, idle := range []bool{false, true} {
			l := NewLeaving(func() time.Time { return now })
			l.Promise(hashNumber(0)) // begins a span
			now = now.Add(late)
			if l.Promise(hashNumber(1)) {
				t.Fatal("it is leaving")
			}
			promised := now
			for now.Sub(promised) < promiseFor {
				if !idle && l.mark(hashNumber(1)) {
					t.Fatalf("promised %s into a span, marked %s later", late, now.Sub(promised))
				}
				now = now.Add(promiseFor / 7)
			}
			now = promised.Add(promiseFor)
			if l.mark(hashNumber(1)) && late == 0 && !idle {
				t.Log("as early as may be")
			}
			l.unmark(hashNumber(1))
			for end := promised.Add(3 * promiseFor); !l.mark(hashNumber(1)); now = now.Add(time.Second) {
				if now.After(end) {
					t.Fatalf("promised %s into a span, kept for %s", late, now.Sub(promised))
				}
			}
			if now.Sub(promised) < promiseFor {
				t.Errorf("kept for %s", now.Sub(promised))
			}
		}
	}
}

func TestMark(t *testing.T) {
	t.Parallel()
	l := NewLeaving(nil)
	one, two := hashNumber(1), hashNumber(2)
	if l.IsLeaving(one) || !l.mark(one) || !l.IsLeaving(one) || l.mark(one) || l.IsLeaving(two) {
		t.Error("marks are wrong")
	}
	// What is leaving is told so, and not promised: it may leave again.
	if !l.Promise(one) {
		t.Error("it was promised while it leaves")
	}
	l.unmark(one)
	if l.IsLeaving(one) || !l.mark(one) {
		t.Error("it was promised all the same")
	}
	l.unmark(one)
	l.unmark(one)
	if l.Promise(one) || l.mark(one) || l.IsLeaving(one) {
		t.Error("marked against a promise")
	}
}

// TestManyPromises has more than are kept: then all nars count as promised.
func TestManyPromises(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	l := NewLeaving(func() time.Time { return now })
	for n := range maxPromises {
		l.Promise(hashNumber(n))
	}
	l.Promise(hashNumber(7)) // known
	if !l.mark(hashNumber(maxPromises + 1)) {
		t.Error("so many can be kept apart")
	}
	l.Promise(hashNumber(maxPromises))
	begun := now
	for ; now.Sub(begun) < promiseFor; now = now.Add(time.Minute) {
		if l.mark(hashNumber(maxPromises)) || l.mark(hashNumber(maxPromises+2)) {
			t.Fatalf("marked after %s", now.Sub(begun))
		}
	}
	now = begun.Add(2 * promiseFor)
	if l.mark(hashNumber(7)); !l.mark(hashNumber(maxPromises)) {
		t.Error("it lasts for ever")
	}
	if size := len(l.promised[0].hashes) + len(l.promised[1].hashes); size > 2*maxPromises {
		t.Errorf("%d promises are kept", size)
	}
}

// An instance of the model has one nar, or has it no more, and removes it as the
// program does, in steps between which others take theirs.
type modelInstance struct {
	leaving  *Leaving // nil for the original, which marks nothing
	peers    []int    // it needs one of them to have the nar, as criteria of their own do
	all      bool     // all of them, as one criterion does
	row, has bool     // it says so; the bytes are there

	at      int // the step it is at
	asked   int // how many peers it has asked
	pending int // who is looking at the bytes for it, plus 1
	yes     int
	marked  bool
	since   time.Time // when the original heard a yes
}

const (
	modelIdle = iota
	modelAsking
	modelEvict // the row
	modelDrop  // the bytes
	modelDone
)

// modelRuns is how often it does. All of it is one goroutine, so scripts/test runs it
// once more without the race detector.
var modelRuns uint64 = 40_000

// TestModel takes the steps of a few instances in random order, and has them
// crash: no nar may be lost.
func TestModel(t *testing.T) {
	t.Parallel()
	hash := hashNumber(1)
	removals, losers := 0, 0
	for seed := range modelRuns {
		random := rand.New(rand.NewPCG(seed, 1))
		now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		clock := func() time.Time { return now }
		instances := make([]*modelInstance, 2+random.IntN(3))
		// Originals don't mark, and lose nars among themselves: there is one.
		original := random.IntN(2*len(instances)) - len(instances)
		for i := range instances {
			instances[i] = &modelInstance{all: random.IntN(2) == 0, row: true, has: true}
			if i != original {
				instances[i].leaving = NewLeaving(clock)
			}
			for n := range instances {
				if n != i && random.IntN(3) > 0 {
					instances[i].peers = append(instances[i].peers, n)
				}
			}
			random.Shuffle(len(instances[i].peers), func(a, b int) {
				peers := instances[i].peers
				peers[a], peers[b] = peers[b], peers[a]
			})
		}
		var trace []string
		for step := 0; step < 80; step++ {
			n := random.IntN(len(instances))
			m := instances[n]
			if random.IntN(25) == 0 && m.leaving != nil {
				// What it knew is gone, but rows and bytes are not; what it was
				// about to delete goes when it starts.
				trace = append(trace, fmt.Sprintf("%d crashes", n))
				if !m.row {
					m.has = false
				}
				m.leaving, m.at, m.marked = NewLeaving(clock), modelIdle, false
				if original >= 0 {
					m.leaving.keepOlder() // as it is noted that it is asked
				}
				if !m.has {
					m.at = modelDone
				}
				for _, other := range instances { // its answer never comes
					if other.at == modelAsking && other.pending == n+1 {
						other.pending = 0
						other.asked++
					}
				}
				continue
			}
			trace = append(trace, m.step(n, instances, hash, now))
			if random.IntN(3) == 0 && (original < 0 || instances[original].at != modelEvict || now.Add(time.Minute).Sub(instances[original].since) < promiseFor) {
				now = now.Add(time.Minute)
			}
			if !slices.ContainsFunc(instances, func(m *modelInstance) bool { return m.has }) {
				t.Fatalf("seed %d, original %d: lost by %q", seed, original, trace)
			}
		}
		for _, m := range instances {
			if m.at == modelDone {
				removals++
			}
		}
		if instances[0].at != modelDone {
			losers++
		}
	}
	if uint64(removals) < modelRuns/4 || uint64(losers) < modelRuns/40 {
		t.Errorf("%d removals, %d that stay: that is no test", removals, losers)
	}
}

// step does the next thing, and says what.
func (m *modelInstance) step(n int, instances []*modelInstance, hash narinfo.PathHash, now time.Time) string {
	switch m.at {
	case modelIdle:
		if len(m.peers) == 0 || m.leaving != nil && !m.leaving.mark(hash) {
			return fmt.Sprintf("%d stays", n)
		}
		m.at, m.asked, m.yes, m.pending, m.marked = modelAsking, 0, 0, 0, m.leaving != nil
		return fmt.Sprintf("%d begins", n)
	case modelAsking:
		if m.asked < len(m.peers) {
			peer := instances[m.peers[m.asked]]
			if m.pending == 0 { // the first half of the answer
				no := false
				switch {
				case peer.leaving == nil:
				case m.leaving == nil:
					no = peer.leaving.Promise(hash)
				default:
					no = peer.leaving.IsLeaving(hash)
				}
				if no {
					m.asked++
					return fmt.Sprintf("%d hears that %d leaves", n, m.peers[m.asked-1])
				}
				m.pending = m.peers[m.asked] + 1
				return fmt.Sprintf("%d asks %d", n, m.pending-1)
			}
			m.pending = 0
			m.asked++
			if !peer.row || !peer.has {
				return fmt.Sprintf("%d hears no from %d", n, m.peers[m.asked-1])
			}
			m.yes++
			m.since = now
			if m.leaving == nil { // it asks no further, and is quick
				m.at = modelEvict
			}
			return fmt.Sprintf("%d hears yes from %d", n, m.peers[m.asked-1])
		}
		if m.yes == 0 || m.all && m.yes < len(m.peers) {
			m.end(hash)
			m.at = modelIdle
			return fmt.Sprintf("%d keeps it", n)
		}
		m.at = modelEvict
		return fmt.Sprintf("%d decides", n)
	case modelEvict:
		m.row, m.at = false, modelDrop
		return fmt.Sprintf("%d unstores", n)
	case modelDrop:
		m.has, m.at = false, modelDone
		m.end(hash)
		return fmt.Sprintf("%d deletes", n)
	}
	return ""
}

func (m *modelInstance) end(hash narinfo.PathHash) {
	if m.marked {
		m.leaving.unmark(hash)
		m.marked = false
	}
}
