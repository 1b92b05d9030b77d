// Package decoders decompresses files for clients within limits of processor time and
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
	// Piece is how much of a body is in memory for a client.
	Piece = 256 << 10
	// Wait is how long a request should wait for memory before it is refused.
	Wait = 10 * time.Second
	// slowAfter is how long a decoder must be idle, because its client is slow, before
	// it may be suspended.
	slowAfter = time.Second
	// usualDecoderMemory is the default budget.
	usualDecoderMemory = 512 << 20
)

var (
	// ErrTooMany is the error if no memory for one more decoder became free in time.
	ErrTooMany = errors.New("too many nars are being decompressed")
	// ErrNotRestarted is the error if a suspended decoder could not return to its
	// position. The bytes before it are good.
	ErrNotRestarted = errors.New("decompress again from the start")
)

// Pool limits the processor time and the memory for all clients' decoders. A decoder
// holds a processor only while it computes, not while its client reads. Meanwhile it keeps its
// memory, unless others need it: then the decoder that has been idle for longest is suspended,
// and decompresses again from the start when its client reads more. So slow clients delay
// only each other.
type Pool struct {
	// Processors are held by decoders that compute, and restarts by those that catch up
	// after a suspension, which use at most half of the processors.
	Processors Processors
	restarts   chan struct{}
	// requests is the queue of new decoders for memory, and restarting that of
	// suspended ones, which wait without a deadline.
	requests, restarting memoryQueue
	budget               *compression.Budget
	// SlowAfter is slowAfter, except in tests.
	SlowAfter time.Duration

	mu     sync.Mutex
	used   int64     // memory of decompressors
	pieces int64     // memory of bodies: a Piece for each open decoder and body in memory
	idle   list.List // of *Decoder with a decompressor, the longest idle first
	claim  *claim    // of the first in restarting; nil for none

	restarted atomic.Int64
}

// Processors is a lock with several holders, one per processor.
type Processors chan struct{}

// Lock waits for a processor.
func (p Processors) Lock() { p <- struct{}{} }

// Unlock releases the processor.
func (p Processors) Unlock() { <-p }

// New makes a pool with a number of processors. A nil budget is one of 512 MiB.
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

// Compressed is a compressed file.
type Compressed interface {
	// Reader returns a reader of the file from its beginning. It invalidates the reader of
	// an earlier call.
	Reader() (io.Reader, error)
	// Suspend returns a resource that the caller must close while the file is not read, such
	// as a connection, or nil. It invalidates the reader, and doesn't block.
	Suspend() io.Closer
	io.Closer
}

// Decoder decompresses a file while it is read. Use [Pool.Open] to make one.
type Decoder struct {
	pool       *Pool
	decompress func(name string, r io.Reader, memory int64) (io.ReadCloser, error)
	kind       string // of compression
	file       Compressed
	live       context.Context // of reads and waits
	position   int64           // bytes that were read
	err        error           // of the last Read

	// memory is the memory of the decompressor, without the decoder's piece.
	memory int64
	// overtook is the claim that the decoder overtook to get the memory; nil for
	// none. Pool.mu guards it.
	overtook     *claim
	decompressor io.ReadCloser
	// element is the decoder's element in Pool.idle; nil during a call, and while the
	// decoder is suspended. While it is set, Pool.mu guards these fields.
	element   *list.Element
	idleSince time.Time
}

// Open opens a decoder of the file. It waits for memory bytes of the budget until ready ends:
// the error is ErrTooMany then. The file is suspended during that. live is the context of reads.
// The file is closed with the decoder, or if there is an error.
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

// begin opens the decompressor. Its memory must be reserved.
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

// fileReader releases the decoder's processor while it waits for compressed bytes, which
// may come from another machine.
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
			z.err = nil // these bytes are good, and the next Read gets the error again
		} else {
			n, z.err = z.enlarge(p)
		}
	}
	z.position += int64(n)
	if z.err == nil {
		z.rest()
	} else {
		z.discard()
	}
	return n, z.err
}

// enlarge is step with the maximum memory of the compression, if the beginning of the file
// needed less.
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

// step reads some bytes while it holds a processor.
func (z *Decoder) step(p []byte) (n int, err error) {
	z.pool.Processors <- struct{}{}
	defer func() { <-z.pool.Processors }()
	defer recovered(&err)
	return z.decompressor.Read(p)
}

// rest allows the pool to suspend the decoder.
func (z *Decoder) rest() {
	d := z.pool
	d.mu.Lock()
	z.idleSince = time.Now()
	z.element = d.idle.PushBack(z)
	d.mu.Unlock()
	d.wake()
}

// resume undoes rest, and a suspension with the scratch buffer.
func (z *Decoder) resume(scratch []byte) error {
	if z.take() {
		return nil
	}
	return z.restart(scratch)
}

// take undoes rest. It returns false if the decoder was suspended.
func (z *Decoder) take() bool {
	d := z.pool
	d.mu.Lock()
	defer d.mu.Unlock()
	if z.element == nil {
		return false
	}
	d.idle.Remove(z.element)
	z.element = nil
	return true
}

// restart waits for memory, and decompresses again up to the decoder's position.
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
		// The bytes were readable before, so a remote store may have failed temporarily.
		err = z.replay(scratch)
	}
	if err != nil {
		d.release(z)
		return fmt.Errorf("%w: %w", ErrNotRestarted, err)
	}
	return nil
}

// replay decompresses again up to the decoder's position. The memory must be reserved. An
// error leaves it without a decompressor.
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

// discard closes the decompressor and releases its memory. The decoder must not be idle.
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

// CloseKeepingPiece is Close for a caller that releases the decoder's piece later.
func (z *Decoder) CloseKeepingPiece() error {
	z.take()
	z.discard()
	return z.file.Close()
}

// closeRecovered closes a decompressor, and ignores errors and panics.
func closeRecovered(c io.Closer) {
	var err error
	defer recovered(&err)
	_ = c.Close()
}

// recovered turns a panic of a decompressor into an error, so that processors and files are
// released. The input may come from other machines.
func recovered(err *error) {
	if fault := recover(); fault != nil {
		*err = fmt.Errorf("panic in the decompressor; please report it: %v\n%s", fault, debug.Stack())
	}
}
