package export

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// place is the storage of a test, and the directory of its export.
type place struct {
	store, out string
	index      *index.Index
	storage    *storage.Storage
}

func newPlace(t testing.TB) *place {
	t.Helper()
	return placeIn(t, t.TempDir())
}

func placeIn(t testing.TB, top string) *place {
	t.Helper()
	p := &place{store: filepath.Join(top, "store"), out: filepath.Join(top, "out")}
	if err := os.Mkdir(p.store, 0o755); err != nil {
		t.Fatal(err)
	}
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	if p.index, err = index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.index.Close(), bytes.Close()); err != nil {
			t.Error(err)
		}
	})
	p.storage = storage.New(p.index, bytes, storage.Options{})
	return p
}

// fake is an item of a test.
type fake struct {
	n       int
	content string
	name    string // of the item; "item" if empty
	url     string // nar/lzip/HASH-NAME if empty
	refs    []int
	note    string
	digit   string // repeated in its NarHash; "0" if empty
}

func (f fake) path() narinfo.StorePath {
	name := f.name
	if name == "" {
		name = "item"
	}
	path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-%s", f.n, name))
	if err != nil {
		panic(err)
	}
	return path
}

func (f fake) file() string { return f.path().Hash.String() + narinfoSuffix }

func (f fake) nar() string { return "nar/lzip/" + f.path().BaseName() }

func (f fake) text() string {
	url, digit := f.url, f.digit
	if url == "" {
		url = f.nar()
	}
	if digit == "" {
		digit = "0"
	}
	text := new(strings.Builder)
	fmt.Fprintf(text, "StorePath: %s\nNarHash: sha256:%s\nNarSize: 96\nReferences:", f.path(), strings.Repeat(digit, 52))
	for _, n := range f.refs {
		fmt.Fprintf(text, " %s", fake{n: n}.path().BaseName())
	}
	fmt.Fprintf(text, "\nNote: %s\nURL: %s\nCompression: lzip\nFileSize: %d\n", f.note, url, len(f.content))
	return text.String()
}

// many makes items with small nars.
func many(count int) []fake {
	items := make([]fake, count)
	for n := range items {
		items[n] = fake{n: n, content: strings.Repeat(fmt.Sprintf("nar of item %d\n", n), 1+n%50)}
	}
	return items
}

// add imports items.
func (p *place) add(t testing.TB, items ...fake) {
	t.Helper()
	source := t.TempDir()
	for _, f := range items {
		n, err := narinfo.Parse([]byte(f.text()))
		if err != nil {
			t.Fatal(err)
		}
		name, err := n.Files[0].Path()
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(source, name), f.content)
		write(t, filepath.Join(source, f.file()), f.text())
	}
	err := importer.New(p.storage).Import(t.Context(), []string{source}, importer.Options{Replace: true}, func(i importer.Imported) {
		if i.Err != nil {
			t.Errorf("%s: %v", i.File, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// put writes only the row of an item, with a stored nar.
func (p *place) put(t testing.TB, f fake) {
	t.Helper()
	n, err := narinfo.Parse([]byte(f.text()))
	if err != nil {
		t.Fatal(err)
	}
	entry := p.index.Prepare(n)
	entry.AddedAt, entry.Stored = time.UnixMilli(1e12), 1
	if err := p.index.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(entry, nil) }); err != nil {
		t.Fatal(err)
	}
}

func (p *place) remove(t testing.TB, f fake) {
	t.Helper()
	if _, err := p.storage.Remove(t.Context(), f.path().Hash); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, file, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// export exports to the place's directory. change may be nil.
func (p *place) export(change func(*Export)) (Summary, []Result, error) {
	var results []Result
	e := &Export{
		Storage: p.storage, StorageDirectory: p.store,
		Report: func(r Result) { results = append(results, r) },
		Adopt:  true, AcceptLoss: true, // most tests are about something else
	}
	if change != nil {
		change(e)
	}
	summary, err := e.To(context.Background(), p.out)
	return summary, results, err
}

// exports is export with an assertion on the summary.
func (p *place) exports(t testing.TB, want Summary, change func(*Export)) []Result {
	t.Helper()
	summary, results, err := p.export(change)
	if err != nil {
		t.Fatal(err)
	}
	if want.Linked+want.Copied == 0 { // not tested here
		summary.Linked, summary.Copied = 0, 0
	}
	summary.LinkedBytes, summary.CopiedBytes, summary.StaleBytes = 0, 0, 0
	if summary != want {
		t.Errorf("export: %+v\nwant    %+v", summary, want)
		for _, r := range results {
			t.Log(r)
		}
	}
	return results
}

// files returns all names below the directory except the marker, with the content of regular
// files.
func files(t testing.TB, directory string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(directory, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == markerName {
			return err
		}
		relative, _ := filepath.Rel(directory, name)
		text, err := os.ReadFile(name)
		found[relative] = string(text)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

// wantFiles asserts that a copy consists of the items.
func (p *place) wantFiles(t testing.TB, items ...fake) {
	t.Helper()
	want := map[string]string{"nix-cache-info": narinfo.CacheInfo}
	for _, f := range items {
		want[f.file()] = f.text()
		n, err := narinfo.Parse([]byte(f.text()))
		if err != nil {
			t.Fatal(err)
		}
		name, _ := n.Files[0].Path()
		want[name] = f.content
		want[strings.TrimPrefix(n.Files[0].URL, "/")] = f.content
	}
	got := files(t, p.out)
	for name, content := range want {
		if have, there := got[name]; !there || have != content {
			t.Errorf("%s has %.60q, %v; want %.60q", name, have, there, content)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s exists, but was not exported", name)
	}
}

// wantSound asserts that each narinfo of a copy has its nar, with the content of one of the
// given items.
func (p *place) wantSound(t testing.TB, when string, versions ...[]fake) {
	t.Helper()
	got := files(t, p.out)
	for name, text := range got {
		if !strings.HasSuffix(name, narinfoSuffix) || strings.HasPrefix(name, temporaryDirectory) {
			continue
		}
		if !slices.ContainsFunc(slices.Concat(versions...), func(f fake) bool {
			return f.file() == name && f.text() == text && got[f.nar()] == f.content
		}) {
			t.Errorf("%s: the nar of %s is missing: %q", when, name, text)
		}
	}
}

// info describes a file of the copy.
func (p *place) info(t testing.TB, name string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(filepath.Join(p.out, name))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// errorOf returns the error of the item in the results.
func errorOf(results []Result, f fake) string {
	for _, r := range results {
		if (r.Name == f.path().String() || r.Name == f.path().Hash.String()) && r.Err != nil {
			return r.Err.Error()
		}
	}
	return ""
}
