package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/probe"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	var items []fake
	for n := range 5 {
		items = append(items, fake{n: n, content: "content", extra: []fake{{kind: "zstd", content: "zstd"}}})
	}
	importAll(t, s, importer.Options{}, laid(t, items...))
	wantFindings(t, s)

	file := func(f fake) string { return filepath.Join(p.store, f.name()) }
	zstd := func(f fake) fake { return f.files()[1] }
	if err := errors.Join(
		os.Remove(file(items[0])),
		os.Truncate(file(items[1]), 0),
		os.WriteFile(file(zstd(items[1])), []byte("too long"), 0o644),
		os.Remove(file(items[2])), os.Symlink(filepath.Base(file(items[0])), file(items[2])),
		os.Remove(file(items[3])), os.Mkdir(file(items[3]), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	strangers := []string{"README", "nar/lzip/" + strings.Repeat("0", 32), "nar/lzip/" + fake{n: 9}.path().BaseName(),
		"other/" + items[4].path().BaseName(), "nar/lzip/" + items[4].path().BaseName() + "x", "nar/short"}
	want := []string{
		"missing " + items[0].name(),
		"wrong size " + items[1].name(), "wrong size " + zstd(items[1]).name(),
		"missing " + items[2].name(), "missing " + items[3].name(),
		"temporary",
	}
	for _, name := range strangers {
		write(t, filepath.Join(p.store, name), "stranger")
		want = append(want, "stranger "+name)
	}
	write(t, filepath.Join(p.store, "nar/zstd/.nar-herder-LEFT"), "left")
	wantFindings(t, s, want...)

	// Each finding has the details.
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		ofItem := finding.Kind == check.Missing || finding.Kind == check.WrongSize
		if ofItem != (finding.Item != nil) {
			t.Errorf("%v %s has the item %v", finding.Kind, finding.Name, finding.Item)
		}
		if finding.Kind == check.WrongSize && !strings.Contains(finding.Note, "should be") {
			t.Errorf("%v %s has the note %q", finding.Kind, finding.Name, finding.Note)
		}
	}
	// It changes nothing, and can be stopped.
	wantFindings(t, s, want...)
	for range check.New(s).Compare(t.Context(), nil) {
		break
	}

	// A missing file is an error, not ErrNotStored; the others are served.
	if _, err := stored(s, items[0].hash(), 0); !errors.Is(err, storage.ErrMismatch) {
		t.Errorf("opened, although missing: %v", err)
	}
	if content, err := stored(s, items[0].hash(), 1); err != nil || content != "zstd" {
		t.Errorf("the other file: %q, %v", content, err)
	}
	wantServed(t, s, items[4])
}

// TestCheckUnrecorded: files that the row does not have as stored are found.
func TestCheckUnrecorded(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	f := fake{n: 1, content: "content"}
	importAll(t, p.openIndexOnly(t), importer.Options{}, laid(t, f))
	s := p.openTest(t)
	wantFindings(t, s)
	if _, err := stored(s, f.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%v, want ErrNotStored", err)
	}
	layNars(t, p.store, f)
	wantFindings(t, s, "unrecorded "+f.name())
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, f)), "1 completed")
	wantFindings(t, s)
	wantServed(t, s, f)
}

// TestCheckUnknown: if the storage can't be read, that is an error, and nothing is reported
// as missing.
func TestCheckUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := fake{n: 1, content: "content"}
	importAll(t, s, importer.Options{}, laid(t, f))
	if err := os.Rename(p.store, p.store+"-away"); err != nil {
		t.Fatal(err)
	}
	var last error
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err == nil {
			t.Errorf("found %+v", finding)
		}
		last = err
	}
	if last == nil {
		t.Error("no error")
	}
	if probe.Writing(t.Context(), s) == nil {
		t.Error("the store can be written")
	}
	// Imports fail, too.
	results := importAll(t, s, importer.Options{}, laid(t, fake{n: 2, content: "2"}))
	wantOutcomes(t, results, "1 failed")
	if err := os.Rename(p.store+"-away", p.store); err != nil {
		t.Fatal(err)
	}
	wantOnlyUnreferenced(t, s)
	wantServed(t, s, f)
	wantWarning(t, s, "")
	if err := errors.Join(probe.Index(t.Context(), s), probe.Writing(t.Context(), s)); err != nil {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := fake{n: 1, content: "content", extra: []fake{{kind: "zstd", content: "zstd"}}}
	other := fake{n: 2, content: "other", refs: []int{1}}
	importAll(t, s, importer.Options{Tags: []index.Tag{{Key: "k", Value: "v"}}}, laid(t, f, other))
	item, err := s.Item(t.Context(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	removal, err := s.Remove(t.Context(), f.hash())
	if err != nil || removal.StorePath != f.path() || removal.Bytes != int64(len("content")+len("zstd")) {
		t.Errorf("%+v, %v", removal, err)
	}
	for _, err := range []error{
		func() error { _, err := s.Remove(t.Context(), f.hash()); return err }(),
		func() error { _, err := s.Item(t.Context(), f.hash()); return err }(),
		func() error { _, err := s.Text(t.Context(), f.hash()); return err }(),
	} {
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after removal: %v, want ErrNotFound", err)
		}
	}
	// A caller with the old row gets an error.
	if _, _, err := s.OpenFile(t.Context(), item, 0, 0, -1); !errors.Is(err, storage.ErrMismatch) {
		t.Errorf("OpenFile of a removed item: %v, want ErrMismatch", err)
	}
	for _, file := range f.files() {
		if !gone(filepath.Join(p.store, file.name())) {
			t.Errorf("%s is still there", file.name())
		}
	}
	wantFindings(t, s)
	wantServed(t, s, other)

	// Bytes that were deleted before are not an error.
	if err := os.Remove(filepath.Join(p.store, other.name())); err != nil {
		t.Fatal(err)
	}
	if removal, err := s.Remove(t.Context(), other.hash()); err != nil || removal.Bytes != 0 {
		t.Errorf("%+v, %v", removal, err)
	}
	wantFindings(t, s)
}

// TestRemoveFails: if the bytes can't be deleted, the row is still deleted, and the check
// finds the bytes.
func TestRemoveFails(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := fake{n: 1, content: "content"}
	importAll(t, s, importer.Options{}, laid(t, f))
	file := filepath.Join(p.store, f.name())
	if err := errors.Join(os.Rename(p.store, p.store+"-away")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), f.hash()); err == nil || errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Remove without the storage: %v, want an error about it", err)
	}
	if err := os.Rename(p.store+"-away", p.store); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Text(t.Context(), f.hash()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the row: %v, want ErrNotFound", err)
	}
	if !gone(file) {
		wantFindings(t, s, "stranger "+f.name())
	}
}

// TestOpenFileRanges: a part of a nar comes with the size of the whole.
func TestOpenFileRanges(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := fake{n: 1, content: "0123456789"}
	importAll(t, s, importer.Options{}, laid(t, f))
	item, err := s.Item(t.Context(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	reader, info, err := s.OpenFile(t.Context(), item, 0, 4, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	part := make([]byte, 3)
	if _, err := reader.Read(part); err != nil || string(part) != "456" || info.Size != 10 {
		t.Errorf("%q, %v, %+v", part, err, info)
	}
	for _, n := range []int{1, 64, 1000} {
		if _, _, err := s.OpenFile(t.Context(), item, n, 0, -1); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("file %d: %v, want ErrNotStored", n, err)
		}
	}
	if item.FileNamed(f.name()) != 0 || item.FileNamed("nar/absent") != -1 || item.FileNamed("") != -1 {
		t.Error("FileNamed")
	}
}

// TestCheckContinues: files that can't be read are unknown, and the others are checked.
func TestCheckContinues(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, reads := p.openReads(t, nil)
	items := many(6, nil)
	importAll(t, s, importer.Options{}, laid(t, items...))
	for _, n := range []int{1, 4} {
		if err := os.Remove(filepath.Join(p.store, items[n].name())); err != nil {
			t.Fatal(err)
		}
	}
	reads.broken[items[0].name()], reads.broken[items[1].name()] = true, true
	repairer := check.New(s).Repairer(check.RepairOptions{Decode: decode})
	check := func() (found []string) {
		for finding, err := range check.New(s).Compare(t.Context(), nil) {
			if (err != nil) != (finding.Kind == check.Unknown) {
				t.Errorf("%+v, %v", finding, err)
			}
			found = append(found, finding.Kind.String()+" "+finding.Name)
			if err != nil {
				if repair := repairer.Repair(t.Context(), finding); repair.Outcome != check.Untouched {
					t.Errorf("%+v", repair)
				}
			}
		}
		slices.Sort(found)
		return found
	}
	want := []string{"missing " + items[4].name(), "unknown " + items[0].name(), "unknown " + items[1].name()}
	if got := check(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	reads.broken = nil
	want = []string{"missing " + items[1].name(), "missing " + items[4].name()}
	if got := check(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

var _ bytestore.Store = (*directory.Directory)(nil)
