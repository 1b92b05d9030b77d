package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// asNobody calls f with the file permissions of a user who is not root.
func asNobody(f func()) {
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread stays locked, so that it ends with its goroutine.
		runtime.LockOSThread()
		_ = unix.Setfsuid(65534) // f will fail
		f()
	}()
	<-done
}

// TestListContinues: an unreadable directory doesn't affect the others.
func TestListContinues(t *testing.T) {
	t.Parallel()
	// Not t.TempDir, which other users can't enter.
	store, err := os.MkdirTemp("", "nar-herder-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(store) })
	for _, name := range []string{"nar/gzip/a", "nar/lzip/b", "nar/lzip/below/c", "nar/zstd/d", "nar/e", "z"} {
		lay(t, filepath.Join(store, name), "content")
	}
	chmod := func(mode fs.FileMode) {
		t.Helper()
		if err := errors.Join(os.Chmod(store, 0o755), os.Chmod(filepath.Join(store, "nar/lzip"), mode)); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0)
	defer chmod(0o755)
	d := open(t, store)
	list := func(most int) (names, failed []string) {
		asNobody(func() {
			for info, err := range d.List(t.Context()) {
				if errors.Is(err, fs.ErrPermission) {
					failed = append(failed, info.Name)
				} else if err != nil {
					t.Error(err)
				} else {
					names = append(names, info.Name)
				}
				if most--; most == 0 {
					break
				}
			}
		})
		return names, failed
	}
	names, failed := list(100)
	slices.Sort(names) // in no particular order
	if want := []string{"nar/e", "nar/gzip/a", "nar/zstd/d", "z"}; !slices.Equal(names, want) || !slices.Equal(failed, []string{"nar/lzip"}) {
		t.Errorf("listed %q, failed %q", names, failed)
	}
	// The caller may also stop at an error.
	for most := 1; most <= 5; most++ {
		if names, failed := list(most); len(names)+len(failed) != most {
			t.Errorf("stopped at %d: listed %q, failed %q", most, names, failed)
		}
	}
}
