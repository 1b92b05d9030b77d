package nars

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// forget makes a source answer 404 for a file.
func (s *source) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
}

// TestDropAbsent: a file that the source doesn't have is given up if another one is stored.
func TestDropAbsent(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 1000, kinds: []string{"gzip", "zstd", "none"}}.make(t)
	from := newSource(t, item)
	zstd := item.files[item.names[1]]
	from.forget(item.names[1])
	m := newMirror(t, item)
	f := m.fetcher(from, Options{All: true})
	run(t, f)
	until(t, "the file is dropped", func() bool { return m.item(item).Dropped == 0b010 })
	until(t, "nothing is missing", func() bool { return f.Status().Missing == 0 && f.Status().InFlight == 0 })
	if row := m.item(item); row.Stored != 0b101 || strings.Contains(string(row.Announced()), "zstd") || !row.DropAfter.IsZero() {
		t.Errorf("%+v, %s", row.Item, row.Announced())
	}
	if status := f.Status(); status.LastError != "" || failures(t, f, "absent") != 0 {
		t.Errorf("%+v", status)
	}
	f.Wanted([]narinfo.PathHash{item.hash()})
	until(t, "it is looked at again", func() bool { return f.Status().Missing == 0 })
	if n := asksFor(from, item.names[1]); n != 1 {
		t.Errorf("the source got %d requests for it", n)
	}
	if _, _, err := f.OpenFile(t.Context(), m.item(item), 1, 0, -1, nil); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("a client gets %v", err)
	}
	// The source has it again: clients get it, and it is not stored.
	from.mu.Lock()
	from.files[item.names[1]] = zstd
	from.mu.Unlock()
	body, _, err := f.OpenFile(t.Context(), m.item(item), 1, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if content, err := io.ReadAll(body); err != nil || !bytes.Equal(content, zstd) {
		t.Errorf("a client gets %d bytes, %v", len(content), err)
	}
	if row := m.item(item); row.Stored != 0b101 {
		t.Errorf("it is stored: %b", row.Stored)
	}
}

// TestAbsentAlone: if no file of an item is stored, none is given up.
func TestAbsentAlone(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 1000, kinds: []string{"gzip", "zstd"}}.make(t)
	from := newSource(t)
	m := newMirror(t, item)
	f := m.fetcher(from, Options{All: true})
	run(t, f)
	until(t, "it is looked for twice", func() bool { return asksFor(from, item.names[0]) > 1 && failures(t, f, "absent") > 1 })
	if row := m.item(item); row.Dropped != 0 || row.Stored != 0 {
		t.Errorf("dropped %b, stored %b", row.Dropped, row.Stored)
	}
	// The source gets one of them.
	from.mu.Lock()
	from.files[item.names[0]] = item.files[item.names[0]]
	from.mu.Unlock()
	until(t, "that is stored", func() bool { return m.item(item).Stored == 0b01 && m.item(item).Dropped == 0b10 })
}

// TestDroppedMeanwhile: a file that is dropped while it is fetched is not stored.
func TestDroppedMeanwhile(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 1000, kinds: []string{"gzip", "zstd"}}.make(t)
	m := newMirror(t, item)
	from := newSource(t, item)
	f := m.fetcher(from, Options{All: true})
	row := m.item(item)
	if err := f.fetchFile(t.Context(), row, 1); err != nil {
		t.Fatal(err)
	}
	err := m.index.Update(t.Context(), func(tx *index.Tx) error { return tx.SetDropped(item.hash(), 0b01, m.Now()) })
	if err != nil {
		t.Fatal(err)
	}
	if err := f.fetchFile(t.Context(), row, 0); !errors.Is(err, storage.ErrNotWanted) {
		t.Errorf("the dropped file: %v", err)
	}
	if now := m.item(item); now.Stored != 0b10 {
		t.Errorf("stored %b", now.Stored)
	}
}

// asksFor returns how often a source was asked for a file.
func asksFor(from *source, name string) (n int) {
	for _, asked := range from.asked() {
		if slices.Contains(strings.Fields(asked), name) {
			n++
		}
	}
	return n
}
