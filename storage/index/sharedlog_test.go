package index

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLogShared: the group of the directory may write to the index of the log that Open
// makes, also where a crash had left one. One that is in use stays as it is. The mode of
// the log itself is not looked at: SQLite sets that of the database while it is empty.
func TestLogShared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.db")
	name := path + "-shm"
	open := func(access Access, want os.FileMode) *Index {
		t.Helper()
		x, err := Open(t.Context(), path, Options{Access: access})
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%v, %v, want %v", info.Mode(), err, want)
		}
		return x
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	err := open(Create, 0o664).Close()
	// SQLite gives the log the mode of the database, to which Open adds that of the directory.
	if err := errors.Join(err, os.Chmod(path, 0o604), os.WriteFile(path+"-wal", nil, 0o600), os.WriteFile(name, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	first := open(Write, 0o664)
	defer first.Close()
	if err := os.Chmod(name, 0o604); err != nil {
		t.Fatal(err)
	}
	open(Write, 0o604).Close()
}
