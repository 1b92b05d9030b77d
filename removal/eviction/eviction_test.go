package eviction

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

const narSize = 10_000

// evict evicts and returns the number of items.
func (c *cache) evict(e *Evictor, bytes int64) int {
	c.t.Helper()
	freed, err := e.Evict(c.t.Context(), bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	return freed.Items
}

// TestOrder: the least recently used nars are evicted, but none of imported, pinned, withdrawn
// items, or of items of upstreams that are not configured. Rows stay.
func TestOrder(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	ago := func(n int) time.Time { return time.Now().Add(-time.Duration(n) * time.Hour) }
	for n := 1; n <= 6; n++ {
		c.put(many(n, n, narSize), upstreamURL, ago(100-n), true)
	}
	c.put(many(7, 7, narSize), "", ago(1000), true)
	c.put(many(8, 8, narSize), "https://former.example", ago(1000), true)
	c.put(many(9, 9, narSize), upstreamURL, ago(1000), true)
	c.put(many(10, 10, narSize), upstreamURL, ago(1000), true, 9)
	c.put(many(11, 11, narSize), upstreamURL, ago(1000), true)
	c.update(func(tx *index.Tx) error {
		_, err := tx.Pin(nar{n: 10}.hash(), time.Now())
		if err == nil {
			_, err = tx.Withdraw(nar{n: 11}.hash(), time.Now())
		}
		return err
	})
	c.used(1, ago(2))
	c.uses.Used(nar{n: 2}.hash(), "") // not written yet
	e := c.evictor(Options{Limit: -1})
	if n := c.evict(e, narSize); n != 1 {
		t.Errorf("%d were evicted", n)
	}
	c.wantState(1, 11, "ssrssssssss")
	if latest := e.Latest(); len(latest) != 1 || latest[0].Path.Hash != (nar{n: 3}).hash() {
		t.Errorf("evicted: %+v", latest)
	}
	// After it was listed, an item is used.
	c.used(4, ago(1))
	c.uses.Used(nar{n: 5}.hash(), "")
	if n := c.evict(e, narSize); n != 1 {
		t.Errorf("%d were evicted", n)
	}
	c.wantState(1, 11, "ssrssrsssss")
	if n := c.evict(e, narSize); n != 1 {
		t.Errorf("%d were evicted", n)
	}
	c.wantState(1, 11, "rsrssrsssss")
	c.evict(e, 100*narSize)
	c.wantState(1, 11, "rrrrrrsssss")
	if !strings.Contains(c.log.String(), "https://former.example") {
		t.Error("the log doesn't name the former upstream")
	}
	if got := e.Evicted(); got < 6*narSize || got > 8*narSize {
		t.Errorf("%d bytes were evicted", got)
	}
	c.wantConsistent()
}

// TestRead: a nar that is read stays, and one that is evicted is not opened meanwhile.
func TestRead(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 3, narSize), upstreamURL, time.Now(), true)
	e := c.evictor(Options{Limit: -1})
	readers := make([]io.ReadCloser, 2)
	for i := range readers {
		var err error
		if readers[i], err = c.open(1); err != nil {
			t.Fatal(err)
		}
		if _, ok := readers[i].(bytestore.LocalFile); !ok {
			t.Error("sendfile can't send it")
		}
	}
	release := c.Hold(nar{n: 2}.hash())
	c.evict(e, 100*narSize)
	c.wantState(1, 3, "ssr")
	release()
	release()
	for i, reader := range readers {
		c.evict(e, 100*narSize)
		c.wantState(1, 1, "s")
		if content, err := io.ReadAll(reader); err != nil || !(nar{1, narSize}).isNar(content) {
			t.Errorf("reader %d: %d bytes, %v", i, len(content), err)
		}
		reader.Close()
		reader.Close()
	}
	c.evict(e, 100*narSize)
	c.wantState(1, 3, "rrr")
}

// TestMakeRoom: room for a client is made only if that is possible.
func TestMakeRoom(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 5, narSize), upstreamURL, time.Now().Add(-time.Hour), true)
	c.put(many(6, 9, narSize), "", time.Now(), true)
	e := c.evictor(Options{Limit: 100 * narSize})
	if err := e.MakeRoom(t.Context(), 9*narSize); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	c.wantState(1, 9, "sssssssss")
	if err := e.MakeRoom(t.Context(), narSize); err != nil {
		t.Error(err)
	}
	c.wantState(1, 9, "rrsssssss") // with the surplus
	if err := e.MakeRoom(t.Context(), 3*narSize); err != nil {
		t.Error(err)
	}
	c.wantState(1, 9, "rrrrrssss")
	if err := e.MakeRoom(t.Context(), narSize); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
}

// TestConcurrentUses: concurrent evictions and uses lose nothing.
func TestConcurrentUses(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	const count = 300
	c.put(many(1, count, 100), upstreamURL, time.Now().Add(-time.Hour), true)
	e := c.evictor(Options{Limit: -1})
	var busy sync.WaitGroup
	for client := range 4 {
		busy.Go(func() {
			for n := client + 1; n <= count; n += 4 {
				hash := nar{n: n}.hash()
				c.uses.Used(hash, "")
				if n%10 == 0 {
					c.uses.Flush(context.Background())
				}
				if reader, err := c.open(n); err == nil {
					content, err := io.ReadAll(reader)
					if err != nil || !(nar{n, 100}).isNar(content) {
						t.Errorf("%d: %v", n, err)
					}
					reader.Close()
				}
			}
		})
	}
	for range 2 {
		busy.Go(func() {
			for range 30 {
				if _, err := e.Evict(context.Background(), 1000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	busy.Wait()
	c.evict(e, 1<<40)
	if got := e.Evicted(); got < count*100 {
		t.Errorf("%d bytes were evicted", got)
	}
	c.wantState(1, count, strings.Repeat("r", count))
	c.wantConsistent()
}

// importing imports an item after it was read, and before it is evicted.
type importing struct {
	*uses.Counter
	at      narinfo.PathHash // read after the item
	imports func()
}

func (i *importing) LastUse(hash narinfo.PathHash) time.Time {
	if hash == i.at {
		i.imports()
	}
	return i.Counter.LastUse(hash)
}

// TestImportedMeanwhile: an item that is imported while it is about to be evicted stays.
func TestImportedMeanwhile(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 3, narSize), upstreamURL, time.Now().Add(-time.Hour), true)
	e := c.evictor(Options{Limit: -1})
	e.options.Uses = &importing{c.uses, nar{n: 2}.hash(), sync.OnceFunc(func() {
		c.update(func(tx *index.Tx) error { return tx.SetOrigin(nar{n: 1}.hash(), 0, time.Time{}) })
	})}
	if n := c.evict(e, 3*narSize); n != 2 {
		t.Errorf("%d were evicted", n)
	}
	c.wantState(1, 3, "srr")
	c.wantConsistent()
}

// failing is a directory that can't delete.
type failing struct {
	*directory.Directory
	fails bool
}

func (f *failing) Remove(ctx context.Context, name string) error {
	if f.fails {
		return errors.New("the disk fails")
	}
	return f.Directory.Remove(ctx, name)
}

// TestKilled: bytes that were not deleted after their row was changed, as by a killed process, are
// deleted later, and claimed by nothing meanwhile.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir, database := memoryDir(t), memoryDir(t)
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	fails := &failing{store, true}
	c := openCacheWith(t, dir, database, fails)
	c.put(many(1, 3, narSize), upstreamURL, time.Now().Add(-time.Hour), true)
	e := c.evictor(Options{Limit: 100 * narSize})
	if err := e.MakeRoom(t.Context(), narSize); !errors.Is(err, storage.ErrNotDeleted) {
		t.Error(err)
	}
	// It doesn't try others.
	if err := e.MakeRoom(t.Context(), narSize); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if e.Evicted() != 0 {
		t.Errorf("%d bytes count", e.Evicted())
	}
	item, err := c.Item(t.Context(), nar{n: 3}.hash())
	if err != nil || item.Stored == 0 {
		t.Errorf("another was evicted, %v", err)
	}
	fails.fails = false
	if _, err := deletion.DeletePending(t.Context(), c.Storage); err != nil {
		t.Error(err)
	}
	c.wantConsistent()
	c.ahead.Store(int64(2 * stuckPause))
	if err := e.MakeRoom(t.Context(), narSize); err != nil {
		t.Error(err)
	}
}

// TestNotOwner: an instance that doesn't own the storage evicts nothing.
func TestNotOwner(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 3, narSize), upstreamURL, time.Now(), true)
	c.Storage = storage.New(c.index, c.ByteStore(), storage.Options{MayWrite: func(context.Context) error { return storage.ErrNotOwner }})
	if err := c.evictor(Options{Limit: -1}).MakeRoom(t.Context(), narSize); !errors.Is(err, storage.ErrNotOwner) {
		t.Error(err)
	}
	c.wantState(1, 3, "sss")
}

// TestRound: the remover evicts before it applies criteria, and reports what it can't remove.
func TestRound(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 10, narSize), upstreamURL, time.Now().Add(-time.Hour), true)
	c.put(many(11, 14, narSize), "", time.Now(), true)
	const block = narSize + 4<<10
	limits := func(limit int64) *removal.Remover {
		return removal.New(c.Storage, removal.Options{Limit: limit, MinimumFree: -1, Evictor: c.evictor(Options{Limit: limit}), Now: c.now, Log: c.logger()})
	}
	r := limits(8 * block)
	if err := r.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.state(1, 14); strings.Count(got, "r") < 4 || strings.Count(got, "r") > 7 || !strings.HasSuffix(got, "sssssss") {
		t.Errorf("%s", got)
	}
	if warnings := r.Warnings(); warnings != nil {
		t.Errorf("%q", warnings)
	}
	// A restart with another limit.
	r = limits(2 * block)
	for range 2 {
		if err := r.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.wantState(1, 14, "rrrrrrrrrrssss")
	if warnings := strings.Join(r.Warnings(), ";"); !strings.Contains(warnings, "no more nars of upstreams can be evicted") {
		t.Errorf("%q", warnings)
	}
}

// TestForget: items that nobody requests are removed when clients don't hold their narinfos any
// more.
func TestForget(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	old := time.Now().Add(-48 * time.Hour)
	c.put(many(1, 8, narSize), upstreamURL, old, true)
	c.put(many(9, 9, narSize), "", old, true)
	c.put(many(10, 10, narSize), "https://former.example", old, true)
	c.put(many(11, 12, narSize), upstreamURL, old, false)
	c.used(2, time.Now().Add(-time.Hour))
	c.uses.Used(nar{n: 3}.hash(), "")
	c.update(func(tx *index.Tx) error {
		if _, err := tx.Pin(nar{n: 4}.hash(), time.Now()); err != nil {
			return err
		}
		if _, err := tx.Withdraw(nar{n: 5}.hash(), time.Now()); err != nil {
			return err
		}
		item, err := tx.Item(nar{n: 6}.hash())
		if err != nil {
			return err
		}
		if err := tx.SetOrigin(item.Hash, item.Origin, time.Now()); err != nil { // requested and renewed
			return err
		}
		return tx.AddTags(nar{n: 7}.hash(), []index.Tag{{Key: "release", Value: "yes"}})
	})
	reader, err := c.open(8)
	if err != nil {
		t.Fatal(err)
	}
	e := c.evictor(Options{Limit: -1, Keep: 24 * time.Hour})
	forget := func() {
		t.Helper()
		if err := e.Forget(t.Context()); err != nil {
			t.Error(err)
		}
	}
	forget()
	c.wantState(1, 12, "-sssssssss--")
	reader.Close()
	forget()
	c.wantState(1, 12, "-ssssss-ss--")
	c.ahead.Store(int64(23*time.Hour + 2*time.Minute))
	forget()
	c.wantState(1, 12, "--sssss-ss--")
	c.uses.Flush(t.Context())
	c.ahead.Store(int64(25 * time.Hour))
	forget()
	c.wantState(1, 12, "---ss-s-ss--")
	c.wantConsistent()
}

// TestForgetClock: while the clock is behind, nothing is forgotten.
func TestForgetClock(t *testing.T) {
	t.Parallel()
	c := newCache(t)
	c.put(many(1, 2, narSize), upstreamURL, time.Now(), true)
	c.update(func(tx *index.Tx) error { return tx.SetOrigin(nar{n: 1}.hash(), 1, time.Unix(1, 0)) })
	e := c.evictor(Options{Limit: -1, Keep: time.Second})
	c.ahead.Store(-int64(time.Since(time.Unix(1000, 0))))
	if err := e.Forget(t.Context()); err != nil {
		t.Error(err)
	}
	c.wantState(1, 2, "ss")
}
