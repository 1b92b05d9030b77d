// Package decoders decompresses files for clients within bounds of processor time and
// memory.
package decoders

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/compression"
	"nar-herder/storage"
)

const (
	// Piece is how much of a body is read at a time for a client that may not take it.
	Piece = 256 << 10
	// Wait is how long a request should wait for memory before it is refused.
	Wait = 10 * time.Second
	// slowAfter is how long a client leaves its decoder idle before the
	// decoder's memory may be given to another.
	slowAfter = time.Second
	// usualDecoderMemory is the budget where none is given.
	usualDecoderMemory = 512 << 20
)

var (
	// ErrTooMany says that there was no memory for one more decoder in time.
	ErrTooMany = errors.New("too many nars are being decompressed")
	// ErrNotRestarted says that a suspended decoder could not get back to where it
	// was. What it read before was good.
	ErrNotRestarted = errors.New("decompress again from the start")
)

// Pool bounds what decompressing for clients takes in all: processor time, and
// memory by a budget. A decoder has a processor only while it computes, never while
// its client takes the bytes. It keeps its memory meanwhile, unless others need it: then the decoder that has been idle for longest is suspended,
// and decompresses again from the start when its client is ready for more. So slow
// clients cost each other time, and the others nothing.
type Pool struct {
	// Processors are held by the decoders that compute, and restarts by those among
	// them that make up for a suspension: at most half of the processors do that.
	Processors Processors
	restarts   chan struct{}
	// requests is the queue of new decoders for memory, and restarting that of
	// suspended ones, which wait without a deadline.
	requests, restarting memoryQueue
	budget               *compression.Budget
	// SlowAfter is the constant but in tests.
	SlowAfter time.Duration

	mu     sync.Mutex
	used   int64     // of the budget, by decompressors
	pieces int64     // of the budget, by what clients have not taken yet: a Piece for each open decoder and body in memory
	idle   list.List // of *Decoder with a decompressor, the longest idle first
	claim  *claim    // of the first in restarting; nil for none

	restarted atomic.Int64
}

// Processors is a lock that as many hold at a time as there are processors for them.
type Processors chan struct{}

// Lock waits for a processor.
func (p Processors) Lock() { p <- struct{}{} }

// Unlock gives it up.
func (p Processors) Unlock() { <-p }

// New makes a pool for that many processors. A nil budget is one of 512 MiB.
func New(processors int, budget *compression.Budget) *Pool {
	if budget == nil {
		budget = compression.NewBudget(usualDecoderMemory)
	}
	d := &Pool{
		Processors: make(Processors, processors), restarts: make(chan struct{}, max(1, processors/2)),
		requests: newMemoryQueue(), restarting: newMemoryQueue(), budget: budget, SlowAfter: slowAfter,
	}
	budget.Notify(d.wake)
	return d
}

// Compressed is what a decoder reads.
type Compressed interface {
	// Reader returns the file's bytes from the first on. It ends the reader of
	// an earlier call.
	Reader() (io.Reader, error)
	// Suspend returns what the caller has to close while the file is not read, such as
	// a connection, or nil. It ends the reader, and doesn't wait.
	Suspend() io.Closer
	io.Closer
}

// Decoder decompresses a file while it is read. It is made by [Pool.Open].
type Decoder struct {
	pool       *Pool
	decompress func(name string, r io.Reader, memory int64) (io.ReadCloser, error)
	kind       string // of compression
	file       Compressed
	live       context.Context // of what is read and waited for
	position   int64           // bytes that were read
	err        error           // of the last Read, if any

	// memory is what the decoder has of the budget while it has a decompressor, apart
	// from its piece.
	memory int64
	// overtook is the claim that the decoder overtook to get the memory; nil for
	// none. decoders.mu guards it.
	overtook     *claim
	decompressor io.ReadCloser
	// place is that in decoders.idle; nil while a call is under way, and once the
	// decoder is suspended. While it is set, decoders.mu guards these.
	place     *list.Element
	idleSince time.Time
}

// Open opens a decoder with memory bytes of the budget, for which it waits until
// ready ends: the error is ErrTooMany then. What the decoder waits for later
// ends with live. While it waits for memory, the file is suspended. It is closed with
// the decoder, and at once when there is an error.
func (d *Pool) Open(ready, live context.Context, kind string, file Compressed, memory int64, decompress func(string, io.Reader, int64) (io.ReadCloser, error)) (*Decoder, error) {
	z := &Decoder{pool: d, decompress: decompress, kind: kind, file: file, live: live, memory: memory}
	if !d.reserveNow(z) {
		if c := file.Suspend(); c != nil {
			closeRecovered(c)
		}
		if err := d.reserve(ready, z); err != nil {
			file.Close()
			return nil, err
		}
	}
	if err := z.begin(); err != nil {
		d.release(z)
		d.ReleasePiece()
		file.Close()
		return nil, err
	}
	z.rest()
	return z, nil
}

// begin opens the decompressor, in memory that is reserved.
func (z *Decoder) begin() (err error) {
	r, err := z.file.Reader()
	if err != nil {
		return err
	}
	z.pool.Processors <- struct{}{}
	defer func() { <-z.pool.Processors }()
	defer recovered(&err)
	decompressor, err := z.decompress(z.kind, fileReader{r, z.pool}, z.memory)
	if err == nil {
		z.decompressor = decompressor
	}
	return err
}

// fileReader gives up the processor of a decoder while it waits for compressed bytes,
// which may come from far away.
type fileReader struct {
	io.Reader
	pool *Pool
}

func (t fileReader) Read(p []byte) (int, error) {
	<-t.pool.Processors
	defer func() { t.pool.Processors <- struct{}{} }()
	return t.Reader.Read(p)
}

// Read implements [io.Reader].
func (z *Decoder) Read(p []byte) (n int, err error) {
	if z.err != nil || len(p) == 0 {
		return 0, z.err
	}
	z.err = z.resume(p)
	if z.err == nil {
		n, z.err = z.step(p)
	}
	if errors.Is(z.err, compression.ErrTooLarge) {
		if n > 0 {
			z.err = nil // the next Read finds it again, and these bytes are good
		} else {
			n, z.err = z.enlarge(p)
		}
	}
	z.position += int64(n)
	if z.err == nil {
		z.rest()
	} else {
		z.discard() // it is not needed any more
	}
	return n, z.err
}

// enlarge is step with as much memory as data of the compression may need, where the
// beginning of the file asked for less.
func (z *Decoder) enlarge(p []byte) (int, error) {
	most := compression.MaxMemory(z.kind)
	if z.memory >= most {
		return 0, z.err
	}
	z.discard()
	z.memory = most
	if err := z.restart(p); err != nil {
		return 0, err
	}
	return z.step(p)
}

// step reads some bytes, when a processor is free.
func (z *Decoder) step(p []byte) (n int, err error) {
	z.pool.Processors <- struct{}{}
	defer func() { <-z.pool.Processors }()
	defer recovered(&err)
	return z.decompressor.Read(p)
}

// rest makes the decoder one that may be suspended.
func (z *Decoder) rest() {
	d := z.pool
	d.mu.Lock()
	z.idleSince = time.Now()
	z.place = d.idle.PushBack(z)
	d.mu.Unlock()
	d.wake()
}

// resume undoes rest, and a suspension. It uses the scratch buffer.
func (z *Decoder) resume(scratch []byte) error {
	if z.take() {
		return nil
	}
	return z.restart(scratch)
}

// take undoes rest. It returns false when the decoder was suspended.
func (z *Decoder) take() bool {
	d := z.pool
	d.mu.Lock()
	defer d.mu.Unlock()
	if z.place == nil {
		return false
	}
	d.idle.Remove(z.place)
	z.place = nil
	return true
}

// restart decompresses again up to where the decoder was.
func (z *Decoder) restart(scratch []byte) error {
	d := z.pool
	select {
	case d.restarts <- struct{}{}:
	case <-z.live.Done():
		return fmt.Errorf("%w: %w", ErrNotRestarted, z.live.Err())
	}
	defer func() { <-d.restarts }()
	if err := d.reserveAgain(z.live, z); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRestarted, err)
	}
	d.restarted.Add(1)
	err := z.replay(scratch)
	if err != nil && z.live.Err() == nil && !errors.Is(err, storage.ErrNotStored) {
		// All of it was read before, so the fault may be one of a remote store.
		err = z.replay(scratch)
	}
	if err != nil {
		d.release(z)
		return fmt.Errorf("%w: %w", ErrNotRestarted, err)
	}
	return nil
}

// replay decompresses again up to where the decoder was, in memory that is reserved.
// After an error there is no decompressor.
func (z *Decoder) replay(scratch []byte) error {
	if err := z.begin(); err != nil {
		return err
	}
	for left := z.position; left > 0; {
		n, err := z.step(scratch[:min(int64(len(scratch)), left)])
		left -= int64(n)
		if err == nil {
			err = z.live.Err()
		}
		if err == io.EOF && left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && left > 0 {
			closeRecovered(z.decompressor)
			z.decompressor = nil
			return fmt.Errorf("up to byte %d of %d: %w", z.position-left, z.position, err)
		}
	}
	return nil
}

// discard closes the decompressor and gives back its memory. The decoder must not
// be idle.
func (z *Decoder) discard() {
	if z.decompressor != nil {
		closeRecovered(z.decompressor)
		z.decompressor = nil
		z.pool.release(z)
	}
}

// Close implements [io.Closer].
func (z *Decoder) Close() error {
	defer z.pool.ReleasePiece()
	return z.CloseKeepingPiece()
}

// CloseKeepingPiece is Close for a caller that still needs the decoder's piece, and releases it.
func (z *Decoder) CloseKeepingPiece() error {
	z.take()
	z.discard()
	return z.file.Close()
}

// closeRecovered closes a decompressor. Its bytes were read or are not needed, so errors
// and panics are ignored.
func closeRecovered(c io.Closer) {
	var err error
	defer recovered(&err)
	_ = c.Close()
}

// recovered makes a panic of a decompressor an error. They are given what comes
// from elsewhere, and a turn or a file must not be lost by it.
func recovered(err *error) {
	if fault := recover(); fault != nil {
		*err = fmt.Errorf("a fault of the decompressor, please report it: %v\n%s", fault, debug.Stack())
	}
}
