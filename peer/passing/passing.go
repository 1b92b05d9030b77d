// Package passing compares nars of other instances with their NarHash while they
// pass through this one to a client, and are not stored.
//
// The end of a nar is held back until all of it was compared, so that a client never
// takes a wrong one for whole. A nar that is no longer than what is held back is
// compared before the first byte of it is given out.
//
// When there is no memory left for a decompressor, a nar passes through without being
// compared: Guix compares every nar that it downloads itself.
package passing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"nar-herder/compression"
	"nar-herder/peer"
	"nar-herder/storage"
)

const (
	// tail is how much of a file's end is held back. No compression has the end of its
	// content more than a block before the end of the file.
	tail = 64 << 10
	// usualMemory is the budget of decompressors when none is given.
	usualMemory = 256 << 20
	// memoryWait is how long a request waits for a part of it.
	memoryWait = time.Second
)

// errClosed ends the comparison of a body that nobody reads any more.
var errClosed = errors.New("the client has left")

// Opener opens files of other instances, such as [peer.Peers].
type Opener interface {
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error)
}

// Source opens files of other instances, and compares them on their way. Its methods
// may be called from several goroutines at once.
type Source struct {
	Opener
	// Log may be nil.
	Log *slog.Logger
	// Turns is locked by a comparison while it computes; nil for no bound on the
	// processor time of all of them together.
	Turns sync.Locker
	// Unchecked counts the nars that were not compared.
	Unchecked prometheus.CounterFunc
	unchecked atomic.Int64
	memory    *semaphore.Weighted
	budget    int64
}

// New makes a source of nars that the opener opens. Decompressors have memory bytes
// together, 0 for the usual.
func New(opener Opener, memory int64) *Source {
	if memory <= 0 {
		memory = usualMemory
	}
	s := &Source{Opener: opener, memory: semaphore.NewWeighted(memory), budget: memory}
	s.Unchecked = prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_nars_passed_unchecked_total",
		Help: "Nars of other instances that were passed on without comparing them with their hashes, as there was no memory for it.",
	}, func() float64 { return float64(s.unchecked.Load()) })
	return s
}

// OpenFile is [peer.Peer.OpenFile] with these differences: the error is
// [storage.ErrWrongNar] when the beginning shows that the file is another, and reading
// fails before the last bytes of such a file. As only the whole can be compared, it is
// fetched for a part that has some of what is held back, and where no part can be had.
// With a context of [peer.Uncompared], it is [peer.Peer.OpenFile].
func (s *Source) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (io.ReadCloser, int64, error) {
	if item.FileName(n) == "" {
		return nil, 0, storage.ErrNotStored
	}
	if peer.IsUncompared(ctx) {
		return s.Opener.OpenFile(ctx, item, n, offset, length, via)
	}
	if IsAlone(item, n, offset, length) {
		body, size, err := s.Opener.OpenFile(ctx, item, n, offset, length, via)
		if !errors.Is(err, peer.ErrNoRange) {
			return body, size, err
		}
	}
	body, size, err := s.Opener.OpenFile(ctx, item, n, 0, -1, via)
	if err != nil {
		return nil, 0, err
	}
	c, err := s.compare(ctx, item, n, body, nil)
	if err != nil {
		return nil, 0, err
	}
	if c.ended { // all of it is here
		size = int64(c.held.Len())
	}
	if _, err := io.CopyN(io.Discard, c, offset); err != nil && err != io.EOF {
		c.Close()
		return nil, 0, err
	}
	if length < 0 {
		return c, size, nil
	}
	return &part{c, io.LimitReader(c, length)}, size, nil
}

// IsAlone reports whether a part of an item's Nth file is opened without the rest.
func IsAlone(item *storage.Item, n int, offset, length int64) bool {
	size := item.StoredSize(n)
	return size >= 0 && length >= 0 && offset+length <= size-tail
}

// part is the beginning of a body.
type part struct {
	*compared
	limited io.Reader
}

func (p *part) Read(b []byte) (int, error) { return p.limited.Read(b) }

// Resume opens the rest of an item's Nth file, from the offset on: before has the bytes
// that precede it, which are compared first.
func (s *Source) Resume(ctx context.Context, item *storage.Item, n int, before io.Reader, offset int64, via []string) (io.ReadCloser, error) {
	body, _, err := s.Opener.OpenFile(ctx, item, n, offset, -1, via)
	if errors.Is(err, peer.ErrNoRange) {
		if body, _, err = s.Opener.OpenFile(ctx, item, n, 0, -1, via); err == nil {
			if _, err = io.CopyN(io.Discard, body, offset); err != nil {
				body.Close()
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if peer.IsUncompared(ctx) {
		return body, nil
	}
	c, err := s.compare(ctx, item, n, body, io.LimitReader(before, offset))
	if err != nil {
		return nil, err // not a nil *compared
	}
	return c, nil
}

// compared is a body that is compared while it is read.
type compared struct {
	body io.ReadCloser
	// come counts its bytes, of which there must not be more than most.
	come, most int64
	checker    *io.PipeWriter // to the comparison; nil without one
	verdict    chan error     // of it
	buffer     []byte
	held       bytes.Buffer // has come, and was not read yet
	ended      bool         // and was the nar, if it is compared
	err        error
}

// compare begins to compare a body, which it closes after an error. It reads as much as
// must have come before there is something to be given out. before are bytes that
// precede the body; nil for none.
func (s *Source) compare(ctx context.Context, item *storage.Item, n int, body io.ReadCloser, before io.Reader) (_ *compared, err error) {
	c := &compared{
		body: body, most: storage.MaxFileSize(item.Narinfo), verdict: make(chan error, 1), buffer: make([]byte, tail),
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	kind := item.Narinfo.Files[n].Compression
	var first io.Reader = body
	if before != nil {
		first = before
	}
	head := make([]byte, compression.HeadBytes)
	length, err := io.ReadFull(first, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:length]
	memory := compression.Memory(kind, head, item.Narinfo.NarSize)
	reserved := min(memory, s.budget) // more than the budget is for one that is alone
	waiting, cancel := context.WithTimeout(ctx, memoryWait)
	defer cancel()
	if err := s.memory.Acquire(waiting, reserved); err == nil {
		checked, checker := io.Pipe()
		c.checker = checker
		go func() {
			defer s.memory.Release(reserved)
			err := s.checkNar(ctx, item, n, checked, memory)
			_ = checked.CloseWithError(err) // writes fail with it
			c.verdict <- err
		}()
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	} else {
		s.unchecked.Add(1)
		if s.Log != nil {
			s.Log.Debug("no memory to compare a nar that passes through with its hash", "item", item.Narinfo.StorePath.String())
		}
	}
	if before == nil {
		if err := c.take(head); err != nil {
			return nil, err
		}
	} else if c.checker != nil {
		if _, err := io.Copy(c.checker, io.MultiReader(bytes.NewReader(head), before)); err != nil {
			return nil, err
		}
	}
	if err := c.fill(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkNar is [storage.CheckNar] for a decompressor with so much memory.
func (s *Source) checkNar(ctx context.Context, item *storage.Item, n int, from io.Reader, memory int64) (err error) {
	turns := s.Turns
	if turns == nil {
		turns = new(sync.Mutex) // of this one alone
	}
	turns.Lock()
	defer turns.Unlock()
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("a fault of the decompressor, please report it: %v\n%s", fault, debug.Stack())
		}
	}()
	return storage.CheckNar(ctx, item.Narinfo, n, turnless{from, turns}, func(_ context.Context, kind string, r io.Reader, _ int64) (io.ReadCloser, error) {
		decompressor, err := compression.NewReaderWithin(kind, r, memory)
		if err == nil {
			decompressor = yielding{decompressor, turns}
		}
		return storage.MarkUnreadable(decompressor, err, compression.Refused)
	})
}

// turnless gives up the turn while it waits for bytes.
type turnless struct {
	io.Reader
	turns sync.Locker
}

func (t turnless) Read(p []byte) (int, error) {
	t.turns.Unlock()
	defer t.turns.Lock()
	return t.Reader.Read(p)
}

// yielding is a decompressor that gives others a turn before each piece.
type yielding struct {
	io.ReadCloser
	turns sync.Locker
}

func (y yielding) Read(p []byte) (int, error) {
	y.turns.Unlock()
	y.turns.Lock()
	return y.ReadCloser.Read(p)
}

// take compares bytes that have come, and holds them.
func (c *compared) take(p []byte) error {
	if c.come += int64(len(p)); c.come > c.most {
		return fmt.Errorf("%w: more than %d bytes are coming", storage.ErrWrongNar, c.most)
	}
	if c.checker != nil {
		if _, err := c.checker.Write(p); err != nil {
			return err
		}
	}
	c.held.Write(p)
	return nil
}

// fill reads until there is something to be given out, or all was compared.
func (c *compared) fill() error {
	for !c.ended && c.held.Len() <= tail {
		n, err := c.body.Read(c.buffer)
		if takeErr := c.take(c.buffer[:n]); takeErr != nil {
			return takeErr
		}
		if err == io.EOF {
			if c.checker != nil {
				c.checker.Close()
				if err := <-c.verdict; err != nil {
					return err
				}
			}
			c.ended = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// Read implements [io.Reader].
func (c *compared) Read(p []byte) (int, error) {
	if c.err == nil {
		c.err = c.fill()
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.ended {
		return c.held.Read(p)
	}
	return c.held.Read(p[:min(len(p), c.held.Len()-tail)])
}

// Sum is what [peer.SumOf] returns.
func (c *compared) Sum() [16]byte { return peer.SumOf(c.body) }

// Close implements [io.Closer].
func (c *compared) Close() error {
	if c.checker != nil {
		_ = c.checker.CloseWithError(errClosed) // nothing, once it has ended
	}
	return c.body.Close()
}
