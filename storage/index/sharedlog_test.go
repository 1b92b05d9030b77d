package index

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLogShared: the group of the directory may write to the index of the log that Open
// creates, also after a crash. Open does not change one that is in use. The mode of the log
// itself is not checked: SQLite gives an empty log the mode of the database.
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
	// SQLite gives the log the mode of the database, and Open adds the directory's group
	// bits.
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
