package mirror

import (
	"context"
	"fmt"

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
	fresh := make(seen)
	b := &batch{next: at}
	flush := func() error {
		if len(fresh) == 0 {
			return nil
		}
		b.next = at.with(fresh)
		if err := m.apply(ctx, b); err != nil {
			return err
		}
		at = b.next
		clear(fresh)
		b = &batch{next: at}
		return nil
	}
	// Nothing is done before it is known that all are there which came after
	// those that were seen: the first are the oldest.
	var early []peer.Change
	take := func(c peer.Change) error {
		f := fingerprintOf(c)
		when, err := parseTime(c.Datetime)
		if err != nil {
			return fmt.Errorf("%w: %w", peer.ErrAnswer, err)
		}
		if _, done := at.Seen[f]; done || fresh[f] == when {
			return nil
		}
		change, err := read(c, false)
		if err != nil {
			if m.unreadable[f]++; m.unreadable[f] < unreadableTries {
				return err
			}
			m.log.Error("a change of the source can't be followed, and is passed over", "source", m.Source.String(), "datetime", c.Datetime, "error", err)
			m.status.passedOver()
			fresh[f] = when
			return nil
		}
		fresh[f] = when
		b.changes = append(b.changes, change)
		if len(b.changes) >= batchSize {
			return flush()
		}
		return nil
	}
	const mostEarly = 100_000
	err := m.Source.ChangesSince(ctx, at.from(), func(c peer.Change) error {
		if found {
			return take(c)
		}
		if early = append(early, c); len(early) > mostEarly {
			return fmt.Errorf("%w: over %d changes within a minute", peer.ErrAnswer, mostEarly)
		}
		f := fingerprintOf(c)
		for _, anchor := range anchors {
			if found = found || f == anchor; found {
				break
			}
		}
		if !found {
			return nil
		}
		for _, c := range early {
			if err := take(c); err != nil {
				return err
			}
		}
		early = nil
		return nil
	})
	if err != nil {
		return err // what was done is done; the rest comes again
	}
	if !found {
		// Changes that a dump has may have left the log; others may not.
		current, _, err := m.Source.Look(ctx, peer.DumpPath, true)
		if err != nil {
			return err
		}
		if at.Dump == "" || at.Dump != current {
			return m.resync(ctx, at, "the changes that were seen have left its log")
		}
		for _, c := range early {
			if err := take(c); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	clear(m.unreadable)
	m.status.polled(asked)
	return nil
}

// hasNumbers looks whether the source has become one that numbers its changes, as
// after an upgrade from the original; then it starts from its dump, which says
// how far its numbers are.
func (m *Mirror) hasNumbers(ctx context.Context, at place) (bool, error) {
	if m.now().Sub(m.askedNumbers) < noLogFor {
		return false, nil
	}
	reply, err := m.Source.ChangesAfter(ctx, "", 1<<62)
	m.askedNumbers = m.now()
	if lost := peer.AsLost(err); lost != nil && lost.Instance != "" || reply != nil {
		return true, m.resync(ctx, at, "it numbers its changes now")
	}
	// Whatever else that was, the original's question will tell.
	return false, nil
}
