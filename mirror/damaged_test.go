package mirror

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/cursor"
	maker "nar-herder/mirror/dump"
	"nar-herder/storage/index"
)

// dumpNow publishes this program's dump, changed by SQL statements.
func (i *instance) dumpNow(statements ...string) {
	i.t.Helper()
	path := filepath.Join(i.t.TempDir(), "dump.db")
	m, err := maker.New(i.index, maker.Options{Path: path})
	if err == nil {
		_, err = m.Make(i.t.Context())
	}
	if err != nil {
		i.t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		i.t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			i.t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		i.t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		i.t.Fatal(err)
	}
	i.publish(text)
}

// TestDamagedAtSource: an item that is damaged at the source is not removed here, unlike
// items that were removed there. A new mirror gets it when it is repaired.
func TestDamagedAtSource(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	for n := range 5 {
		source.add(at(n), testInfo(n, 1, n))
	}
	source.dumpNow()
	downloads := filepath.Join(t.TempDir(), "download")
	if _, err := mirrorOf2(t, own, source, downloads).step(t.Context()); err != nil {
		t.Fatal(err)
	}
	source.remove(at(6), 3)
	source.add(at(7), testInfo(7, 1, 7))
	source.rewrite("UPDATE narinfos SET checksum = checksum + 1 WHERE id = 2")
	source.dumpNow()
	m := mirrorOf2(t, own, source, downloads)
	if err := m.resync(t.Context(), cursor.Cursor{}, "for the test"); err != nil {
		t.Fatal(err)
	}
	if n := len(own.list()); n != 5 {
		t.Errorf("%d items are here", n)
	}
	if item, err := own.index.Item(t.Context(), testPath(1).Hash); err != nil || !item.WithdrawnAt.IsZero() {
		t.Errorf("the damaged item: %v, %v", item, err)
	}
	if item, err := own.index.Item(t.Context(), testPath(3).Hash); err != nil || item.WithdrawnAt.IsZero() {
		t.Errorf("the removed item: %v, %v", item, err)
	}
	f := follow(t, newInstance(t), source, nil)
	until(t, "the others", func() bool { return len(f.list()) == 4 })
	err := source.index.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Item(testPath(1).Hash)
		var damage *index.Damage
		if !errors.As(err, &damage) {
			return errors.New("it is not damaged")
		}
		_, err = tx.Mend(damage, testInfo(1, 1, 1).Text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the repaired item", func() bool { return len(f.list()) == 5 })
}

// TestDamagedRemoval: an item that the source removes while it is damaged here is removed
// when it is repaired.
func TestDamagedRemoval(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	for n := range 3 {
		source.add(at(n), testInfo(n, 1, n))
	}
	source.dumpNow()
	f := follow(t, own, source, nil)
	f.same(source)
	own.rewrite("UPDATE narinfos SET checksum = checksum + 1 WHERE id = 2")
	source.remove(at(4), 1)
	source.add(at(5), testInfo(5, 1, 5))
	until(t, "what follows", func() bool {
		_, err := own.index.Item(t.Context(), testPath(5).Hash)
		return err == nil
	})
	if _, err := own.index.Text(t.Context(), testPath(1).Hash); err != index.ErrNotFound {
		t.Errorf("it is still shown: %v", err)
	}
	if told := own.told(); !strings.HasSuffix(told[len(told)-2], " - "+testPath(1).String()) {
		t.Errorf("published changes %q", told)
	}
	own.rewrite("UPDATE narinfos SET checksum = checksum - 1 WHERE id = 2")
	if items, err := own.index.DeletableItems(t.Context(), time.Now().Add(100*24*time.Hour), 10); err != nil || len(items) != 1 || items[0].Mirrored {
		t.Errorf("withdrawn are %v, %v", items, err)
	}
}

// TestOwedRemovals: removals at the source before a dump that doesn't name all damaged
// items are made up for by the first dump that does, while the mirror follows changes.
func TestOwedRemovals(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	for n := range 5 {
		source.add(at(n), testInfo(n, 1, n))
	}
	source.dumpNow()
	downloads := filepath.Join(t.TempDir(), "download")
	m := mirrorOf2(t, own, source, downloads)
	if _, err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	source.remove(at(6), 3)
	source.add(at(7), testInfo(7, 1, 7))
	source.dumpNow("INSERT INTO nar_herder_dump (key, value) VALUES ('damaged', 'many')")
	if err := m.resync(t.Context(), cursor.Cursor{}, "for the test"); err != nil {
		t.Fatal(err)
	}
	isGone := func() bool {
		t.Helper()
		item, err := own.index.Item(t.Context(), testPath(3).Hash)
		if err != nil {
			t.Fatal(err)
		}
		return !item.WithdrawnAt.IsZero()
	}
	now := time.Now()
	m = mirrorOf2(t, own, source, downloads)
	m.Now = func() time.Time { return now }
	pay := func(want bool) {
		t.Helper()
		from, err := cursor.Read(t.Context(), own.index)
		if err != nil {
			t.Fatal(err)
		}
		if paid := m.payOwed(t.Context(), from); paid != want || isGone() != want {
			t.Errorf("from %+v: %v, want %v", from, paid, want)
		}
	}
	pay(false) // the same dump
	source.dumpNow()
	pay(false) // too early
	now = now.Add(owedEvery)
	pay(true)
	if from, err := cursor.Read(t.Context(), own.index); err != nil || from.Owed != "" {
		t.Errorf("%+v, %v", from, err)
	}
}

// TestManyNamed: a dump names all damaged items, however many.
func TestManyNamed(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	var named []string
	for n := range 2000 {
		if n == 0 || n >= 1000 {
			named = append(named, testPath(n).Hash.String())
		}
		if n < 10 {
			source.add(at(n), testInfo(n, 1, n))
		}
	}
	source.dumpNow()
	downloads := filepath.Join(t.TempDir(), "download")
	m := mirrorOf2(t, own, source, downloads)
	if _, err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	source.remove(at(20), 0)
	source.remove(at(20), 3)
	source.add(at(21), testInfo(11, 1, 11))
	source.dumpNow("INSERT INTO nar_herder_dump (key, value) VALUES ('damaged', '" + strings.Join(named, " ") + "')")
	if err := m.resync(t.Context(), cursor.Cursor{}, "for the test"); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]bool{0: false, 3: true, 5: false} {
		if item, err := own.index.Item(t.Context(), testPath(n).Hash); err != nil || !item.WithdrawnAt.IsZero() != want {
			t.Errorf("item %d: %+v, %v", n, item, err)
		}
	}
}
