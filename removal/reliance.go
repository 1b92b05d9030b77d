package removal

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"nar-herder/peer"
)

// Instances that remove nars because others have them must not rely on each other for the
// same nar: all would remove it. The rule is:
//
//	An instance may rely on another only if that one does not rely on it, directly or
//	through others; in a cycle, an instance may rely only on instances with a greater id.
//
// So the greatest id of a cycle keeps its nars. To apply it, each instance states on whom
// it relies, and on whom those do, with the answer whether it has nars.
//
// What if configurations change? Suppose that a nar is lost: each of X1 → X2 → … → Xk → X1
// removed it last, at t1, t2, …, since the next one had it. One of them, X, relied on an
// instance Y with a smaller id, so the statements that X knew had no path from Y back to X.
// Yet each of the others relied on the next one, too. Let H be [settleTime], and count the
// rest in shares of it.
//
//   - The answers that a removal is based on are at most H/10 old. Xi+1 had the nar when Xi
//     asked, so it removed it later than H/10 before Xi: all that happened within k·H/10.
//   - An instance relies on another only when it has stated that for H. Therefore X knew an
//     older statement only if it was made more than H before the instance even asked. But
//     what X knew was at most H/10 + 3·H/10 old.
//   - After a start, an instance makes no statement for H. Therefore X knew no newer one:
//     that would be H younger than the removal.
//
// This holds for cycles of up to 9 instances, whatever their delays; for longer ones, most
// of the instances would have to take H/10 over the same nar, one after the other. Where
// over 8 instances behind Y rely on others, X doesn't rely on Y. Durations are
// measured by the monotonic clock, which an administrator can't set; it stands still while
// the machine is suspended, so that an age is the larger of what that and the wall clock say.
const (
	settleTime = 10 * time.Minute
	// Shares of the settle time: see above.
	validShare   = 10 // how old the answers may be that a removal is based on
	stateShare   = 3  // tenths: how old a statement may be
	refreshShare = 30 // how often the peers are asked for theirs
	mostRelying  = 8
	// mostReliedOn bounds the instances that this one states.
	mostReliedOn = 32
)

// reliance knows on whom this instance relies, and on whom those rely.
type reliance struct {
	self   string
	settle time.Duration
	now    func() time.Time
	// peers are those of the criteria, by their URLs.
	peers   []string
	started time.Time

	mu sync.Mutex
	// since is from when on this process states that it relies on an instance, by its id;
	// "" for originals. An entry stays: behind one URL there may be several instances.
	since    map[string]time.Time
	overflow bool // there were too many
	said     map[string]said
}

// said is what a peer said about itself, and when it was asked.
type said struct {
	at time.Time
	peer.Introduction
}

func newReliance(self string, peers []string, settle time.Duration, now func() time.Time) *reliance {
	return &reliance{
		self: self, peers: peers, settle: cmp.Or(settle, settleTime), now: now, started: now(),
		since: make(map[string]time.Time), said: make(map[string]said),
	}
}

// elapsed is the age of what was asked for at a time.
func (r *reliance) elapsed(at time.Time) time.Duration {
	now := r.now()
	return max(now.Sub(at), now.Round(0).Sub(at.Round(0)))
}

// isLate reports whether answers to what was asked at that time are too old to remove nars.
func (r *reliance) isLate(at time.Time) bool { return r.elapsed(at) > r.settle/validShare }

// oldest is the age from which statements count as none.
func (r *reliance) oldest() time.Duration { return r.settle * stateShare / 10 }

// hear notes what a peer says about itself, and from when on this instance relies on it.
func (r *reliance) hear(url string, at time.Time, who peer.Introduction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said[url] = said{at, who}
	if _, known := r.since[who.Instance]; known || who.Instance == r.self {
		return
	}
	if len(r.since) >= mostReliedOn {
		r.overflow = true
		return
	}
	r.since[who.Instance] = r.now()
}

// statement is what this instance tells others; nil while it can't tell on whom it relies.
func (r *reliance) statement() peer.Statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.overflow || r.now().Sub(r.started) < r.settle || len(r.said) < len(r.peers) {
		return nil
	}
	on := slices.Sorted(maps.Keys(r.since))
	if len(on) > 0 && on[0] == "" {
		on = on[1:]
	}
	if on == nil {
		on = []string{}
	}
	all := make(peer.Statement)
	for _, said := range r.said {
		age := r.elapsed(said.at)
		for id, entry := range said.ReliesOn {
			entry.Age += int64((age + time.Millisecond - 1) / time.Millisecond)
			if other, known := all[id]; id != r.self && entry.Age <= r.oldest().Milliseconds() && (!known || entry.Age < other.Age) {
				all[id] = entry
			}
		}
	}
	own := peer.Reliance{On: on}
	if all[r.self] = own; all.Names() > peer.MaxStatement {
		return peer.Statement{r.self: own}
	}
	return all
}

// unsettled is why nothing is removed yet.
const unsettled = "for ten minutes after a server starts, and after it first hears from an instance that stored-on names, it removes nothing because that instance has it"

// refusal returns why this instance may not rely on one that has introduced itself; ""
// when it may.
func (r *reliance) refusal(url string, who peer.Introduction) string {
	r.mu.Lock()
	since, known := r.since[who.Instance]
	r.mu.Unlock()
	switch {
	case !known || r.now().Sub(since) < r.settle:
		return unsettled
	case who.Instance == "", who.Instance > r.self:
		return "" // what an original relies on, an administrator has to know
	}
	cycle, unknown := r.follow(who)
	switch {
	case cycle:
		return fmt.Sprintf("%s relies on this instance as well, and has the smaller id: the one with the greatest id keeps the nars", url)
	case unknown:
		return fmt.Sprintf("whether %s relies on this instance is not known: it doesn't say for ten minutes after a start, or one that it relies on doesn't", url)
	}
	return ""
}

// follow looks for this instance behind one that has introduced itself.
func (r *reliance) follow(who peer.Introduction) (cycle, unknown bool) {
	seen, relying := map[string]bool{who.Instance: true}, 0
	for next := []string{who.Instance}; len(next) > 0; {
		entry, known := who.ReliesOn[next[0]]
		next = next[1:]
		if unknown = unknown || !known || entry.Age > r.oldest().Milliseconds(); !known {
			continue
		}
		if len(entry.On) > 0 {
			relying++
		}
		for _, id := range entry.On {
			if id == r.self {
				return true, unknown
			}
			if !seen[id] {
				seen[id] = true
				next = append(next, id)
			}
		}
	}
	return false, unknown || relying > mostRelying
}

// expect returns why asking a peer for nars is of no use now; "" when it is, or when only
// its answer can tell.
func (r *reliance) expect(url string) string {
	r.mu.Lock()
	last, known := r.said[url]
	r.mu.Unlock()
	switch {
	case known && last.Instance == r.self:
		return "" // the answer is an error that says so
	case known && r.elapsed(last.at) <= r.oldest():
		return r.refusal(url, last.Introduction)
	case r.now().Sub(r.started) < r.settle:
		return unsettled
	}
	return ""
}

// run asks the peers what they state, again and again, until the context ends. introduce
// asks one of them.
func (r *reliance) run(ctx context.Context, introduce func(ctx context.Context, url string) (peer.Introduction, error)) {
	if len(r.peers) == 0 {
		return
	}
	ticker := time.NewTicker(r.settle / refreshShare)
	defer ticker.Stop()
	for {
		r.refresh(ctx, introduce)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// refresh asks the peers once. One that fails keeps what it said before, until that is old.
func (r *reliance) refresh(ctx context.Context, introduce func(ctx context.Context, url string) (peer.Introduction, error)) {
	var asking sync.WaitGroup
	for _, url := range r.peers {
		asking.Go(func() {
			at := r.now()
			if who, err := introduce(ctx, url); err == nil {
				r.hear(url, at, who)
			}
		})
	}
	asking.Wait()
}
