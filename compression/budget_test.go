package compression

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// gzipFile is a small gzip file. Its decoder takes gzipMemory.
func gzipFile(t *testing.T) []byte { return encode(t, Gzip, 1, []byte("data")) }

// open opens a reader in the background, and reports whether it is open already.
func open(t *testing.T, b *Budget, file []byte) (reader func() io.ReadCloser) {
	got := make(chan io.ReadCloser, 1)
	go func() {
		r, err := b.NewReader(t.Context(), Gzip, bytes.NewReader(file), -1)
		if err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		got <- r
	}()
	return func() io.ReadCloser {
		synctest.Wait()
		select {
		case r := <-got:
			return r
		default:
			return nil
		}
	}
}

// TestBudget: background work gets half of the budget, waits for more, and leaves memory for
// clients. The first reader never waits.
func TestBudget(t *testing.T) {
	file := gzipFile(t)
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(4 * gzipMemory)
		notified := 0
		b.Notify(func() { notified++ })
		first, second, third := open(t, b, file)(), open(t, b, file)(), open(t, b, file)
		if first == nil || second == nil || third() != nil {
			t.Fatal("not half of the budget is for background work")
		}
		if !b.Reserve(2*gzipMemory, false) || b.Reserve(1, false) {
			t.Fatal("clients don't get the other half")
		}
		first.Close()
		if third() != nil && b.Background() != 2*gzipMemory || notified != 1 {
			t.Error("the third got no memory of the first")
		}
		if got, err := io.ReadAll(second); string(got) != "data" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		second.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(4 * gzipMemory)
		if !b.Reserve(4*gzipMemory, false) {
			t.Fatal("clients don't get all")
		}
		first, second := open(t, b, file)(), open(t, b, file)
		if first == nil || second() != nil {
			t.Fatal("not just one has memory, although clients have all")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.NewReader(ctx, Gzip, bytes.NewReader(file), -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		b.Release(gzipMemory)
		if second() != nil {
			t.Error("the second exceeds the budget")
		}
		b.Release(gzipMemory)
		if r := second(); r == nil {
			t.Error("the second waits although there is memory")
		} else {
			r.Close()
		}
		first.Close()
		if b.Background() != 0 {
			t.Errorf("%d bytes are left", b.Background())
		}
	})
}

// TestBudgetOvertaken: while a large reader waits for memory, only readers that fit beside it
// get theirs.
func TestBudgetOvertaken(t *testing.T) {
	small := gzipFile(t)
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(12 * gzipMemory)
		slow := share{budget: b}
		if err := slow.wait(t.Context(), 4*gzipMemory); err != nil {
			t.Fatal(err)
		}
		large, done := share{budget: b}, make(chan error, 1)
		go func() { done <- large.wait(t.Context(), 5*gzipMemory) }()
		synctest.Wait()
		for range 3 { // one after the other
			r := open(t, b, small)()
			if r == nil {
				t.Fatal("a small one waits behind the large one")
			}
			r.Close()
		}
		first, second := open(t, b, small)(), open(t, b, small)
		if first == nil || second() != nil {
			t.Error("not just one overtakes the large one")
		}
		slow.release()
		synctest.Wait()
		if len(done) != 1 || second() != nil {
			t.Error("the large one has no memory yet")
		}
		large.release()
		r := second()
		if r == nil {
			t.Fatal("the second waits although there is memory")
		}
		r.Close()
		first.Close()
		if b.Background() != 0 || large.overtaken != 0 {
			t.Errorf("%d and %d bytes are left", b.Background(), large.overtaken)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the first leaves
		b := NewBudget(4 * gzipMemory)
		slow, large := share{budget: b}, share{budget: b}
		if err := slow.wait(t.Context(), gzipMemory); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = large.wait(ctx, 4*gzipMemory) }()
		synctest.Wait()
		next := open(t, b, small)
		if next() != nil {
			t.Error("one overtakes that would not fit")
		}
		cancel()
		if r := next(); r == nil {
			t.Error("it waits for one that has left")
		} else {
			r.Close()
		}
		slow.release()
	})
}

// TestBudgetGrows: a second stream with a larger window gets its memory if it is free.
func TestBudgetGrows(t *testing.T) {
	data := sample(3 << 20)
	compressed(t, data, []string{Gzip, Bzip2}, func(name string, args []string, large []byte) {
		first := encodeTiny(t, name)
		file := append(bytes.Clone(first), large...)
		small := Memory(name, first[:min(len(first), HeadBytes)], 10)
		needed := Memory(name, large[:HeadBytes], int64(len(data)))
		for _, free := range []bool{true, false} {
			b := NewBudget(2*needed + 2*gzipMemory + 2*small)
			other, err := b.NewReader(t.Context(), Gzip, bytes.NewReader(gzipFile(t)), -1)
			if err != nil {
				t.Fatal(err)
			}
			if !free {
				b.Reserve(b.Total()-small-gzipMemory, false)
			}
			r, err := b.NewReader(t.Context(), name, bytes.NewReader(file), 10)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if free && (err != nil || len(got) != len(data)+10) {
				t.Errorf("%s %s: %d bytes, %v", name, args, len(got), err)
			}
			if !free && needed > small && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s %s: without memory: %d bytes, %v", name, args, len(got), err)
			}
			other.Close()
			if b.Background() != 0 {
				t.Errorf("%s %s: %d bytes are left", name, args, b.Background())
			}
		}
	})
}

// TestBudgetFails: readers that fail release their memory.
func TestBudgetFails(t *testing.T) {
	b := NewBudget(1 << 20)
	broken := errors.New("broken")
	for _, name := range readable {
		for what, r := range map[string]io.Reader{"nothing": bytes.NewReader(nil), "garbage": bytes.NewReader(make([]byte, 1000)), "an error": iotest.ErrReader(broken)} {
			z, err := b.NewReader(t.Context(), name, r, -1)
			if err == nil {
				_, err = io.ReadAll(z)
				z.Close()
			}
			if what == "an error" && !errors.Is(err, broken) || name != None && err == nil {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			if b.Background() != 0 {
				t.Errorf("%s, %s: %d bytes are left", name, what, b.Background())
			}
		}
	}
}

// TestBudgetTogether: any number of decoders with large windows, in the background and for
// clients that reserve Memory, stay near the budget of 64 MiB. Without it, they would take 3.4
// GiB.
func TestBudgetTogether(t *testing.T) {
	data := bytes.Repeat(sample(1<<20), 20)
	file := filter(t, data, "zstd", "-1", "-c", "--long=24")
	memory := Memory(Zstd, file[:HeadBytes], int64(len(data)))
	drainPool()
	before := held()
	b := NewBudget(64 << 20)
	var most, opened atomic.Int64
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			var r io.ReadCloser
			var err error
			if i%2 == 0 {
				r, err = b.NewReader(t.Context(), Zstd, bytes.NewReader(file), int64(len(data)))
			} else if b.Reserve(memory, false) {
				defer b.Release(memory)
				r, err = NewReaderWithin(Zstd, bytes.NewReader(file), memory)
			} else {
				return // which gets 503
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			opened.Add(1)
			if n, err := io.CopyN(io.Discard, struct{ io.Reader }{r}, 18<<20); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
			if i%20 < 2 {
				now := held() - before
				for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
				}
			}
		})
	}
	all.Wait()
	if opened.Load() < 100 {
		t.Errorf("only %d were opened", opened.Load())
	}
	if most.Load() > 128<<20 {
		t.Errorf("%d MiB were held", most.Load()>>20)
	}
	t.Logf("%d of 200 opened, %d MiB held at the most", opened.Load(), most.Load()>>20)
}
