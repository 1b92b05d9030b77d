package storagetest

import (
	"errors"
	"nar-herder/storage/bytestore"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// stager returns the store if it shares files; otherwise it skips the test.
func stager(t *testing.T, s bytestore.Store) bytestore.Store {
	t.Helper()
	file, err := os.Open(source(t, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	staged, err := s.StageFile(t.Context(), "nar/shared", file, 1)
	if errors.Is(err, bytestore.ErrCantShare) {
		t.Skip("the store shares no files")
	}
	if err != nil {
		t.Fatal(err)
	}
	staged.Abort()
	return s
}

// source writes a file outside of the store.
func source(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// tryStageFile opens the file, and stages it.
func tryStageFile(t *testing.T, s bytestore.Store, name, file string, size int64) (bytestore.Staged, error) {
	t.Helper()
	opened, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	return stager(t, s).StageFile(t.Context(), name, opened, size)
}

// stageFile stages the file, or skips the test if it can't be shared.
func stageFile(t *testing.T, s bytestore.Store, name, file string, size int64) bytestore.Staged {
	t.Helper()
	staged, err := tryStageFile(t, s, name, file, size)
	if errors.Is(err, bytestore.ErrCantShare) {
		t.Skipf("the store can't share local files: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return staged
}

func testStageFile(t *testing.T, s bytestore.Store) {
	content := random(300_000, 1)
	file := source(t, content)
	staged := stageFile(t, s, name, file, int64(len(content)))
	wantAbsent(t, s, name)
	for range 2 {
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	staged.Abort()
	wantContent(t, s, name, content)
	// The caller may remove the source; the stored bytes remain.
	if err := os.Remove(file); err != nil {
		t.Errorf("the source is gone already: %v", err)
	}
	wantContent(t, s, name, content)
	wantNothingLeft(t, s, name)
}

func testStageFileWrongSize(t *testing.T, s bytestore.Store) {
	file := source(t, []byte("eight by"))
	for _, size := range []int64{0, 7, 9, 1 << 40} {
		staged, err := tryStageFile(t, s, name, file, size)
		if err == nil {
			staged.Abort()
		}
		if !errors.Is(err, bytestore.ErrWrongSize) && !errors.Is(err, bytestore.ErrCantShare) {
			t.Errorf("8 bytes staged as %d: %v, want ErrWrongSize", size, err)
		}
	}
	wantAbsent(t, s, name)
	wantNothingLeft(t, s)
}

func testStageFileAbort(t *testing.T, s bytestore.Store) {
	file := source(t, []byte("content"))
	staged := stageFile(t, s, name, file, 7)
	staged.Abort()
	wantAbsent(t, s, name)
	wantNothingLeft(t, s)
	if err := staged.Commit(t.Context()); err == nil {
		t.Error("Commit after Abort succeeds")
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "content" {
		t.Errorf("after Abort the source is %q, %v", content, err)
	}
}

func testStageFileReplace(t *testing.T, s bytestore.Store) {
	put(t, s, name, []byte("before"))
	file := source(t, []byte("the new content"))
	staged := stageFile(t, s, name, file, 15)
	wantContent(t, s, name, []byte("before"))
	if err := staged.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, name, []byte("the new content"))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, name, []byte("the new content"))
	wantNothingLeft(t, s, name)
}

// testStageFileUnusable: StageFile rejects directories and pipes without blocking.
func testStageFileUnusable(t *testing.T, s bytestore.Store) {
	directory := t.TempDir()
	file := source(t, []byte("content"))
	pipe := filepath.Join(directory, "pipe")
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, unusable := range []string{directory, pipe} {
		staged, err := tryStageFile(t, s, name, unusable, 7)
		if err == nil {
			staged.Abort()
		}
		if !errors.Is(err, bytestore.ErrCantShare) {
			t.Errorf("StageFile of %s: %v, want ErrCantShare", unusable, err)
		}
	}
	for _, invalid := range []string{"", ".", "../x", "/x", "a/../b"} {
		if staged, err := tryStageFile(t, s, invalid, file, 7); err == nil {
			t.Errorf("StageFile accepted the name %q", invalid)
			staged.Abort()
		}
	}
	wantAbsent(t, s, name)
	wantNothingLeft(t, s)
}
