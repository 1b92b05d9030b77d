package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// backedUp starts a primary and a mirror with its own cached nars. The backup of the
// primary is older than its last changes, which include a removal and which the mirror has
// followed.
func backedUp(t *testing.T) (in *instances, targets []string, backup, removed string) {
	t.Helper()
	in = &instances{t: t, run: command, options: make([][]string, 2), servers: make([]*server, 2)}
	in.source, in.texts, targets = generated(t, 5)
	for i := range in.servers {
		in.places, in.hosts = append(in.places, newPlace(t)), append(in.hosts, ownHost())
		in.options[i] = []string{"--host=" + in.hosts[i], "--port=" + instancePort, "--log-level=INFO", "--ttl=1h", "--database-dump-interval=1s"}
	}
	in.options[1] = append(in.options[1], "--mirror=http://"+in.address(0), "--enable-cached-compression=zstd", "--cached-compression-min-uses=1")
	p := in.places[0]
	p.imports(t, in.source+targets[0], in.source+targets[1], in.source+targets[4])
	succeed(t, "tag", "--database="+p.database, "kept=yes", targets[0][1:33])
	succeed(t, "pin", "--database="+p.database, targets[0][1:33])
	p.makeDump(t)
	in.start(0)
	in.start(1)
	succeed(t, p.args("remove", targets[1][1:33])...)
	backup = filepath.Join(t.TempDir(), "backup.db")
	if out := succeed(t, "backup", "--database="+p.database, backup); !strings.Contains(out, backup) {
		t.Errorf("backup: %s", out)
	}
	fail(t, []string{"backup", "--database=" + p.database, backup}, backup, "--replace")
	succeed(t, "backup", "--database="+p.database, "--replace", backup)
	// Importing the first item takes its withdrawal back.
	p.imports(t, in.source+targets[1], in.source+targets[2], in.source+targets[3])
	succeed(t, p.args("remove", "--now", targets[4][1:33])...)
	for _, target := range targets[:4] {
		until(t, "the mirror has "+target, func() bool { return in.serves(1, target) })
	}
	_, name := narOf(t, in.texts[targets[2]])
	get(t, in.address(1), "/"+name)
	until(t, "the mirror has a cached nar", func() bool {
		return strings.Contains(get(t, in.address(1), targets[2]).body, "Compression: zstd\n")
	})
	until(t, "the mirror has followed the removal", func() bool { return get(t, in.address(1), targets[4]).StatusCode == http.StatusNotFound })
	return in, targets[:4], backup, targets[4][1:33]
}

// serves reports whether an instance serves an item, with its nar in its storage.
func (in *instances) serves(i int, target string) bool {
	in.t.Helper()
	got, err := tryGet(in.address(i), target)
	if err != nil || got.StatusCode != http.StatusOK || !strings.HasPrefix(got.body, in.texts[target]) {
		return false
	}
	_, name := narOf(in.t, got.body)
	nar, err := os.ReadFile(filepath.Join(in.places[i].storage, name))
	return err == nil && string(nar) == read(in.t, in.source, name)
}

// TestRestoredBackup: a restored backup needs no claim, the server and check report what is
// missing, mirrors refuse to follow, and their narinfos restore what the backup lacks.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"curl", "jq"} {
		required(t, program)
	}
	in, targets, backup, removed := backedUp(t)
	p, mirror := in.places[0], in.places[1]
	in.kill(0) // leaves the log behind
	if err := os.WriteFile(p.database, []byte(read(t, backup)), 0o664); err != nil {
		t.Fatal(err)
	}
	before := read(t, p.database)
	for _, args := range [][]string{p.args("run-server", "--port=0"), p.args("import", in.source), {"list", "--database=" + p.database}, {"migrate", "--database=" + p.database}} {
		fail(t, args, p.database+"-wal belongs to another database")
	}
	if read(t, p.database) != before {
		t.Fatal("the log of the lost database was applied to the backup")
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(p.database + suffix); err != nil {
			t.Fatal(err)
		}
	}

	in.start(0)
	if log := in.servers[0].err.String(); !strings.Contains(log, "was restored from a backup") || !strings.Contains(log, "docs/backup.md") {
		t.Errorf("the log doesn't report the restored backup: %s", log)
	}
	if out := succeed(t, "list", "--database="+p.database, "--tag=kept=yes", "--pinned"); !strings.Contains(out, targets[0][1:33]) {
		t.Errorf("tagged and pinned is %q", out)
	}
	r := runProgram(t, p.args("check")...)
	for _, target := range targets[2:] {
		if _, name := narOf(t, in.texts[target]); !strings.Contains(r.out, "stranger: "+name) {
			t.Errorf("check does not report %s: %+v", name, r)
		}
	}
	if r.status != 1 || !strings.Contains(r.out, "missing: nar/"+removed) {
		t.Errorf("check: %+v", r)
	}
	succeed(t, p.args("remove", "--now", removed)...)
	until(t, "the mirror refuses its source", func() bool {
		return strings.Contains(get(t, in.address(1), "/health").body, "gone back in time")
	})
	if r := runProgram(t, "mirror-status", "http://"+in.address(1)); r.status != 1 || !strings.Contains(r.out, "gone back in time") {
		t.Errorf("mirror-status: %+v", r)
	}

	// The mirror has what the backup lacks, and the storage has the nars.
	_, script, _ := strings.Cut(read(t, "../../docs/backup.md"), "```sh\nday=")
	script, _, _ = strings.Cut(script, "```")
	shell := exec.Command("/bin/sh", "-c", "set -e; day="+strings.ReplaceAll(script, "127.0.0.1:8734", in.address(1)))
	shell.Dir = t.TempDir()
	if out, err := shell.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%s: %v, %s", script, err, out)
	}
	p.imports(t, filepath.Join(shell.Dir, "narinfos"))
	theirs := succeed(t, "list", "--database="+mirror.database)
	if ours := succeed(t, "list", "--database="+p.database); ours != theirs {
		t.Errorf("the primary has %s, the mirror %s", ours, theirs)
	}
	succeed(t, "mirror-accept-loss", "--database="+mirror.database)
	until(t, "the mirror follows again", func() bool {
		return runProgram(t, "mirror-status", "http://"+in.address(1)).status == 0
	})
	for i := range in.servers {
		for _, target := range targets {
			if !in.serves(i, target) {
				t.Errorf("instance %d lacks %s", i, target)
			}
		}
	}
	// The database no longer counts as a backup.
	in.servers[0].stop(t, syscall.SIGTERM)
	in.start(0)
	if log := in.servers[0].err.String(); strings.Contains(log, "was restored from a backup") {
		t.Error("the log reports the restored backup a second time")
	}
	if r := runProgram(t, p.args("check", "--verify")...); r.status != 0 || strings.Contains(r.out, "stranger") {
		t.Errorf("check: %+v", r)
	}
}

// TestRestoredElsewhere: on another path, a restored backup is refused, with the command
// that helps.
func TestRestoredElsewhere(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	q := newPlace(t)
	q.storage, q.database = p.storage, filepath.Join(q.dir, "restored.db")
	succeed(t, "backup", "--database="+p.database, q.database)
	owned := ownerOf(t, p)
	for _, args := range [][]string{q.args("run-server", "--port=0"), q.args("import", filepath.Join(testdata, "published"))} {
		fail(t, args, "restored here", "claim-storage --yes="+owned.Instance)
	}
	q.claims(t, owned)
	q.serve(t).stop(t, syscall.SIGTERM)
	// A database that a server has used doesn't count as an old backup.
	fail(t, []string{"backup", "--database=" + p.database, "--replace", q.database}, q.database, "another server")
	misuse(t, []string{"backup", "--database=" + p.database}, "<file>")
	fail(t, []string{"backup", "--database=" + filepath.Join(p.dir, "none"), filepath.Join(p.dir, "backup")}, "none", "--database")
}
