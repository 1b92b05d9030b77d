package nars

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"nar-herder/mirror/nars/room"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// TestMakeRoom: a download for a client makes room, which concurrent ones share, and others don't.
func TestMakeRoom(t *testing.T) {
	t.Parallel()
	const size = 100_000
	items := many(t, 8, size)
	from := newSource(t, items...)
	m := newMirror(t, items...)
	var mu sync.Mutex
	var asked []int64
	running := 0
	victims := items[:4]
	options := Options{Limit: 450_000, MakeRoom: func(ctx context.Context, bytes int64) error {
		mu.Lock()
		running++
		if asked = append(asked, bytes); running > 1 {
			t.Error("two at once")
		}
		mu.Unlock()
		defer func() {
			mu.Lock()
			running--
			mu.Unlock()
		}()
		if len(victims) == 0 {
			return errors.New("none is left")
		}
		m.evict(victims[:2]...)
		victims = victims[2:]
		return nil
	}}
	f := m.fetcher(from, options)
	for _, of := range items[:4] {
		read(t, f, m.item(of), of.files[of.names[0]])
		m.wantStored(of)
	}
	if len(asked) != 0 {
		t.Errorf("room was made for %d", asked)
	}
	var clients sync.WaitGroup
	for _, of := range items[4:] {
		clients.Go(func() { read(t, f, m.item(of), of.files[of.names[0]]) })
	}
	clients.Wait()
	m.wantStored(items[4:]...)
	if len(asked) != 2 || asked[0] <= 0 || asked[0] > 2*size {
		t.Errorf("room was made for %d", asked)
	}
	if usage := m.onDisk(); usage > options.Limit {
		t.Errorf("%d bytes of %d", usage, options.Limit)
	}
	// It can't be made: the nar is passed on.
	read(t, f, m.item(items[0]), items[0].files[items[0].names[0]])
	if m.stored(items[0]) {
		t.Error("it was stored above the limit")
	}
	if len(asked) != 3 {
		t.Errorf("room was made for %d", asked)
	}
	// No client waits for it.
	if _, err := f.reserve(t.Context(), size, false); !errors.Is(err, room.ErrNone) || len(asked) != 3 {
		t.Errorf("%v, room was made for %d", err, asked)
	}
	m.wantConsistent()
}

// TestReadDownload: the stored nar of a download stays while a client reads it.
func TestReadDownload(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 1_000_000}.make(t)
	from := newSource(t, item)
	m := newMirror(t, item)
	m.update(func(tx *index.Tx) error { return tx.SetOrigin(item.hash(), 1, time.Now()) })
	f := m.fetcher(from, Options{})
	body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.wantStored(item)
	until(t, "the download ends", func() bool { return f.Status().InFlight == 0 })
	unread := func() int {
		unread, done := m.Unread([]narinfo.PathHash{item.hash()})
		done()
		return len(unread)
	}
	if unread() != 0 {
		t.Error("it may be evicted")
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		t.Error(err)
	}
	body.Close()
	if unread() != 1 {
		t.Error("it may not be evicted")
	}
}

func (m *mirror) update(f func(*index.Tx) error) {
	m.t.Helper()
	if err := m.index.Update(context.Background(), f); err != nil {
		m.t.Fatal(err)
	}
}
