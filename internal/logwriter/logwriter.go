// Package logwriter writes lines to an output that may be slow, full or stuck, without making those
// wait who log.
package logwriter

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Delay is how long lines are gathered for one write.
	Delay = 200 * time.Millisecond
	// most bounds the lines in memory that wait for a write. Above that, lines are dropped.
	most = 4 << 20
	// hurried is the amount that is written before Delay has passed.
	hurried = most / 16
	// patience is how long [Writer.Flush] waits for a write that hangs.
	patience = 100 * time.Millisecond
	// endPatience is the same for [Writer.Close], and for lines after that.
	endPatience = 500 * time.Millisecond
	// calm is how long no line must have been dropped before a trouble is over. An output that
	// is too slow drops lines again and again.
	calm = 2 * time.Second
)

// errSlow is the trouble of an output that takes lines too slowly.
var errSlow = errors.New("the output is too slow")

// Writer gathers lines, and writes them in a goroutine. Use [New] to make one. Its methods may be
// called concurrently.
type Writer struct {
	// Trouble is called when the first line is dropped, and Over when lines were written again for
	// some time, with the number that was dropped. They are called in another goroutine, and may log to
	// this writer. Nil does nothing.
	Trouble func(err error)
	Over    func(dropped int64)

	urgent chan struct{} // has a value if a write is due at once
	filled chan struct{} // has a value if there are lines
	all    atomic.Int64  // lines dropped since the start

	mu      sync.Mutex
	out     io.Writer
	next    io.Writer // replaces out at the next write; nil for none
	pending []byte
	// added and written count the bytes that Write took, and those that were written or
	// dropped. progress is closed and replaced when written changes.
	added, written int64
	progress       chan struct{}
	busySince      time.Time // when the current write began; zero for none
	closed         bool
	done           bool  // the goroutine has ended
	torn           bool  // the output ends within a line
	dropped        int64 // lines dropped since the trouble began
	droppedAt      time.Time
	later          *time.Timer // wakes the goroutine, to report the end of a trouble
	failure        error       // of the last write
}

// New makes a writer, which must be closed.
func New(out io.Writer) *Writer {
	w := &Writer{
		urgent: make(chan struct{}, 1), filled: make(chan struct{}, 1),
		out: out, progress: make(chan struct{}),
	}
	w.later = time.AfterFunc(calm, func() { wake(w.filled) })
	go w.run()
	return w
}

// Write implements [io.Writer] for one or more lines. It doesn't wait before Close, and drops them
// if too many wait for the output. It never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	if len(w.pending)+len(p) > most {
		w.drop(p, errSlow)
		w.mu.Unlock()
		return len(p), nil
	}
	w.pending = append(w.pending, p...)
	w.added += int64(len(p))
	isMuch, closed := len(w.pending) >= hurried, w.closed
	if w.done {
		w.done = false
		go w.run()
	}
	w.mu.Unlock()
	wake(w.filled)
	if isMuch {
		wake(w.urgent)
	}
	if closed {
		w.flush(endPatience)
	}
	return len(p), nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// drop counts lines that are lost. The mutex is held.
func (w *Writer) drop(p []byte, err error) {
	lost := int64(bytes.Count(p, []byte("\n")))
	if lost == 0 {
		return
	}
	if w.dropped == 0 && w.Trouble != nil {
		if w.failure != nil {
			err = w.failure
		}
		go w.Trouble(err)
	}
	w.dropped += lost
	w.droppedAt = time.Now()
	w.all.Add(lost)
}

// Dropped returns how many lines were dropped since the start.
func (w *Writer) Dropped() int64 { return w.all.Load() }

// Flush waits until the lines so far are written, but not for an output that hangs.
func (w *Writer) Flush() { w.flush(patience) }

func (w *Writer) flush(most time.Duration) {
	w.mu.Lock()
	target := w.added
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	for w.written < target {
		if !w.busySince.IsZero() && time.Since(w.busySince) >= most {
			break
		}
		progress := w.progress
		w.mu.Unlock()
		wake(w.urgent)
		select {
		case <-progress:
		case <-timeout.C:
			return
		}
		w.mu.Lock()
	}
	w.mu.Unlock()
}

// Replace makes later lines go to another output. The writer closes the old one if it is an
// [io.Closer].
func (w *Writer) Replace(out io.Writer) {
	w.mu.Lock()
	if closer, ok := w.next.(io.Closer); ok {
		_ = closer.Close() // it was never used
	}
	w.next = out
	w.mu.Unlock()
	wake(w.urgent)
}

// Close writes the lines so far, but doesn't wait for an output that hangs. Later lines are
// written at once, in the same way.
func (w *Writer) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	wake(w.urgent)
	w.flush(endPatience)
}

func (w *Writer) run() {
	for {
		select {
		case <-w.filled:
			select {
			case <-w.urgent:
			case <-time.After(Delay):
			}
		case <-w.urgent:
		}
		if w.write() {
			return
		}
	}
}

// write writes the pending lines, and reports whether the writer is closed. Then it has written
// all.
func (w *Writer) write() (closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next != nil {
		if closer, ok := w.out.(io.Closer); ok {
			_ = closer.Close() // its lines are written, or lost
		}
		w.out, w.next, w.torn = w.next, nil, false
	}
	w.writePending()
	for w.closed && len(w.pending) > 0 { // added meanwhile
		w.writePending()
	}
	w.endTrouble()
	w.done = w.closed
	return w.done
}

// writePending writes the pending lines. The mutex is held, but not during the write.
func (w *Writer) writePending() {
	lines := w.pending
	if len(lines) == 0 {
		return
	}
	w.pending = nil
	w.busySince = time.Now()
	out := w.out
	if w.torn {
		out = tearer{out}
	}
	w.mu.Unlock()
	n, err := out.Write(lines)
	w.mu.Lock()
	w.busySince = time.Time{}
	w.finish(lines, n, err)
}

// endTrouble reports that a trouble is over, or looks again later. The mutex is held.
func (w *Writer) endTrouble() {
	if w.dropped == 0 || w.failure != nil {
		return
	}
	if wait := calm - time.Since(w.droppedAt); wait > 0 {
		w.later.Reset(wait)
		return
	}
	if w.Over != nil {
		go w.Over(w.dropped)
	}
	w.dropped = 0
}

// tearer ends a line first of which only a part was written.
type tearer struct{ io.Writer }

func (t tearer) Write(p []byte) (int, error) {
	n, err := t.Writer.Write(append([]byte("\n"), p...))
	return max(0, n-1), err
}

// finish records the result of a write. The mutex is held.
func (w *Writer) finish(lines []byte, n int, err error) {
	w.written += int64(len(lines))
	close(w.progress)
	w.progress = make(chan struct{})
	if n > 0 {
		w.torn = lines[n-1] != '\n'
	}
	if w.failure = err; err != nil {
		w.drop(lines[n:], err)
	}
}
