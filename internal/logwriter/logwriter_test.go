package logwriter

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/testlog"
)

// output is an output that may hang or fail.
type output struct {
	testlog.Buffer
	hangs  chan struct{} // nil unless it hangs until this is closed
	err    error
	once   bool // err is returned once
	closed bool
}

func (o *output) Write(p []byte) (int, error) {
	if o.hangs != nil {
		<-o.hangs
	}
	if o.err != nil {
		n, _ := o.Buffer.Write(p[:min(len(p), 6)])
		err := o.err
		if o.once {
			o.err = nil
		}
		return n, err
	}
	return o.Buffer.Write(p)
}

func (o *output) Close() error { o.closed = true; return nil }

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(output)
		w := New(out)
		fmt.Fprintln(w, "one")
		synctest.Wait()
		if out.String() != "" {
			t.Error("written before others could join")
		}
		time.Sleep(Delay)
		synctest.Wait()
		if out.String() != "one\n" {
			t.Errorf("%q", out.String())
		}
		fmt.Fprintln(w, "two")
		w.Flush()
		if out.String() != "one\ntwo\n" {
			t.Errorf("after Flush: %q", out.String())
		}
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() { fmt.Fprintln(w, "many", i) })
		}
		all.Wait()
		w.Close()
		w.Close()
		if got := strings.Count(out.String(), "many"); got != 10 {
			t.Errorf("%d lines", got)
		}
		fmt.Fprintln(w, "late")
		if !strings.HasSuffix(out.String(), "\nlate\n") {
			t.Errorf("after the end: %q", out.String())
		}
	})
}

// TestHangs: nobody waits for an output that hangs, and lines that were dropped are counted.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{hangs: make(chan struct{})}
		w := New(out)
		var troubles []error
		var dropped int64
		w.Trouble = func(err error) { troubles = append(troubles, err) }
		w.Over = func(n int64) { dropped += n }
		begun := time.Now()
		fmt.Fprintln(w, "first")
		w.Flush()
		if took := time.Since(begun); took > patience {
			t.Errorf("waits for %v", took)
		}
		begun = time.Now()
		const size = 1000
		line := strings.Repeat("x", size-1) + "\n"
		for range 2 * most / size {
			fmt.Fprint(w, line)
			w.Flush()
		}
		if took := time.Since(begun); took > patience {
			t.Errorf("waits for %v", took)
		}
		synctest.Wait()
		if len(troubles) != 1 || w.Dropped() == 0 {
			t.Errorf("%d dropped, trouble %v", w.Dropped(), troubles)
		}
		close(out.hangs)
		w.Flush()
		time.Sleep(calm + Delay)
		w.Close()
		synctest.Wait()
		written := int64(strings.Count(out.String(), "x\n"))
		if dropped != w.Dropped() || written+dropped != 2*most/size {
			t.Errorf("%d written, %d dropped, %d reported", written, w.Dropped(), dropped)
		}
	})
}

// TestCloseHangs: Close doesn't wait for an output that hangs for ever.
func TestCloseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{hangs: make(chan struct{})}
		w := New(out)
		fmt.Fprintln(w, "first")
		w.Close()
		close(out.hangs)
		synctest.Wait()
	})
}

// TestFails: a full disk is reported once, and its end as well.
func TestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("full")
		out := &output{err: full}
		w := New(out)
		var events []string
		w.Trouble = func(err error) { events = append(events, err.Error()) }
		w.Over = func(n int64) { events = append(events, fmt.Sprint(n)) }
		for range 3 {
			fmt.Fprint(w, "one\ntwo\n")
			w.Flush()
			synctest.Wait()
		}
		other := new(output)
		w.Replace(other)
		fmt.Fprint(w, "three\n")
		w.Flush()
		time.Sleep(calm + Delay)
		synctest.Wait()
		if got := fmt.Sprint(events); got != "[full 3]" || other.String() != "three\n" || !out.closed {
			t.Errorf("%s, %q, closed %v", got, other.String(), out.closed)
		}
		w.Close()
	})
}

// TestTorn: after a part of a line, the next one begins on a line of its own.
func TestTorn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{err: errors.New("full"), once: true}
		w := New(out)
		for _, text := range []string{"one\ntwo\n", "three\n", "four\n"} {
			fmt.Fprint(w, text)
			w.Flush()
		}
		if got := out.String(); got != "one\ntw\nthree\nfour\n" || w.Dropped() != 1 {
			t.Errorf("%q, %d dropped", got, w.Dropped())
		}
		w.Close()
	})
}

// TestCloseWhileWriting: Close doesn't lose lines that were logged during a write.
func TestCloseWhileWriting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{hangs: make(chan struct{})}
		w := New(out)
		fmt.Fprintln(w, "one")
		w.Flush() // which doesn't wait
		fmt.Fprintln(w, "two")
		w.Close()
		close(out.hangs)
		synctest.Wait()
		if got := out.String(); got != "one\ntwo\n" {
			t.Errorf("%q", got)
		}
	})
}

// TestHangsAfterClose: nobody waits for long for an output that hangs after Close.
func TestHangsAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(output)
		w := New(out)
		fmt.Fprintln(w, "one")
		w.Close()
		out.hangs = make(chan struct{})
		begun := time.Now()
		for range 3 {
			fmt.Fprintln(w, "late")
		}
		w.Close()
		if took := time.Since(begun); took > endPatience {
			t.Errorf("waits for %v", took)
		}
		close(out.hangs)
		synctest.Wait()
		if got := out.String(); got != "one\nlate\nlate\nlate\n" || w.Dropped() != 0 {
			t.Errorf("%q, %d dropped", got, w.Dropped())
		}
	})
}

// TestTornLater: a line of which a part was written is ended, even if nothing can be written for
// some time after that.
func TestTornLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(output)
		full := &filling{output: out, room: 6}
		w := New(full)
		for range 3 {
			fmt.Fprint(w, "one\ntwo\n")
			w.Flush()
		}
		full.room = 100
		fmt.Fprint(w, "three\n")
		w.Close()
		if got := out.String(); got != "one\ntw\nthree\n" || w.Dropped() != 5 {
			t.Errorf("%q, %d dropped", got, w.Dropped())
		}
	})
}

// filling is an output with room for so many bytes.
type filling struct {
	*output
	room int
}

func (f *filling) Write(p []byte) (int, error) {
	n, _ := f.output.Write(p[:min(len(p), f.room)])
	if f.room -= n; n < len(p) {
		return n, errors.New("full")
	}
	return n, nil
}

// TestTooSlow: an output that always takes some lines, but not all, is one trouble.
func TestTooSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(output)
		w := New(out)
		var events []string
		w.Trouble = func(err error) { events = append(events, err.Error()) }
		w.Over = func(n int64) { events = append(events, fmt.Sprint(n)) }
		for range 3 {
			w.mu.Lock()
			w.drop([]byte("one\n"), errSlow)
			w.mu.Unlock()
			fmt.Fprintln(w, "two")
			w.Flush()
			synctest.Wait()
		}
		if len(events) != 1 {
			t.Errorf("%v", events)
		}
		w.Flush() // orders the access to events
		time.Sleep(calm + Delay)
		synctest.Wait()
		if got := fmt.Sprint(events); got != fmt.Sprintf("[%v %d]", errSlow, w.Dropped()) {
			t.Errorf("%s", got)
		}
		w.Close()
	})
}
