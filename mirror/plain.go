package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nar-herder/peer"
)

// unreadableTries is how often a change that makes no sense is asked for again,
// since it may have been damaged on its way, before it is passed over.
const unreadableTries = 3

// followPlain asks a source that knows its changes by their times alone, as the
// original does, and does what is new.
func (m *Mirror) followPlain(ctx context.Context, at place) error {
	if ok, err := m.hasNumbers(ctx, at); ok || err != nil {
		return err
	}
	asked := m.now()
	anchors := at.anchors()
	found := len(anchors) == 0
	if !found && at.Dump != "" {
		// Changes that a dump has may have left the log; others may not.
		current, _, err := m.Source.Look(ctx, peer.DumpPath, true)
		if err != nil {
			return err
		}
		found = current == at.Dump
	}
	p := &plainPoll{m: m, ctx: ctx, at: at, fresh: make(seen)}
	p.begin()
	// Nothing is done before it is known that all are there which came after
	// those that were seen.
	var early []peer.Change
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
		}
		if when, err := parseTime(c.Datetime); err == nil && when.After(at.Since) || len(early) > mostEarly {
			return errNoAnchor
		}
		return nil
	})
	if errors.Is(err, errNoAnchor) || err == nil && !found {
		return m.resync(ctx, at, "the changes that were seen have left its log")
	}
	if err != nil {
		return err // what was done is done; the rest comes again
	}
	if err := p.flush(); err != nil {
		return err
	}
	clear(m.unreadable)
	m.status.polled(asked)
	return nil
}

// errNoAnchor says that the newest changes that were seen are no longer told.
var errNoAnchor = errors.New("the changes that were seen are not there")

// mostEarly bounds the changes that were written late at the source.
const mostEarly = 10_000

// plainPoll does what one answer of a source tells that has no numbers.
type plainPoll struct {
	m     *Mirror
	ctx   context.Context
	at    place
	fresh seen
	b     *batch
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
	change, err := read(c, false, p.m.now())
	if err != nil {
		// It may have been damaged on its way.
		if p.m.unreadable[f]++; p.m.unreadable[f] < unreadableTries {
			return err
		}
		p.m.unreadableChange(c, err)
		if when.After(p.m.now().Add(mostAhead)) {
			when = p.at.Since // else all that come would be behind it
		}
		p.fresh[f] = when
		return nil
	}
	p.fresh[f] = when
	p.b.add(change)
	if p.b.isFull() {
		return p.flush()
	}
	return nil
}

// flush writes what was taken.
func (p *plainPoll) flush() error {
	if len(p.fresh) == 0 {
		return nil
	}
	p.b.next = p.at.with(p.fresh)
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
