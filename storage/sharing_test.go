package storage_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/storage/importer"
)

const nobody = 65534

// asNobody calls f with the rights of another user for files.
func asNobody(t testing.TB, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("run the tests as root for this one")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // to the end of the thread
		if _, err := unix.SetfsuidRetUid(nobody); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// publicPlace is a place that other users can access.
func publicPlace(t testing.TB) (p place, source string) {
	t.Helper()
	top, err := os.MkdirTemp("", "nar-herder-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	return placeIn(t, top), filepath.Join(top, "source")
}

// TestImportOfAnother: no other user can write to an imported file, whatever rights that
// user had before.
func TestImportOfAnother(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, content: "the nar of the item"}
	overwrite := func(file *os.File, err error) error {
		if err == nil {
			_, err = file.WriteAt([]byte("BAD"), 0)
			err = errors.Join(err, file.Close())
		}
		return err
	}
	for _, test := range []struct {
		name string
		// prepare makes the file writable, and returns open descriptors of it.
		prepare  func(t *testing.T, file string) *os.File
		isShared bool // the file was moved anyway
	}{
		{"mode", func(t *testing.T, file string) *os.File {
			if err := os.Chmod(file, 0o666); err != nil {
				t.Fatal(err)
			}
			return nil
		}, true},
		{"open", func(t *testing.T, file string) (open *os.File) {
			if err := os.Chmod(file, 0o666); err != nil {
				t.Fatal(err)
			}
			asNobody(t, func() {
				var err error
				if open, err = os.OpenFile(file, os.O_RDWR, 0); err != nil {
					t.Error(err)
				}
			})
			if err := os.Chmod(file, 0o644); err != nil {
				t.Fatal(err)
			}
			return open
		}, false},
		{"mapped", func(t *testing.T, file string) *os.File {
			open, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			mapped, err := unix.Mmap(int(open.Fd()), 0, 3, unix.PROT_WRITE, unix.MAP_SHARED)
			if err := errors.Join(err, open.Close()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Munmap(mapped) })
			return nil
		}, false},
		{"owner", func(t *testing.T, file string) *os.File {
			if err := os.Chown(file, nobody, nobody); err != nil {
				t.Fatal(err)
			}
			return nil
		}, false},
		{"other name", func(t *testing.T, file string) (open *os.File) {
			if err := os.Link(file, file+"-2"); err != nil {
				t.Fatal(err)
			}
			open, err := os.OpenFile(file+"-2", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			return open
		}, false},
		{"untouched", func(*testing.T, string) *os.File { return nil }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, source := publicPlace(t)
			lay(t, source, f)
			file := filepath.Join(source, f.name())
			open := test.prepare(t, file)
			before, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			s := p.openTest(t)
			wantOutcomes(t, importAll(t, s, importer.Options{}, source), "1 added")
			if !gone(file) {
				t.Error("the file was not moved")
			}
			stored := filepath.Join(p.store, f.name())
			if after, err := os.Stat(stored); err != nil || os.SameFile(before, after) != test.isShared {
				t.Errorf("the stored file is the very one: %v; want %v", !test.isShared, test.isShared)
			}
			if open != nil {
				if err := overwrite(open, nil); err != nil {
					t.Error(err)
				}
			}
			asNobody(t, func() {
				if err := overwrite(os.OpenFile(stored, os.O_RDWR, 0)); !errors.Is(err, fs.ErrPermission) {
					t.Errorf("another user writes to the stored file: %v", err)
				}
				if err := os.Chmod(stored, 0o666); !errors.Is(err, fs.ErrPermission) {
					t.Errorf("another user changes the stored file's mode: %v", err)
				}
			})
			wantServed(t, s, f)
		})
	}
}

// TestImportStored: a file in the storage is recorded only if no user can write to it
// who can't write to the storage.
func TestImportStored(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, content: "the nar of the item"}
	for _, test := range []struct {
		name  string
		mode  fs.FileMode
		owner int
		links bool
		taken bool
	}{
		{"mode", 0o666, 0, false, true},
		{"own", 0o644, 0, true, true},
		{"another's", 0o644, nobody, false, true},
		{"another's with another name", 0o644, nobody, true, false},
		{"another's that all may write", 0o646, nobody, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, source := publicPlace(t)
			lay(t, source, f)
			stored := filepath.Join(p.store, f.name())
			err := errors.Join(os.MkdirAll(filepath.Dir(stored), 0o755), os.Rename(filepath.Join(source, f.name()), stored), os.Chmod(stored, test.mode))
			if test.owner != 0 {
				err = errors.Join(err, os.Chown(stored, test.owner, test.owner))
			}
			if test.links {
				err = errors.Join(err, os.Link(stored, filepath.Join(source, "other")))
			}
			if err != nil {
				t.Skip("run the tests as root for this one:", err)
			}
			s := p.openTest(t)
			results := importAll(t, s, importer.Options{}, source)
			result := results[f.hash().String()+".narinfo"]
			if !test.taken {
				if result.Err == nil || !strings.Contains(result.Err.Error(), "user 65534") {
					t.Errorf("%v, want an error that names the user", result.Err)
				}
				return
			}
			if result.Outcome != importer.Added {
				t.Fatal(result.Err)
			}
			if info, err := os.Stat(stored); err != nil || info.Mode()&0o022 != 0 {
				t.Errorf("the stored file has mode %v, %v", info.Mode(), err)
			}
			wantServed(t, s, f)
		})
	}
}
