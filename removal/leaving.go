package removal

import (
	"sync"
	"time"

	"nar-herder/narinfo"
)

// Leaving is what keeps two instances, each of which would remove a nar because
// the other has it, from both doing so.
//
// An instance marks a nar as leaving before it asks the others, and until it has
// removed the nar or decided not to; and of a nar that is leaving, it tells
// others that it is not stored. So whenever an instance X hears from Y that a
// nar is stored there, Y had not marked it yet. If Y removes the nar as well, Y
// has marked it later than X; and whoever told Y that it is stored, later still.
// Of any number of instances that ask each other in any order, the last to mark
// a nar has nobody left to hear it from, and keeps it.
//
// The original Nar Herder does not mark anything: it asks, and removes. For who
// asks in its way, the answer "stored" is a promise to keep the nar for long
// enough that a question in the other direction gets the answer "not stored".
// Promises are in memory. That there are any is noted in the index, so that the
// next process keeps all nars for as long.
type Leaving struct {
	now func() time.Time

	mu       sync.Mutex
	leaving  map[narinfo.PathHash]struct{}
	promised [2]promises // the newer ones first
	// gave has something in it when a promise was given since it was emptied.
	gave  chan struct{}
	until time.Time // an earlier process may have promised any nar
}

// promises are those of a span of time.
type promises struct {
	since    time.Time
	hashes   map[narinfo.PathHash]struct{}
	overflow bool // there were more: any nar may be promised
}

const (
	// promiseFor is how long a promise is kept at the least: an instance that
	// was told that a nar is stored here removes its own within seconds.
	promiseFor = 10 * time.Minute
	// maxPromises bounds them for each span of that length, to about 10 MB.
	maxPromises = 100_000
)

// NewLeaving makes one with a clock; nil is the system's.
func NewLeaving(now func() time.Time) *Leaving {
	if now == nil {
		now = time.Now
	}
	return &Leaving{now: now, gave: make(chan struct{}, 1), leaving: make(map[narinfo.PathHash]struct{})}
}

// IsLeaving says whether the item's nar is about to be removed.
func (l *Leaving) IsLeaving(hash narinfo.PathHash) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, leaving := l.leaving[hash]
	return leaving
}

// Promise is IsLeaving for one who does not mark what it removes. When the
// answer is false, the nar is not marked here for a while.
func (l *Leaving) Promise(hash narinfo.PathHash) (leaving bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, leaving := l.leaving[hash]; leaving {
		return true
	}
	l.turn()
	select {
	case l.gave <- struct{}{}:
	default:
	}
	p := &l.promised[0]
	if len(p.hashes) < maxPromises {
		p.hashes[hash] = struct{}{}
	} else if _, known := p.hashes[hash]; !known {
		p.overflow = true
	}
	return false
}

// turn begins a new span when the present one is over.
func (l *Leaving) turn() {
	if now := l.now(); now.Sub(l.promised[0].since) >= promiseFor {
		l.promised[1] = l.promised[0]
		l.promised[0] = promises{since: now, hashes: make(map[narinfo.PathHash]struct{})}
		if now.Sub(l.promised[1].since) >= 2*promiseFor {
			l.promised[1] = promises{}
		}
	}
}

// keepOlder keeps what an earlier process may have promised, which only it
// knew: any nar.
func (l *Leaving) keepOlder() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = l.now().Add(promiseFor)
}

// isAllPromised says whether no nar can be marked for now.
func (l *Leaving) isAllPromised() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn()
	return l.now().Before(l.until) || l.promised[0].overflow || l.promised[1].overflow
}

// mark marks a nar as leaving. It returns false when that was promised not to
// happen, or when it is marked already.
func (l *Leaving) mark(hash narinfo.PathHash) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn()
	if l.now().Before(l.until) {
		return false
	}
	for i := range l.promised {
		if _, promised := l.promised[i].hashes[hash]; promised || l.promised[i].overflow {
			return false
		}
	}
	if _, marked := l.leaving[hash]; marked {
		return false
	}
	l.leaving[hash] = struct{}{}
	return true
}

// unmark takes the mark off, once the nar is removed or stays.
func (l *Leaving) unmark(hash narinfo.PathHash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.leaving, hash)
}
