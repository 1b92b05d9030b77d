package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
)

// plus is an item of the corpus with a name that URLs escape.
const plus = "mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk+-2.24.33-doc"

// publicDir returns a directory that nginx's workers may read, whatever user they run as.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nar-herder-export")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// times returns the times of all files below a directory.
func times(t testing.TB, dir string) map[string]time.Time {
	t.Helper()
	found := make(map[string]time.Time)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is being written
		}
		if err == nil && !entry.IsDir() {
			found[strings.TrimPrefix(name, dir)] = info.ModTime()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestExport exports the corpus, serves it with nginx, and compares all files.
func TestExport(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	for directory, want := range map[string]int{"published": 13, "published-multi": 9, "published-none": 4} {
		t.Run(directory, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			source := filepath.Join(testdata, directory)
			p.imports(t, source)
			out := filepath.Join(publicDir(t), "out")
			if said := succeed(t, p.args("export", out)...); !strings.HasPrefix(said, fmt.Sprintf("%d items exported: %[1]d new, 0 changed, 0 as before\n", want)) {
				t.Errorf("export says %q", said)
			}
			before := times(t, out)
			if said := succeed(t, p.args("export", "--delete", out)...); said != fmt.Sprintf("%d items exported: 0 new, 0 changed, %[1]d as before\n0 nars linked, 0 B; 0 copied, 0 B\n", want) {
				t.Errorf("export again says %q", said)
			}
			for name, modified := range times(t, out) {
				if !before[name].Equal(modified) {
					t.Errorf("%s has changed", name)
				}
			}

			front := ownHost() + ":" + instancePort
			startNginx(t, nginx, front, fmt.Sprintf("server { listen %s; root %s; location = / { return 404; } }", front, out))
			if got := get(t, front, "/nix-cache-info"); got.StatusCode != 200 || got.body != narinfo.CacheInfo {
				t.Errorf("nix-cache-info: %s %q", got.Status, got.body)
			}
			names, err := filepath.Glob(filepath.Join(source, "*.narinfo"))
			if err != nil || len(names) != want {
				t.Fatalf("%d narinfos, want %d, %v", len(names), want, err)
			}
			for _, name := range names {
				served := get(t, front, "/"+filepath.Base(name))
				if served.StatusCode != 200 || served.body != read(t, name) {
					t.Errorf("%s: %s, %d bytes", name, served.Status, len(served.body))
				}
				n, err := narinfo.Parse([]byte(served.body))
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range n.Files {
					path, err := file.Path()
					if err != nil {
						t.Fatal(err)
					}
					got := get(t, front, "/"+file.URL)
					if got.StatusCode != 200 || got.ContentLength != file.Size || got.body != read(t, source, path) {
						t.Errorf("%s: %s, length %d, want %d", file.URL, got.Status, got.ContentLength, file.Size)
					}
					if file.Compression == "none" {
						checkNar(t, file.URL, n, got.body)
					}
					// A file:// URL is opened without decoding.
					if text := read(t, out, file.URL); text != got.body {
						t.Errorf("%s: the file of that name has %d bytes", file.URL, len(text))
					}
				}
			}
			if got := get(t, front, "/nar/lzip/"+url.PathEscape(strings.Replace(plus, "+", "-", 1))); got.StatusCode != 404 {
				t.Errorf("unknown nar: %s", got.Status)
			}
		})
	}
}

// TestExportRemoved: after the removal of an item, the copy equals a new one.
func TestExportRemoved(t *testing.T) {
	t.Parallel()
	diff := required(t, "diff")
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	out := filepath.Join(p.dir, "out")
	succeed(t, p.args("export", out)...)
	for _, base := range []string{plus, entropy} {
		succeed(t, p.args("remove", "--now", base)...)
	}
	left := succeed(t, p.args("export", out)...)
	if !strings.Contains(left, "2 narinfos and 3 files of nars") || !strings.Contains(left, "were left: --delete removes them") {
		t.Errorf("export says %q", left)
	}
	if got := read(t, out, narinfoName(plus)); got != read(t, published(plus)) {
		t.Error("the narinfo did not stay")
	}
	would := succeed(t, p.args("export", "--delete", "--accept-loss", "--dry-run", out)...)
	if !strings.Contains(would, "would be: 2 narinfos and 3 files of nars") || read(t, out, narinfoName(plus)) == "" {
		t.Errorf("a dry run says %q", would)
	}
	succeed(t, p.args("export", "--delete", "--accept-loss", out)...)
	for name := range times(t, out) {
		for _, base := range []string{plus, entropy} {
			if strings.Contains(name, base[:narinfo.PathHashLen]) {
				t.Errorf("%s is left", name)
			}
		}
	}
	fresh := filepath.Join(p.dir, "fresh")
	succeed(t, p.args("export", "--copy", fresh)...)
	if said, err := exec.Command(diff, "-r", out, fresh).CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("diff: %v: %s", err, said)
	}
	for name, modified := range times(t, fresh) {
		if name != "/nix-cache-info" && name != "/nar-herder-export" && !times(t, out)[name].Equal(modified) {
			t.Errorf("%s: times differ, and rsync would send it again", name)
		}
	}
}

// TestExportMissing exports items without stored nars.
func TestExportMissing(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	out := filepath.Join(p.dir, "out")
	if err := os.Remove(filepath.Join(p.storage, "nar/lzip", greet)); err != nil {
		t.Fatal(err)
	}
	// The index records the nar as stored: that is a fault.
	r := runProgram(t, p.args("export", "--allow-missing", out)...)
	if r.status != 1 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, greet) || !strings.Contains(r.out, "1 failed") {
		t.Errorf("a missing nar: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(out, narinfoName(greet))); !os.IsNotExist(err) {
		t.Errorf("its narinfo is there: %v", err)
	}

	// Narinfos without nars, as a mirror has them.
	q := newPlace(t)
	succeed(t, "import", "--narinfos-only", "--database="+q.database, filepath.Join(testdata, "published"))
	many := filepath.Join(q.dir, "narinfos")
	if err := os.Mkdir(many, 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		hash := fmt.Sprintf("%032d", n)
		text := strings.ReplaceAll(read(t, published(greeting)), greeting[:narinfo.PathHashLen], hash)
		fields, rest, _ := strings.Cut(text, "Signature: ")
		_, rest, _ = strings.Cut(rest, "\n")
		if err := os.WriteFile(filepath.Join(many, hash+".narinfo"), append(mirrortest.Sign([]byte(fields)), rest...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	succeed(t, "import", "--narinfos-only", "--database="+q.database, many)
	out = filepath.Join(q.dir, "out")
	r = runProgram(t, q.args("export", out)...)
	if r.status != 1 || strings.Count(r.err, "\n") != 21 || !strings.Contains(r.err, "the nar is not in this storage") || !strings.Contains(r.err, "and 3 more") ||
		!strings.Contains(r.out, "not exported: 23 without") {
		t.Errorf("narinfos alone: %+v", r)
	}
	succeed(t, q.args("export", "--allow-missing", out)...)

	fail(t, q.args("export", q.storage+"/out"), q.storage, "overlaps with the storage")
	misuse(t, q.args("export", "--tag=a=b", "--closure-of="+greet, out), "--tag", "--closure-of")
	misuse(t, q.args("export", "--closure-of=nothing", out), "--closure-of", "nothing")
	fail(t, q.args("export", "--closure-of="+strings.Repeat("z", 32), out), strings.Repeat("z", 32), "no narinfo")
	misuse(t, []string{"export", "--database=" + q.database, out}, "--storage")
	fail(t, []string{"export", "--database=" + q.database + "x", "--storage=" + q.storage, out}, "--database")
}

// TestExportSlips: mistakes that could empty copies or other directories.
func TestExportSlips(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, "--tag=kind=good", filepath.Join(testdata, "published"))
	out := filepath.Join(p.dir, "out")
	succeed(t, p.args("export", "--delete", "--tag=kind=good", out)...)
	before := tree(t, out)
	fail(t, p.args("export", "--delete", "--tag=kind=typo", out), "no selected item", "--accept-loss")
	r := runProgram(t, p.args("export", "--delete", "--closure-of="+greet, out)...)
	if r.status != 1 || r.out != "" || !strings.Contains(r.err, "10 of 13 narinfos") || !strings.Contains(r.err, "--accept-loss") {
		t.Errorf("a closure of three: %+v", r)
	}
	r = runProgram(t, p.args("export", "--delete", "--dry-run", "--closure-of="+greet, out)...)
	if r.status != 1 || !strings.Contains(r.out, "would be: 10 narinfos") || !strings.Contains(r.err, "10 of 13 narinfos") {
		t.Errorf("a dry run: %+v", r)
	}
	misuse(t, p.args("export", "--accept-loss", out), "--accept-loss", "--delete")
	if tree(t, out) != before {
		t.Error("the copy has changed")
	}

	// The directory of another program, with the same or other narinfos.
	other := copyCorpus(t, "published-multi")
	before = tree(t, other)
	for _, more := range [][]string{{}, {"--delete"}, {"--delete", "--dry-run"}} {
		fail(t, p.args("export", append(more, other)...), other, "--adopt")
	}
	if tree(t, other) != before {
		t.Error("another directory has changed")
	}
}

// TestExportClosure exports a closure, and then the items with a tag.
func TestExportClosure(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	succeed(t, p.args("import", "--keep", "--tag=kind=odd", published(plus))...)
	out := filepath.Join(p.dir, "out")
	for args, want := range map[string][]string{
		"--closure-of=/gnu/store/" + greet: {greet, libgreet, greeting},
		"--tag=kind=odd":                   {plus},
	} {
		succeed(t, p.args("export", "--delete", "--accept-loss", args, out)...)
		names, err := filepath.Glob(filepath.Join(out, "*.narinfo"))
		if err != nil || len(names) != len(want) {
			t.Errorf("%s: %q, %v", args, names, err)
		}
		for _, base := range want {
			if read(t, out, "nar/lzip", base) != read(t, p.storage, "nar/lzip", base) || read(t, out, narinfoName(base)) != read(t, published(base)) {
				t.Errorf("%s: %s differs", args, base)
			}
		}
	}
}

// TestExportKilled kills exports into one directory repeatedly.
func TestExportKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published-multi"))
	out := filepath.Join(p.dir, "out")
	random := rand.New(rand.NewPCG(1, 1))
	for round := range kills(t) {
		k := command(p.args("export", "--delete", "--copy", out)...)
		k.start(t)
		timer := time.AfterFunc(time.Duration(random.Int64N(int64(120*time.Millisecond))), func() { _ = k.Process.Kill() })
		k.wait(t)
		timer.Stop()
		names, err := filepath.Glob(filepath.Join(out, "*.narinfo"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n, err := narinfo.Parse([]byte(read(t, name)))
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, name, err)
			}
			for _, file := range n.Files {
				path, err := file.Path()
				if err != nil {
					t.Fatal(err)
				}
				if read(t, out, path) != read(t, p.storage, path) || read(t, out, file.URL) != read(t, p.storage, path) {
					t.Errorf("round %d: %s differs", round, path)
				}
			}
		}
		if round%3 == 2 && len(names) > 0 { // start again with an empty directory
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
		}
	}
	succeed(t, p.args("export", "--copy", out)...)
	if names, err := os.ReadDir(out); err != nil || len(names) != 9+3 {
		t.Errorf("at the end: %v, %v", names, err)
	}
}
