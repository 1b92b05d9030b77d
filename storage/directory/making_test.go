package directory

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestConcurrentDirectories stores several nars at once in a new storage that a group shares, as
// several processes do: the group may write to all directories.
func TestConcurrentDirectories(t *testing.T) {
	t.Parallel()
	for range 100 {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o775|fs.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 4 {
			d, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				if _, err := d.temporary("nar/lzip/x"); err != nil {
					t.Error(err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, name := range []string{"nar", "nar/lzip"} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o775 {
				t.Fatalf("%s has mode %v", name, info.Mode())
			}
		}
	}
}
