package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nar-herder/peer"
)

// unreadableTries is how often a change that makes no sense is asked for again,
// since it may have been damaged on its way, before it is passed over.
const unreadableTries = 3

// followPlain asks a source that knows its changes by their times alone, as the
// original does, and does what is new. As nothing tells whether an answer has come
// as it was sent, only that is done which two answers have told alike: so where
// there is something new, it asks again at once.
func (m *Mirror) followPlain(ctx context.Context, at place) error {
	if ok, err := m.hasNumbers(ctx, at); ok || err != nil {
		return err
	}
	if m.isAhead(at.Since) {
		why := fmt.Sprintf("its changes were followed up to %s, which is ahead of this machine's clock", at.Since.Format(time.DateTime))
		if err := m.unlessAccepted(ctx, why); err != nil {
			return err
		}
		return m.resync(ctx, at, why)
	}
	asked := m.now()
	for again := false; ; again = true {
		told := len(m.toldOnce)
		p, err := m.pollPlain(ctx, at)
		if errors.Is(err, errNoAnchor) {
			if !again {
				continue
			}
			return m.resync(ctx, at, "the changes that were seen have left its log")
		}
		if err != nil {
			return err // what was done is done; the rest comes again
		}
		at = p.at
		switch {
		case !p.unsure, again && p.done >= told && !p.more:
			// What is unsure yet is newer than the first answer.
			clear(m.unreadable)
			if p.waiting != nil {
				return p.waiting
			}
			m.status.polled(asked)
			return nil
		case again && (p.done == 0 || !p.more):
			return nil // it comes with the next
		}
	}
}

// pollPlain asks once.
func (m *Mirror) pollPlain(ctx context.Context, at place) (*plainPoll, error) {
	anchors := at.anchors()
	found := len(anchors) == 0
	if !found && at.Dump != "" {
		// Changes that a dump has may have left the log; others may not.
		current, _, err := m.Source.Look(ctx, peer.DumpPath, true)
		if err != nil {
			return nil, err
		}
		found = current == at.Dump
	}
	p := &plainPoll{m: m, ctx: ctx, at: at, fresh: make(seen), told: m.toldOnce}
	p.begin()
	m.toldOnce = make(map[fingerprint]struct{})
	// Nothing is done before it is known that all are there which came after
	// those that were seen.
	var early []peer.Change
	held := 0
	err := m.Source.ChangesSince(ctx, at.from(), func(c peer.Change) error {
		if found {
			return p.take(c)
		}
		f := fingerprintOf(c)
		if found = slices.Contains(anchors, f); found {
			for _, c := range early {
				if err := p.take(c); err != nil {
					return err
				}
			}
			early = nil
			return nil
		}
		if _, done := at.Seen[f]; !done {
			early = append(early, c)
			held += c.Size()
		}
		if when, err := parseTime(c.Datetime); err == nil && when.After(at.Since) && !m.isAhead(when) || len(early) > mostEarly || held > mostEarlyBytes {
			return errNoAnchor
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		p.more = true
	case err == nil && !found:
		return nil, errNoAnchor
	case err != nil:
		return nil, err
	}
	return p, p.flush()
}

var (
	// errNoAnchor says that the newest changes that were seen are no longer told.
	errNoAnchor = errors.New("the changes that were seen are not there")
	// errManySeen says that more comes again than can be remembered.
	errManySeen = fmt.Errorf("it has over %d changes within a minute", mostSeen)
	// errEnough ends an answer of which as much was told as is remembered.
	errEnough = errors.New("enough was told")
)

const (
	// mostEarly and mostEarlyBytes bound the changes that were written late at the
	// source.
	mostEarly      = 10_000
	mostEarlyBytes = 16 << 20
	// mostSeen bounds the changes that are remembered since they come again: those of
	// [overlap].
	mostSeen = 250_000
	// mostToldOnce bounds the changes that are remembered until they are told again.
	mostToldOnce = 100_000
)

// plainPoll does what one answer of a source tells that has no numbers.
type plainPoll struct {
	m     *Mirror
	ctx   context.Context
	at    place
	fresh seen
	b     *batch
	// told are the changes that the answer before has told.
	told map[fingerprint]struct{}
	// unsure says that this one has told others, which are not done, nor what
	// comes behind them; more, that there are too many to be remembered at once.
	unsure, more bool
	// waiting says why there are changes that wait until they are no longer ahead of
	// this machine's clock; accepted, that they don't.
	waiting  error
	accepted bool
	// done is how many changes were done or passed over.
	done int
}

func (p *plainPoll) begin() {
	clear(p.fresh)
	p.b = &batch{next: p.at}
}

// take does a change, unless that was done before.
func (p *plainPoll) take(c peer.Change) error {
	f := fingerprintOf(c)
	when, err := parseTime(c.Datetime)
	if err != nil {
		return fmt.Errorf("%w: %w", peer.ErrAnswer, err)
	}
	if _, done := p.at.Seen[f]; done {
		return nil
	}
	if _, twice := p.fresh[f]; twice {
		return nil
	}
	if p.m.isAhead(when) {
		if err := p.ahead(when); err != nil {
			return err
		}
		if p.waiting != nil {
			return nil
		}
	}
	if _, sure := p.told[f]; !sure || p.unsure {
		p.unsure = true
		if p.m.toldOnce[f] = struct{}{}; len(p.m.toldOnce) >= mostToldOnce {
			return errEnough
		}
		return nil
	}
	p.done++
	change, err := read(c, false)
	if err != nil {
		// It may have been damaged on its way.
		if p.m.unreadable[f]++; p.m.unreadable[f] < unreadableTries {
			return err
		}
		p.m.unreadableChange(c, err)
		p.fresh[f] = when
		return nil
	}
	if p.m.isAhead(change.At) { // and accepted
		change.At = p.m.now().UTC().Truncate(time.Second)
	}
	p.fresh[f] = when
	p.b.add(change)
	if p.b.isFull() {
		return p.flush()
	}
	return nil
}

// ahead decides about a change that is dated ahead of this machine's clock. It waits, as
// that clock may be behind, unless the source was accepted.
func (p *plainPoll) ahead(when time.Time) error {
	if p.waiting != nil || p.accepted {
		return nil
	}
	err := p.m.unlessAccepted(p.ctx, fmt.Sprintf("it has changes that are dated ahead of this machine's clock, such as of %s, and that wait until then: check the clocks of both",
		when.Format(time.DateTime)))
	var refused *RefusedError
	switch {
	case err == nil:
		p.accepted = true
	case errors.As(err, &refused):
		p.waiting = err
	default:
		return err
	}
	return nil
}

// flush writes what was taken.
func (p *plainPoll) flush() error {
	if len(p.fresh) == 0 {
		return nil
	}
	p.b.next = p.at.with(p.fresh, p.m.now())
	if len(p.b.next.Seen) > mostSeen {
		return errManySeen
	}
	if err := p.m.apply(p.ctx, p.b); err != nil {
		return err
	}
	p.at = p.b.next
	p.begin()
	return nil
}

// hasNumbers looks whether the source has become one that numbers its changes, as
// after an upgrade from the original; then it starts from its dump, which says
// how far its numbers are.
func (m *Mirror) hasNumbers(ctx context.Context, at place) (bool, error) {
	if m.now().Sub(m.askedNumbers) < noLogFor {
		return false, nil
	}
	reply, err := m.Source.ChangesAfter(ctx, peer.Known{Position: 1 << 62})
	m.askedNumbers = m.now()
	if lost := peer.AsLost(err); lost != nil && lost.Instance != "" || reply != nil {
		return true, m.resync(ctx, at, "it numbers its changes now")
	}
	// Whatever else that was, the original's question will tell.
	return false, nil
}
