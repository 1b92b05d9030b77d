package main

import (
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nar-herder/narinfo"
)

// originalTables is the original's schema as it is known.
var originalTables = []string{
	"CREATE TABLE narinfos (id INTEGER PRIMARY KEY ASC, store_path TEXT NOT NULL, nar_hash TEXT NOT NULL, nar_size INTEGER NOT NULL, deriver TEXT, system TEXT, contents TEXT NOT NULL, added_at TEXT)",
	"CREATE UNIQUE INDEX narinfos_by_hash ON narinfos (substr(store_path, 12, 32))",
	"CREATE TABLE narinfo_files (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), size INTEGER NOT NULL, compression TEXT, url TEXT NOT NULL)",
	"CREATE TABLE narinfo_references (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), store_path TEXT NOT NULL)",
	"CREATE TABLE tags (id INTEGER PRIMARY KEY ASC, key TEXT NOT NULL, value TEXT NOT NULL)",
	"CREATE TABLE narinfo_tags (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), tag_id INTEGER NOT NULL REFERENCES tags (id))",
	"CREATE TABLE recent_changes (id INTEGER PRIMARY KEY ASC, datetime TEXT NOT NULL, change TEXT NOT NULL, data TEXT NOT NULL)",
	"CREATE TABLE cached_narinfo_files (id INTEGER PRIMARY KEY ASC, narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), size INTEGER NOT NULL, compression TEXT)",
}

// makeOriginal makes an original's database of the narinfos below a directory of the
// corpus.
func makeOriginal(t *testing.T, name, directory string) {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	insert := func(query string, args ...any) {
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	// The original keeps a log of changes as well.
	for _, statement := range append([]string{"PRAGMA journal_mode = wal"}, originalTables...) {
		insert(statement)
	}
	insert("INSERT INTO tags VALUES (1, 'release', 'yes'), (2, 'branch', 'master'), (3, 'odd', 'a''b=ü')")
	names, err := filepath.Glob(filepath.Join(testdata, directory, "*.narinfo"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	or := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	for i, file := range names {
		text := read(t, file)
		n, err := narinfo.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		id := i + 1
		at := fmt.Sprintf("2023-05-06 07:08:%02d", id)
		insert("INSERT INTO narinfos VALUES (?, ?, ?, ?, ?, ?, ?, ?)", id, n.StorePath.String(), n.NarHash.String(), n.NarSize, or(n.Deriver), or(n.System), text, at)
		for _, file := range n.Files {
			insert("INSERT INTO narinfo_files VALUES (?, ?, ?, ?)", id, file.Size, file.Compression, "/"+file.URL)
		}
		for _, reference := range n.References {
			insert("INSERT INTO narinfo_references VALUES (?, ?)", id, reference.String())
		}
		for tag := 1; tag <= i%4; tag++ {
			insert("INSERT INTO narinfo_tags VALUES (?, ?)", id, tag)
		}
		if i%3 == 0 {
			insert("INSERT INTO cached_narinfo_files (narinfo_id, size, compression) VALUES (?, ?, 'zstd')", id, 1000+id)
		}
		insert("INSERT INTO recent_changes (datetime, change, data) VALUES (?, 'addition', ?)", at, text)
		if i%2 == 0 {
			insert("INSERT INTO recent_changes (datetime, change, data) VALUES (?, 'removal', ?)", at, fmt.Sprintf("/gnu/store/%s-gone-%d", strings.Repeat("a", 32), id))
		}
	}
}

// originalDump returns the content of an original's database, as the sqlite3 program reads
// it. Tags have names instead of ids, which may differ.
func originalDump(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command(required(t, "sqlite3"), "-readonly", "-cmd", ".mode quote", name,
		"PRAGMA integrity_check", "PRAGMA foreign_key_check",
		"SELECT * FROM narinfos ORDER BY id", "SELECT * FROM narinfo_files ORDER BY narinfo_id, rowid",
		"SELECT * FROM narinfo_references ORDER BY narinfo_id, rowid", "SELECT DISTINCT key, value FROM tags ORDER BY 1, 2",
		"SELECT narinfo_id, key, value FROM narinfo_tags JOIN tags ON tags.id = tag_id ORDER BY 1, 2, 3",
		"SELECT * FROM recent_changes ORDER BY id", "SELECT * FROM cached_narinfo_files ORDER BY id")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "'ok'\n") {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

// TestConvert converts an original to an index and back, without loss.
func TestConvert(t *testing.T) {
	t.Parallel()
	for directory, narinfos := range map[string]int{"published": 13, "published-multi": 9} {
		t.Run(directory, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			first, back := filepath.Join(p.dir, "original.db"), filepath.Join(p.dir, "back.db")
			makeOriginal(t, first, directory)
			before := originalDump(t, first)
			out := succeed(t, "convert", first, p.database)
			if !strings.HasPrefix(out, fmt.Sprintf("%s is an index: %d narinfos, ", p.database, narinfos)) || strings.Count(out, "\n") != 1 {
				t.Error(out)
			}
			// The result is a normal index.
			if listed := lines(succeed(t, "list", "--database="+p.database, "--tag=odd=a'b=ü")); len(listed) != narinfos/4 {
				t.Errorf("%q", listed)
			}
			if listed := lines(succeed(t, "list", "--database="+p.database)); len(listed) != narinfos {
				t.Errorf("%q", listed)
			}
			out = succeed(t, "convert", p.database, back)
			if !strings.HasPrefix(out, fmt.Sprintf("%s is a database of the original Nar Herder: %d narinfos, ", back, narinfos)) {
				t.Error(out)
			}
			if after := originalDump(t, back); after != before || originalDump(t, first) != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			// Existing files are not overwritten.
			fail(t, []string{"convert", first, back}, back, "there already")
			fail(t, []string{"convert", p.database, first}, first, "there already")
			fail(t, []string{"convert", filepath.Join(p.dir, "none.db"), filepath.Join(p.dir, "other.db")}, "none.db", "name a database")
		})
	}
}

// manyOriginal makes an original's database with only the column contents.
func manyOriginal(t *testing.T, name string, items int) {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents TEXT NOT NULL)"); err != nil {
		t.Fatal(err)
	}
	insert, err := tx.Prepare("INSERT INTO narinfos (contents) VALUES (?)")
	if err != nil {
		t.Fatal(err)
	}
	for n := range items {
		if _, err := insert.Exec(manyText(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

func manyHash(n int) string {
	var hash narinfo.PathHash
	for i := range hash {
		hash[i] = byte(uint64(n+1) * 0x9e3779b97f4a7c15 >> (8 * (i % 8)))
	}
	return hash.String()
}

func manyText(n int) string {
	base := fmt.Sprintf("%s-item-%d", manyHash(n), n)
	return fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: 1000\nReferences: %s\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: 500\n",
		base, narinfo.NarHash{byte(n)}, base, base)
}

// many is enough items to kill a conversion half-way.
const many = 30_000

// inTheMidst waits until part of a conversion is committed.
func inTheMidst(t *testing.T, p *process, name string) {
	t.Helper()
	catch(t, "the conversion is under way", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("it has ended: %s %s", p.out.String(), p.err.String())
		default:
		}
		if _, err := os.Stat(name); err != nil {
			return false
		}
		db, err := sql.Open("sqlite", "file:"+name+"?mode=ro")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var read int
		err = db.QueryRow("SELECT json_extract(value, '$.Read') FROM settings WHERE key = 'converted'").Scan(&read)
		return err == nil && read > 0 // the table may not exist yet
	})
}

// succeedProcess is succeed in a separate process, for commands that are many times slower
// with the race detector.
func succeedProcess(t testing.TB, args ...string) string {
	t.Helper()
	r := command(args...).run(t)
	if r.status != 0 || r.err != "" {
		t.Fatalf("%s: status %d, stderr %s", args, r.status, r.err)
	}
	return r.out
}

// TestConvertKilled resumes a conversion that was killed.
func TestConvertKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	from := filepath.Join(p.dir, "original.db")
	manyOriginal(t, from, many)
	c := command("convert", from, p.database)
	c.start(t)
	inTheMidst(t, c, p.database+".converting")
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if status := c.wait(t); status != -1 {
		t.Fatalf("it was not killed: %d", status)
	}
	if _, err := os.Stat(p.database); err == nil {
		t.Fatal("the file exists before it is complete")
	}
	out := succeedProcess(t, "convert", from, p.database)
	if !strings.HasPrefix(out, fmt.Sprintf("%s is an index (resumed an interrupted run): %d narinfos", p.database, many)) {
		t.Error(out)
	}
	if left, err := filepath.Glob(p.database + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	listed := lines(succeedProcess(t, "list", "--database="+p.database))
	if len(listed) != many {
		t.Fatalf("%d items", len(listed))
	}
	slices.Sort(listed)
	for n := range many {
		want := fmt.Sprintf("/gnu/store/%s-item-%d", manyHash(n), n)
		if _, is := slices.BinarySearch(listed, want); !is {
			t.Fatalf("%s is not listed", want)
		}
	}
	// In the other direction, leftovers of a killed run are ignored.
	back := filepath.Join(p.dir, "back.db")
	for tries := 1; ; tries++ {
		c = command("convert", p.database, back)
		c.start(t)
		catch(t, "it is being written", func() bool {
			info, err := os.Stat(back + ".writing")
			return err == nil && info.Size() > 0
		})
		if err := c.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		status := c.wait(t)
		if status == -1 {
			break
		}
		if status != 0 || tries == 10 {
			t.Fatalf("it was not killed: %d", status)
		}
		noError(t, os.Remove(back)) // it was faster
	}
	succeedProcess(t, "convert", p.database, back)
	if left, err := filepath.Glob(back + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	sqlite := exec.Command(required(t, "sqlite3"), "-readonly", back,
		"ATTACH '"+from+"' AS first; PRAGMA integrity_check; SELECT count(*) FROM narinfos n JOIN first.narinfos f ON f.id = n.id AND f.contents = n.contents")
	if got, err := sqlite.CombinedOutput(); err != nil || string(got) != fmt.Sprintf("ok\n%d\n", many) {
		t.Errorf("%s, %v", got, err)
	}
}

// TestServerConverts starts the server with a database of the original and a storage. It
// serves the same as the original.
func TestServerConverts(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	makeOriginal(t, p.database, "published")
	if out, err := exec.Command("cp", "-r", filepath.Join(testdata, "published", "nar"), p.storage).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	before := originalDump(t, p.database)
	for start := range 2 {
		s := p.serve(t, "--log-level=INFO")
		for _, name := range []string{"nxrz38jzshzw0q3fqi3fqimjg1zr62r9", "g699dxrv55xnrdq6z90qwfmsgz16p3xg"} {
			if got := get(t, s.addresses[0], "/"+name+".narinfo"); got.StatusCode != 200 || got.body != read(t, testdata, "published", name+".narinfo") {
				t.Errorf("%s: %s %s", name, got.Status, got.body)
			}
			if got := get(t, s.addresses[0], "/"+name+".narinfo/info"); got.body != `{"stored": true}` {
				t.Errorf("%s: %s", name, got.body)
			}
		}
		const nar = "nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"
		if got := get(t, s.addresses[0], "/"+nar); got.StatusCode != 200 || got.body != read(t, testdata, "published", nar) {
			t.Errorf("%s, %d bytes", got.Status, len(got.body))
		}
		s.stop(t, syscall.SIGTERM)
		if converted := strings.Contains(s.err.String(), "converted the database of the original"); converted != (start == 0) {
			t.Errorf("start %d: %s", start, s.err.String())
		}
	}
	if left, err := filepath.Glob(p.database + "?*"); err != nil || !slices.Equal(left, []string{p.database + ".lock", p.database + ".original", p.database + ".reserve"}) {
		t.Errorf("beside it: %q, %v", left, err)
	}
	if after := originalDump(t, p.database+".original"); after != before {
		t.Errorf("the old file: %s", after)
	}
}

// TestServerConvertsKilled stops and kills the server while it converts.
func TestServerConvertsKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	manyOriginal(t, p.database, many)
	pidFile, address := filepath.Join(p.dir, "pid"), net.JoinHostPort(ownHost(), instancePort)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c := command(p.args("run-server", "--host="+strings.TrimSuffix(address, ":"+instancePort), "--port="+instancePort, "--log-level=INFO", "--pid-file="+pidFile)...)
		s := &server{process: c}
		s.start(t)
		if signal == syscall.SIGTERM {
			inTheMidst(t, c, p.database+".converting")
			if read(t, pidFile) != fmt.Sprintln(c.Process.Pid) {
				t.Error("no process id while it converts")
			}
			if got := get(t, address, "/health"); got.StatusCode != 503 || !strings.Contains(got.body, `"converting"`) || !strings.Contains(got.body, fmt.Sprintf(`"narinfos":%d`, many)) {
				t.Errorf("health while it converts: %s %s", got.Status, got.body)
			}
			if got := get(t, address, "/"+manyHash(0)+".narinfo"); got.StatusCode != 503 {
				t.Errorf("a narinfo while it converts: %s", got.Status)
			}
			// No other command makes an index meanwhile.
			fail(t, []string{"list", "--database=" + p.database}, "original Nar Herder", "nar-herder convert")
			s.stop(t, signal)
			continue
		}
		// A part is already committed, so that any moment is half-way.
		catch(t, "the conversion resumes", func() bool { return strings.Contains(c.err.String(), "converting it") })
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if status := c.wait(t); status != -1 {
			t.Fatalf("it was not killed: %d", status)
		}
	}
	s := p.serveProcess(t, "--log-level=INFO")
	for _, n := range []int{0, many / 2, many - 1} {
		if got := get(t, s.addresses[0], "/"+manyHash(n)+".narinfo"); got.StatusCode != 200 || got.body != manyText(n) {
			t.Errorf("%d: %s %s", n, got.Status, got.body)
		}
	}
	if listed := lines(succeedProcess(t, "list", "--database="+p.database)); len(listed) != many {
		t.Errorf("%d items", len(listed))
	}
}
