package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func (p place) dumpFile() string { return filepath.Join(p.dir, "dump.db") }

// makeDump makes a dump, so that mirrors needn't wait until the server has made one.
func (p place) makeDump(t testing.TB) {
	t.Helper()
	succeed(t, "dump", "--database="+p.database, "--database-dump="+p.dumpFile())
}

// shell runs a required program, and returns its output.
func shell(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

// TestDumpCommand: a dump made beside a running server is served at once, and clients that
// began with the previous one get the rest of it.
func TestDumpCommand(t *testing.T) {
	t.Parallel()
	curl, sqlite, zstd := required(t, "curl"), required(t, "sqlite3"), required(t, "zstd")
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--database-dump-interval=none", "--database-dump="+p.dumpFile())
	address := s.addresses[0]
	for _, target := range []string{"/latest-database-dump", "/latest-index-dump"} {
		if got := get(t, address, target); got.StatusCode != 404 {
			t.Errorf("%s before the first dump: %s", target, got.Status)
		}
	}
	make := func() {
		t.Helper()
		if out := succeed(t, "dump", "--database="+p.database, "--database-dump="+p.dumpFile()); !strings.Contains(out, p.dumpFile()) || strings.Count(out, "\n") != 1 {
			t.Errorf("output: %q", out)
		}
	}
	make()
	whole := get(t, address, "/latest-database-dump")
	sum := sha256.Sum256([]byte(whole.body))
	if whole.StatusCode != 200 || whole.Header.Get("Repr-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" || whole.body != read(t, p.dumpFile()) {
		t.Errorf("%s %v", whole.Status, whole.Header)
	}

	url := "http://" + address
	part := filepath.Join(p.dir, "part.db")
	if err := os.WriteFile(part, []byte(whole.body[:12345]), 0o644); err != nil {
		t.Fatal(err)
	}
	shell(t, curl, "-fsS", "--continue-at", "-", "-o", part, url+"/latest-database-dump")
	if read(t, part) != whole.body {
		t.Error("curl resumed, and got a different file")
	}
	packed := filepath.Join(p.dir, "part.db.zst")
	shell(t, curl, "-fsS", "-H", "Accept-Encoding: zstd", "-r", "0-999", "-o", packed, url+"/latest-database-dump")
	shell(t, curl, "-fsS", "-H", "Accept-Encoding: zstd", "--continue-at", "-", "-o", packed, url+"/latest-database-dump")
	if shell(t, zstd, "-dcq", packed) != whole.body {
		t.Error("the compressed dump differs")
	}
	if head := shell(t, curl, "-fsSI", url+"/latest-database-dump"); !strings.Contains(head, fmt.Sprintf("Content-Length: %d\r\n", len(whole.body))) {
		t.Errorf("HEAD: %s", head)
	}
	items := strings.Count(succeed(t, p.args("list")[0], "--database="+p.database), "\n")
	if got := shell(t, sqlite, "-readonly", part, "SELECT count(*) FROM narinfos; SELECT count(*) FROM recent_changes; PRAGMA integrity_check"); got != fmt.Sprintf("%d\n%d\nok\n", items, items) {
		t.Errorf("the database says %q, and there are %d items", got, items)
	}

	// The index is what another instance starts from.
	other := newPlace(t)
	shell(t, curl, "-fsS", "-o", other.database, url+"/latest-index-dump")
	if got, want := succeed(t, "list", "--database="+other.database), succeed(t, "list", "--database="+p.database); got != want || got == "" {
		t.Errorf("the copy has\n%s\nwant\n%s", got, want)
	}

	// The next dump, and the rest of the previous one.
	tag := whole.Header.Get("ETag")
	succeed(t, p.args("remove", "--now", strings.Fields(succeed(t, "list", "--database="+p.database))[0])...)
	make()
	now := get(t, address, "/latest-database-dump")
	if now.StatusCode != 200 || now.body == whole.body || now.Header.Get("ETag") == tag {
		t.Errorf("after a removal: %s %v", now.Status, now.Header)
	}
	rest := request(t, address, "GET", "/latest-database-dump", "Range", "bytes=12345-", "If-Range", tag)
	if rest.StatusCode != 206 || rest.body != whole.body[12345:] {
		t.Errorf("the rest of the first: %s, %d bytes", rest.Status, len(rest.body))
	}
	make()
	rest = request(t, address, "GET", "/latest-database-dump", "Range", "bytes=12345-", "If-Range", tag)
	if rest.StatusCode != 200 || int64(len(rest.body)) != rest.ContentLength || rest.Header.Get("ETag") == tag {
		t.Errorf("when there were two since: %s, %d bytes", rest.Status, len(rest.body))
	}
	metrics := get(t, address, "/metrics").body
	for _, line := range []string{
		fmt.Sprintf("\nnarherder_dump_items %d\n", items-1), "\nnarherder_dump_failures_total 0\n", `narherder_dump_bytes{file="zstd"} `, "\nnarherder_dump_created_timestamp_seconds 1",
		`narherder_http_requests_total{method="GET",route="/latest-database-dump",status="206"} `, `narherder_http_requests_total{method="GET",route="/latest-index-dump",status="200"} 1`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("%q is not in the metrics", line)
		}
	}

	lock, err := os.Open(p.dumpFile() + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	fail(t, []string{"dump", "--database=" + p.database, "--database-dump=" + p.dumpFile()}, p.dumpFile(), "another process", "wait")
	s.stop(t, syscall.SIGTERM)
}

// TestDumpSchedule: the server makes the first dump by itself once there are items, and
// announces it until then.
func TestDumpSchedule(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.serve(t, "--database-dump-interval=1s", "--database-dump="+p.dumpFile(), "--log-level=INFO")
	for _, target := range []string{"/latest-database-dump", "/latest-index-dump"} {
		if got := get(t, s.addresses[0], target); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s before the first dump: %s %v", target, got.Status, got.Header)
		}
	}
	p.imports(t, filepath.Join(testdata, "published"))
	until(t, "the first dump", func() bool { return get(t, s.addresses[0], "/latest-index-dump").StatusCode == 200 })
	first := get(t, s.addresses[0], "/latest-index-dump").Header.Get("Nar-Herder-Change")
	succeed(t, p.args("remove", "--now", strings.Fields(succeed(t, "list", "--database="+p.database))[0])...)
	until(t, "the next dump", func() bool {
		return get(t, s.addresses[0], "/latest-index-dump").Header.Get("Nar-Herder-Change") != first
	})
	s.stop(t, syscall.SIGTERM)
	if strings.Contains(s.err.String(), "level=ERROR") || !strings.Contains(s.err.String(), `msg="made a dump"`) {
		t.Errorf("the log: %s", s.err.String())
	}
	// The next run serves the dump from the start. A database that replaces this one
	// has none.
	s = p.serve(t, "--database-dump-interval=1d", "--database-dump="+p.dumpFile())
	if got := get(t, s.addresses[0], "/latest-database-dump"); got.StatusCode != 200 {
		t.Errorf("after a restart: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	other := newPlace(t)
	if err := os.Remove(p.dumpFile() + ".owner"); err != nil {
		t.Fatal(err)
	}
	s = other.serve(t, "--database-dump="+p.dumpFile())
	if got := get(t, s.addresses[0], "/latest-database-dump"); got.StatusCode != 503 {
		t.Errorf("from another database: %s", got.Status)
	}
}

// TestDumpFails: the server runs, and says why there is no dump.
func TestDumpFails(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	nowhere := filepath.Join(p.dir, "none", "dump.db")
	s := p.serve(t, "--database-dump-interval=1s", "--database-dump="+nowhere)
	until(t, "a line in the log", func() bool { return strings.Contains(s.err.String(), "no dump can be made") })
	if got := get(t, s.addresses[0], "/latest-database-dump"); got.StatusCode != 503 {
		t.Errorf("%s", got.Status)
	}
	if log := s.err.String(); !strings.Contains(log, nowhere) || !strings.Contains(log, "--database-dump") {
		t.Errorf("the log doesn't say what to do: %s", log)
	}
	s.stop(t, syscall.SIGTERM)
	fail(t, []string{"dump", "--database=" + p.database, "--database-dump=" + nowhere}, nowhere, "--database-dump")
	fail(t, []string{"dump", "--database=" + p.database + "x", "--database-dump=" + p.dumpFile()}, "--database")
	for _, name := range []string{p.database, filepath.Join(testdata, "published", "2y8b79q71l3w1d9kh7i1b5al0mlahnd3.narinfo"), p.dir} {
		if _, err := os.Stat(name); err != nil {
			t.Fatal(err)
		}
		fail(t, []string{"dump", "--database=" + p.database, "--database-dump=" + name}, name, "name another file with --database-dump")
		fail(t, p.args("run-server", "--port=0", "--log-level=ERROR", "--database-dump="+name), name, "name another file with --database-dump")
	}
	for _, value := range []string{"0s", "1", "-1d", "", "never"} {
		misuse(t, p.args("run-server", "--port=0", "--database-dump-interval="+value), "--database-dump-interval", `"`+value+`"`)
	}
}

// TestDumpAccelRedirect: nginx with a configuration for the original finds the file.
func TestDumpAccelRedirect(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--x-accel-redirect", "--database-dump="+p.dumpFile())
	succeed(t, "dump", "--database="+p.database, "--database-dump="+p.dumpFile())
	got := get(t, s.addresses[0], "/latest-database-dump")
	if got.StatusCode != 200 || got.body != "" || got.Header.Get("X-Accel-Redirect") != "/internal/database/dump.db" {
		t.Errorf("%s %v", got.Status, got.Header)
	}
}
