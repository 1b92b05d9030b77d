package storage_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/space"
)

// spacious is a directory on a file system with as much free space as the test says.
type spacious struct {
	*directory.Directory
	free *atomic.Int64
}

func (s spacious) FreeSpace() (free, size int64, err error) { return s.free.Load(), 1 << 30, nil }

// openSpacious opens the storage of a place with so many bytes free.
func (p place) openSpacious(t testing.TB, free int64) (*storage.Storage, *atomic.Int64) {
	t.Helper()
	is := new(atomic.Int64)
	is.Store(free)
	return p.openWith(t, func(b bytestore.Store) bytestore.Store { return spacious{b.(*directory.Directory), is} }), is
}

func setMinimumFree(t testing.TB, s *storage.Storage, minimum int64) {
	t.Helper()
	if err := s.SetMinimumFree(t.Context(), minimum); err != nil {
		t.Fatal(err)
	}
}

// TestMinimumFreeImport: imports are refused below the minimum, also in other processes,
// and if they would get below it.
func TestMinimumFreeImport(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, content: strings.Repeat("x", 1000)}
	for name, test := range map[string]struct {
		free, minimum int64
		keep          bool // so it is copied
		ok            bool
	}{
		"no minimum":              {0, -1, true, true},
		"enough, copied":          {2000, 1000, true, true},
		"one byte less, copied":   {1999, 1000, true, false},
		"enough, moved":           {1000, 1000, false, true},
		"one byte less, moved":    {999, 1000, false, false},
		"none free, none to stay": {0, 0, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			setMinimumFree(t, p.openTest(t), test.minimum)
			s, _ := p.openSpacious(t, test.free)
			source := laid(t, f)
			got := importAll(t, s, importer.Options{Keep: test.keep}, source)
			if test.ok {
				wantOutcomes(t, got, "1 added")
				wantServed(t, s, f)
				return
			}
			wantOutcomes(t, got, "1 failed")
			for _, r := range got {
				for _, text := range []string{p.store, fmt.Sprint(test.free), fmt.Sprint(test.minimum), "--storage-minimum-free-space"} {
					if !errors.Is(r.Err, space.ErrFreeSpace) || !strings.Contains(r.Err.Error(), text) {
						t.Errorf("%v does not have %q", r.Err, text)
					}
				}
			}
			if !has(filepath.Join(source, f.name()), f.content) {
				t.Error("the nar was removed, although it was not imported")
			}
			wantFindings(t, s)
			setMinimumFree(t, s, -1)
			wantOutcomes(t, importAll(t, s, importer.Options{}, source), "1 added")
		})
	}
}

// TestMinimumFreeInFlight: reserved bytes count until they are written.
func TestMinimumFreeInFlight(t *testing.T) {
	t.Parallel()
	s, free := newPlace(t).openSpacious(t, 1000)
	setMinimumFree(t, s, 500)
	first, err := s.Reserve(t.Context(), 300)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(size int64) {
		t.Helper()
		if _, err := s.Reserve(t.Context(), size); !errors.Is(err, space.ErrFreeSpace) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	refused(201)
	if spare, minimum, err := s.Spare(t.Context()); spare != 200 || minimum != 500 || err != nil {
		t.Errorf("%d spare, minimum %d, %v", spare, minimum, err)
	}
	// Now a part of it is written, and not counted twice.
	free.Add(-200)
	first.SetWritten(200)
	refused(201)
	second, err := s.Reserve(t.Context(), 200)
	if err != nil {
		t.Fatal(err)
	}
	refused(1)
	first.Release()
	first.Release()
	first.SetWritten(0)
	refused(101)
	second.Release()
	if spare, _, err := s.Spare(t.Context()); spare != 300 || err != nil {
		t.Errorf("%d spare, %v", spare, err)
	}
}

// TestMinimumFreeBatch: of a batch that doesn't fit, the items that fit are imported.
func TestMinimumFreeBatch(t *testing.T) {
	t.Parallel()
	const count, each = 20, 100 << 10
	disk := testfs.Small(t, 4<<20)
	items := many(count, func(f *fake) { f.content = strings.Repeat(fmt.Sprintf("%02d", f.n%100), each/2) })
	source := laid(t, items...)
	p := placeIn(t, disk)
	p.database = filepath.Join(t.TempDir(), "db")
	s := p.openTest(t)
	importAll(t, s, importer.Options{}, laid(t, fake{n: 99, content: "first"})) // for its directories
	free, _, err := s.FreeSpace()
	if err != nil {
		t.Fatal(err)
	}
	minimum := free - 12*each
	setMinimumFree(t, s, minimum)
	// Bytes being written count twice for a moment, so some may be refused that would
	// fit a moment later.
	for added := -1; added != 0; {
		added = 0
		for _, r := range importAll(t, s, importer.Options{Keep: true}, source) {
			switch {
			case r.Outcome == importer.Added:
				added++
			case r.Err != nil && !errors.Is(r.Err, space.ErrFreeSpace):
				t.Error(r.Err)
			}
		}
	}
	if now, _, err := s.FreeSpace(); err != nil || now < minimum || now > minimum+each {
		t.Errorf("%d bytes are free, %v; the minimum is %d", now, err, minimum)
	}
	wantFindings(t, s)
	// Again, with more room.
	setMinimumFree(t, s, 0)
	importAll(t, s, importer.Options{Keep: true}, source)
	for _, f := range items {
		wantServed(t, s, f)
	}
}

// TestMinimumFreeReceive: the minimum is checked again when bytes are committed, because
// another process may have taken the room.
func TestMinimumFreeReceive(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	f := fake{n: 1, content: "content"}
	addRows(t, p, f)
	s, free := p.openSpacious(t, 1000)
	setMinimumFree(t, s, 900)
	room, err := s.Reserve(t.Context(), int64(len(f.content)))
	if err != nil {
		t.Fatal(err)
	}
	defer room.Release()
	file := spooled(t, s, f.content)
	free.Store(899)
	if err := s.Receive(t.Context(), itemOf(t, s, f), 0, file); !errors.Is(err, space.ErrFreeSpace) {
		t.Errorf("%v", err)
	}
	free.Store(900)
	if err := s.Receive(t.Context(), itemOf(t, s, f), 0, file); err != nil {
		t.Error(err)
	}
	wantServed(t, s, f)
}

// TestMinimumFreeRepair: below the minimum, a repair fetches nothing, and sets nothing
// aside by a copy.
func TestMinimumFreeRepair(t *testing.T) {
	t.Parallel()
	for damage, harm := range damages {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			f := fake{n: 1, content: "content", nar: "content"}
			s, free := p.openSpacious(t, 1000)
			importAll(t, s, importer.Options{}, laid(t, f))
			file := filepath.Join(p.store, f.name())
			harm(t, file, f.content)
			before, beforeErr := os.ReadFile(file)
			found := allFindings(t, s)
			if len(found) != 1 {
				t.Fatalf("found %v", found)
			}
			setMinimumFree(t, s, 999)
			repairer := check.New(s).Repairer(check.RepairOptions{Decode: plainly, Sources: []check.Source{source{"good", func(content string) (io.Reader, error) { return giving(content) }, []fake{f}}}})
			repair := repairer.Repair(t.Context(), found[0])
			if repair.Outcome != check.Untouched || repair.Mended || !errors.Is(repair.Err, space.ErrFreeSpace) {
				t.Errorf("%+v", repair)
			}
			if after, err := os.ReadFile(file); string(after) != string(before) || (err == nil) != (beforeErr == nil) {
				t.Errorf("the file is %q, %v; it was %q", after, err, before)
			}
			free.Store(2000)
			if repair := repairer.Repair(t.Context(), found[0]); !repair.Mended {
				t.Errorf("with more room: %+v", repair)
			}
			wantServed(t, s, f)
		})
	}
}

// TestNoFileSystem: a store without a file system has no minimum.
func TestNoFileSystem(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openWith(t, func(b bytestore.Store) bytestore.Store { return bare{hidden: hidden{b}} })
	setMinimumFree(t, s, 1<<60)
	if _, _, err := s.FreeSpace(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if _, minimum, err := s.Spare(t.Context()); minimum >= 0 || err != nil {
		t.Errorf("minimum %d, %v", minimum, err)
	}
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, fake{n: 1, content: "x"})), "1 added")
}
