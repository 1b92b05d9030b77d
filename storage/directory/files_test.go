package directory

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"nar-herder/storage/bytestore"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// readAll opens the name and reads the file.
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

// TestOpenIsCurrent opens a name while others replace its file.
func TestOpenIsCurrent(t *testing.T) {
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
		// The old file keeps another name, as in an export.
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "copy of what came before "+content)); err != nil {
			t.Fatal(err)
		}
		write("a", content) // unknown to d, as if by another process
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
		t.Errorf("read %q, %v; want the staged content", got, err)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(t, d, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file: %v", err)
	}
	if rest, err := io.ReadAll(old); err != nil || string(rest) != "irst" {
		t.Errorf("an earlier reader: %q, %v", rest, err)
	}
	if err := errors.Join(old.Close(), old.Close()); err != nil {
		t.Error(err)
	}
}

// TestOpenMany: concurrent readers of one file have offsets of their own.
func TestOpenMany(t *testing.T) {
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
			if _, offset := reader.(bytestore.LocalFile).Local(); offset != int64(i*1000) {
				t.Errorf("reader %d begins at %d", i, offset)
			}
			var got strings.Builder
			if _, err := io.Copy(&got, reader); err != nil || got.String() != content[i*1000:] || info.Size != int64(len(content)) {
				t.Errorf("reader %d got %d bytes of %d, %v", i, got.Len(), info.Size, err)
			}
		})
	}
	readers.Wait()
}
