package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
)

// beside makes a storage and a directory of sources on one file system.
func beside(t *testing.T) (d *Directory, source string) {
	t.Helper()
	top := t.TempDir()
	source = filepath.Join(top, "source", "nar")
	lay(t, source, "content")
	lay(t, filepath.Join(top, "store", "placeholder"), "")
	return open(t, filepath.Join(top, "store")), source
}

// stageFile opens the source, and stages it for the nar.
func stageFile(t *testing.T, d *Directory, source string, size int64) (bytestore.Staged, error) {
	t.Helper()
	file, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return d.StageFile(t.Context(), nar, file, size)
}

func stat(t *testing.T, name string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// wantLinked stores the source, and asserts that both names are links to one file.
func wantLinked(t *testing.T, d *Directory, source string) {
	t.Helper()
	staged, err := stageFile(t, d, source, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(stat(t, source), stat(t, filepath.Join(d.String(), nar))) {
		t.Error("the file was copied, although both are on one file system")
	}
}

// spooled makes a storage with a file in its spool.
func spooled(t *testing.T) (d *Directory, source string) {
	t.Helper()
	d, _ = beside(t)
	spool, err := d.Spool()
	if err != nil {
		t.Fatal(err)
	}
	source = filepath.Join(spool, "key")
	lay(t, source, "content")
	return d, source
}

func TestStageFileShares(t *testing.T) {
	t.Parallel()
	d, source := beside(t)
	wantLinked(t, d, source)
	// A file that is in the storage already, as after a crash just before its old name was
	// removed.
	if _, err := stageFile(t, d, source, 7); !errors.Is(err, bytestore.ErrCantShare) {
		t.Errorf("again: %v, want ErrCantShare", err)
	}
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	if info, err := d.Stat(t.Context(), nar); err != nil || info.Size != 7 {
		t.Errorf("without the old name: %+v, %v", info, err)
	}
}

// TestStageFileItself: a nar of the storage, staged for its own name, is kept.
func TestStageFileItself(t *testing.T) {
	t.Parallel()
	d, _ := beside(t)
	if err := put(d, nar, "content"); err != nil {
		t.Fatal(err)
	}
	staged, err := stageFile(t, d, filepath.Join(d.String(), nar), 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := listed(t, d); len(found) != 2 || found[nar].Size != 7 {
		t.Errorf("List has %v, want the placeholder and the nar", found)
	}
}

// TestStageFileSourceGoes: after StageFile, the source may be removed.
func TestStageFileSourceGoes(t *testing.T) {
	t.Parallel()
	d, source := beside(t)
	staged, err := stageFile(t, d, source, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	lay(t, source, "another, of the old name")
	if err := staged.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(d.String(), nar)); err != nil || string(content) != "content" {
		t.Errorf("the nar is %q, %v", content, err)
	}
}

func TestStageFileRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, source string) (file string){
		"several names": func(t *testing.T, source string) string {
			if err := os.Link(source, source+"-2"); err != nil {
				t.Fatal(err)
			}
			return source
		},
		"private": func(t *testing.T, source string) string {
			if err := os.Chmod(source, 0o600); err != nil {
				t.Fatal(err)
			}
			return source
		},
		"other file system": func(t *testing.T, source string) string {
			other := filepath.Join(testfs.Small(t, 1<<20), "nar")
			lay(t, other, "content")
			if err := os.Chmod(other, 0o604); err != nil {
				t.Fatal(err)
			}
			return other
		},
		// Another mount of the same file system.
		"other mount": func(t *testing.T, source string) string {
			return filepath.Join(testfs.ReadOnly(t, filepath.Dir(source)), "nar")
		},
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, source := beside(t)
			file := make(t, source)
			if err := os.Chmod(d.String(), 0o775); err != nil { // which is shared with the group
				t.Fatal(err)
			}
			before := stat(t, file).Mode()
			if _, err := stageFile(t, d, file, 7); !errors.Is(err, bytestore.ErrCantShare) {
				t.Errorf("%v, want ErrCantShare", err)
			}
			if after := stat(t, file).Mode(); after != before {
				t.Errorf("the source had mode %v, and has %v", before, after)
			}
			// It can be copied.
			from, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			staged, err := d.Stage(t.Context(), nar, from, 7)
			if err != nil {
				t.Fatal(err)
			}
			if err := staged.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			copied := stat(t, filepath.Join(d.String(), nar))
			if os.SameFile(stat(t, file), copied) || copied.Mode()&0o044 != 0o044 {
				t.Errorf("the copy is %v", copied.Mode())
			}
		})
	}
}

// TestStageFileOfSpool: a file of the spool always has exactly one name, so that a killed
// process leaves no other.
func TestStageFileOfSpool(t *testing.T) {
	t.Parallel()
	d, source := spooled(t)
	before := stat(t, source)
	names := func() string {
		t.Helper()
		var found []string
		for name := range listed(t, d) {
			if name != "placeholder" {
				found = append(found, name)
			}
		}
		slices.Sort(found)
		return strings.Join(found, " ")
	}
	stage := func() bytestore.Staged {
		t.Helper()
		staged, err := stageFile(t, d, source, 7)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(); got != spoolFolder+"/key" {
			t.Errorf("after Stage: %s", got)
		}
		return staged
	}
	stage().Abort()
	if got := names(); got != spoolFolder+"/key" {
		t.Errorf("after Abort: %s", got)
	}
	staged := stage()
	for range 2 {
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	staged.Abort()
	if got := names(); got != nar {
		t.Errorf("after Commit: %s", got)
	}
	if !os.SameFile(before, stat(t, filepath.Join(d.String(), nar))) {
		t.Error("the file was copied")
	}
	if err := d.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStageFileOfSpoolMeanwhile: if another process has replaced the file, Commit fails.
func TestStageFileOfSpoolMeanwhile(t *testing.T) {
	t.Parallel()
	for what, meanwhile := range map[string]string{"gone": "", "another": "another"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d, source := spooled(t)
			kept, err := os.Open(source) // so that the new file has another inode
			if err != nil {
				t.Fatal(err)
			}
			defer kept.Close()
			staged, err := stageFile(t, d, source, 7)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(source); err != nil {
				t.Fatal(err)
			}
			if meanwhile != "" {
				lay(t, source, meanwhile)
			}
			if err := staged.Commit(t.Context()); err == nil {
				t.Error("Commit succeeds")
			}
			if _, err := d.Stat(t.Context(), nar); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the nar exists: %v", err)
			}
		})
	}
}

// TestStageFileOfSpoolLinked: after a move out of the spool has failed, files of the spool are
// linked or copied.
func TestStageFileOfSpoolLinked(t *testing.T) {
	t.Parallel()
	d, source := spooled(t)
	d.cantMove.Store(true)
	wantLinked(t, d, source)
}

// TestStageFileOfSpoolMounted: only a failed move detects another mount of the same file
// system. The next file must be copied.
func TestStageFileOfSpoolMounted(t *testing.T) {
	t.Parallel()
	d, source := spooled(t)
	folder := filepath.Join(d.String(), "nar")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	testfs.Bind(t, t.TempDir(), folder)
	staged, err := stageFile(t, d, source, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(t.Context()); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("moved to another mount: %v, want EXDEV", err)
	}
	staged.Abort()
	if _, err := stageFile(t, d, source, 7); !errors.Is(err, bytestore.ErrCantShare) {
		t.Errorf("again: %v, want ErrCantShare", err)
	}
	if content, err := os.ReadFile(source); err != nil || string(content) != "content" {
		t.Errorf("the source is %q, %v", content, err)
	}
}

// TestStageFileTrusted: with [bytestore.TrustOwners], files with other names or owners are
// linked, and keep their mode.
func TestStageFileTrusted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare func(source string) error
		shares  bool
	}{
		"as it is":            {func(string) error { return nil }, true},
		"several names":       {func(source string) error { return os.Link(source, source+"-2") }, true},
		"another owner":       {func(source string) error { return os.Chown(source, 65534, 65534) }, true},
		"read-only":           {func(source string) error { return os.Chmod(source, 0o444) }, true},
		"writable by a group": {func(source string) error { return os.Chmod(source, 0o664) }, false},
		"writable by all":     {func(source string) error { return os.Chmod(source, 0o666) }, false},
		"private":             {func(source string) error { return os.Chmod(source, 0o640) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, source := beside(t)
			if err := test.prepare(source); errors.Is(err, fs.ErrPermission) {
				t.Skip("run the tests as root for this one")
			} else if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(d.String(), 0o775); err != nil { // which is shared with the group
				t.Fatal(err)
			}
			before := stat(t, source)
			file, err := os.Open(source)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			ctx := bytestore.TrustOwners(t.Context())
			staged, err := d.StageFile(ctx, nar, file, 7)
			if !test.shares {
				if !errors.Is(err, bytestore.ErrCantShare) {
					t.Errorf("%v, want ErrCantShare", err)
				}
			} else if err := errors.Join(err, staged.Commit(ctx), d.Flush(ctx, nar)); err != nil {
				t.Error(err)
			} else if !os.SameFile(before, stat(t, filepath.Join(d.String(), nar))) {
				t.Error("the file was copied")
			}
			if after := stat(t, source); after.Mode() != before.Mode() || after.Sys().(*syscall.Stat_t).Gid != before.Sys().(*syscall.Stat_t).Gid {
				t.Errorf("the source had mode %v, and has %v", before.Mode(), after.Mode())
			}
		})
	}
}
