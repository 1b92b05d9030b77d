package index

import (
	"database/sql"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// openFiles returns how many open files with that name this process has.
func openFiles(t *testing.T, path string) (count int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, entry := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && name == path {
			count++
		}
	}
	return count
}

// TestReplacedWhileRecognised replaces a database of the original by its conversion while
// another process waits to recognise it. That process would read the old file with the new
// one's log.
func TestReplacedWhileRecognised(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, made := filepath.Join(dir, "nar_herder.db"), filepath.Join(dir, "made.db")
	makeDatabase(t, path, originalSchema)
	x, err := Open(t.Context(), made, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	lock.SetMaxOpenConns(1)
	if _, err := lock.Exec("BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t, path)
	opened := make(chan error)
	go func() {
		x, err := Open(t.Context(), path, Options{})
		if err == nil {
			err = x.Close()
		}
		opened <- err
	}()
	for end := time.Now().Add(30 * time.Second); openFiles(t, path) == before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it does not come to open the file")
		}
	}
	for _, err := range []error{os.Rename(path, path+".original"), os.Rename(made, path)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The log of the new database is not empty.
	if x, err = Open(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	update(t, x, func(tx *Tx) error { return tx.SetSetting("a", "b") })
	if _, err := lock.Exec("COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}
