package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const libgreeter = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"

// oldPlace returns a place with a database of schema version 3, as a program of that
// version left it, and its nars.
func oldPlace(t *testing.T) place {
	t.Helper()
	p := newPlace(t)
	execute(t, p.database, read(t, testdata, "schema-3.sql"))
	for _, name := range []string{greeting, libgreeter} {
		file := filepath.Join(p.storage, "nar/lzip", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(read(t, testdata, "published/nar/lzip", name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// TestOlderDatabase: commands refuse a database of an older version, and don't change it.
func TestOlderDatabase(t *testing.T) {
	t.Parallel()
	p := oldPlace(t)
	before := read(t, p.database)
	database := "--database=" + p.database
	for _, args := range [][]string{
		{"list", database}, {"stats", database}, {"pins", database}, p.args("check"), p.args("check", "--repair"),
		p.args("export", filepath.Join(p.dir, "exported")), p.args("import", published(entropy)), p.args("remove", "--now", "--dry-run", greeting),
		p.args("remove", "--now", greeting), {"pin", database, greeting}, {"unpin", database, greeting}, {"mirror-accept-loss", database}, p.args("claim-storage"),
		{"dump", database, "--database-dump=" + filepath.Join(p.dir, "dump.db")}, {"convert", p.database, filepath.Join(p.dir, "original.db")},
		{"copy-storage", database, "--from=" + p.storage, "--to=" + t.TempDir()},
	} {
		unusable(t, args, p.database, "has schema version 3", "nar-herder migrate")
	}
	if read(t, p.database) != before {
		t.Error("the database was changed")
	}
	if left := must(filepath.Glob(p.database + "?*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestMigrate migrates a database with the command, and goes back.
func TestMigrate(t *testing.T) {
	t.Parallel()
	p := oldPlace(t)
	kept := p.database + ".schema-3"
	if out := succeed(t, "migrate", "--database="+p.database); !strings.Contains(out, "from schema version 3 to ") || !strings.Contains(out, kept) {
		t.Errorf("migrate: %s", out)
	}
	if out := succeed(t, "list", "--database="+p.database, "--tag=source=published"); strings.Count(out, "\n") != 2 {
		t.Errorf("list: %s", out)
	}
	p.check(t, "--verify", "--no-closures").want(t, 0)
	if out := succeed(t, "migrate", "--database="+p.database); !strings.Contains(out, "is up to date") {
		t.Errorf("migrate again: %s", out)
	}
	if n := count(t, kept, "PRAGMA user_version"); n != 3 {
		t.Errorf("the copy has schema version %d", n)
	}
	// Back, and forth again.
	if err := os.Rename(kept, p.database); err != nil {
		t.Fatal(err)
	}
	fail(t, []string{"stats", "--database=" + p.database}, "has schema version 3")
	succeed(t, "migrate", "--database="+p.database)
	if out := succeed(t, "stats", "--database="+p.database); !strings.Contains(out, "store items      2\n") {
		t.Errorf("stats: %s", out)
	}
}

// TestServerMigrates migrates a database at the start of the server.
func TestServerMigrates(t *testing.T) {
	t.Parallel()
	p := oldPlace(t)
	s := p.serve(t)
	if log := s.err.String(); !strings.Contains(log, `msg="migrated the database"`) || !strings.Contains(log, "kept="+p.database+".schema-3") {
		t.Errorf("log: %s", tail(log))
	}
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.body != read(t, published(greeting)) {
		t.Errorf("narinfo: %s %s", got.Status, got.body)
	}
	if got := get(t, s.addresses[0], "/nar/lzip/"+libgreeter); got.body != read(t, testdata, "published/nar/lzip", libgreeter) {
		t.Errorf("nar: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	if n := count(t, p.database+".schema-3", "SELECT count(*) FROM items"); n != 2 {
		t.Errorf("the copy has %d items", n)
	}
	p.serve(t).stop(t, syscall.SIGTERM)
	if copies := must(filepath.Glob(p.database + ".schema-*")); len(copies) != 1 {
		t.Errorf("copies: %q", copies)
	}
}
