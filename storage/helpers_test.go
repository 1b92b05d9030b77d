package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// place is the location of a storage.
type place struct{ database, store string }

func newPlace(t testing.TB) place {
	t.Helper()
	return placeIn(t, t.TempDir())
}

func placeIn(t testing.TB, top string) place {
	t.Helper()
	p := place{filepath.Join(top, "nar_herder.db"), filepath.Join(top, "store")}
	if err := os.Mkdir(p.store, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// memoryPlace returns a place in memory, if possible, for tests that open hundreds of small
// storages: on a disk, most of their time is for flushing. It has an empty database, which
// takes longer to make than to copy. The databases of all places are of the same instance.
func memoryPlace(t testing.TB) place {
	t.Helper()
	top, err := os.MkdirTemp("/dev/shm", "nar-herder-test-")
	if err != nil {
		top = t.TempDir()
	} else {
		t.Cleanup(func() {
			if err := os.RemoveAll(top); err != nil {
				t.Error(err)
			}
		})
	}
	p := placeIn(t, top)
	empty, err := emptyDatabase()
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.database, empty)
	return p
}

// emptyDatabase returns the content of an empty database.
var emptyDatabase = sync.OnceValues(func() (string, error) {
	directory, err := os.MkdirTemp("", "nar-herder-test-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(directory)
	file := filepath.Join(directory, "nar_herder.db")
	x, err := index.Open(context.Background(), file, index.Options{})
	if err != nil {
		return "", err
	}
	if err := x.Close(); err != nil {
		return "", err
	}
	content, err := os.ReadFile(file)
	return string(content), err
})

// open opens the storage of a place. wrap may wrap its byte store.
func (p place) open(wrap func(bytestore.Store) bytestore.Store) (s *storage.Storage, closeAll func() error, err error) {
	return p.openWhen(wrap, nil)
}

// openWhen is open with a clock.
func (p place) openWhen(wrap func(bytestore.Store) bytestore.Store, now func() time.Time) (s *storage.Storage, closeAll func() error, err error) {
	return p.openAs(wrap, storage.Options{Now: now})
}

// openAs is open with options.
func (p place) openAs(wrap func(bytestore.Store) bytestore.Store, options storage.Options) (s *storage.Storage, closeAll func() error, err error) {
	bytes, err := directory.Open(p.store)
	if err != nil {
		return nil, nil, err
	}
	x, err := index.Open(context.Background(), p.database, index.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, bytes.Close())
	}
	var store bytestore.Store = bytes
	if wrap != nil {
		store = wrap(bytes)
	}
	return storage.New(x, store, options), func() error { return errors.Join(x.Close(), bytes.Close()) }, nil
}

// openTest opens the storage of a place until the test's end.
func (p place) openTest(t testing.TB) *storage.Storage {
	t.Helper()
	return p.openWith(t, nil)
}

// openWith is openTest with a wrapped byte store.
func (p place) openWith(t testing.TB, wrap func(bytestore.Store) bytestore.Store) *storage.Storage {
	t.Helper()
	return p.openTestAs(t, wrap, storage.Options{})
}

// openTestAs is openWith with options.
func (p place) openTestAs(t testing.TB, wrap func(bytestore.Store) bytestore.Store, options storage.Options) *storage.Storage {
	t.Helper()
	s, closeAll, err := p.openAs(wrap, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeAll(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// fake is an invented item.
type fake struct {
	n       int
	content string // of its nar as it is stored
	other   bool   // it has another NarHash
	nar     string // its NarHash and NarSize are of this, if set
	note    string // changes the text
	kind    string // its compression; "" for lzip
	refs    []int
	claim   int64 // its FileSize, if not the content's length; -1 for none
	url     string
	extra   []fake // more files of the same item, by content, kind, claim and url
}

func (f fake) path() narinfo.StorePath {
	path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-item-%d", f.n, f.n))
	if err != nil {
		panic(err)
	}
	return path
}

func (f fake) hash() narinfo.PathHash { return f.path().Hash }

func hashesOf(items []fake) (hashes []narinfo.PathHash) {
	for _, f := range items {
		hashes = append(hashes, f.hash())
	}
	return hashes
}

// name returns the name of its nar in a storage.
func (f fake) name() string {
	switch {
	case f.url != "":
		return f.url
	case f.kind == "none":
		return "nar/" + f.path().BaseName()
	case f.kind == "":
		return "nar/lzip/" + f.path().BaseName()
	}
	return "nar/" + f.kind + "/" + f.path().BaseName()
}

func (f fake) files() []fake {
	files := []fake{f}
	for _, file := range f.extra {
		file.n = f.n
		files = append(files, file)
	}
	return files
}

func (f fake) text() string {
	digit := "0"
	if f.other {
		digit = "1"
	}
	text := new(strings.Builder)
	hash, size := "sha256:"+strings.Repeat(digit, 52), 96
	if f.nar != "" {
		hash, size = narinfo.NarHash(sha256.Sum256([]byte(f.nar))).String(), len(f.nar)
	}
	fmt.Fprintf(text, "StorePath: %s\nNarHash: %s\nNarSize: %d\nReferences:", f.path(), hash, size)
	for _, n := range f.refs {
		fmt.Fprintf(text, " %s", fake{n: n}.path().BaseName())
	}
	fmt.Fprintf(text, "\nNote: %s\n", f.note)
	for _, file := range f.files() {
		kind := file.kind
		if kind == "" {
			kind = "lzip"
		}
		fmt.Fprintf(text, "URL: %s\nCompression: %s\n", file.name(), kind)
		switch {
		case file.claim > 0:
			fmt.Fprintf(text, "FileSize: %d\n", file.claim)
		case file.claim == 0:
			fmt.Fprintf(text, "FileSize: %d\n", len(file.content))
		}
	}
	return text.String()
}

func (f fake) parsed() *narinfo.Narinfo {
	n, err := narinfo.Parse([]byte(f.text()))
	if err != nil {
		panic(err)
	}
	return n
}

// lay writes the narinfo and the nars of items into a directory.
func lay(t testing.TB, directory string, items ...fake) {
	t.Helper()
	for _, f := range items {
		write(t, filepath.Join(directory, f.hash().String()+".narinfo"), f.text())
		layNars(t, directory, f)
	}
}

func layNars(t testing.TB, directory string, items ...fake) {
	t.Helper()
	for _, f := range items {
		for _, file := range f.files() {
			write(t, filepath.Join(directory, file.name()), file.content)
		}
	}
}

func write(t testing.TB, file, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// laid returns a directory with items.
func laid(t testing.TB, items ...fake) string {
	t.Helper()
	directory := t.TempDir()
	lay(t, directory, items...)
	return directory
}

// importAll imports, and returns the results by the base name of the file.
func importAll(t testing.TB, s *storage.Storage, options importer.Options, names ...string) map[string]importer.Result {
	t.Helper()
	results := map[string]importer.Result{}
	err := importer.New(s).Import(context.Background(), names, options, func(i importer.Imported) { results[filepath.Base(i.File)] = i.Result })
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// outcomes counts results.
func outcomes(results map[string]importer.Result) string {
	var summary importer.Summary
	for _, r := range results {
		summary.Count(r)
	}
	return summary.String()
}

// wantOutcomes asserts the summary of an import.
func wantOutcomes(t testing.TB, results map[string]importer.Result, want string) {
	t.Helper()
	if got := outcomes(results); got != want {
		t.Errorf("import: %s; want %s", got, want)
		for file, r := range results {
			t.Logf("%s: %v %s %v", file, r.Outcome, r.Note, r.Err)
		}
	}
}

// findings returns what Check finds, as "kind name", sorted.
func findings(t testing.TB, s *storage.Storage) []string {
	t.Helper()
	found := []string{}
	for finding, err := range check.New(s).Compare(context.Background(), nil) {
		if err != nil {
			t.Fatalf("check: %v", err)
		}
		name := finding.Name
		if finding.Kind == check.Temporary {
			name = ""
		}
		found = append(found, strings.TrimSpace(finding.Kind.String()+" "+name))
	}
	slices.Sort(found)
	return found
}

// wantFindings asserts what Check finds.
func wantFindings(t testing.TB, s *storage.Storage, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := findings(t, s); !slices.Equal(got, want) {
		t.Errorf("check finds %q, want %q", got, want)
	}
}

// wantOnlyUnreferenced asserts that no row claims bytes that are not there.
func wantOnlyUnreferenced(t testing.TB, s *storage.Storage) {
	t.Helper()
	for _, finding := range findings(t, s) {
		if strings.HasPrefix(finding, "missing") || strings.HasPrefix(finding, "wrong size") {
			t.Errorf("check finds %q", finding)
		}
	}
}

// stored returns the content of the item's Nth file.
func stored(s *storage.Storage, hash narinfo.PathHash, n int) (string, error) {
	item, err := s.Item(context.Background(), hash)
	if err != nil {
		return "", err
	}
	reader, info, err := s.OpenFile(context.Background(), item, n, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	content, err := io.ReadAll(reader)
	if err == nil && int64(len(content)) != info.Size {
		err = fmt.Errorf("%d bytes, where the size is %d", len(content), info.Size)
	}
	return string(content), err
}

// wantServed asserts that the item is served with its text and all its nars.
func wantServed(t testing.TB, s *storage.Storage, f fake) {
	t.Helper()
	text, err := s.Text(context.Background(), f.hash())
	if err != nil || string(text) != f.text() {
		t.Errorf("item %d has the text %q, %v; want %q", f.n, text, err, f.text())
	}
	for n, file := range f.files() {
		if content, err := stored(s, f.hash(), n); err != nil || content != file.content {
			t.Errorf("%s has %.40q, %v; want %.40q", file.name(), content, err, file.content)
		}
	}
}

// has reports whether the file has that content.
func has(file, content string) bool {
	got, err := os.ReadFile(file)
	return err == nil && bytes.Equal(got, []byte(content))
}

// gone reports whether the file certainly doesn't exist.
func gone(file string) bool {
	_, err := os.Lstat(file)
	return errors.Is(err, fs.ErrNotExist)
}

// copyTree copies a directory.
func copyTree(t testing.TB, from string) (to string) {
	t.Helper()
	to = t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// openIndexOnly opens the storage of a place without its bytes.
func (p place) openIndexOnly(t testing.TB) *storage.Storage {
	t.Helper()
	x, err := index.Open(context.Background(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return storage.New(x, nil, storage.Options{})
}
