package decoders

import (
	"context"
	"io"
	"time"

	"nar-herder/compression"
)

// memoryQueue is a queue of callers that wait for memory.
type memoryQueue struct {
	first chan struct{} // held by the first in the queue
	retry chan struct{} // wakes the first when memory may have become free
}

func newMemoryQueue() memoryQueue {
	return memoryQueue{make(chan struct{}, 1), make(chan struct{}, 1)}
}

// wake makes the first in the queue, if any, try again to get memory.
func (q memoryQueue) wake() {
	if len(q.first) > 0 {
		select {
		case q.retry <- struct{}{}:
		default:
		}
	}
}

// claim is what a suspended decoder that restarts waits for. New decoders may overtake
// it, as long as they and the claim fit into the budget together. So a large decoder
// doesn't keep out small ones, and gets its memory at the latest when the decoders that
// are older than the claim have ended or are suspended.
type claim struct {
	memory int64 // in bytes
	// overtaken is how much memory the decompressors that were opened since
	// have, in bytes.
	overtaken int64
}

// reserve takes memory of the budget for the decompressor of a new decoder, and its piece.
// It waits until they are free, or returns ErrTooMany when the context ends. A
// decompressor that needs more than the budget gets it when it is the only one.
func (d *Pool) reserve(ctx context.Context, z *Decoder) error {
	return d.wait(ctx, d.requests, z, Piece, nil)
}

// reserveAgain is reserve for a decoder that has its piece.
func (d *Pool) reserveAgain(ctx context.Context, z *Decoder) error {
	return d.wait(ctx, d.restarting, z, 0, &claim{memory: z.memory})
}

func (d *Pool) wait(ctx context.Context, queue memoryQueue, z *Decoder, piece int64, own *claim) error {
	select {
	case queue.first <- struct{}{}:
	case <-ctx.Done():
		return ErrTooMany
	}
	defer func() { <-queue.first }()
	if own != nil {
		d.setClaim(own)
		defer d.setClaim(nil)
	}
	for {
		wait, ok := d.tryReserve(z, piece, own)
		if ok {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-queue.retry:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ErrTooMany
		}
		timer.Stop()
	}
}

// reserveNow is reserve for a decoder that doesn't wait. It returns false where it would
// have to.
func (d *Pool) reserveNow(z *Decoder) bool {
	select {
	case d.requests.first <- struct{}{}:
	default:
		return false
	}
	defer func() { <-d.requests.first }()
	_, ok := d.tryReserve(z, Piece, nil)
	return ok
}

func (d *Pool) setClaim(c *claim) {
	d.mu.Lock()
	d.claim = c
	d.mu.Unlock()
	d.requests.wake()
}

// tryReserve reserves memory without waiting, and suspends decoders of slow clients where
// that helps. Else it returns how long to wait before the next one can be suspended.
func (d *Pool) tryReserve(z *Decoder, piece int64, own *claim) (wait time.Duration, ok bool) {
	var suspended []io.Closer
	defer func() {
		for _, closer := range suspended {
			closeRecovered(closer)
		}
		if len(suspended) > 0 {
			d.wake()
		}
	}()
	d.mu.Lock()
	defer d.mu.Unlock()
	overtaken := d.claim
	if overtaken == own {
		overtaken = nil
	}
	// One is always admitted when no other has a decompressor, even if background work has all.
	alone := d.used == 0 && (piece == 0 || d.pieces+piece <= max(piece, d.budget.Total()/2))
	if !alone && d.pieces+piece > d.forClients() {
		return time.Hour, false // until another is closed
	}
	for !d.tryTake(z.memory, piece, overtaken) {
		first := d.idle.Front()
		if first == nil {
			return time.Hour, false // until another is idle or closed
		}
		slow := first.Value.(*Decoder)
		if wait := d.SlowAfter - time.Since(slow.idleSince); wait > 0 {
			return wait, false
		}
		d.idle.Remove(first)
		suspended = append(suspended, slow.decompressor)
		slow.place, slow.decompressor = nil, nil
		if file := slow.file.Suspend(); file != nil {
			suspended = append(suspended, file)
		}
		d.free(slow)
	}
	d.used += z.memory
	d.pieces += piece
	if z.overtook = overtaken; overtaken != nil {
		overtaken.overtaken += z.memory
	}
	return 0, true
}

// tryTake reserves memory for a decompressor and a piece if they fit into the budget, beside
// the claim that they would overtake, if any. The caller holds mu.
func (d *Pool) tryTake(memory, piece int64, c *claim) bool {
	if c != nil && c.memory+c.overtaken+d.pieces+memory+piece > d.forClients() {
		return false
	}
	return d.budget.Reserve(memory+piece, d.used == 0)
}

// forClients is what background work leaves of the budget.
func (d *Pool) forClients() int64 { return d.budget.Total() - d.budget.Background() }

// free gives back the memory of a decompressor. The caller holds mu, and wakes the
// queues.
func (d *Pool) free(z *Decoder) {
	d.used -= z.memory
	d.budget.Release(z.memory)
	if z.overtook != nil {
		z.overtook.overtaken -= z.memory
		z.overtook = nil
	}
}

// release gives back the memory of a decompressor.
func (d *Pool) release(z *Decoder) {
	d.mu.Lock()
	d.free(z)
	d.mu.Unlock()
	d.wake()
}

// ReservePiece takes memory of the budget for a body that no decoder makes. It needs little,
// so it doesn't queue behind new decoders while it fits. The error is ErrTooMany when
// the context ends.
func (d *Pool) ReservePiece(ctx context.Context) error {
	z := &Decoder{pool: d}
	if _, ok := d.tryReserve(z, Piece, nil); ok {
		return nil
	}
	return d.reserve(ctx, z)
}

// ReleasePiece gives back the piece of a decoder or a body.
func (d *Pool) ReleasePiece() {
	d.mu.Lock()
	d.pieces -= Piece
	d.budget.Release(Piece)
	d.mu.Unlock()
	d.wake()
}

// wake makes the first of each queue try again.
func (d *Pool) wake() {
	d.requests.wake()
	d.restarting.wake()
}

// Memory returns how many bytes of the budget are taken.
func (d *Pool) Memory() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used + d.pieces
}

// Count returns how many decoders and bodies in memory are not closed.
func (d *Pool) Count() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pieces / Piece
}

// Restarted returns how often a suspended decoder has begun again.
func (d *Pool) Restarted() int64 { return d.restarted.Load() }

// Budget is the memory that the decoders share with background work.
func (d *Pool) Budget() *compression.Budget { return d.budget }

// Waiting reports whether a request waits for memory.
func (d *Pool) Waiting() bool { return len(d.requests.first) > 0 }
