package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/s3server"
	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
	"nar-herder/storage/narcheck"
)

const (
	cachedItems = 13 // in the cache of guix publish
	cachedGTK   = "53vg2c3aabp5j4glak33kgdjqgf20dlp-gtk+-3.24.43"
	cachedLeaf  = "qzzsc65q3iiy8m9kradcxyh8alahmrf9-leaf-1.0"
	halfBaked   = "sfhdl845i6w0rqjdayk2v76sxv8wvg1d-half-baked-0.1"
)

// publishCache lays down the cache of guix publish, with the hard links and times that
// repositories don't keep.
func publishCache(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	noError(t, os.CopyFS(dir, os.DirFS(filepath.Join(testdata, "publish-cache"))))
	names, err := filepath.Glob(dir + "/lzip/*.narinfo")
	noError(t, err)
	for _, name := range names {
		other := filepath.Join(dir, "zstd", filepath.Base(name))
		noError(t, errors.Join(os.Remove(other), os.Link(name, other)))
	}
	return dir
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filesBelow describes all files below a directory, by path.
func filesBelow(t testing.TB, dir string) map[string]fs.FileInfo {
	t.Helper()
	found := make(map[string]fs.FileInfo)
	noError(t, filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		found[strings.TrimPrefix(name, dir+"/")] = info
		return err
	}))
	return found
}

// servesCache fails unless the server has the narinfos of the cache, and each nar that they name
// decodes to its NarHash.
func (s *server) servesCache(t testing.TB, count int) {
	t.Helper()
	items, nars := 0, 0
	for _, kind := range []string{"none", "zstd"} {
		names, err := filepath.Glob(filepath.Join(testdata, "publish-cache", kind, "*.narinfo"))
		noError(t, err)
		for _, name := range names {
			want := read(t, name)
			got := get(t, s.addresses[0], "/"+narinfoName(filepath.Base(name)))
			if got.StatusCode != http.StatusOK || !strings.HasPrefix(got.body, want) {
				t.Errorf("%s: %s", filepath.Base(name), got.Status)
				continue
			}
			items++
			n, err := narinfo.Parse([]byte(want))
			noError(t, err)
			for i, file := range n.Files {
				nar := get(t, s.addresses[0], "/"+file.URL)
				if nar.StatusCode != http.StatusOK {
					t.Errorf("%s: %s", file.URL, nar.Status)
				} else if err := narcheck.Check(t.Context(), n, i, strings.NewReader(nar.body), decodeNar); err != nil {
					t.Errorf("%s: %v", file.URL, err)
				}
				nars++
			}
		}
	}
	if items != count || nars != 2*count-1 {
		t.Errorf("%d items and %d nars are served, want %d and %d", items, nars, count, 2*count-1)
	}
	if got := get(t, s.addresses[0], "/"+narinfoName(halfBaked)); got.StatusCode != http.StatusNotFound {
		t.Errorf("the half-baked item: %s", got.Status)
	}
}

// hasOnlyRightNars fails if there are findings about the nars in the storage. References may be
// missing, as the cache has not all of them.
func (p place) hasOnlyRightNars(t testing.TB) {
	t.Helper()
	c := p.check(t, "--verify")
	for _, finding := range c.findings {
		if finding.Kind != "incomplete" {
			t.Errorf("check: %+v", finding)
		}
	}
	if !c.totals.Complete || c.totals.Unknown > 0 {
		t.Errorf("check: %+v", c.totals)
	}
}

// TestImportPublishCache imports all of a cache of guix publish: linked by default, since it may
// be in use.
func TestImportPublishCache(t *testing.T) {
	t.Parallel()
	asIs := func(_ testing.TB, dir string) []string { return []string{dir} }
	for name, test := range map[string]struct {
		options []string
		layout  func(t testing.TB, dir string) (names []string)
		stays   bool // the nars stay in the cache
		linked  bool // and are the stored ones
	}{
		"default":         {nil, asIs, true, true},
		"linked":          {[]string{"--nars=link"}, asIs, true, true},
		"copied":          {[]string{"--nars=copy"}, asIs, true, false},
		"kept":            {[]string{"--keep"}, asIs, true, false},
		"moved":           {[]string{"--nars=move"}, asIs, false, false},
		"unverified":      {[]string{"--no-verify"}, asIs, true, true},
		"with its key":    {[]string{"--authorized-key=" + filepath.Join(testdata, "publish-cache/signing-key.pub")}, asIs, true, true},
		"one compression": {nil, func(_ testing.TB, dir string) []string { return []string{dir + "/none/", dir + "/zstd"} }, true, true},
		"files": {nil, func(t testing.TB, dir string) (names []string) {
			for _, kind := range []string{"none", "lzip"} {
				found, err := filepath.Glob(filepath.Join(dir, kind, "*.narinfo"))
				noError(t, err)
				names = append(names, found...)
			}
			return names
		}, true, true},
		"narinfos that are copies": {nil, func(t testing.TB, dir string) []string {
			noError(t, errors.Join(os.Rename(dir+"/zstd", dir+"/x"), os.CopyFS(dir+"/zstd", os.DirFS(dir+"/x")), os.RemoveAll(dir+"/x")))
			return []string{dir}
		}, true, true},
		"in nar/": {nil, func(t testing.TB, dir string) []string {
			noError(t, os.Mkdir(dir+"/nar", 0o755))
			for _, kind := range []string{"lzip", "none", "zstd"} {
				noError(t, os.Rename(dir+"/"+kind, dir+"/nar/"+kind))
			}
			return []string{dir}
		}, true, true},
		"nars in nar/": {nil, func(t testing.TB, dir string) []string { return separate(t, dir, ".nar") }, true, true},
		"nars in nar/ without a suffix": {nil, func(t testing.TB, dir string) []string {
			return separate(t, dir, "")
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.serve(t)
			cache := publishCache(t)
			names := test.layout(t, cache)
			before := filesBelow(t, cache)
			if out := succeed(t, p.args("import", append(test.options, names...)...)...); !strings.HasPrefix(out, fmt.Sprintf("%d added; ", cachedItems)) {
				t.Errorf("import: %s", out)
			}
			after := filesBelow(t, cache)
			stored := filesBelow(t, p.storage+"/nar")
			for name, info := range before {
				isNar := strings.HasSuffix(name, ".nar") || strings.HasPrefix(name, "nar/") && !strings.HasSuffix(name, ".narinfo") && !strings.HasSuffix(name, ".tmp")
				now := after[name]
				if (now == nil) != (isNar && !test.stays) {
					t.Errorf("%s: %v", name, now)
				} else if now != nil && (now.Mode() != info.Mode() || !now.ModTime().Equal(info.ModTime()) || !os.SameFile(now, info)) {
					t.Errorf("%s was changed", name)
				}
				if !isNar {
					continue
				}
				url := strings.TrimPrefix(strings.TrimPrefix(strings.TrimSuffix(name, ".nar"), "nar/"), "none/")
				if in := stored[url]; in == nil || os.SameFile(in, info) != (test.linked || !test.stays) {
					t.Errorf("%s is stored as %v", url, in)
				}
			}
			s.servesCache(t, cachedItems)
			// Again, as by a job that runs each hour.
			if !test.stays {
				names = []string{cache}
			}
			if out := succeed(t, p.args("import", append(test.options, names...)...)...); !strings.HasPrefix(out, fmt.Sprintf("%d known; 0 B ", cachedItems)) {
				t.Errorf("import again: %s", out)
			}
			p.hasOnlyRightNars(t)
			// What is removed here stays there.
			succeed(t, p.args("remove", "--now", cachedLeaf)...)
			if test.stays && len(filesBelow(t, cache)) != len(before) {
				t.Error("a removal has changed the cache")
			}
		})
	}
}

// separate moves the nars of a cache to DIR/nar/TYPE.
func separate(t testing.TB, dir, suffix string) []string {
	t.Helper()
	for _, kind := range []string{"lzip", "none", "zstd"} {
		noError(t, os.MkdirAll(filepath.Join(dir, "nar", kind), 0o755))
		nars, err := filepath.Glob(filepath.Join(dir, kind, "*.nar"))
		noError(t, err)
		for _, nar := range nars {
			noError(t, os.Rename(nar, filepath.Join(dir, "nar", kind, strings.TrimSuffix(filepath.Base(nar), ".nar")+suffix)))
		}
	}
	return []string{dir}
}

// TestImportPublishCacheToBucket uploads the nars of a cache.
func TestImportPublishCacheToBucket(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.storage = s3server.New(t).URL("nars")
	cache := publishCache(t)
	if out := succeed(t, p.args("import", "--nars=link", cache)...); !strings.HasPrefix(out, "13 added; ") {
		t.Errorf("import: %s", out)
	}
	p.serve(t).servesCache(t, cachedItems)
}

// TestImportPublishCacheFaults: a cache changes while it is imported, and has entries that are
// not complete.
func TestImportPublishCacheFaults(t *testing.T) {
	t.Parallel()
	const base = cachedGTK
	for name, test := range map[string]struct {
		change  func(dir string) error
		options []string
		want    string // of the summary
		says    []string
	}{
		"no nars": {change: func(dir string) error {
			return errors.Join(os.Remove(dir+"/zstd/"+base+".nar"), os.Remove(dir+"/lzip/"+base+".nar"))
		}, options: []string{"--allow-missing-files"}, want: "1 failed, 12 added", says: []string{"nar/lzip/" + base + " was not found", "/lzip/" + base + ".nar"}},
		"no nar in one compression": {change: func(dir string) error { return os.Remove(dir + "/zstd/" + base + ".nar") },
			want: "1 failed, 12 added", says: []string{"nar/zstd/" + base + " was not found", "/zstd/" + base + ".nar", "--allow-missing-files"}},
		"no narinfo in one compression": {change: func(dir string) error { return os.Remove(dir + "/lzip/" + base + ".narinfo") }, want: "13 added"},
		"no narinfo": {change: func(dir string) error {
			return errors.Join(os.Remove(dir+"/lzip/"+base+".narinfo"), os.Remove(dir+"/zstd/"+base+".narinfo"))
		}, want: "12 added"},
		"short nar": {change: func(dir string) error { return os.Truncate(dir+"/zstd/"+base+".nar", 10) }, options: []string{"--allow-missing-files"},
			want: "1 failed, 12 added", says: []string{"wrong size", "has 10 bytes, the narinfo says 203"}},
		"wrong nar in one compression": {change: func(dir string) error { return flip(dir + "/zstd/" + base + ".nar") }, options: []string{"--allow-missing-files"},
			want: "1 failed, 12 added", says: []string{"/zstd/" + base + ".nar", "not the nar that the narinfo describes"}},
		"nar of another item": {change: func(dir string) error {
			return errors.Join(os.Remove(dir+"/zstd/"+base+".nar"), os.Link(dir+"/zstd/"+cachedLeaf+".nar", dir+"/zstd/"+base+".nar"))
		}, want: "1 failed, 12 added", says: []string{"wrong size"}},
		"unfinished narinfo": {change: func(dir string) error {
			return os.WriteFile(dir+"/zstd/"+halfBaked+".narinfo.Xy12", []byte("StorePath: /gnu"), 0o644)
		}, want: "13 added"},
		"empty narinfo": {change: func(dir string) error { return os.WriteFile(dir+"/zstd/"+halfBaked+".narinfo", nil, 0o644) },
			want: "1 failed, 13 added", says: []string{halfBaked}},
		"narinfo of another item": {change: func(dir string) error {
			return os.Link(dir+"/zstd/"+cachedLeaf+".narinfo", dir+"/zstd/"+halfBaked+".narinfo")
		}, want: "1 failed, 13 added", says: []string{"it is named after " + halfBaked[:32], "describes /gnu/store/" + cachedLeaf}},
		"dangling narinfo": {change: func(dir string) error { return replaceByLink(dir+"/zstd/"+base+".narinfo", dir+"/gone") },
			want: "1 failed, 13 added", says: []string{"symbolic link that can't be followed"}},
		"narinfo outside": {change: func(dir string) error {
			return errors.Join(os.Remove(dir+"/lzip/"+base+".narinfo"), replaceByLink(dir+"/zstd/"+base+".narinfo", "/etc/passwd"))
		}, want: "1 failed, 12 added", says: []string{"symbolic link that can't be followed"}},
		"nar outside": {change: func(dir string) error { return replaceByLink(dir+"/zstd/"+base+".nar", "/etc/passwd") }, options: []string{"--allow-missing-files"},
			want: "1 failed, 12 added", says: []string{base}},
		"pipe as nar": {change: func(dir string) error {
			return errors.Join(os.Remove(dir+"/zstd/"+base+".nar"), unix.Mkfifo(dir+"/zstd/"+base+".nar", 0o644))
		}, want: "1 failed, 12 added", says: []string{"not a regular file"}},
		"nar elsewhere in the cache": {change: func(dir string) error {
			return errors.Join(os.Rename(dir+"/zstd/"+base+".nar", dir+"/moved"), os.Symlink("../moved", dir+"/zstd/"+base+".nar"))
		}, want: "13 added"},
		"files in hashes/": {change: func(dir string) error { return os.WriteFile(dir+"/hashes/x.narinfo", nil, 0o644) }, want: "13 added"},
		"no references":    {options: []string{"--ensure-references-exist"}, want: "1 failed, 12 added", says: []string{"no narinfo for its references: 1qw5dl12wp7iiah7rjk6640pll667svp-self-reference-1, 6vwb1dg9x035h9ivb9zvgyb811m97p2w-many-files-1.1"}},
		"another key":      {options: []string{"--authorized-key=" + filepath.Join(testdata, "production/ci.guix.gnu.org.pub")}, want: "13 failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			cache := publishCache(t)
			if test.change != nil {
				noError(t, test.change(cache))
			}
			r := runProgram(t, p.args("import", append(test.options, cache)...)...)
			failed := strings.Contains(test.want, "failed")
			if !strings.HasPrefix(r.out, test.want+"; ") || (r.status != 0) != failed {
				t.Errorf("status %d, %s, want %s", r.status, r.out, test.want)
			}
			if failures := strings.Count(r.err, "\n"); strings.HasPrefix(test.want, "1 failed") && failures != 1 || !failed && failures > 0 {
				t.Errorf("stderr: %s", r.err)
			}
			for _, text := range test.says {
				if !strings.Contains(r.err, text) {
					t.Errorf("stderr does not have %q: %s", text, r.err)
				}
			}
			p.hasOnlyRightNars(t)
		})
	}
}

// TestImportMissingFiles: an item without one of its nars is served without its block, and with
// it when the nar has come.
func TestImportMissingFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.serve(t)
	cache := publishCache(t)
	lost := filepath.Join(cache, "zstd", cachedGTK+".nar")
	noError(t, os.Rename(lost, lost+".away"))
	if r := runProgram(t, p.args("import", cache)...); r.status != 1 || !strings.HasPrefix(r.out, "1 failed, 12 added") {
		t.Errorf("status %d, %s", r.status, r.out)
	}
	out := succeed(t, p.args("import", "--allow-missing-files", cache)...)
	if !strings.HasPrefix(out, "1 added, 12 known") || !strings.Contains(out, "\n1 nar missing, and recorded as dropped") {
		t.Errorf("import: %s", out)
	}
	for _, options := range [][]string{{"--allow-missing-files"}, {}} { // known items need no more nars
		if out := succeed(t, p.args("import", append(options, cache)...)...); out != "13 known; 0 B of nars added to the storage\n" {
			t.Errorf("import again %s: %s", options, out)
		}
	}
	isAnnounced := func() bool {
		got := get(t, s.addresses[0], "/"+narinfoName(cachedGTK))
		nar := get(t, s.addresses[0], "/nar/lzip/"+cachedGTK)
		if got.StatusCode != http.StatusOK || nar.StatusCode != http.StatusOK || !strings.Contains(got.body, "URL: nar/lzip/") {
			t.Fatalf("%s, %s, %s", got.Status, nar.Status, got.body)
		}
		return strings.Contains(got.body, "URL: nar/zstd/")
	}
	until(t, "its block is not announced", func() bool { return !isAnnounced() })
	noError(t, os.Rename(lost+".away", lost))
	if out := succeed(t, p.args("import", cache)...); !strings.Contains(out, "1 completed, 12 known") && !strings.Contains(out, "12 known, 1 completed") {
		t.Errorf("import of the missing nar: %s", out)
	}
	until(t, "the nar is served", func() bool {
		return isAnnounced() && get(t, s.addresses[0], "/nar/zstd/"+cachedGTK).StatusCode == http.StatusOK
	})
	s.servesCache(t, cachedItems)
}

// TestImportPublishCacheOfSeveralSettings: compressions were changed, so the cache has several
// narinfos of one item. The latest is imported, and imports of the same cache change nothing.
func TestImportPublishCacheOfSeveralSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	cache := publishCache(t)
	// The item was published in gzip alone before.
	const base = cachedLeaf
	text, _, ok := strings.Cut(read(t, cache, "lzip", base+".narinfo"), "URL: ")
	if !ok {
		t.Fatal("no URL")
	}
	old := filepath.Join(cache, "gzip", base+".narinfo")
	noError(t, errors.Join(os.Mkdir(cache+"/gzip", 0o755),
		os.WriteFile(old, fmt.Appendf(nil, "%sURL: nar/gzip/%s\nCompression: gzip\nFileSize: 1\n", text, base), 0o644),
		os.Chtimes(old, time.Time{}, time.Now().Add(-time.Hour)), os.Chtimes(cache+"/lzip/"+base+".narinfo", time.Time{}, time.Now())))
	for _, want := range []string{"13 added; ", "13 known; ", "13 known; "} {
		if out := succeed(t, p.args("import", cache)...); !strings.HasPrefix(out, want) {
			t.Errorf("import: %s", out)
		}
	}
	p.serve(t).servesCache(t, cachedItems)
}

// TestImportPublishCacheElsewhere: nars that can't be linked are copied, with one warning.
func TestImportPublishCacheElsewhere(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		place func(t *testing.T, p *place, cache string) string
		says  string
	}{
		"storage on another file system": {func(t *testing.T, p *place, cache string) string {
			p.storage = testfs.Small(t, 4<<20)
			return cache
		}, "cross-device link"},
		"read-only cache": {func(t *testing.T, _ *place, cache string) string { return testfs.ReadOnly(t, cache) }, "cross-device link"},
		"group may write": {func(t *testing.T, _ *place, cache string) string {
			for name := range filesBelow(t, cache) {
				noError(t, os.Chmod(filepath.Join(cache, name), 0o664))
			}
			return cache
		}, "its mode 0664 lets other users than its owner write to it"},
		"private": {func(t *testing.T, _ *place, cache string) string {
			for name := range filesBelow(t, cache) {
				noError(t, os.Chmod(filepath.Join(cache, name), 0o600))
			}
			return cache
		}, "its mode 0600 doesn't let everybody read it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			cache := publishCache(t)
			source := test.place(t, &p, cache)
			before := filesBelow(t, cache)
			r := runProgram(t, p.args("import", source)...)
			if r.status != 0 || !strings.HasPrefix(r.out, "13 added; ") || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "can't be linked into the storage, and are copied") || !strings.Contains(r.err, test.says) {
				t.Errorf("status %d, %s%s", r.status, r.out, r.err)
			}
			for name, info := range filesBelow(t, cache) {
				if info.Mode() != before[name].Mode() || !os.SameFile(info, before[name]) {
					t.Errorf("%s was changed", name)
				}
			}
			p.serve(t).servesCache(t, cachedItems)
		})
	}
}

// TestImportPublishCacheOfAnotherUser: guix publish is another user, whose nars can be linked,
// also if the index is lost and made anew from the cache.
func TestImportPublishCacheOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can link files of other users")
	}
	p := newPlace(t)
	cache := publishCache(t)
	noError(t, filepath.WalkDir(cache, func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(name, 65534, 65534))
	}))
	nar := filepath.Join(cache, "zstd", cachedGTK+".nar")
	for n, want := range []string{"13 added; ", "13 known; ", "13 added; "} {
		if n == 2 {
			p.database = filepath.Join(t.TempDir(), "index.db")
			noError(t, os.Remove(filepath.Join(p.storage, "nar-herder-owner")))
		}
		if out := succeed(t, p.args("import", cache)...); !strings.HasPrefix(out, want) {
			t.Errorf("import: %s", out)
		}
		there, err := os.Stat(nar)
		noError(t, err)
		here, err := os.Stat(filepath.Join(p.storage, "nar/zstd", cachedGTK))
		noError(t, err)
		if !os.SameFile(there, here) {
			t.Error("the nar was copied")
		}
	}
	// Without trust in the owner, as for other layouts, they are known items.
	noError(t, os.RemoveAll(filepath.Join(cache, "zstd")))
	if out := succeed(t, p.args("import", "--keep", cache)...); !strings.HasPrefix(out, "13 known; ") {
		t.Errorf("import: %s", out)
	}
	p.serve(t).servesCache(t, cachedItems)
}

// TestImportPublishCacheChanging: guix publish deletes entries during the import.
func TestImportPublishCacheChanging(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	cache := publishCache(t)
	ctx, stop := context.WithCancel(t.Context())
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		for name := range filesBelow(t, cache) {
			if ctx.Err() == nil && bytes.ContainsRune([]byte("0123456789bcdf"), rune(filepath.Base(name)[0])) {
				_ = os.Remove(filepath.Join(cache, name))
			}
		}
	}()
	r := runProgram(t, p.args("import", cache)...)
	stop()
	<-deleted
	if r.status != 0 && !strings.Contains(r.out, "failed") {
		t.Errorf("status %d, %s%s", r.status, r.out, r.err)
	}
	for line := range strings.Lines(r.err) {
		if !strings.Contains(line, "not found") && !strings.Contains(line, "no such file") {
			t.Errorf("stderr: %s", line)
		}
	}
	p.hasOnlyRightNars(t)
}

// TestImportNarsOptions: contradicting options.
func TestImportNarsOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	misuse(t, p.args("import", "--keep", "--nars=move", published(greeting)), "--keep", "--nars=move")
	misuse(t, p.args("import", "--nars=hardlink", published(greeting)), "--nars", "hardlink")
}

// TestImportStaticMirror: a static mirror isn't a cache of guix publish, whatever its directory is
// called, so its nars are moved.
func TestImportStaticMirror(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := filepath.Join(t.TempDir(), "zstd")
	noError(t, os.Rename(copyCorpus(t, "published"), source))
	if out := succeed(t, p.args("import", source)...); !strings.HasPrefix(out, "13 added; ") {
		t.Errorf("import: %s", out)
	}
	if left := filesBelow(t, source+"/nar"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestImportLinked: nars of another layout are linked if an option says so.
func TestImportLinked(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := copyCorpus(t, "published")
	if out := succeed(t, p.args("import", "--nars=link", source)...); !strings.HasPrefix(out, "13 added; ") {
		t.Errorf("import: %s", out)
	}
	there, err := os.Stat(filepath.Join(source, "nar/lzip", greeting))
	noError(t, err)
	here, err := os.Stat(filepath.Join(p.storage, "nar/lzip", greeting))
	noError(t, err)
	if !os.SameFile(there, here) {
		t.Error("the nar was not linked")
	}
}

// TestVerifyPublishCache: the nars of a cache can be verified without an import.
func TestVerifyPublishCache(t *testing.T) {
	t.Parallel()
	cache := publishCache(t)
	if out := succeed(t, "verify", "--json", cache+"/zstd", cache+"/none"); strings.Count(out, `"verdict":"right"`) < 2*cachedItems-1 || strings.Contains(out, `"absent"`) {
		t.Errorf("verify: %s", out)
	}
}
