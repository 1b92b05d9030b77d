package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// readingCommands returns all commands that don't change the database.
func readingCommands(p place, out string) [][]string {
	database := "--database=" + p.database
	return [][]string{
		{"list", database}, {"list", database, "--json"}, {"stats", database}, {"pins", database}, p.args("check"), p.args("check", "--no-closures"),
		p.args("export", filepath.Join(out, "exported")), p.args("remove", "--now", "--dry-run", greeting), p.args("remove", "--dry-run", greeting),
		{"copy-storage", database, "--from=" + p.storage, "--to=" + filepath.Join(out, "copied")}, {"convert", p.database, filepath.Join(out, "original.db")},
		{"backup", database, filepath.Join(out, "backup.db")},
	}
}

// TestReadingCommands runs them without write permission for the directory of the database:
// without a server, beside one, and after one was killed.
func TestReadingCommands(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "nar-herder") // accessible to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Chmod(dir, 0o755)
		os.RemoveAll(dir)
	})
	p := place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(p.storage, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.imports(t, published(greeting))
	programs, err := os.MkdirTemp("", "nar-herder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(programs) })
	program := filepath.Join(programs, "nar-herder")
	for _, err := range []error{os.Chmod(programs, 0o755), os.Link(binary, program)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(when string) {
		t.Helper()
		out, err := os.MkdirTemp("", "nar-herder")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(out)
		for _, err := range []error{os.Mkdir(filepath.Join(out, "copied"), 0o777), os.Chmod(filepath.Join(out, "copied"), 0o777), os.Chmod(out, 0o777), os.Chmod(dir, 0o555)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		before := listFiles(t, p.database)
		for _, args := range readingCommands(p, out) {
			cmd := exec.Command(program, args...)
			if os.Getuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			}
			c := commandOf(cmd)
			c.start(t)
			if status := c.wait(t); status != 0 || len(c.out.String()) == 0 && args[0] != "pins" {
				t.Errorf("%s, %q: status %d, stdout %s, stderr %s", when, args, status, c.out.String(), c.err.String())
			}
		}
		if after := listFiles(t, p.database); after != before {
			t.Errorf("%s: files before: %s, after: %s", when, before, after)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		// Users with write permission leave no files behind either.
		for _, args := range readingCommands(p, t.TempDir())[:6] {
			if r := runProgram(t, args...); r.status != 0 {
				t.Errorf("%s, %q: status %d, stderr %s", when, args, r.status, r.err)
			}
		}
		if after := listFiles(t, p.database); after != before {
			t.Errorf("%s, with permissions: files before: %s, after: %s", when, before, after)
		}
	}
	run("no server")
	s := p.serveProcess(t)
	until(t, "the server has made its reserve", func() bool { _, err := os.Stat(p.database + ".reserve"); return err == nil })
	run("beside a server")
	p.imports(t, published(entropy))
	if out := succeed(t, "list", "--database="+p.database); out != "/gnu/store/"+entropy+"\n/gnu/store/"+greeting+"\n" {
		t.Errorf("list after an import: %s", out)
	}
	s.kill(t)
	run("after a crash")
	p.serve(t).stop(t, syscall.SIGTERM)
	run("after the server has stopped")
}

// listFiles lists the names, inodes, modes and owners of a database and the files beside
// it, without content, which a server changes.
func listFiles(t *testing.T, name string) (list string) {
	t.Helper()
	for _, file := range must(filepath.Glob(name + "*")) {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		system := info.Sys().(*syscall.Stat_t)
		list += fmt.Sprintln(file, system.Ino, info.Mode(), system.Uid, system.Gid)
	}
	return list
}

// TestNoDatabase runs commands without a database, or with an empty one: they neither
// create nor change files.
func TestNoDatabase(t *testing.T) {
	t.Parallel()
	for _, empty := range []bool{false, true} {
		p := newPlace(t)
		if empty {
			if err := os.WriteFile(p.database, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		database := "--database=" + p.database
		commands := append(readingCommands(p, t.TempDir()), p.args("remove", "--now", greeting), p.args("check", "--repair"), p.args("check", "--verify"),
			[]string{"pin", database, greeting}, []string{"unpin", database, greeting}, []string{"mirror-accept-loss", database}, p.args("claim-storage"),
			[]string{"dump", database, "--database-dump=" + filepath.Join(p.dir, "dump.db")}, []string{"migrate", database})
		for _, args := range commands {
			if args[0] == "copy-storage" {
				if err := os.Mkdir(args[3][len("--to="):], 0o755); err != nil {
					t.Fatal(err)
				}
			}
			unusable(t, args, p.database)
		}
		info, err := os.Stat(p.database)
		if empty && (err != nil || info.Size() != 0) || !empty && err == nil {
			t.Errorf("empty %v: afterwards %v, %v", empty, info, err)
		}
		if left := must(filepath.Glob(p.database + "?*")); len(left) > 0 {
			t.Errorf("empty %v: left %q", empty, left)
		}
	}
}
