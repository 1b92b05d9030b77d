package original

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crashed makes a database with its last changes only in the log, as after a kill.
func crashed(t *testing.T, dir string) (path string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "running.db")
	db := openSQL(t, source)
	defer db.Close()
	for _, statement := range []string{
		"PRAGMA journal_mode = wal", "CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents TEXT)", "INSERT INTO narinfos VALUES (1, 'a')",
		"PRAGMA wal_checkpoint(truncate)", "INSERT INTO narinfos VALUES (2, 'b')",
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "original.db")
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(source + suffix)
		must(t, err)
		must(t, os.WriteFile(path+suffix, content, 0o644))
	}
	return path
}

// TestCrashed: changes that are only in the log are read.
func TestCrashed(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(context.Context, string) (*Database, error){"Open": Open, "OpenLocked": OpenLocked} {
		path := crashed(t, t.TempDir())
		d, err := open(t.Context(), path)
		must(t, err)
		if items, _, _ := all(t, d); len(items) != 2 {
			t.Errorf("%s: %v", name, items)
		}
		must(t, d.Close())
		left, err := filepath.Glob(path + "-*")
		if name == "OpenLocked" && (err != nil || len(left) > 0) {
			t.Errorf("%s leaves %q, %v", name, left, err)
		}
		execute(t, path, "INSERT INTO narinfos VALUES (3, 'c')")
		if n := ask(t, path, "SELECT count(*) FROM narinfos"); n != "3" {
			t.Errorf("%s: %s rows afterwards", name, n)
		}
	}
}

// TestLock: no other process has a locked database open, with or without a log.
func TestLock(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "original.db")
			other := openSQL(t, path+"?_pragma=busy_timeout(0)")
			for _, statement := range []string{"PRAGMA journal_mode = " + mode, "CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents TEXT)", "INSERT INTO narinfos VALUES (1, 'a')"} {
				if _, err := other.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
			if mode == "delete" {
				// Without a log, only a transaction is noticed.
				if _, err := other.Exec("BEGIN IMMEDIATE"); err != nil {
					t.Fatal(err)
				}
			}
			if d, err := OpenLocked(t.Context(), path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "stop the other program") {
				t.Errorf("%s: open elsewhere: %v, %v", mode, d, err)
			}
			must(t, other.Close())
			d, err := OpenLocked(t.Context(), path)
			must(t, err)
			other = openSQL(t, path+"?_pragma=busy_timeout(0)")
			if _, err := other.Exec("INSERT INTO narinfos VALUES (2, 'b')"); err == nil {
				t.Errorf("%s: others can write", mode)
			}
			must(t, other.Close())
			if items, _, _ := all(t, d); len(items) != 1 {
				t.Errorf("%s: %v", mode, items)
			}
			must(t, d.Close())
			execute(t, path, "INSERT INTO narinfos VALUES (2, 'b')")
		})
	}
}

// readAsOther is the part of [TestReadOnlyDirectory] in another process.
func readAsOther(path string) int {
	for _, open := range []func(context.Context, string) (*Database, error){Open, OpenLocked} {
		d, err := open(context.Background(), path)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		n, err := d.Count(context.Background())
		if err = errors.Join(err, d.Close()); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Print(n, " ")
	}
	return 0
}

// TestReadOnlyDirectory: databases are read without permission to write them, or files
// beside them. If root runs it, it reads as nobody.
func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "exchange") // accessible to other users
	must(t, err)
	t.Cleanup(func() {
		_ = os.Chmod(dir, 0o755)
		os.RemoveAll(dir)
	})
	program := filepath.Join(dir, "program")
	must(t, os.Link(os.Args[0], program))
	withLog := crashed(t, dir)
	quiet, plain := filepath.Join(dir, "quiet.db"), filepath.Join(dir, "plain.db")
	execute(t, quiet, "PRAGMA journal_mode = wal", "CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a')")
	execute(t, plain, "CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a')")
	must(t, os.Chmod(dir, 0o555))
	for path, want := range map[string]string{quiet: "1 1 ", plain: "1 1 ", withLog: "copy both"} {
		must(t, os.Chmod(path, 0o444))
		cmd := exec.Command(program)
		cmd.Env = []string{reader + "=" + path}
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: %s, %v, want %s", path, out, err, want)
		}
	}
}

// onPause is a context that calls paused when a wait for another process begins.
type onPause struct {
	context.Context
	paused func()
}

func (c onPause) Done() <-chan struct{} {
	if strings.Contains(string(debug.Stack()), "pace.Sleep") {
		c.paused()
	}
	return c.Context.Done()
}

// TestLogChanging: a database is read, without permission to write, while another process
// writes to it.
func TestLogChanging(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "original.db")
	execute(t, path, "PRAGMA journal_mode = wal", "CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a')")
	ask(t, path, "SELECT 1") // or skip the test
	writer := exec.CommandContext(t.Context(), "sqlite3", path)
	in, err := writer.StdinPipe()
	must(t, err)
	out, err := writer.StdoutPipe()
	must(t, err)
	must(t, writer.Start())
	if _, err := io.WriteString(in, "INSERT INTO narinfos VALUES ('b'); SELECT count(*) FROM narinfos;\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "2\n" {
		t.Fatalf("%q, %v", line, err)
	}
	index, err := os.OpenFile(path+"-shm", os.O_RDWR, 0)
	must(t, err)
	// This comes last, because it drops this process's locks on the file.
	defer index.Close()
	conn, err := tryReading(t.Context(), path, "mode=ro", "readonly_shm=1")
	must(t, err)
	defer conn.close()
	// See https://www.sqlite.org/walformat.html#the_wal_index_file_format.
	for name, change := range map[string]struct {
		at   int64
		with []byte
	}{
		"read marks beyond what it has seen": {104, bytes.Repeat([]byte{0xff}, 16)},
		"header half written":                {48, make([]byte, 48)},
	} {
		before := make([]byte, len(change.with))
		_, err1 := index.ReadAt(before, change.at)
		_, err2 := index.WriteAt(change.with, change.at)
		must(t, errors.Join(err1, err2))
		undone := false
		undo := func() {
			undone = true
			if _, err := index.WriteAt(before, change.at); err != nil {
				t.Error(err)
			}
		}
		if n, err := conn.first(onPause{t.Context(), undo}, "SELECT count(*) FROM narinfos"); err != nil || n != int64(2) || !undone {
			t.Errorf("%s: %v, %v, waited: %v", name, n, err, undone)
		}
		undo()
	}
	must(t, in.Close())
	must(t, writer.Wait())
}

// FuzzDatabase: reading any file ends soon, and without a panic.
func FuzzDatabase(f *testing.F) {
	for i, statements := range [][]string{
		{"CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a'), (x'62'), (NULL)"},
		{tables, "INSERT INTO narinfos VALUES (1, 'p', 'h', 1, NULL, NULL, 't', '2024-01-02 03:04:05')", "INSERT INTO tags VALUES (1, 'k', 'v')",
			"INSERT INTO narinfo_tags VALUES (1, 1)", "INSERT INTO cached_narinfo_files VALUES (1, 1, 5, 'zstd')", "INSERT INTO recent_changes VALUES (1, '2024', 'removal', 'x')"},
		{"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents, added_at)", "CREATE TABLE narinfo_tags (narinfo_id, tag_id)", "CREATE TABLE tags (id, key, value)",
			"WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n <= 50) INSERT INTO narinfos SELECT n, zeroblob(n * 20), n FROM r",
			"INSERT INTO narinfo_tags SELECT id, 1 FROM narinfos"},
		{"PRAGMA journal_mode = wal", "PRAGMA encoding = 'UTF-16be'", "CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a')"},
		{"CREATE VIEW narinfos AS SELECT 1 AS contents"},
	} {
		path := filepath.Join(f.TempDir(), fmt.Sprint(i, ".db"))
		execute(f, path, append([]string{"PRAGMA page_size = 512"}, statements...)...)
		content, err := os.ReadFile(path)
		must(f, err)
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "fuzzed.db")
		must(t, os.WriteFile(path, content, 0o644))
		ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
		defer end()
		for _, open := range []func(context.Context, string) (*Database, error){Open, OpenLocked} {
			d, err := open(ctx, path)
			if err != nil {
				continue
			}
			rows := 0
			for _, err := range d.Items(ctx, FromStart) {
				var row *RowError
				if rows++; err != nil && !errors.As(err, &row) {
					break
				}
			}
			for _, err := range d.Changes(ctx) {
				var row *RowError
				if rows++; err != nil && !errors.As(err, &row) {
					break
				}
			}
			_, _ = d.Count(ctx)
			_, _ = d.LastAdded(ctx)
			_, _ = d.NewestChange(ctx)
			_, _ = d.Info(ctx)
			_ = d.Check(ctx)
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			// Each row takes at least two bytes.
			if ctx.Err() != nil || rows > 2*len(content)+1000 {
				t.Errorf("%d rows of %d bytes, %v", rows, len(content), ctx.Err())
			}
		}
	})
}
