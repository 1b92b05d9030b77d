package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/s3server"
	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
)

// stored returns the contents of all files in a storage, except temporary files and the
// files that identify it.
func stored(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for name := range times(t, dir) {
		if base := filepath.Base(name); !strings.HasPrefix(base, ".") && base != bytestore.IdentityName && base != bytestore.OwnerName {
			found[name] = read(t, dir, name)
		}
	}
	return found
}

// wantCopied compares two storages.
func wantCopied(t testing.TB, from, to string) {
	t.Helper()
	if ours, theirs := stored(t, from), stored(t, to); len(ours) == 0 || !maps.Equal(ours, theirs) {
		t.Errorf("%d of %d files were copied", len(theirs), len(ours))
	}
}

// copyArgs returns the arguments to copy the place's storage to another one.
func (p place) copyArgs(to string, more ...string) []string {
	return append([]string{"copy-storage", "--database=" + p.database, "--from=" + p.storage, "--to=" + to}, more...)
}

func (p place) newStorage(t testing.TB, name string) string {
	t.Helper()
	to := filepath.Join(p.dir, name)
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestCopy moves a storage: it copies it beside a running server, copies it again, and
// starts the server with the copy.
func TestCopy(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	if err := os.WriteFile(filepath.Join(p.storage, bytestore.IdentityName), []byte("ours\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	to := p.newStorage(t, "new")
	s := p.serve(t, "--log-level=INFO")
	would := succeed(t, p.copyArgs(to, "--dry-run")...)
	if !strings.HasPrefix(would, "would be copied: ") || len(times(t, to)) != 0 {
		t.Errorf("a dry run says %q", would)
	}
	count := len(stored(t, p.storage))
	said := succeed(t, p.copyArgs(to)...)
	if !strings.HasPrefix(said, fmt.Sprintf("copied: %d files, ", count)) || !strings.Contains(said, fmt.Sprintf("; %d of them verified by their NarHash\nalready there, by their sizes: 0 files, 0 B\nnext: stop", count)) ||
		!strings.HasSuffix(said, "--storage="+to+"\n") {
		t.Errorf("copy-storage says %q", said)
	}
	wantCopied(t, p.storage, to)
	for _, own := range []string{bytestore.IdentityName, bytestore.OwnerName} {
		if _, err := os.Stat(filepath.Join(to, own)); !os.IsNotExist(err) {
			t.Errorf("the copy has the %s of its original: %v", own, err)
		}
	}
	p.imports(t, filepath.Join(testdata, "published"))
	s.stop(t, syscall.SIGTERM)
	for range 2 {
		said = succeedProcess(t, p.copyArgs(to, "--compare")...)
	}
	if want := fmt.Sprintf("copied: 0 files, 0 B\nalready there, byte for byte: %d files, ", len(stored(t, p.storage))); !strings.HasPrefix(said, want) {
		t.Errorf("copy-storage says %q, want %q", said, want)
	}
	wantCopied(t, p.storage, to)
	if err := os.Rename(p.storage, p.storage+"-old"); err != nil {
		t.Fatal(err)
	}
	moved := place{p.dir, p.database, to}
	if c := moved.check(t, "--verify"); c.status != 0 {
		t.Errorf("check: %+v", c)
	}
	s = moved.serve(t)
	if got := get(t, s.addresses[0], "/nar/lzip/"+url.PathEscape(plus)); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", plus) {
		t.Errorf("served from the copy: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)

	// A copy made by other means also has the name.
	if err := os.WriteFile(filepath.Join(to, bytestore.IdentityName), []byte(read(t, p.storage+"-old", bytestore.IdentityName)), 0o644); err != nil {
		t.Fatal(err)
	}
	r := runProgram(t, "copy-storage", "--database="+p.database, "--from="+p.storage+"-old", "--to="+to)
	if r.status != 0 || !strings.Contains(r.err, "have the same name, ours") {
		t.Errorf("%+v", r)
	}
}

// TestCopyWrongNars copies nars that differ from the index.
func TestCopyWrongNars(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	corrupt := []byte(read(t, p.nar(greeting)))
	corrupt[len(corrupt)/2] ^= 1
	if err := os.WriteFile(p.nar(greeting), corrupt, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.nar(greet), 50); err != nil {
		t.Fatal(err)
	}
	to := p.newStorage(t, "new")
	r := runProgram(t, p.copyArgs(to)...)
	if r.status != 1 || strings.Count(r.err, "\n") != 2 || !strings.Contains(r.err, "nar-herder: copy-storage nar/lzip/"+greeting+": wrong: ") ||
		!strings.Contains(r.err, "nar-herder: copy-storage nar/lzip/"+greet+": wrong: it has 50 bytes in the source") ||
		!strings.Contains(r.out, "not copied: 2 files are wrong in the source, 0 differ, 0 failed\nnext: repair the wrong ones") {
		t.Errorf("%+v", r)
	}
	if got := stored(t, to); len(got) != 3 {
		t.Errorf("%d files", len(got))
	}
	r = runProgram(t, p.copyArgs(to, "--json")...)
	lines := strings.Split(strings.TrimSuffix(r.out, "\n"), "\n")
	var last copyTotals
	var first copied
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || r.status != 1 || len(lines) != 3 || last.Wrong != 2 || last.There != 3 || last.Complete {
		t.Errorf("%+v: %+v, %v", r, last, err)
	}
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || first.Outcome != "wrong" || first.Error == "" || !strings.HasPrefix(first.Name, "nar/lzip/") || r.err != "" {
		t.Errorf("%+v, %v", first, err)
	}
	// Without the index, wrong nars are unknown.
	to = p.newStorage(t, "unknown")
	if said := succeed(t, "copy-storage", "--database=none", "--from="+p.storage, "--to="+to); !strings.HasPrefix(said, "copied: 5 files") || strings.Contains(said, "verified") {
		t.Errorf("copy-storage says %q", said)
	}
	wantCopied(t, p.storage, to)
	if err := os.Truncate(filepath.Join(to, "nar/lzip", libgreet), 3); err != nil {
		t.Fatal(err)
	}
	r = runProgram(t, "copy-storage", "--database=none", "--from="+p.storage, "--to="+to)
	if r.status != 1 || !strings.Contains(r.err, "differs: ") || !strings.Contains(r.err, "--replace") {
		t.Errorf("%+v", r)
	}
	succeed(t, "copy-storage", "--database=none", "--replace", "--from="+p.storage, "--to="+to)
	wantCopied(t, p.storage, to)
}

// TestCopyStopped interrupts and kills copies within a large nar. Files under their final
// name are complete, and the next run copies the rest.
func TestCopyStopped(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	p.imports(t, published(gosrc), published(entropy))
	for i, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM, os.Kill} {
		to := p.newStorage(t, fmt.Sprint("new", i))
		// All small nars are copied before the first large one is read.
		slow := command(p.copyArgs(to, "--bandwidth=10K", "--at-once=7")...)
		slow.start(t)
		until(t, "small ones are copied, and large ones are being copied", func() bool {
			return reading(t, slow.Process.Pid, p.storage) && len(stored(t, to)) == 5
		})
		if err := slow.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		status := slow.wait(t)
		if signal != os.Kill && (status != 1 || !strings.Contains(slow.err.String(), "nar-herder: copy-storage: interrupted: run it again to resume\n") ||
			!strings.HasPrefix(slow.out.String(), "copied: 5 files")) {
			t.Errorf("%v: status %d: %s%s", signal, status, slow.err.String(), slow.out.String())
		}
		before := stored(t, to)
		for name, text := range before {
			if text != read(t, p.storage, name) {
				t.Errorf("%v: %s differs", signal, name)
			}
		}
		temporary := len(times(t, to)) - len(before)
		if signal != os.Kill && temporary != 0 || signal == os.Kill && temporary == 0 {
			t.Errorf("%v: %d temporary files are left", signal, temporary)
		}
		said := succeedProcess(t, p.copyArgs(to)...)
		if !strings.HasPrefix(said, "copied: 2 files, ") || !strings.Contains(said, "by their sizes: 5 files") {
			t.Errorf("%v: the next run says %q", signal, said)
		}
		wantCopied(t, p.storage, to)
	}
}

// TestCopyFull copies to a disk that is too small.
func TestCopyFull(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	many := filepath.Join(p.storage, "nar/lzip")
	for n := range 30 {
		if err := os.WriteFile(filepath.Join(many, fmt.Sprintf("%032d-large", n)), make([]byte, 100<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	to := testfs.Small(t, 1<<20)
	r := runProgram(t, p.copyArgs(to)...)
	if r.status != 2 || !strings.Contains(r.err, "nar-herder: copy-storage: can't continue: ") || !strings.Contains(r.err, "no space left on device") || !strings.Contains(r.out, "next: run this again") {
		t.Errorf("%+v", r)
	}
	for name, text := range stored(t, to) {
		if text != read(t, p.storage, name) {
			t.Errorf("%s differs", name)
		}
	}
	testfs.Freeze(t, to)
	if r := runProgram(t, p.copyArgs(to)...); r.status != 2 || !strings.Contains(r.err, "read-only file system") {
		t.Errorf("%+v", r)
	}
}

// TestCopyReadOnly copies from a read-only directory.
func TestCopyReadOnly(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	to := p.newStorage(t, "new")
	from := testfs.ReadOnly(t, p.storage)
	succeed(t, "copy-storage", "--database="+p.database, "--from="+from, "--to="+to)
	wantCopied(t, p.storage, to)
	// The same storage under another name is refused, though the names don't show it.
	misuse(t, []string{"copy-storage", "--database=none", "--from=" + from, "--to=" + p.storage}, p.storage, from, "the same")
}

// TestCopyOwned: a target that another instance owns is refused.
func TestCopyOwned(t *testing.T) {
	t.Parallel()
	p, q := newPlace(t), newPlace(t)
	p.imports(t, small()...)
	q.imports(t, published(greeting))
	before := stored(t, q.storage)
	fail(t, p.copyArgs(q.storage), q.storage, "another instance", "claim-storage")
	fail(t, []string{"copy-storage", "--database=none", "--from=" + p.storage, "--to=" + q.storage}, q.storage, "another instance")
	if left := stored(t, q.storage); !maps.Equal(left, before) {
		t.Errorf("%d files", len(left))
	}
	succeed(t, "copy-storage", "--database="+q.database, "--from="+p.storage, "--to="+q.storage)
	wantCopied(t, p.storage, q.storage)
}

// TestCopyBucket moves a storage to a bucket, serves it from there, and moves it back.
func TestCopyBucket(t *testing.T) {
	t.Parallel()
	bucket := s3server.New(t)
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	to := bucket.URL("nars/of/gnu")
	if said := succeedProcess(t, p.copyArgs(to)...); !strings.HasPrefix(said, "copied: 13 files, 7.9 MiB; 13 of them verified") {
		t.Errorf("copy-storage says %q", said)
	}
	if said := succeedProcess(t, p.copyArgs(to, "--compare")...); !strings.HasPrefix(said, "copied: 0 files, 0 B\nalready there, byte for byte: 13 files, 7.9 MiB\n") {
		t.Errorf("copy-storage says %q", said)
	}
	moved := place{p.dir, p.database, to}
	moved.check(t, "--verify").want(t, 0)
	s := moved.serve(t)
	if got := get(t, s.addresses[0], "/nar/lzip/"+url.PathEscape(plus)); got.StatusCode != 200 || got.body != read(t, p.nar(plus)) {
		t.Errorf("served from the bucket: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	back := p.newStorage(t, "back")
	succeedProcess(t, "copy-storage", "--database="+p.database, "--from="+to, "--to="+back)
	wantCopied(t, p.storage, back)
	misuse(t, []string{"copy-storage", "--database=none", "--from=" + to, "--to=" + bucket.URL("nars/of")}, "--from and --to", "apart")
}

// TestCopyOptions checks contradictory options.
func TestCopyOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	to := p.newStorage(t, "new")
	below := filepath.Join(p.storage, "nar/lzip")
	link := filepath.Join(p.dir, "link")
	if err := os.Symlink(p.storage, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		status int
		args   []string
		wants  []string
	}{
		{statusUsage, []string{"copy-storage", "--to=" + to}, []string{"--from"}},
		{statusUsage, []string{"copy-storage", "--from=" + p.storage}, []string{"--to"}},
		{2, p.copyArgs(to + "x"), []string{"--to", to + "x", "create the directory"}},
		{2, []string{"copy-storage", "--from=" + to + "x", "--to=" + to}, []string{"--from", to + "x"}},
		{statusUsage, p.copyArgs("s3://"), []string{"--to", "S3", "no bucket"}},
		{statusUsage, p.copyArgs(p.storage), []string{"--from=" + p.storage, "--to=" + p.storage, "apart"}},
		{statusUsage, p.copyArgs(link), []string{"--to=" + link, "apart"}},
		{statusUsage, p.copyArgs(below), []string{"--to=" + below, "apart"}},
		{statusUsage, []string{"copy-storage", "--from=" + below, "--to=" + p.storage}, []string{"--from=" + below, "apart"}},
		{statusUsage, p.copyArgs(to, "--bandwidth=0"), []string{"--bandwidth=0"}},
		{statusUsage, p.copyArgs(to, "--at-once=0"), []string{"--at-once", `"0"`}},
		{2, []string{"copy-storage", "--database=" + p.database + "x", "--from=" + p.storage, "--to=" + to}, []string{"--database", p.database + "x"}},
	} {
		failWith(t, test.status, test.args, test.wants...)
	}
	if left := times(t, to); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if left := stored(t, p.storage); len(left) != 5 {
		t.Errorf("%d files", len(left))
	}
}

// TestCopyEmpty: an empty source may not be mounted, unless an instance has marked it.
func TestCopyEmpty(t *testing.T) {
	t.Parallel()
	for marker, status := range map[string]int{"": 2, bytestore.OwnerName: 0, bytestore.IdentityName: 0} {
		from, to := t.TempDir(), t.TempDir()
		if marker != "" {
			if err := os.WriteFile(filepath.Join(from, marker), []byte("x\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := runProgram(t, "copy-storage", "--database=none", "--from="+from, "--to="+to)
		if r.status != status || strings.Contains(r.err, "is it mounted?") != (status == 2) {
			t.Errorf("marked by %q: %+v", marker, r)
		}
	}
}

// TestCopyOverlap compares names of remote storages.
func TestCopyOverlap(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		from, to string
		apart    bool
	}{
		{"s3://one", "s3://two", true},
		{"s3://one/a", "s3://one/b", true},
		{"s3://one/a", "s3://one/ab", true},
		{"s3://one/a", "s3://one/a/", false},
		{"s3://one/a/b", "s3://one/a", false},
		{"s3://one", "s3://one/a", false},
		{"s3://one?region=x", "s3://one", false},
		{"s3://one?endpoint=https://x.example", "s3://one", true},
		{"s3://one?endpoint=https://x.example", "s3://one?region=x&endpoint=https://x.example", false},
		{"s3://one", "/one", true},
	} {
		if err := refuseOverlap(test.from, test.to); (err == nil) != test.apart {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
