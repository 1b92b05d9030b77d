package main

import (
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	_ "modernc.org/sqlite"
)

// execute runs SQL on a database file.
func execute(t *testing.T, name string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBadDatabases: files that are not an index are refused in one line, and don't change.
func TestBadDatabases(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		make   func(t *testing.T, name string)
		wanted []string
	}{
		"original": {func(t *testing.T, name string) {
			execute(t, name,
				"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, store_path TEXT NOT NULL, nar_hash TEXT NOT NULL, nar_size INTEGER NOT NULL, deriver TEXT, system TEXT, contents TEXT NOT NULL, added_at TEXT)",
				"CREATE TABLE narinfo_files (narinfo_id INTEGER NOT NULL, size INTEGER NOT NULL, compression TEXT, url TEXT)",
				"CREATE TABLE recent_changes (id INTEGER PRIMARY KEY, datetime TEXT NOT NULL, change TEXT NOT NULL, data TEXT NOT NULL)")
		}, []string{"original Nar Herder"}},
		"newer": {func(t *testing.T, name string) {
			succeed(t, "import", "--narinfos-only", "--database="+name, filepath.Join(testdata, "published-none", "g699dxrv55xnrdq6z90qwfmsgz16p3xg.narinfo"))
			execute(t, name, "PRAGMA user_version = 9999", "PRAGMA journal_mode = DELETE")
		}, []string{"newer version"}},
		"foreign": {func(t *testing.T, name string) {
			execute(t, name, "CREATE TABLE cookies (id INTEGER PRIMARY KEY)")
		}, []string{"not a Nar Herder database", "--database"}},
		"garbage": {func(t *testing.T, name string) {
			if err := os.WriteFile(name, []byte(strings.Repeat("This is no database. ", 1000)), 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{"not an SQLite database", "--database"}},
		"pipe": {func(t *testing.T, name string) {
			if err := syscall.Mkfifo(name, 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a regular file", "--database"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			test.make(t, p.database)
			before := describeFile(t, p.database)
			item := filepath.Join(testdata, "published-none", "g699dxrv55xnrdq6z90qwfmsgz16p3xg.narinfo")
			for _, args := range [][]string{
				p.args("run-server", "--port=0"), p.args("import", "--keep", item), {"list", "--database=" + p.database},
				{"stats", "--database=" + p.database}, p.args("check"), p.args("remove", "--now", "g699dxrv55xnrdq6z90qwfmsgz16p3xg"),
			} {
				if name == "original" && args[0] == "run-server" {
					continue // converts it
				}
				unusable(t, args, append(test.wanted, p.database)...)
			}
			if after := describeFile(t, p.database); after != before {
				t.Error("the file was changed")
			}
			if left, err := filepath.Glob(p.database + "-*"); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			isEmpty(t, p.storage)
		})
	}
}

// describeFile describes a file, with the content if it is a regular one.
func describeFile(t *testing.T, name string) string {
	info, err := os.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	if !info.Mode().IsRegular() {
		return info.Mode().String()
	}
	return read(t, name)
}

// TestReadOnlyDatabase: the process may not write to the database or its directory. Root
// runs the program as nobody.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "nar-herder") // accessible to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Chmod(dir, 0o755)
		os.RemoveAll(dir)
	})
	storage, database, program := filepath.Join(dir, "storage"), filepath.Join(dir, "index.db"), filepath.Join(dir, "nar-herder")
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(storage, 0o777), os.Link(binary, program)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	succeed(t, "import", "--narinfos-only", "--database="+database, filepath.Join(testdata, "published-none", "g699dxrv55xnrdq6z90qwfmsgz16p3xg.narinfo"))
	if err := os.Chmod(database, 0o444); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{database, filepath.Join(dir, "new.db")} {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "run-server", "--port=0", "--storage="+storage, "--database="+other)
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		p := commandOf(cmd)
		p.start(t)
		if status := p.wait(t); status != 1 || strings.Count(p.err.String(), "\n") != 1 ||
			!strings.Contains(p.err.String(), "can't be written") || !strings.Contains(p.err.String(), other) {
			t.Errorf("status %d: %s", status, p.err.String())
		}
	}
}

// TestUmask: in a directory that its group may not write to, the umask gives the
// permissions of a new database. See TestTwoUsers for other directories.
func TestUmask(t *testing.T) {
	t.Parallel()
	for mask, want := range map[int]os.FileMode{0o022: 0o644, 0o002: 0o664, 0o007: 0o660, 0o077: 0o600} {
		p := newPlace(t)
		script := fmt.Sprintf(`umask %03o; exec "$@"`, mask)
		args := append([]string{"-c", script, "sh", binary}, p.args("run-server", "--port=0")...)
		s := serve(t, commandOf(exec.Command("/bin/sh", args...)))
		// The log files exist while the server runs.
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(p.database + suffix)
			if err != nil || info.Mode() != want {
				t.Errorf("umask %03o: index.db%s: %v, %v, want %v", mask, suffix, info.Mode(), err, want)
			}
		}
		s.stop(t, syscall.SIGTERM)
	}
}
