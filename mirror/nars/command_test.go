package nars

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/mirror/nars/spool"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// newItem returns an item that is written with its first nar.
func (m *mirror) newItem(of *made) *storage.Item {
	m.t.Helper()
	item, err := storage.NewItem(&index.Item{Hash: of.hash(), Text: []byte(of.text)})
	if err != nil {
		m.t.Fatal(err)
	}
	entry := m.index.Prepare(item.Narinfo)
	item.Write = func(tx *index.Tx) error {
		old, err := tx.Item(item.Hash)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		return tx.Put(entry, old)
	}
	return item
}

// TestFetch: a new item appears with its nar, and not before.
func TestFetch(t *testing.T) {
	t.Parallel()
	of := spec{n: 1, size: 300_000, kinds: []string{"none"}}.make(t)
	absent := spec{n: 2, size: 1000}.make(t)
	wrong := spec{n: 3, size: 1000}.make(t)
	from := newSource(t, of, wrong)
	from.files[wrong.names[0]] = append([]byte("\x00"), wrong.files[wrong.names[0]][1:]...)
	m := newMirror(t)
	var received int64
	f := m.fetcher(from, Options{AtOnce: 1, Received: func(bytes int64) { received += bytes }})
	item := m.newItem(of)
	write := item.Write
	refused := errors.New("refused")
	item.Write = func(*index.Tx) error { return refused }
	unwritten := func(of *made) {
		t.Helper()
		if _, err := m.Item(t.Context(), of.hash()); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("the row: %v", err)
		}
	}
	if err := f.Fetch(t.Context(), item, 0); !errors.Is(err, refused) {
		t.Error(err)
	}
	unwritten(of)
	item.Write = write
	if err := f.Fetch(t.Context(), item, 0); err != nil {
		t.Error(err)
	}
	m.wantStored(of)
	if received == 0 || len(from.asked()) > 2 {
		t.Errorf("%d bytes in %q", received, from.asked())
	}
	if err := f.Fetch(t.Context(), item, 0); err != nil || len(from.asked()) > 2 {
		t.Errorf("again: %v, %q", err, from.asked())
	}
	if err := f.Fetch(t.Context(), m.newItem(absent), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Error(err)
	}
	if err := f.Fetch(t.Context(), m.newItem(wrong), 0); !errors.Is(err, narcheck.ErrWrongNar) {
		t.Error(err)
	}
	unwritten(absent)
	unwritten(wrong)
	m.wantConsistent()
}

// TestFetchUnrecorded: a process was killed after it had stored a nar, and before it wrote the
// row.
func TestFetchUnrecorded(t *testing.T) {
	t.Parallel()
	of := spec{n: 1, size: 1000}.make(t)
	from := newSource(t, of)
	m := newMirror(t)
	name := filepath.Join(m.dir, of.names[0])
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, of.files[of.names[0]], 0o644)); err != nil {
		t.Fatal(err)
	}
	f := m.fetcher(from, Options{})
	if err := f.Fetch(t.Context(), m.newItem(of), 0); err != nil || len(from.asked()) > 0 {
		t.Errorf("%v, %q", err, from.asked())
	}
	m.wantStored(of)
}

// TestFetchFull: a full disk is told from other failures.
func TestFetchFull(t *testing.T) {
	t.Parallel()
	of := spec{n: 1, size: 3 << 20, kinds: []string{"none"}}.make(t)
	m := newMirrorIn(t, testfs.Small(t, 1<<20))
	f := m.fetcher(newSource(t, of), Options{})
	if err := f.Fetch(t.Context(), m.newItem(of), 0); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
}

// TestFetchInUse: another process fetches the nar.
func TestFetchInUse(t *testing.T) {
	t.Parallel()
	of := spec{n: 1, size: 1000}.make(t)
	m := newMirror(t)
	f := m.fetcher(newSource(t, of), Options{})
	file, _, err := f.spool.Open(spool.Key(m.newItem(of), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := f.Fetch(t.Context(), m.newItem(of), 0); !errors.Is(err, spool.ErrInUse) {
		t.Error(err)
	}
}

// TestFetchPartial: the partial download of an item without a row stays for the next process.
func TestFetchPartial(t *testing.T) {
	t.Parallel()
	of := spec{n: 1, size: 300_000, kinds: []string{"none"}}.make(t)
	m := newMirror(t)
	from := newSource(t, of)
	f := m.fetcher(from, Options{})
	file, _, err := f.spool.Open(spool.Key(m.newItem(of), 0))
	if err == nil {
		_, err = file.Write(of.files[of.names[0]][:200_000])
	}
	if err == nil {
		err = errors.Join(file.Close(), f.spool.DropStale(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fetch(context.WithoutCancel(t.Context()), m.newItem(of), 0); err != nil {
		t.Error(err)
	}
	m.wantStored(of)
	if asked := from.asked(); len(asked) != 1 || asked[0] == of.names[0] {
		t.Errorf("not resumed: %q", asked)
	}
}
