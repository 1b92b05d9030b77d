package search

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nar-herder/storage/index"
)

// TestDamage: any change of the file is noticed, and the index is built again.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	s := newTest(t, x)
	var items []model
	for n, name := range random(rand.New(rand.NewPCG(1, 1)), 40) {
		put(t, x, n, name)
		items = append(items, model{n, name})
	}
	follow(t, s)
	file := filepath.Join(dir, "index.db-search")
	intact, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string][]byte{"empty": {}, "longer": append(slices.Clone(intact), 0), "text": []byte("not an index\n")}
	for i := 0; i < len(intact); i += 1 + i/20 {
		changed := slices.Clone(intact)
		changed[i] ^= 1 << (i % 8)
		damages[fmt.Sprintf("byte %d", i)] = changed
		damages[fmt.Sprintf("first %d bytes", i)] = intact[:i]
	}
	for name, content := range damages {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		s := loaded(t, x)
		if _, err := s.Search(t.Context(), query(t, "n"), "", 1000); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.damaged.Store(s.damaged.Load() || s.table != nil && !bytes.Equal(content, intact))
		follow(t, s)
		wantLikeNaive(t, s, items, "n", 100)
		wantLikeNaive(t, s, items, "1", 100)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	// While it is open.
	s = loaded(t, x)
	if s.table == nil {
		t.Fatal("the intact file is not used")
	}
	if err := os.Truncate(file, 10); err != nil {
		t.Fatal(err)
	}
	if result, err := s.Search(t.Context(), query(t, "n"), "", 10); err != nil || len(result.Items) > 0 || !s.State().Building {
		t.Errorf("a truncated file finds %+v, %v", result, err)
	}
	follow(t, s)
	wantLikeNaive(t, s, items, "n", 100)
}

// TestOtherDatabase: the file of another database, or of a newer copy of this one, is not used.
func TestOtherDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "index.db")
	names := random(rand.New(rand.NewPCG(1, 1)), 60)
	x, err := index.Open(t.Context(), path, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, 0, names[:25]...)
	backup := filepath.Join(dir, "backup.db")
	if err := x.Backup(t.Context(), backup, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	put(t, x, 25, names[25:]...)
	s := newTest(t, x)
	follow(t, s)
	if err := s.write(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), x.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+suffix, backup+suffix); err != nil {
		t.Fatal(err)
	}
	x = openIndex(t, backup)
	if s := loaded(t, x); s.table != nil {
		t.Error("the file of a newer copy is used")
	}
	// Other items get the same positions.
	put(t, x, 100, names...)
	s = loaded(t, x)
	if s.table != nil {
		t.Error("the file of another history is used")
	}
	follow(t, s)
	var items []model
	for n, name := range names[:25] {
		items = append(items, model{n, name})
	}
	for n, name := range names {
		items = append(items, model{100 + n, name})
	}
	wantLikeNaive(t, s, items, "n", 100)
	if err := x.NewInstance(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := loaded(t, x); s.table != nil {
		t.Error("the file of another database is used")
	}
}

// TestUnwritable: without a file, a search finds everything, until memory would hold too much.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	blocked := filepath.Join(dir, "index.db-search"+unfinished)
	if err := os.Mkdir(blocked, 0o755); err != nil {
		t.Fatal(err)
	}
	s := newTest(t, x)
	names := random(rand.New(rand.NewPCG(1, 1)), 50)
	put(t, x, 0, names...)
	for range 3 {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if state := s.State(); state.Building || state.Indexed != 50 || state.Bytes != 0 {
		t.Errorf("without a file, the state is %+v", state)
	}
	put(t, x, 50, names...)
	put(t, x, 100, names...)
	for range 3 {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pause, err := s.step(t.Context()); err != nil || pause < retryInterval {
		t.Errorf("the pause is %v, %v", pause, err)
	}
	if state := s.State(); !state.Building {
		t.Errorf("with a full memory, the state is %+v", state)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	s.refused = time.Time{}
	follow(t, s)
	if state := s.State(); state.Building || state.Indexed != 150 || state.Bytes == 0 {
		t.Errorf("after a retry, the state is %+v", state)
	}
}

// TestForeignFile: a file of something else with the name of the index stays.
func TestForeignFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	const content = "SQLite format 3\x00"
	for _, name := range []string{"index.db-search", "index.db-search" + unfinished} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		s := loaded(t, x)
		put(t, x, 0, random(rand.New(rand.NewPCG(1, 1)), 30)...)
		for range 3 {
			if _, err := s.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.reset()
		if err := s.write(t.Context(), nil); err == nil {
			t.Errorf("%s is overwritten", name)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != content {
			t.Errorf("%s is %q, %v", name, got, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		var all []int
		for n := range 30 {
			all = append(all, n)
		}
		remove(t, x, all...)
	}
}

// TestLacking: a sweep notices an item with a row that was damaged when the index was built.
func TestLacking(t *testing.T) {
	t.Parallel()
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	s := newTest(t, x)
	put(t, x, 0, "hello-1", "hello-2")
	follow(t, s)
	s.recent = recent{} // as if their names were not readable
	put(t, x, 2, "hello-3")
	follow(t, s)
	wantNames(t, s, "hello", "hello-3")
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	wantNames(t, s, "hello", "hello-3", "hello-2", "hello-1")
}
