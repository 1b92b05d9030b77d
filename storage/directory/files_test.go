package directory

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage"
)

// readAll opens the name and reads all of it.
func readAll(t *testing.T, d *Directory, name string) (string, error) {
	t.Helper()
	reader, _, err := d.Open(context.Background(), name, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	content, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(content), nil
}

// openNow counts the files of the directory that the process has open.
func openNow(t *testing.T, directory string) (count int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(target, directory+"/") {
			count++
		}
	}
	return count
}

// TestOpenFilesAreCurrent reads files that stay open while others change them.
func TestOpenFilesAreCurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "new"), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "first")
	old, _, err := d.Open(context.Background(), "a", 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"first", "the second", "3rd"} {
		// What was there before keeps another name, as in an exported copy.
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "copy of what came before "+content)); err != nil {
			t.Fatal(err)
		}
		write("a", content) // by another process, as far as d knows
		for range 2 {
			if got, err := readAll(t, d, "a"); err != nil || got != content {
				t.Errorf("read %q, %v; want %q", got, err, content)
			}
		}
	}
	staged, err := d.Stage(context.Background(), "a", strings.NewReader("staged"), 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, d, "a"); err != nil || got != "staged" {
		t.Errorf("read %q, %v; want what was staged", got, err)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(t, d, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file: %v", err)
	}
	if rest, err := io.ReadAll(old); err != nil || string(rest) != "irst" {
		t.Errorf("a reader from before gives %q, %v", rest, err)
	}
	if err := errors.Join(old.Close(), old.Close()); err != nil {
		t.Error(err)
	}
}

// TestOpenFilesAreShared has many read one file, each from its own place.
func TestOpenFilesAreShared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	content := strings.Repeat("0123456789", 10_000)
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var readers sync.WaitGroup
	for i := range 50 {
		readers.Go(func() {
			reader, info, err := d.Open(context.Background(), "a", int64(i*1000), -1)
			if err != nil {
				t.Error(err)
				return
			}
			defer reader.Close()
			if _, offset := reader.(storage.LocalFile).Local(); offset != int64(i*1000) {
				t.Errorf("reader %d begins at %d", i, offset)
			}
			if got, err := io.ReadAll(reader); err != nil || string(got) != content[i*1000:] || info.Size != int64(len(content)) {
				t.Errorf("reader %d got %d bytes of %d, %v", i, len(got), info.Size, err)
			}
		})
	}
	readers.Wait()
}

// TestOpenFilesAreFew looks at how many files stay open, and for how long.
func TestOpenFilesAreFew(t *testing.T) {
	dir := t.TempDir()
	for i := range maxOpenFiles + 50 {
		if err := os.WriteFile(filepath.Join(dir, string(rune('A'+i))), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		d, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		held, _, err := d.Open(t.Context(), "A", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		for i := range maxOpenFiles + 50 {
			if _, err := readAll(t, d, string(rune('A'+i))); err != nil {
				t.Fatal(err)
			}
		}
		if open := openNow(t, dir); open != maxOpenFiles+1 {
			t.Errorf("%d files are open, want those that are kept and the one in use", open)
		}
		time.Sleep(2 * openFileAge)
		synctest.Wait()
		if open := openNow(t, dir); open != 1 {
			t.Errorf("%d files are open after a while, want the one in use", open)
		}
		if _, err := readAll(t, d, "B"); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if open := openNow(t, dir); open != 1 {
			t.Errorf("%d files are open after Close", open)
		}
	})
}
