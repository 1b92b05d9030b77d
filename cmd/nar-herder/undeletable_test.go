package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// publicPlace returns a place that other users can access, with the program, and with a
// storage and a directory for the database that they can write to.
func publicPlace(t testing.TB) (p place, program string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nar-herder-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p = place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
	program = filepath.Join(dir, "nar-herder")
	err = errors.Join(os.Chmod(dir, 0o777), os.Mkdir(p.storage, 0o755), os.Chmod(p.storage, 0o777), os.Link(binary, program))
	if err != nil {
		t.Fatal(err)
	}
	return p, program
}

// asNobody prepares a run of the program as an unprivileged user.
func asNobody(program string, args ...string) *process {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return commandOf(cmd)
}

// TestUndeletable: an import with umask 022 has made directories from which the server
// can't delete. It removes no item, however often it is started, until it can.
func TestUndeletable(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("run as root to run this test")
	}
	const count = 20
	p, program := publicPlace(t)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, count)
	p.imports(t, source)
	folder := filepath.Join(p.storage, "nar")
	if err := errors.Join(os.Chmod(p.database, 0o666), os.Chmod(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	args := append(p.args("run-server"), "--port=0", "--log-level=INFO", "--storage-limit=100K", "--ttl=1s", "--storage-check-interval=1s",
		"--storage-nar-removal-criteria=unpinned")
	files := func() int {
		t.Helper()
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for range 3 {
		s := serve(t, asNobody(program, args...))
		until(t, "the health warns", func() bool {
			got := get(t, s.addresses[0], "/health")
			return got.StatusCode == 200 && strings.Contains(got.body, "can't be deleted") && !strings.Contains(got.body, p.dir)
		})
		for target := range texts {
			if got := get(t, s.addresses[0], target); got.StatusCode != 200 {
				t.Errorf("%s: %s", target, got.Status)
			}
		}
		if value := metric(t, s.addresses[0], "narherder_removal_failed_deletions_total"); value == "0" {
			t.Error("the metric counts nothing")
		}
		if value := metric(t, s.addresses[0], "narherder_removal_bytes_total"); value != "0" {
			t.Errorf("%s bytes were removed", value)
		}
		s.stop(t, syscall.SIGTERM)
		if !strings.Contains(s.err.String(), "belongs to root: run 'chown ") || !strings.Contains(s.err.String(), " "+folder+"'") {
			t.Errorf("the log doesn't say what to do: %s", s.err.String())
		}
	}
	if n := files(); n != count {
		t.Errorf("%d of %d files are left", n, count)
	}
	// Items that were withdrawn before also stay, with a warning.
	item := fmt.Sprintf("/gnu/store/%032d-item", 1)
	succeed(t, p.args("remove", item)...)
	s := serve(t, asNobody(program, args...))
	until(t, "the health warns of the withdrawn item", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, "withdrawn items or dropped files can't be removed")
	})
	if out := succeed(t, "list", "--database="+p.database, "--withdrawn"); !strings.Contains(out, item) {
		t.Errorf("%s", out)
	}
	s.stop(t, syscall.SIGTERM)
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	s = serve(t, asNobody(program, args...))
	until(t, "the storage is below its limit", func() bool { return files() < 7 })
	until(t, "the health is good", func() bool { return !strings.Contains(get(t, s.addresses[0], "/health").body, "warnings") })
	s.stop(t, syscall.SIGTERM)
	if _, err := os.Stat(filepath.Join(folder, filepath.Base(item))); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the withdrawn item's file still exists")
	}
}
