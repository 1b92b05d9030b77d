// Package dependence keeps instances from removing a nar because of each other: it tracks
// which instances depend on which, because they removed nars that the others have.
package dependence

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"nar-herder/peer"
)

// Instances that remove nars because others have them must not depend on each other for
// the same nar: all would remove it. The rule is:
//
//	An instance may depend on another only if that one does not depend on it, directly or
//	through others; in a cycle, an instance may depend only on instances with a greater id.
//
// So the greatest id of a cycle keeps its nars. To apply it, each instance states which
// instances it depends on, with the answer whether it has nars: its own peers, one step away,
// and those in their statements, a step further away than they say. Where a peer's statement is
// missing or too old, [peer.Unknown] takes its place.
//
// What if configurations change? Suppose that a nar is lost: each of X1 → X2 → … → Xk → X1
// removed it last, at t1, t2, …, since the next one had it. One of them, X1, depended on X2
// although that has a smaller id, so X1 was not in the statement of X2. Yet each of the
// others depended on the next one, too. Let H be [SettleTime], and count the rest in shares
// of it.
//
//   - The answers that a removal is based on are at most H/10 old. Xi+1 had the nar when Xi
//     asked, so it removed it later than H/10 before Xi: all that happened within k·H/10.
//   - A statement is made of statements that are at most 2·H/10 old. Therefore X1 knew of Xj
//     what that stated at most H/10 + (j-2)·2·H/10 before t1.
//   - An instance depends on another only when it has stated that for H. Since tj is earlier
//     than t1 + (k-j+1)·H/10, Xj had begun to state Xj+1 by then, if k is at most 6.
//   - After a start, an instance makes no statement for H. Therefore Xj had not restarted
//     with another configuration by then: X1 would have found that Xj is unknown.
//
// This holds for cycles of up to 6 instances, whatever their delays; for longer ones, most
// of the instances would have to take H/10 over the same nar, one after the other. What is
// more than 5 steps away is not stated, so X1 does not depend on an instance that states any
// as far away as that. Durations are measured by the monotonic clock, which an administrator
// can't set. It stops while the machine is suspended, so an age is the larger of the ages by
// that and by the wall clock.
const (
	SettleTime = 10 * time.Minute
	// Shares of the settle time: see above.
	validShare   = 10 // maximum age of the answers that a removal is based on
	stateShare   = 5  // maximum age of the peers' statements
	refreshShare = 30 // interval between two requests for a peer's statement
	mostSteps    = 5
	// mostDependencies bounds the instances that this one states.
	mostDependencies = 32
)

// Tracker knows which instances this one depends on, and which those depend on.
type Tracker struct {
	self   string
	settle time.Duration
	now    func() time.Time
	// peers are the URLs of the instances that criteria name.
	peers   []string
	started time.Time

	mu sync.Mutex
	// since is when this process began to state that it depends on an instance, by its id;
	// "" for originals. An entry stays: behind one URL there may be several instances.
	since    map[string]time.Time
	overflow bool // the process depends on too many instances to state
	said     map[string]said
}

// said is a peer's introduction, and the time when the request was sent.
type said struct {
	at time.Time
	peer.Introduction
}

func New(self string, peers []string, settle time.Duration, now func() time.Time) *Tracker {
	return &Tracker{
		self: self, peers: peers, settle: cmp.Or(settle, SettleTime), now: now, started: now(),
		since: make(map[string]time.Time), said: make(map[string]said),
	}
}

// elapsed returns the age of an answer to a request that was sent at a time.
func (r *Tracker) elapsed(at time.Time) time.Duration {
	now := r.now()
	return max(now.Sub(at), now.Round(0).Sub(at.Round(0)))
}

// IsLate reports whether answers to requests of that time are too old to remove nars.
func (r *Tracker) IsLate(at time.Time) bool { return r.elapsed(at) > r.settle/validShare }

// isStale reports whether a peer's statement is too old to count.
func (r *Tracker) isStale(s said) bool { return r.elapsed(s.at) > r.settle/stateShare }

// Hear records a peer's introduction, and that this instance depends on it from now on.
func (r *Tracker) Hear(url string, at time.Time, who peer.Introduction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said[url] = said{at, who}
	if _, known := r.since[who.Instance]; known || who.Instance == r.self {
		return
	}
	if len(r.since) >= mostDependencies {
		r.overflow = true
		return
	}
	r.since[who.Instance] = r.now()
}

// Statement returns this instance's statement; nil while its dependencies are unknown.
func (r *Tracker) Statement() peer.Statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.overflow || r.now().Sub(r.started) < r.settle || len(r.said) < len(r.peers) {
		return nil
	}
	heard := make(map[string]peer.Statement)
	for _, said := range r.said {
		if !r.isStale(said) {
			heard[said.Instance] = said.ReliesOn
		}
	}
	all := make(peer.Statement)
	add := func(id string, steps int) {
		if known, ok := all[id]; id != r.self && steps <= mostSteps && (!ok || steps < known) {
			all[id] = steps
		}
	}
	for id := range r.since {
		if id == "" {
			continue // an original
		}
		if add(id, 1); heard[id] == nil {
			add(peer.Unknown, 1)
		}
		for other, steps := range heard[id] {
			add(other, steps+1)
		}
	}
	if len(all) > peer.MaxStatement {
		return nil
	}
	return all
}

// Unsettled is the reason for removing nothing soon after a start.
const Unsettled = "for ten minutes after a server starts, and after it first hears from an instance that stored-on names, it removes nothing because that instance has it"

// Refusal returns why this instance may not depend on one that has introduced itself; ""
// if it may.
func (r *Tracker) Refusal(name string, who peer.Introduction) string {
	r.mu.Lock()
	since, known := r.since[who.Instance]
	r.mu.Unlock()
	switch {
	case !known || r.now().Sub(since) < r.settle:
		return Unsettled
	case who.Instance == "", who.Instance > r.self:
		return "" // the administrator must know what an original depends on
	}
	_, cycle := who.ReliesOn[r.self]
	_, unknown := who.ReliesOn[peer.Unknown]
	for _, steps := range who.ReliesOn {
		unknown = unknown || steps >= mostSteps
	}
	switch {
	case cycle:
		return fmt.Sprintf("%s depends on this instance as well, and has the smaller id: the one with the greatest id keeps the nars", name)
	case unknown || who.ReliesOn == nil:
		return fmt.Sprintf("whether %s depends on this instance is not known: it doesn't say for ten minutes after a start, or an instance that it depends on doesn't, or its proxy does not pass %s", name, peer.StoredPath)
	}
	return ""
}

// Expect returns why a request to a peer would be useless now; "" if it may be useful. The
// reason has the peer's name, which unlike its URL has no password.
func (r *Tracker) Expect(url, name string) string {
	r.mu.Lock()
	last, known := r.said[url]
	r.mu.Unlock()
	switch {
	case known && last.Instance == r.self:
		return "" // the answer is an error that says so
	case known && !r.isStale(last):
		return r.Refusal(name, last.Introduction)
	case r.now().Sub(r.started) < r.settle:
		return Unsettled
	}
	return ""
}

// AssumeSettled simulates that this instance has run for long, and has stated for long that it
// depends on the instances that it knows, and on those with the given ids.
func (r *Tracker) AssumeSettled(ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle, r.started = SettleTime, time.Time{}
	for _, id := range ids {
		r.since[id] = time.Time{}
	}
	for id := range r.since {
		r.since[id] = time.Time{}
	}
}

// Run requests the peers' statements repeatedly until the context ends. introduce requests
// that of one peer.
func (r *Tracker) Run(ctx context.Context, introduce func(ctx context.Context, url string) (peer.Introduction, error)) {
	if len(r.peers) == 0 {
		return
	}
	ticker := time.NewTicker(r.settle / refreshShare)
	defer ticker.Stop()
	for {
		r.Refresh(ctx, introduce)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Refresh requests the peers' statements once. If a request fails, the last statement counts
// until it is stale.
func (r *Tracker) Refresh(ctx context.Context, introduce func(ctx context.Context, url string) (peer.Introduction, error)) {
	var asking sync.WaitGroup
	for _, url := range r.peers {
		asking.Go(func() {
			at := r.now()
			if who, err := introduce(ctx, url); err == nil {
				r.Hear(url, at, who)
			}
		})
	}
	asking.Wait()
}
