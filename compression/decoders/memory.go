package decoders

import (
	"context"
	"io"
	"time"

	"nar-herder/compression"
)

// memoryQueue is a queue of goroutines that wait for memory.
type memoryQueue struct {
	first chan struct{} // held by the first in the queue
	retry chan struct{} // wakes the first when memory may have become free
}

func newMemoryQueue() memoryQueue {
	return memoryQueue{make(chan struct{}, 1), make(chan struct{}, 1)}
}

// wake makes the first in the queue, if any, retry.
func (q memoryQueue) wake() {
	if len(q.first) > 0 {
		select {
		case q.retry <- struct{}{}:
		default:
		}
	}
}

// claim is the memory that a suspended decoder waits for. New decoders may overtake it if they
// and the claim fit into the budget together. So a large decoder doesn't block small ones, and
// gets its memory at the latest when the decoders that are older than the claim are closed or
// suspended.
type claim struct {
	memory    int64 // in bytes
	overtaken int64 // memory of the decompressors that overtook the claim, in bytes
}

// reserve reserves memory for the decompressor of a new decoder, and its piece. It waits until
// they are free, or returns ErrTooMany when the context ends. A decompressor that needs more than
// the budget gets it when it is the only one.
func (d *Pool) reserve(ctx context.Context, z *Decoder) error {
	return d.wait(ctx, d.requests, z, Piece, nil)
}

// reserveAgain is reserve for a suspended decoder, which still has its piece.
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

// reserveNow is reserve without waiting. It returns false if it would have to wait.
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

// tryReserve reserves memory without waiting, and suspends decoders of slow clients for that.
// Otherwise it returns how long to wait until the next decoder can be suspended.
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
	// The only decompressor is always admitted, even if background work has all memory.
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
		slow.element, slow.decompressor = nil, nil
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
// the claim that they would overtake, if any. The mutex is held.
func (d *Pool) tryTake(memory, piece int64, c *claim) bool {
	if c != nil && c.memory+c.overtaken+d.pieces+memory+piece > d.forClients() {
		return false
	}
	return d.budget.Reserve(memory+piece, d.used == 0)
}

// forClients returns the part of the budget that background work doesn't use.
func (d *Pool) forClients() int64 { return d.budget.Total() - d.budget.Background() }

// free releases the memory of a decompressor. The mutex is held. The caller must wake the queues.
func (d *Pool) free(z *Decoder) {
	d.used -= z.memory
	d.budget.Release(z.memory)
	if z.overtook != nil {
		z.overtook.overtaken -= z.memory
		z.overtook = nil
	}
}

// release releases the memory of a decompressor.
func (d *Pool) release(z *Decoder) {
	d.mu.Lock()
	d.free(z)
	d.mu.Unlock()
	d.wake()
}

// ReservePiece reserves memory for a body without a decoder. It doesn't queue behind new
// decoders if the piece fits. The error is ErrTooMany when the context ends.
func (d *Pool) ReservePiece(ctx context.Context) error {
	z := &Decoder{pool: d}
	if _, ok := d.tryReserve(z, Piece, nil); ok {
		return nil
	}
	return d.reserve(ctx, z)
}

// ReleasePiece releases the piece of a decoder or a body.
func (d *Pool) ReleasePiece() {
	d.mu.Lock()
	d.pieces -= Piece
	d.budget.Release(Piece)
	d.mu.Unlock()
	d.wake()
}

// wake makes the first in each queue retry.
func (d *Pool) wake() {
	d.requests.wake()
	d.restarting.wake()
}

// Memory returns how many bytes are reserved.
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

// Restarted returns how often suspended decoders have restarted.
func (d *Pool) Restarted() int64 { return d.restarted.Load() }

// Budget returns the budget that the decoders share with background work.
func (d *Pool) Budget() *compression.Budget { return d.budget }

// Waiting reports whether a request waits for memory.
func (d *Pool) Waiting() bool { return len(d.requests.first) > 0 }
