package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/internal/s3server"
)

// litestream is the program with the configuration of docs/backup.md.
type litestream struct {
	t               *testing.T
	program, config string
	database        string
}

// newLitestream replicates a database to a bucket of the server. It checkpoints more often
// than usual, so that a test with few changes covers that.
func newLitestream(t *testing.T, server *s3server.Server, database string) *litestream {
	t.Helper()
	program, err := s3server.GoProgram("litestream", "github.com/benbjohnson/litestream/cmd/litestream@v0.3.13")
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	server.URL("backups") // makes the bucket
	_, text, _ := strings.Cut(read(t, "../../docs/backup.md"), "```yaml\n")
	text, _, ok := strings.Cut(text, "```")
	if !ok {
		t.Fatal("docs/backup.md has no configuration")
	}
	for old, replacement := range map[string]string{
		"path: /var/lib/nar-herder/nar_herder.db": "path: " + database + "\n    min-checkpoint-page-count: 10",
		"https://s3.example.org":                  "http://" + server.Address,
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("the configuration does not have one %q", old)
		}
		text = strings.Replace(text, old, replacement, 1)
	}
	l := &litestream{t, program, filepath.Join(t.TempDir(), "litestream.yml"), database}
	if err := os.WriteFile(l.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// command prepares a run.
func (l *litestream) command(args ...string) *process {
	p := commandOf(exec.Command(l.program, append([]string{args[0], "-config", l.config}, args[1:]...)...))
	p.Env = []string{"LITESTREAM_ACCESS_KEY_ID=" + s3server.AccessKey, "LITESTREAM_SECRET_ACCESS_KEY=" + s3server.SecretKey}
	return p
}

// replicate starts it.
func (l *litestream) replicate() *process {
	l.t.Helper()
	p := l.command("replicate")
	p.start(l.t)
	return p
}

// replicated waits until a replica has the number of items.
func (l *litestream) replicated(items int) {
	l.t.Helper()
	until(l.t, fmt.Sprintf("%d items are replicated", items), func() bool {
		path := filepath.Join(l.t.TempDir(), "restored.db")
		if l.command("restore", "-o", path, l.database).run(l.t).status != 0 {
			return false
		}
		return len(lines(succeed(l.t, "list", "--database="+path))) == items
	})
}

// TestLitestream loses the disk of the primary's database while items are imported and
// replicated. The primary starts from the replica as the same instance, with all replicated
// items, and the front ends follow it.
func TestLitestream(t *testing.T) {
	t.Parallel()
	const count, before, replicated, lost = 30, 5, 25, 27
	bucket := s3server.New(t)
	in := &instances{t: t, run: command, options: make([][]string, 3), servers: make([]*server, 3)}
	var targets []string
	in.source, in.texts, targets = generated(t, count)
	files := func(from, to int) (files []string) {
		for _, target := range targets[from:to] {
			files = append(files, in.source+target)
		}
		return files
	}
	for i := range in.servers {
		p := newPlace(t)
		p.storage = bucket.URL("nars/farm")
		in.places, in.hosts = append(in.places, p), append(in.hosts, ownHost())
		in.options[i] = []string{"--host=" + in.hosts[i], "--port=" + instancePort, "--log-level=INFO", "--database-dump-interval=1s"}
		if i > 0 {
			in.options[i] = append(in.options[i], "--mirror=http://"+in.address(0), "--storage-read-only")
		}
	}
	primary := &in.places[0]
	disk := filepath.Join(primary.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	primary.database = filepath.Join(disk, "index.db")
	primary.imports(t, files(0, before)...)
	primary.makeDump(t)
	l := newLitestream(t, bucket, primary.database)
	replicating := l.replicate()
	for i := range in.servers {
		in.start(i)
	}
	for _, file := range files(before, replicated) {
		primary.imports(t, file)
	}
	l.replicated(replicated)

	// Some items are no longer replicated, and one of the front ends has them. Then the
	// disk is lost during another import.
	in.kill(1)
	_ = replicating.Process.Kill()
	<-replicating.ended
	primary.imports(t, files(replicated, lost)...)
	until(t, "a front end has items that are not replicated", func() bool {
		return get(t, in.address(2), targets[lost-1]).StatusCode == http.StatusOK
	})
	importing := command(primary.args("import", append([]string{"--keep"}, files(lost, count)...)...)...)
	importing.start(t)
	_ = importing.Process.Kill()
	<-importing.ended
	in.kill(0)
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	fail(t, primary.args("run-server", "--port=0"), "is missing or empty", "restore it")
	restored := filepath.Join(t.TempDir(), "restored.db")
	if r := l.command("restore", "-o", restored, primary.database).run(t); r.status != 0 {
		t.Fatalf("restore: %+v", r)
	}
	succeed(t, "backup", "--database="+restored, primary.database)

	in.start(0)
	if log := in.servers[0].err.String(); !strings.Contains(log, "was restored from a backup") {
		t.Errorf("the log doesn't report the restored database: %s", log)
	}
	in.start(1)
	wanted := func(i, count int) {
		t.Helper()
		for _, target := range targets[:count] {
			_, name := narOf(t, in.texts[target])
			if nar := get(t, in.address(i), "/"+name); get(t, in.address(i), target).body != in.texts[target] || nar.body != read(t, in.source, name) {
				t.Errorf("instance %d does not serve %s", i, target)
			}
		}
	}
	for i := range in.servers {
		wanted(i, replicated)
	}
	if r := runProgram(t, primary.args("check")...); r.status != 0 {
		t.Errorf("check: %+v", r)
	}
	// Only the front end that was ahead needs an administrator.
	l.replicate()
	primary.imports(t, files(replicated, count)...)
	has := func(i int) func() bool {
		return func() bool { return get(t, in.address(i), targets[count-1]).StatusCode == http.StatusOK }
	}
	until(t, "the front end follows", has(1))
	until(t, "the front end that was ahead reports it", func() bool {
		return strings.Contains(get(t, in.address(2), "/health").body, "gone back in time")
	})
	if has(2)() {
		t.Error("the front end that was ahead follows")
	}
	wanted(2, lost)
	succeed(t, "mirror-accept-loss", "--database="+in.places[2].database)
	until(t, "the other front end follows", has(2))
	for i := range in.servers {
		wanted(i, count)
	}
	l.replicated(count)
	if r := runProgram(t, primary.args("check", "--verify")...); r.status != 0 {
		t.Errorf("check: %+v", r)
	}
}
