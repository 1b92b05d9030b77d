package peer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nar-herder/storage"
)

// Peers are other instances, in the order of preference for nars.
type Peers []*Peer

// errResting reports a peer that has just failed.
var errResting = errors.New("it has just failed")

// each calls ask for one peer after the other until one has the file. The error is
// [storage.ErrNotStored] if certainly none has it, and another if one of them may.
func (p Peers) each(ctx context.Context, ask func(*Peer) error) error {
	var failures []error
	for _, peer := range p {
		err := fmt.Errorf("ask %s: %w", peer, errResting)
		if !peer.isResting() {
			err = ask(peer)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, storage.ErrNotStored) {
			failures = append(failures, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 0 {
		return storage.ErrNotStored
	}
	return errors.Join(failures...)
}

// OpenFile opens an item's Nth file at the first peer that has it, see [Peer.OpenFile].
func (p Peers) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error) {
	err = p.each(ctx, func(peer *Peer) (err error) {
		body, size, err = peer.OpenFile(ctx, item, n, offset, length, via)
		return err
	})
	return body, size, err
}

// Locate returns the URL of an item's Nth file, as [Peer.Locate] does.
func (p Peers) Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error) {
	err = p.each(ctx, func(peer *Peer) (err error) {
		location, sum, err = peer.Locate(ctx, item, n, via)
		return err
	})
	return location, sum, err
}
