package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/narinfo"
	"nar-herder/storage/importer"
)

// TestBadNarinfos: each bad narinfo fails by itself, and the others are imported.
func TestBadNarinfos(t *testing.T) {
	t.Parallel()
	good := fake{n: 1, content: "good"}
	bad := fake{n: 2, content: "bad"}
	text := bad.text()
	tests := map[string]struct{ text, word string }{
		"truncated":           {text[:60], "missing"},
		"without references":  {strings.Replace(text, "References:", "Refer:", 1), "References"},
		"empty":               {"", "empty"},
		"oversized":           {text + strings.Repeat("Filler: x\n", narinfo.MaxSize/10), "too large"},
		"huge line":           {text + "Filler: " + strings.Repeat("x", 100_000) + "\n", "too large"},
		"binary":              {"\x7fELF\x02\x01\x01\x00\x00\x00", "NUL"},
		"CRLF":                {strings.ReplaceAll(text, "\n", "\r\n"), "carriage return"},
		"not UTF-8":           {strings.Replace(text, "Note:", "Note: caf\xe9", 1), "UTF-8"},
		"no narinfo":          {"<html><body>404</body></html>\n", "line 1"},
		"named after another": {fake{n: 3, content: "bad"}.text(), "named after"},
		"nar shorter":         {strings.Replace(text, "FileSize: 3", "FileSize: 4", 1), "wrong size"},
		"nar longer":          {strings.Replace(text, "FileSize: 3", "FileSize: 2", 1), "wrong size"},
		"nar missing":         {strings.Replace(text, "nar/lzip", "nar/zstd", 1), "was not found"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.openTest(t)
			source := laid(t, good, bad)
			file := filepath.Join(source, bad.hash().String()+".narinfo")
			write(t, file, test.text)
			results := importAll(t, s, importer.Options{}, source)
			wantOutcomes(t, results, "1 failed, 1 added")
			err := results[filepath.Base(file)].Err
			if err == nil || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%v, want it to say %q", err, test.word)
			} else if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Errorf("%q is not a line of text", err)
			}
			wantServed(t, s, good)
			wantFindings(t, s)
			if !has(filepath.Join(source, bad.name()), bad.content) || !has(file, test.text) {
				t.Error("a nar that was not imported was removed from the source")
			}
			// After it is corrected, it is imported.
			lay(t, source, bad)
			wantOutcomes(t, importAll(t, s, importer.Options{}, source), "1 added, 1 known")
		})
	}
}

// TestOddSources: other kinds of files among narinfos and nars.
func TestOddSources(t *testing.T) {
	t.Parallel()
	good := fake{n: 1, content: "good"}
	bad := fake{n: 2, content: "secret!"}
	narinfo := bad.hash().String() + ".narinfo"
	tests := map[string]struct {
		make func(source, outside string) error
		want string
	}{
		"pipe as narinfo":      {func(source, _ string) error { return unix.Mkfifo(source+"/"+narinfo, 0o644) }, "1 failed, 1 added"},
		"directory as narinfo": {func(source, _ string) error { return os.Mkdir(source+"/"+narinfo, 0o755) }, "1 added"},
		"link to nothing":      {func(source, _ string) error { return os.Symlink("absent", source+"/"+narinfo) }, "1 failed, 1 added"},
		"link to itself":       {func(source, _ string) error { return os.Symlink(narinfo, source+"/"+narinfo) }, "1 failed, 1 added"},
		"link to a directory":  {func(source, _ string) error { return os.Symlink(".", source+"/"+narinfo) }, "1 failed, 1 added"},
		"pipe as nar": {func(source, _ string) error {
			return errors.Join(os.WriteFile(source+"/"+narinfo, []byte(bad.text()), 0o644), unix.Mkfifo(source+"/"+bad.name(), 0o644))
		}, "1 failed, 1 added"},
		"nar links out": {func(source, outside string) error {
			return errors.Join(os.WriteFile(source+"/"+narinfo, []byte(bad.text()), 0o644), os.Symlink(outside+"/secret", source+"/"+bad.name()))
		}, "1 failed, 1 added"},
		"directory of nars links out": {func(source, outside string) error {
			bad := fake{n: 2, content: "secret!", kind: "zstd"}
			return errors.Join(os.WriteFile(source+"/"+narinfo, []byte(bad.text()), 0o644), os.Symlink(outside, source+"/nar/zstd"))
		}, "1 failed, 1 added"},
		"nar links within": {func(source, _ string) error {
			return errors.Join(os.WriteFile(source+"/"+narinfo, []byte(bad.text()), 0o644),
				os.WriteFile(source+"/real", []byte("secret!"), 0o644), os.Symlink("../../real", source+"/"+bad.name()))
		}, "2 added"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, outside := laid(t, good), t.TempDir()
			write(t, outside+"/secret", "secret!")
			write(t, filepath.Join(outside, bad.path().BaseName()), "secret!")
			if err := test.make(source, outside); err != nil {
				t.Fatal(err)
			}
			p := newPlace(t)
			s := p.openTest(t)
			wantOutcomes(t, importAll(t, s, importer.Options{}, source), test.want)
			wantServed(t, s, good)
			wantFindings(t, s)
			if !has(outside+"/secret", "secret!") || !has(filepath.Join(outside, bad.path().BaseName()), "secret!") {
				t.Error("a file outside of the source was removed")
			}
		})
	}
}

// TestImportNames: names on the command line that can't be read.
func TestImportNames(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	good := fake{n: 1, content: "good"}
	source := laid(t, good)
	reports := 0
	err := importer.New(s).Import(t.Context(), []string{source + "/absent", source, source + "/absent-too"}, importer.Options{},
		func(importer.Imported) { reports++ })
	if err == nil || !strings.Contains(err.Error(), "absent-too") || !errors.Is(err, os.ErrNotExist) || reports != 1 {
		t.Errorf("%d reports, %v; want one, and both names", reports, err)
	}
	wantServed(t, s, good)
	if err := importer.New(s).Import(t.Context(), []string{t.TempDir()}, importer.Options{}, func(importer.Imported) { t.Error("a report") }); err != nil {
		t.Error(err)
	}
	if got := new(importer.Summary).String(); got != "no narinfos found" {
		t.Errorf("the empty summary is %q", got)
	}
}

// TestImportCancelled: a cancelled import ends soon, and leaves no partial files.
func TestImportCancelled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	var items []fake
	for n := range 150 {
		items = append(items, fake{n: n, content: "nar"})
	}
	source := laid(t, items...)
	ctx, cancel := context.WithCancel(t.Context())
	done := map[string]bool{}
	err := importer.New(s).Import(ctx, []string{source, source}, importer.Options{}, func(i importer.Imported) {
		cancel()
		if i.Outcome != importer.Failed {
			done[filepath.Base(i.File)] = true
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Import: %v, want context.Canceled", err)
	}
	wantFindings(t, s)
	for _, f := range items {
		if _, err := s.Item(t.Context(), f.hash()); (err == nil) != done[f.hash().String()+".narinfo"] {
			t.Errorf("item %d: %v, reported as done: %v", f.n, err, done[f.hash().String()+".narinfo"])
		}
	}
	results := importAll(t, s, importer.Options{}, source)
	if failed := results[""]; len(results) != len(items) || failed.Err != nil {
		t.Errorf("%d results, want %d", len(results), len(items))
	}
	for _, f := range items {
		wantServed(t, s, f)
	}
}
