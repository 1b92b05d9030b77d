package main

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCheckResumes interrupts slow checks; the next one resumes.
func TestCheckResumes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	p.imports(t, published(gosrc), published(entropy))
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		// The small nars are read at once, the large ones never.
		slow := command(p.args("check", "--verify", "--json", "--verify-rate=1K", "--restart", "--no-closures")...)
		slow.start(t)
		until(t, "it reads a large nar", func() bool { return reading(t, slow.Process.Pid, p.storage) })
		if err := slow.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if status := slow.wait(t); status != 2 || !strings.Contains(slow.err.String(), "nar-herder: check: interrupted: the next --verify resumes here\n") {
			t.Errorf("status %d: %s", status, slow.err.String())
		}
		c := readChecked(t, result{slow.out.String(), "", 2})
		if c.totals.Complete || len(c.findings) > 0 {
			t.Errorf("%+v, %+v", c.totals, c.findings)
		}
		rest := p.check(t, "--verify")
		if rest.status != 0 || rest.totals.VerifiedFiles != 7-c.totals.VerifiedFiles || c.totals.VerifiedFiles < 5 || !strings.Contains(rest.err, "resumes after") {
			t.Errorf("status %d, %d files before, %+v: %s", rest.status, c.totals.VerifiedFiles, rest.totals, rest.err)
		}
		if again := p.check(t, "--verify"); again.totals.VerifiedFiles != 7 || again.err != "" {
			t.Errorf("%+v: %s", again.totals, again.err)
		}
	}
}

// TestCheckKilled kills a check that has recorded its progress.
func TestCheckKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, small()...)
	p.imports(t, published(gosrc))
	slow := command(p.args("check", "--verify", "--verify-rate=200B")...)
	slow.start(t)
	until(t, "it has recorded its progress", func() bool { return setting(t, p.database, "verify-place") != "" })
	if err := slow.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	slow.wait(t)
	c := p.check(t, "--verify")
	if c.status != 0 || c.totals.VerifiedFiles == 0 || c.totals.VerifiedFiles >= 6 || !strings.HasPrefix(c.err, fmt.Sprintf("verifying: resumes after %d files", 6-c.totals.VerifiedFiles)) {
		t.Errorf("status %d, %+v: %s", c.status, c.totals, c.err)
	}
	if place := setting(t, p.database, "verify-place"); place != "" {
		t.Errorf("left: %s", place)
	}
}

// setting reads a setting from an index that another process uses.
func setting(t testing.TB, database, name string) (value string) {
	t.Helper()
	db, err := sql.Open("sqlite", database+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT value FROM settings WHERE key = ?", name).Scan(&value); err != nil && !errors.Is(err, sql.ErrNoRows) {
		t.Fatal(err)
	}
	return value
}

// reading reports whether the process has one of the large nars open.
func reading(t testing.TB, pid int, storage string) bool {
	t.Helper()
	for _, name := range must(filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))) {
		if target, err := os.Readlink(name); err == nil && (target == storage+"/nar/lzip/"+gosrc || target == storage+"/nar/lzip/"+entropy) {
			return true
		}
	}
	return false
}
