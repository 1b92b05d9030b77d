package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"nar-herder/narinfo"
)

const (
	// mostReply bounds the length of a page, mostPage the changes in it, and pageBytes
	// their texts. A server of this program ends a page after 200 changes, or the narinfo
	// that makes it 4 MiB.
	mostReply = 64 << 20
	mostPage  = 10_000
	pageBytes = 8<<20 + narinfo.MaxSize
)

// ChangesAfter requests a page of the changes of [Peer.Changes]. Its errors are the same.
func (p *Peer) ChangesAfter(ctx context.Context, known Known) (reply *ChangesReply, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask %s for its changes: %w", p, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 4*p.self.ProgressTimeout)
	defer cancel()
	response, err := p.send(ctx, ChangesPath+"?"+known.query())
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, ErrNoLog
	case http.StatusGone:
		return nil, readLost(response.Body)
	default:
		return nil, fmt.Errorf("it answers %s", response.Status)
	}
	return readReply(io.LimitReader(response.Body, mostReply), known)
}

// readReply reads a page of the changes after the known ones.
func readReply(from io.Reader, known Known) (*ChangesReply, error) {
	reply := new(ChangesReply)
	sent, size := known.Position, 0
	a := newAnswer(from)
	err := a.object("recent_changes", reply, func() error {
		var change Change
		if err := a.value(&change, maxChange); err != nil {
			return err
		}
		size += change.Size()
		switch {
		case change.ID == 0:
			return ErrNoLog
		case change.Previous != sent || change.ID <= sent:
			return fmt.Errorf("%w: change %d comes after %d, want %d", ErrAnswer, change.ID, change.Previous, sent)
		case len(reply.Changes) == mostPage || size > pageBytes:
			return fmt.Errorf("%w: a page of over %d changes or %d bytes", ErrAnswer, mostPage, pageBytes)
		}
		sent = change.ID
		reply.Changes = append(reply.Changes, change)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if reply.Instance == "" {
		return nil, ErrNoLog
	}
	if reply.Sum != reply.sum() {
		return nil, ErrDamaged
	}
	for i := range reply.Changes {
		if change := &reply.Changes[i]; change.Sum != change.sum(reply.Instance) {
			return nil, fmt.Errorf("change %d: %w", change.ID, ErrDamaged)
		}
	}
	if reply.Previous != sent || reply.Position < sent || reply.More && reply.Position == known.Position {
		return nil, fmt.Errorf("%w: it is up to %d, after %d, want %d", ErrAnswer, reply.Position, reply.Previous, sent)
	}
	return reply, nil
}

// readLost reads the answer that the changes are lost.
func readLost(body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, 4096))
	if err != nil {
		return err
	}
	lost := new(LostError)
	if err := json.Unmarshal(text, &lost.LogState); err != nil {
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if lost.Sum != lost.sum() {
		return ErrDamaged
	}
	return lost
}

// ChangesSince requests, as the original does, the changes of the given second and later. It
// calls f for each, the oldest first, and stops at the first error. All changes have come
// only if there is no error.
func (p *Peer) ChangesSince(ctx context.Context, since time.Time, f func(Change) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask %s for its changes: %w", p, err)
		}
	}()
	query := url.Values{SinceKey: {since.UTC().Format(time.DateTime)}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	response, err := p.send(ctx, ChangesPath+"?"+query.Encode())
	if err != nil {
		return err
	}
	body := p.Watch(response.Body, response.ContentLength, cancel)
	defer body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return readChanges(body, f)
}

// readChanges reads the original's answer, which can be long, as a stream.
func readChanges(from io.Reader, f func(Change) error) error {
	a := newAnswer(from)
	return a.object("recent_changes", nil, func() error {
		var change Change
		if err := a.value(&change, maxChange); err != nil {
			return err
		}
		return f(change)
	})
}
