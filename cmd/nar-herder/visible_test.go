package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/internal/redact"
)

// wantVisible asserts that the output has only printable lines.
func wantVisible(t *testing.T, args []string, got result) {
	t.Helper()
	for _, line := range strings.Split(got.out+got.err, "\n") {
		if redact.Visible(strings.ReplaceAll(line, "\t", "")) != strings.ReplaceAll(line, "\t", "") {
			t.Errorf("%q prints %q", args, line)
		}
	}
}

// TestControlCharacters puts control characters into names of files and texts: none reaches
// a terminal, and none begins a line.
func TestControlCharacters(t *testing.T) {
	t.Parallel()
	const evil = "evil\x1b[2J\u009b2J\x7f\rnar-herder: all is well\nnar-herder: all is well\xff"
	p := newPlace(t)
	source := filepath.Join(p.dir, "source")
	text := read(t, testdata, "published", narinfoName(greeting))
	odd := strings.Replace(text, "\nReferences:", "\nOdd: \x1b[2J\u009b\nURL: s3://\x1b[2J\u009b/x\nCompression: none\nFileSize: 7\nReferences:", 1)
	for name, content := range map[string]string{
		filepath.Join(source, evil+".narinfo"):             "StorePath: \x1b[2J\u009b2J\n",
		filepath.Join(source, evil, narinfoName(greeting)): odd,
		filepath.Join(p.storage, "nar", evil):              "what nobody names",
		filepath.Join(p.storage, "nar/lzip", greeting):     read(t, testdata, "published/nar/lzip", greeting),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(p.dir, "target")
	if err := errors.Join(os.Mkdir(target, 0o755), os.Mkdir(filepath.Join(p.dir, evil), 0o755)); err != nil {
		t.Fatal(err)
	}
	database := "--database=" + p.database
	for _, args := range [][]string{
		p.args("import", source),
		p.args("import", "--replace", source),
		p.args("import", "--tag=a="+strings.ReplaceAll(evil, "\xff", ""), filepath.Join(source, evil)),
		{"list", database},
		{"list", "--json", database},
		{"pins", database},
		{"pin", database, evil},
		p.args("check"),
		p.args("check", "--json"),
		p.args("check", "--verify"),
		p.args("remove", "--now", "--dry-run", evil),
		{"copy-storage", database, p.storage, target},
		{"copy-storage", "--json", database, p.storage, filepath.Join(p.dir, evil)},
		p.args("export", filepath.Join(p.dir, evil, "export")),
		{"stats", "--database=" + evil},
		{"list", "--database=" + filepath.Join(p.dir, evil, "db")},
		{"import", "--database=" + filepath.Join(p.dir, "other.db"), "--storage=" + filepath.Join(p.dir, evil, "absent"), source},
		{evil},
		{"list", "--" + evil},
		{"list", "--tag=" + evil},
		{"run-server", "--log-level=" + evil},
		{"run-server", "--storage=" + filepath.Join(p.dir, evil, "absent"), "--port=0", database},
	} {
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "\x00", "")
		}
		got := runProgram(t, args...)
		wantVisible(t, args, got)
		if strings.Contains("\n"+got.out+got.err, "\nnar-herder: all is well") {
			t.Errorf("%q: a name has begun a line: %s%s", args, got.out, got.err)
		}
	}
}

// TestImportLinks: a link that leads out of the directory is not followed, and its target
// is not shown. A link within the directory is followed.
func TestImportLinks(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source, outside := filepath.Join(p.dir, "source"), filepath.Join(p.dir, "outside")
	const secret = "the-secret-of-another-user"
	if err := errors.Join(os.MkdirAll(outside, 0o755), os.CopyFS(source, os.DirFS(filepath.Join(testdata, "published")))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(source, "0"+narinfoName(greeting)[1:])
	inside := filepath.Join(source, "inside.narinfo")
	if err := errors.Join(os.Symlink("../outside/secret", name), os.Symlink(narinfoName(greeting), inside)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{source}, {name}, {"--ensure-references-exist", source}} {
		got := runProgram(t, p.args("import", append([]string{"--keep"}, args...)...)...)
		if got.status != 1 || strings.Contains(got.out+got.err, secret) || !strings.Contains(got.err, "symbolic link") || strings.Contains(got.err, "inside.narinfo") {
			t.Errorf("%v: status %d: %s", args, got.status, got.err)
		}
		if n := strings.Count(got.err, "\n"); n != 1 {
			t.Errorf("%v: %d lines: %s", args, n, got.err)
		}
	}
	if out := succeed(t, p.args("import", "--keep", inside)...); !strings.HasPrefix(out, "1 known") {
		t.Error(fmt.Sprint(out))
	}
}
