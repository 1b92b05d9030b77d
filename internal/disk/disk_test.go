package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestRoom: the reserve stays free, whether or not the size is known.
func TestRoom(t *testing.T) {
	t.Parallel()
	const giga = 1 << 30
	free, size := int64(3*giga), int64(100*giga)
	var look Look = func(string) (int64, int64, error) { return free, size, nil }
	for _, test := range []struct {
		free, size, need int64
		ok               bool
	}{
		{3 * giga, 100 * giga, 2 * giga, true},
		{3 * giga, 100 * giga, 2*giga + 1, false},
		{100 << 20, 1 * giga, 40 << 20, true}, // the reserve of a small disk is smaller
		{100 << 20, 1 * giga, 60 << 20, false},
		{0, 100 * giga, 0, false},
	} {
		free, size = test.free, test.size
		if err := look.Check("d", test.need); errors.Is(err, ErrNoRoom) == test.ok || (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
	}
	free, size = 2*giga, 100*giga
	var written int64
	w := &Writer{W: writerFunc(func(p []byte) (int, error) {
		free -= int64(len(p))
		written += int64(len(p))
		return len(p), nil
	}), Directory: "d", Look: look}
	var err error
	for part := make([]byte, 1<<20); err == nil && written < 4*giga; {
		_, err = w.Write(part)
	}
	if !errors.Is(err, ErrNoRoom) || free < giga-lookEvery || free > giga {
		t.Errorf("Write returns %v with %d bytes left", err, free)
	}
	free = 50 * giga // despite the free space, as with a quota
	w.W = writerFunc(func(p []byte) (int, error) { return 0, &fs.PathError{Op: "write", Path: "d/f", Err: syscall.ENOSPC} })
	if _, err := w.Write([]byte("x")); !errors.Is(err, ErrNoRoom) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := Look(nil).Check(t.TempDir()+"/none", 1); err == nil || errors.Is(err, ErrNoRoom) {
		t.Errorf("a missing directory: %v", err)
	}
	if err := Look(nil).Check(t.TempDir(), 1<<60); !errors.Is(err, ErrNoRoom) {
		t.Errorf("more than any disk has: %v", err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRenameNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := RenameNew(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("to an existing name: %v", err)
	}
	if text, err := os.ReadFile(b); err != nil || !bytes.Equal(text, []byte("b")) {
		t.Errorf("the existing file is %q, %v", text, err)
	}
	if err := RenameNew(a, filepath.Join(dir, "c")); err != nil {
		t.Error(err)
	}
	if err := RenameNew(a, filepath.Join(dir, "d")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(fmt.Errorf("a missing file: %w", err))
	}
}
