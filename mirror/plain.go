package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage"
)

// unreadableTries is how often an unreadable change is requested, since it may have been
// damaged on its way, before it is skipped.
const unreadableTries = 3

// followPlain polls a source that has no numbers for its changes, such as the original,
// and applies the new ones. Its answers have no digest, so a change is applied once two
// answers have contained it: if there is a new one, followPlain polls again at once.
func (m *Mirror) followPlain(ctx context.Context, at cursor.Cursor) error {
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
	polledAt := m.Now()
	for again := false; ; again = true {
		pending := len(m.seenOnce)
		p, err := m.pollPlain(ctx, at)
		if errors.Is(err, errNoAnchor) {
			if !again {
				continue
			}
			return m.resync(ctx, at, "the changes that were seen have left its log")
		}
		if err != nil {
			return err // the rest comes again
		}
		at = p.at
		switch {
		case !p.unsure, again && p.done >= pending && !p.more:
			// The unconfirmed changes are newer than the first answer.
			clear(m.unreadable)
			if p.waiting != nil {
				return p.waiting
			}
			m.status.polled(polledAt)
			return nil
		case again && (p.done == 0 || !p.more):
			return nil // the next poll confirms the rest
		}
	}
}

// pollPlain sends one request.
func (m *Mirror) pollPlain(ctx context.Context, at cursor.Cursor) (*plainPoll, error) {
	anchors := at.Anchors()
	found := len(anchors) == 0
	if !found && at.Dump != "" {
		// Only changes that are in the dump may have left the log.
		current, _, err := download.Look(ctx, m.Source, peer.DumpPath, true)
		if err != nil {
			return nil, err
		}
		found = current == at.Dump
	}
	p := &plainPoll{m: m, ctx: ctx, at: at, fresh: make(cursor.Seen), before: m.seenOnce}
	p.begin()
	m.seenOnce = make(map[cursor.Fingerprint]struct{})
	// Apply nothing until an anchor shows that no change after it is missing.
	var early []peer.Change
	earlyBytes := 0
	err := m.Source.ChangesSince(ctx, at.From(), func(c peer.Change) error {
		if found {
			return p.take(c)
		}
		f := cursor.FingerprintOf(c)
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
			earlyBytes += c.Size()
		}
		if when, err := cursor.ParseTime(c.Datetime); err == nil && when.After(at.Since) && !m.isAhead(when) || len(early) > maxEarly || earlyBytes > maxEarlyBytes {
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
	// errNoAnchor reports that the newest changes that were seen have left the log.
	errNoAnchor = errors.New("the changes that were seen are not there")
	// errEnough ends an answer with more new changes than are remembered.
	errEnough = errors.New("the answer has enough changes")
)

const (
	// maxEarly and maxEarlyBytes bound the new changes before an anchor, which the source
	// wrote late.
	maxEarly      = 10_000
	maxEarlyBytes = 16 << 20
	// maxSeenOnce bounds the changes that wait for their confirmation.
	maxSeenOnce = 100_000
)

// plainPoll applies the changes of one answer of a source without numbers.
type plainPoll struct {
	m     *Mirror
	ctx   context.Context
	at    cursor.Cursor
	fresh cursor.Seen
	b     *batch
	// before are the unconfirmed changes of the previous answer.
	before map[cursor.Fingerprint]struct{}
	// unsure says that this answer has unconfirmed changes. They are not applied, and
	// neither are those after them. more says that there are too many to remember.
	unsure, more bool
	// waiting is the reason why changes that are ahead of this machine's clock wait.
	// accepted says that such changes don't wait.
	waiting  error
	accepted bool
	// done counts the changes that were applied or skipped.
	done int
}

func (p *plainPoll) begin() {
	clear(p.fresh)
	p.b = &batch{next: p.at}
}

// take applies a change, unless that was done before.
func (p *plainPoll) take(c peer.Change) error {
	f := cursor.FingerprintOf(c)
	when, err := cursor.ParseTime(c.Datetime)
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
	if _, sure := p.before[f]; !sure || p.unsure {
		p.unsure = true
		if p.m.seenOnce[f] = struct{}{}; len(p.m.seenOnce) >= maxSeenOnce {
			return errEnough
		}
		return nil
	}
	p.done++
	change, err := read(c)
	if err == nil && change.Narinfo != nil {
		err = storage.Authorize(change.Narinfo, p.m.Keys)
	}
	if err != nil {
		reason := storage.Reason(err)
		// It may have been damaged on its way, unless the key is at fault.
		if p.m.unreadable[f]++; p.m.unreadable[f] < unreadableTries && reason != storage.Unauthorized && reason != storage.Unsupported {
			return err
		}
		if reason != "" {
			p.m.refuse(change.Narinfo.StorePath.String(), err, &p.at)
		} else {
			p.m.unreadableChange(c, err)
		}
		p.fresh[f] = when
		return nil
	}
	if p.m.isAhead(change.At) { // which was accepted
		change.At = p.m.Now().UTC().Truncate(time.Second)
	}
	p.fresh[f] = when
	p.b.add(change)
	if p.b.isFull() {
		return p.flush()
	}
	return nil
}

// ahead notes a change that is dated ahead of this machine's clock. It waits, because that
// clock may be behind, unless the source was accepted.
func (p *plainPoll) ahead(when time.Time) error {
	if p.waiting != nil || p.accepted {
		return nil
	}
	err := p.m.unlessAccepted(p.ctx, fmt.Sprintf("it has changes that are dated ahead of this machine's clock, such as of %s, and that wait until then: check the clocks of both",
		when.Format(time.DateTime)))
	var refused *health.RefusedError
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

// flush writes the batch.
func (p *plainPoll) flush() error {
	if len(p.fresh) == 0 {
		return nil
	}
	p.b.next = p.at.With(p.fresh, p.m.Now())
	if len(p.b.next.Seen) > cursor.MaxSeen {
		return cursor.ErrTooManySeen
	}
	if err := p.m.apply(p.ctx, p.b); err != nil {
		return err
	}
	p.at = p.b.next
	p.begin()
	return nil
}

// hasNumbers reports whether the source numbers its changes by now, as after an upgrade
// from the original. Then it resyncs from the dump, which has the latest number.
func (m *Mirror) hasNumbers(ctx context.Context, at cursor.Cursor) (bool, error) {
	if m.Now().Sub(m.askedNumbers) < noLogFor {
		return false, nil
	}
	reply, err := m.Source.ChangesAfter(ctx, peer.Known{Position: 1 << 62})
	m.askedNumbers = m.Now()
	if lost := peer.AsLost(err); lost != nil && lost.Instance != "" || reply != nil {
		return true, m.resync(ctx, at, "it numbers its changes now")
	}
	// Any other fault shows in the original's request as well.
	return false, nil
}
