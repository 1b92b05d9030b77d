package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/upstream/pipeline"
	"nar-herder/upstream/turns"
)

const (
	// maxUnsure bounds how long an absence may be cached that some upstreams can't confirm.
	maxUnsure = time.Minute
	// bakingTTL is how long an item counts as absent that is being made, if the upstream
	// doesn't say. Guix's client does the same.
	bakingTTL = 2 * time.Minute
)

// unknown is an [ErrUnknown] with the reason of each upstream.
type unknown []error

func (u unknown) Error() string {
	var b strings.Builder
	b.WriteString(ErrUnknown.Error())
	for i, reason := range u {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		b.WriteString(reason.Error())
	}
	return b.String()
}

func (u unknown) Unwrap() []error { return append([]error{ErrUnknown}, u...) }

// reply is what an upstream says about an item. The zero value is one that is awaited.
type reply struct {
	narinfo    *narinfo.Narinfo // nil if it doesn't have it
	authorized bool             // its signature was verified
	maxAge     time.Duration
	absent     bool
	err        error // why it can't tell
}

func (r *reply) isAwaited() bool { return r.narinfo == nil && !r.absent && r.err == nil }

// item is the question about one item. The question's mutex protects it.
type item struct {
	replies   []reply   // of each upstream
	due       time.Time // when to choose the first reply with a narinfo; zero without one
	awaited   bool      // wait knows due
	overdue   bool
	verifying bool
	decided   bool
}

// question is a call of [Set.Ask].
type question struct {
	set     *Set
	ctx     context.Context
	hashes  []narinfo.PathHash
	deliver func(narinfo.PathHash, Answer)
	waiting chan int    // items with a time when they are due, in that order
	first   turns.Place // of the first item
	left    atomic.Int64
	done    chan struct{} // closed when none is left

	mu       sync.Mutex
	items    []item
	answered []bool // by each upstream
	over     bool   // nothing is awaited any more
}

type clientKey struct{}

// WithClient returns a context for [Set.Ask] with the network of the client that waits for the
// answers. Clients take turns; those without a network are one.
func WithClient(ctx context.Context, client netip.Prefix) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// place returns the place of an item in queues.
func (q *question) place(item int) turns.Place {
	return turns.Place{Client: q.first.Client, Number: q.first.Number + uint64(item)}
}

// Ask asks all upstreams for narinfos, and calls deliver once for each hash, as soon as its
// answer is known; calls may be concurrent, and should not block. It returns after the last
// call, and soon after the end of ctx. Narinfos are of the item that was asked for, and their
// signatures are authorized. via is the Via header of a client's request.
func (s *Set) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, Answer)) {
	if len(hashes) == 0 {
		return
	}
	if !peer.CanPass(via, s.options.Instance) {
		s.logged.Log(s.options.Log, slog.LevelWarn, s.options.Now(), "a request for a narinfo has come back to this server", "error", ErrLoop)
		for _, hash := range hashes {
			deliver(hash, Answer{MaxAge: -1, Err: unknown{ErrLoop}})
		}
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.options.AnswerTimeout, pipeline.ErrSilent)
	defer cancel()
	q := &question{
		set: s, ctx: ctx, hashes: hashes, deliver: deliver,
		waiting: make(chan int, len(hashes)), done: make(chan struct{}),
		items: make([]item, len(hashes)), answered: make([]bool, len(s.upstreams)),
	}
	q.left.Store(int64(len(hashes)))
	q.first.Client, _ = ctx.Value(clientKey{}).(netip.Prefix)
	q.first.Number = s.asked.Add(uint64(len(hashes))) - uint64(len(hashes))
	q.send(via)
	q.wait()
}

// send asks each upstream that is up.
func (q *question) send(via []string) {
	replies := make([]reply, len(q.hashes)*len(q.set.upstreams))
	for i := range q.items {
		q.items[i].replies, replies = replies[:len(q.set.upstreams)], replies[len(q.set.upstreams):]
	}
	var up []int
	for n, u := range q.set.upstreams {
		err := u.outage()
		if err == nil {
			up = append(up, n)
			continue
		}
		q.answered[n] = true
		u.requests[skipped].Add(int64(len(q.hashes)))
		for i := range q.items {
			q.items[i].replies[n].err = fmt.Errorf("%s is skipped since it can't be reached: %w", u, err)
		}
	}
	for _, n := range up {
		u := q.set.upstreams[n]
		server, header := u.current(), u.header(via)
		calls := make([]pipeline.Call, 0, len(q.hashes))
		for i := range q.hashes {
			c := &call{question: q, item: i, upstream: n}
			if c.setServer(server, header) {
				calls = append(calls, c)
			}
		}
		if server != nil {
			server.send(calls...)
		} else {
			u.files.Send(calls...)
		}
	}
	if len(up) == 0 {
		for i := range q.items {
			q.settle(i)
		}
	}
}

// wait returns when all answers are delivered.
func (q *question) wait() {
	waiting := q.waiting
	var timer <-chan time.Time
	var next int
	for {
		select {
		case <-q.done:
			return
		case <-q.ctx.Done():
			q.giveUp()
			<-q.done
			return
		case next = <-waiting:
			q.mu.Lock()
			due := q.items[next].due
			q.mu.Unlock()
			timer, waiting = time.After(time.Until(due)), nil
		case <-timer:
			q.mu.Lock()
			q.items[next].overdue = true
			q.mu.Unlock()
			q.settle(next)
			timer, waiting = nil, q.waiting
		}
	}
}

// giveUp decides with the replies that are there.
func (q *question) giveUp() {
	q.mu.Lock()
	q.over = true
	answered := slices.Clone(q.answered)
	q.mu.Unlock()
	if err := context.Cause(q.ctx); errors.Is(err, pipeline.ErrSilent) {
		for n, u := range q.set.upstreams {
			if !answered[n] {
				u.Report(err, q.set.options.AnswerTimeout)
			}
		}
	}
	for i := range q.items {
		q.settle(i)
	}
}

// receive records a reply.
func (q *question) receive(i, upstream int, r reply) {
	q.mu.Lock()
	t := &q.items[i]
	q.answered[upstream] = true
	if t.decided {
		q.mu.Unlock()
		return
	}
	t.replies[upstream] = r
	size := 0
	if r.narinfo != nil {
		size = len(r.narinfo.Text)
		if t.due.IsZero() {
			t.due = time.Now().Add(q.set.options.PreferWait)
		}
	}
	q.mu.Unlock()
	q.set.settler.add(turn{q, i, size})
}

// settle delivers the answer about an item, if it is known and hasn't been delivered.
func (q *question) settle(i int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := &q.items[i]
	for !t.decided && !t.verifying {
		n, ok := q.choose(t)
		if !ok {
			if !t.due.IsZero() && !t.awaited {
				t.awaited = true
				q.waiting <- i // which has room for all
			}
			return
		}
		if n >= 0 && !t.replies[n].authorized {
			// Only the narinfo that is chosen is verified: that takes longer than all else.
			text := t.replies[n].narinfo
			t.verifying = true
			q.mu.Unlock()
			err := storage.Authorize(text, q.set.options.Keys)
			q.mu.Lock()
			t.verifying = false
			if err == nil {
				t.replies[n].authorized = true
				continue
			}
			u := q.set.upstreams[n]
			u.refuse(err)
			err = fmt.Errorf("%s: the narinfo of %s: %w", u, text.StorePath.BaseName(), err)
			u.warn("refused", err)
			t.replies[n] = reply{err: err}
			continue
		}
		t.decided = true
		answer := q.answer(t, n)
		q.mu.Unlock()
		q.deliver(q.hashes[i], answer)
		if q.left.Add(-1) == 0 {
			close(q.done)
		}
		q.mu.Lock()
	}
}

// choose returns the upstream that has the item, -1 for none, or that this isn't known yet. The
// caller holds q.mu.
func (q *question) choose(t *item) (upstream int, ok bool) {
	isAwaited := false
	for n := range t.replies {
		r := &t.replies[n]
		if r.narinfo != nil {
			return n, true
		}
		if r.isAwaited() && !q.over {
			if !t.overdue {
				return -1, false
			}
			isAwaited = true
		}
	}
	return -1, !isAwaited
}

// answer makes the answer about an item that an upstream has, or none. The caller holds q.mu.
func (q *question) answer(t *item, upstream int) Answer {
	if upstream >= 0 {
		r := &t.replies[upstream]
		return Answer{Narinfo: r.narinfo, Upstream: q.set.upstreams[upstream], MaxAge: r.maxAge}
	}
	answer := Answer{MaxAge: -1, Err: storage.ErrNotFound}
	var reasons unknown
	for n := range t.replies {
		r := &t.replies[n]
		switch {
		case r.isAwaited():
			reasons = append(reasons, fmt.Errorf("%s: %w", q.set.upstreams[n], context.Cause(q.ctx)))
		case r.err != nil:
			reasons = append(reasons, r.err)
		case r.maxAge >= 0 && (answer.MaxAge < 0 || r.maxAge < answer.MaxAge):
			answer.MaxAge = r.maxAge
		}
	}
	switch {
	case len(reasons) == len(t.replies):
		return Answer{MaxAge: -1, Err: reasons}
	case len(reasons) > 0 && (answer.MaxAge < 0 || answer.MaxAge > maxUnsure):
		answer.MaxAge = maxUnsure
	}
	return answer
}
