// Package passing verifies the NarHash of nars that this instance passes on from another one
// to a client without storing them.
//
// The end of a nar is withheld until all of it has been compared, so that a client never takes
// a wrong nar for complete. A small nar is withheld as a whole.
//
// If there is no memory left for a decompressor, a nar is passed on without comparison: Guix
// compares every nar that it downloads.
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
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/narcheck"
)

const (
	// tail is how much of a file's end is withheld. No compressed file ends its content more
	// than a block before its own end.
	tail = 64 << 10
	// usualMemory is the default budget of decompressors.
	usualMemory = 256 << 20
	// memoryWait is how long a request waits for its share.
	memoryWait = time.Second
	// maxAttempts is how many servers are asked for a file that was wrong at others.
	maxAttempts = 3
)

// errClosed ends the comparison of a body that was closed.
var errClosed = errors.New("the client has left")

// Opener opens files of other servers, such as [failover.Source].
type Opener interface {
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	Resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, offset int64, via []string) (body io.ReadCloser, size int64, err error)
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error)
}

// Source opens files of other instances and compares them while they are read. Its methods may
// be called from several goroutines at once.
type Source struct {
	Opener
	// Log may be nil.
	Log *slog.Logger
	// Turns is locked by a comparison while it computes, to bound the processor time of all
	// of them; nil for no bound.
	Turns sync.Locker
	// Unchecked counts the nars that were not compared.
	Unchecked prometheus.CounterFunc
	unchecked atomic.Int64
	memory    *semaphore.Weighted
	budget    int64
}

// New makes a source. memory is the budget of decompressors in bytes; 0 for the default.
func New(opener Opener, memory int64) *Source {
	if memory <= 0 {
		memory = usualMemory
	}
	s := &Source{Opener: opener, memory: semaphore.NewWeighted(memory), budget: memory}
	s.Unchecked = prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_nars_passed_unchecked_total",
		Help: "Nars of other instances that were passed on without comparing them with their hashes, for lack of memory.",
	}, func() float64 { return float64(s.unchecked.Load()) })
	return s
}

// OpenFile is [peer.Peer.OpenFile] with these differences: the error is
// [narcheck.ErrWrongNar] if the beginning shows that the file is wrong, and reading a wrong
// file fails before its last bytes. As only whole files can be compared, it fetches the whole
// file for a part that reaches into the withheld end, or if the peer sends no parts. With a
// context of [peer.Uncompared], it is [peer.Peer.OpenFile].
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
	c, size, err := s.openWhole(ctx, item, n, via)
	if err != nil {
		return nil, 0, err
	}
	if c.ended { // the buffer has all of it
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

// openWhole opens the whole file at the first server whose file does not begin wrong.
func (s *Source) openWhole(ctx context.Context, item *storage.Item, n int, via []string) (*compared, int64, error) {
	for attempts := 1; ; attempts++ {
		body, size, err := s.Opener.OpenFile(ctx, item, n, 0, -1, via)
		if err != nil {
			return nil, 0, err
		}
		c, err := s.compare(ctx, item, n, body, nil)
		if err == nil {
			return c, size, nil
		}
		if !errors.Is(err, narcheck.ErrWrongNar) {
			return nil, 0, err
		}
		server, others := failover.Reject(body)
		if !others || attempts == maxAttempts {
			return nil, 0, err
		}
		if s.Log != nil {
			s.Log.Warn("a server sent a wrong nar: requesting it from another", "server", server, "file", item.FileName(n), "error", err)
		}
	}
}

// IsAlone reports whether OpenFile fetches a part of an item's Nth file without the rest.
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

// Resume opens the rest of an item's Nth file from the offset on. before has the bytes before
// that, which are compared first.
func (s *Source) Resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, offset int64, via []string) (io.ReadCloser, error) {
	body, _, err := s.Opener.Resume(ctx, item, n, before, offset, via)
	if err != nil {
		return nil, err
	}
	if peer.IsUncompared(ctx) {
		return body, nil
	}
	c, err := s.compare(ctx, item, n, body, io.NewSectionReader(before, 0, offset))
	if err != nil {
		return nil, err // not a nil *compared
	}
	return c, nil
}

// compared is a body that is compared with the NarHash while it is read.
type compared struct {
	body io.ReadCloser
	// come counts its bytes, of which there must not be more than most.
	come, most int64
	checker    *io.PipeWriter // to the comparison; nil without one
	verdict    chan error     // of it
	buffer     []byte
	held       bytes.Buffer // buffered
	ended      bool         // successfully
	err        error
}

// compare returns a body with its comparison, or closes it after an error. It reads until there
// is something to return, beyond what is withheld. before has the bytes before the body; nil
// for none.
func (s *Source) compare(ctx context.Context, item *storage.Item, n int, body io.ReadCloser, before io.Reader) (_ *compared, err error) {
	c := &compared{
		body: body, most: narcheck.MaxFileSize(item.Narinfo), verdict: make(chan error, 1), buffer: make([]byte, tail),
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
	reserved := min(memory, s.budget) // a larger decompressor has the budget for itself
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

// checkNar is [narcheck.Check] with a bound on the decompressor's memory.
func (s *Source) checkNar(ctx context.Context, item *storage.Item, n int, from io.Reader, memory int64) (err error) {
	turns := s.Turns
	if turns == nil {
		turns = new(sync.Mutex) // without contention
	}
	turns.Lock()
	defer turns.Unlock()
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("a fault of the decompressor, please report it: %v\n%s", fault, debug.Stack())
		}
	}()
	return narcheck.Check(ctx, item.Narinfo, n, turnless{from, turns}, func(_ context.Context, kind string, r io.Reader, _ int64) (io.ReadCloser, error) {
		decompressor, err := compression.NewReaderWithin(kind, r, memory)
		if err == nil {
			decompressor = yielding{decompressor, turns}
		}
		return narcheck.MarkUnreadable(decompressor, err, compression.Refused)
	})
}

// turnless is a reader that releases the turn while it waits.
type turnless struct {
	io.Reader
	turns sync.Locker
}

func (t turnless) Read(p []byte) (int, error) {
	t.turns.Unlock()
	defer t.turns.Lock()
	return t.Reader.Read(p)
}

// yielding is a decompressor that releases the turn before each read.
type yielding struct {
	io.ReadCloser
	turns sync.Locker
}

func (y yielding) Read(p []byte) (int, error) {
	y.turns.Unlock()
	y.turns.Lock()
	return y.ReadCloser.Read(p)
}

// take compares bytes that have come, and buffers them.
func (c *compared) take(p []byte) error {
	if c.come += int64(len(p)); c.come > c.most {
		return fmt.Errorf("%w: more than %d bytes are coming", narcheck.ErrWrongNar, c.most)
	}
	if c.checker != nil {
		if _, err := c.checker.Write(p); err != nil {
			return err
		}
	}
	c.held.Write(p)
	return nil
}

// fill reads until there is something to return, or the comparison has ended.
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
		if c.err = c.fill(); errors.Is(c.err, narcheck.ErrWrongNar) {
			failover.Reject(c.body) // for the next client
		}
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.ended {
		return c.held.Read(p)
	}
	return c.held.Read(p[:min(len(p), c.held.Len()-tail)])
}

// Sum is for [peer.SumOf].
func (c *compared) Sum() [16]byte { return peer.SumOf(c.body) }

// Close implements [io.Closer].
func (c *compared) Close() error {
	if c.checker != nil {
		_ = c.checker.CloseWithError(errClosed) // nothing, once it has ended
	}
	return c.body.Close()
}
