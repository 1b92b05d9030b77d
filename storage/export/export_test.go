package export

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

func TestExport(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(7)
	items[3] = fake{n: 3, name: "gtk+-1", url: "nar/lzip/" + strings.Replace(fake{n: 3, name: "gtk+-1"}.path().BaseName(), "+", "%2B", 1), content: "plus"}
	p.add(t, items...)
	p.exports(t, Summary{Added: 7, Linked: 7}, nil)
	p.wantFiles(t, items...)
	written := "nar/lzip/" + strings.Replace(items[3].path().BaseName(), "+", "%2B", 1)
	if !os.SameFile(p.info(t, written), p.info(t, items[3].nar())) {
		t.Error("the second name is not a link")
	}
	stored, err := os.Stat(filepath.Join(p.store, items[0].nar()))
	if err != nil || !os.SameFile(stored, p.info(t, items[0].nar())) {
		t.Errorf("the nar is not a link to that of the storage: %v", err)
	}
	row, err := p.index.Item(t.Context(), items[0].path().Hash)
	if err != nil || !p.info(t, items[0].file()).ModTime().Equal(row.AddedAt) {
		t.Errorf("the narinfo has time %v, want that of the addition, %v; %v", p.info(t, items[0].file()).ModTime(), row.AddedAt, err)
	}

	// Nothing to do.
	before := map[string]time.Time{}
	for name := range files(t, p.out) {
		before[name] = p.info(t, name).ModTime()
	}
	inode := p.info(t, items[1].file())
	p.exports(t, Summary{Unchanged: 7}, func(e *Export) { e.Delete = true })
	for name, modified := range before {
		if !p.info(t, name).ModTime().Equal(modified) {
			t.Errorf("%s was changed", name)
		}
	}
	if !os.SameFile(inode, p.info(t, items[1].file())) {
		t.Error("a narinfo was written again")
	}

	// A new item, another text, another nar of the same size, a removed item.
	items[1].note = "signed again"
	items[2].content, items[2].digit = strings.ToUpper(items[2].content), "1"
	p.add(t, items[1], items[2], fake{n: 100, content: "new"})
	p.remove(t, items[4])
	p.exports(t, Summary{Added: 1, Updated: 2, Unchanged: 4, StaleNarinfos: 1, StaleNars: 1}, nil)
	left := append(append([]fake{}, items...), fake{n: 100, content: "new"})
	p.wantFiles(t, left...)
	p.exports(t, Summary{Unchanged: 7, StaleNarinfos: 1, StaleNars: 1}, func(e *Export) { e.Delete, e.DryRun = true, true })
	p.wantFiles(t, left...)
	p.exports(t, Summary{Unchanged: 7, StaleNarinfos: 1, StaleNars: 1}, func(e *Export) { e.Delete = true })
	p.wantFiles(t, append(left[:4:4], left[5:]...)...)
}

// TestCopy shares no file with the storage, and keeps times, by which the next run recognizes
// the nars.
func TestCopy(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(3)
	p.add(t, items...)
	p.exports(t, Summary{Added: 3, Linked: 3}, nil)
	copies := func(e *Export) { e.Copy = true }
	p.exports(t, Summary{Updated: 3, Copied: 3}, copies)
	p.wantFiles(t, items...)
	stored, err := os.Stat(filepath.Join(p.store, items[0].nar()))
	if err != nil {
		t.Fatal(err)
	}
	copied := p.info(t, items[0].nar())
	if os.SameFile(stored, copied) || !copied.ModTime().Equal(stored.ModTime()) {
		t.Errorf("the copy is a link, or has time %v, want %v", copied.ModTime(), stored.ModTime())
	}
	p.exports(t, Summary{Unchanged: 3}, copies)
	p.exports(t, Summary{Unchanged: 3}, nil) // copies are as good as links

	// Another nar with the same size and time.
	items[0].content, items[0].digit = strings.ToUpper(items[0].content), "1"
	p.add(t, items[0])
	if err := os.Chtimes(filepath.Join(p.store, items[0].nar()), stored.ModTime(), stored.ModTime()); err != nil {
		t.Fatal(err)
	}
	p.exports(t, Summary{Updated: 1, Unchanged: 2, Copied: 1}, copies)
	p.wantFiles(t, items...)

	// A truncated nar is replaced.
	if err := os.Truncate(filepath.Join(p.out, items[1].nar()), 3); err != nil {
		t.Fatal(err)
	}
	p.exports(t, Summary{Updated: 1, Unchanged: 2, Copied: 1}, copies)
	p.wantFiles(t, items...)
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.add(t, many(3)...)
	p.exports(t, Summary{Added: 3, Linked: 3}, func(e *Export) { e.DryRun = true })
	if _, err := os.Stat(p.out); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
}

func TestClosureAndTags(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := []fake{{n: 1, content: "1", refs: []int{2, 1}}, {n: 2, content: "2", refs: []int{3}}, {n: 3, content: "3"}, {n: 4, content: "4"}}
	p.add(t, items...)
	p.exports(t, Summary{Added: 4}, nil)
	of := func(roots ...fake) func(*Export) {
		return func(e *Export) {
			e.Delete = true
			for _, f := range roots {
				e.ClosureOf = append(e.ClosureOf, f.path().Hash)
			}
		}
	}
	p.exports(t, Summary{Unchanged: 2, StaleNarinfos: 2, StaleNars: 2}, of(items[1]))
	p.wantFiles(t, items[1], items[2])
	p.exports(t, Summary{Added: 2, Unchanged: 2}, of(items[0], items[3]))

	p.remove(t, items[2])
	results := p.exports(t, Summary{Unchanged: 2, Skipped: 1, StaleNarinfos: 2, StaleNars: 2}, of(items[0]))
	if text := errorOf(results, items[2]); !strings.Contains(text, items[1].path().String()+" refers to it") {
		t.Errorf("missing in the closure: %q", text)
	}
	if _, _, err := p.export(of(items[2])); err == nil || !strings.Contains(err.Error(), items[2].path().Hash.String()) {
		t.Errorf("closure of an unknown item: %v", err)
	}
	p.wantFiles(t, items[0], items[1])

	err := p.index.Update(t.Context(), func(tx *index.Tx) error {
		return tx.AddTags(items[3].path().Hash, []index.Tag{{Key: "a", Value: "b"}, {Key: "c", Value: "d"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	p.exports(t, Summary{Added: 1, StaleNarinfos: 2, StaleNars: 2}, func(e *Export) {
		e.Delete, e.Tags = true, []index.Tag{{Key: "a", Value: "b"}, {Key: "c", Value: "d"}}
	})
	p.wantFiles(t, items[3])
	p.exports(t, Summary{StaleNarinfos: 1, StaleNars: 1}, func(e *Export) { e.Tags = []index.Tag{{Key: "a", Value: "b"}, {Key: "c", Value: "e"}} })
	if _, _, err := p.export(func(e *Export) { of(items[0])(e); e.Tags = []index.Tag{{Key: "a", Value: "b"}} }); err == nil {
		t.Error("tags and a closure are accepted together")
	}
}

// TestSkipped has withdrawn items, and items without all of their nars.
func TestSkipped(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(5)
	items[4].url = "elsewhere/" + items[4].path().BaseName()
	p.add(t, items[:4]...)
	p.put(t, items[4])
	results := p.exports(t, Summary{Added: 4, Skipped: 1}, nil)
	if text := errorOf(results, items[4]); !strings.Contains(text, "does not begin with nar/") {
		t.Errorf("a URL outside of nar/: %q", text)
	}
	p.wantFiles(t, items[:4]...)
	err := p.index.Update(t.Context(), func(tx *index.Tx) error {
		if err := tx.SetStored(items[0].path().Hash, 0, nil, time.Time{}); err != nil {
			return err
		}
		_, err := tx.Withdraw(items[1].path().Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	results = p.exports(t, Summary{Unchanged: 2, Skipped: 2, Withdrawn: 1, StaleNarinfos: 2, StaleNars: 1}, nil)
	if text := errorOf(results, items[0]); !strings.Contains(text, storage.ErrNotStored.Error()) {
		t.Errorf("not stored: %q", text)
	}
	p.wantFiles(t, items[:4]...)
	// The nar of a withdrawn item is kept for clients that have its narinfo.
	p.exports(t, Summary{Unchanged: 2, Skipped: 2, Withdrawn: 1, StaleNarinfos: 2, StaleNars: 1}, func(e *Export) { e.Delete = true })
	if got := files(t, p.out); got[items[1].nar()] != items[1].content || got[items[1].file()] != "" {
		t.Errorf("a withdrawn item: %q, %q", got[items[1].nar()], got[items[1].file()])
	}
	p.remove(t, items[1])
	p.exports(t, Summary{Unchanged: 2, Skipped: 2, StaleNars: 1}, func(e *Export) { e.Delete = true })
	p.wantFiles(t, items[2:4]...)
}

// TestUnreferenced has unreferenced files, and directories that become empty.
func TestUnreferenced(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(2)
	items[1].url = "nar/xz/" + items[1].path().BaseName()
	p.add(t, items...)
	for _, name := range []string{"index.html", "short.narinfo", "logs/" + items[0].path().BaseName(), "nar/README", "nar/lzip/x"} {
		write(t, filepath.Join(p.out, name), "another program's")
	}
	p.exports(t, Summary{Added: 2}, nil)
	for _, f := range items {
		p.remove(t, f)
	}
	p.exports(t, Summary{StaleNarinfos: 2, StaleNars: 2}, func(e *Export) { e.Delete = true })
	if got := files(t, p.out); len(got) != 6 {
		t.Errorf("there are: %q", got)
	}
	if _, err := os.Stat(filepath.Join(p.out, "nar/xz")); !os.IsNotExist(err) {
		t.Errorf("an empty directory is left: %v", err)
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.add(t, many(2)...)
	top := filepath.Dir(p.store)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(p.store, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{p.store, p.store + "/nar", p.store + "/new/below", link, link + "/new", top, p.store + "/../store/x"} {
		p.out = name
		if _, _, err := p.export(func(e *Export) { e.Delete = true }); err == nil || !strings.Contains(err.Error(), "overlaps with the storage") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := files(t, p.store); len(got) != 2 {
		t.Errorf("the storage has %q", got)
	}
	p.out = p.store + "-2" // doesn't overlap
	p.exports(t, Summary{Added: 2}, nil)
}

// TestNothingStored: an index without stored nars, such as a front end's, doesn't empty a
// copy.
func TestNothingStored(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.add(t, many(3)...)
	p.exports(t, Summary{Added: 3, Linked: 3}, nil)
	before := files(t, p.out)
	err := p.index.Update(t.Context(), func(tx *index.Tx) error {
		for _, item := range many(3) {
			if err := tx.SetStored(item.path().Hash, 0, nil, time.Time{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.export(func(e *Export) { e.Delete, e.AcceptLoss = true, false }); !errors.Is(err, ErrLoss) {
		t.Errorf("%v, want ErrLoss", err)
	}
	if after := files(t, p.out); !maps.Equal(before, after) {
		t.Errorf("the copy has %d files, had %d", len(after), len(before))
	}
}
