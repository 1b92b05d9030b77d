package directory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
)

func TestOpenFails(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	lay(t, top+"/file", "")
	for _, name := range []string{top + "/absent", top + "/file", top + "/absent/below"} {
		d, err := Open(name)
		if err == nil {
			d.Close()
			t.Errorf("%s is opened as a storage", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
}

// TestGone: after the directory was moved or unmounted, all errors mean unknown.
func TestGone(t *testing.T) {
	t.Parallel()
	type test struct {
		make func(t *testing.T, store string) // the storage exists, but is empty
		lose func(t *testing.T, store string)
	}
	none := func(*testing.T, string) {}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]test{
		"deleted": {none, func(t *testing.T, store string) { must(t, os.RemoveAll(store)) }},
		"renamed": {none, func(t *testing.T, store string) { must(t, os.Rename(store, store+"-away")) }},
		"replaced": {none, func(t *testing.T, store string) {
			must(t, os.Rename(store, store+"-away"))
			must(t, os.Mkdir(store, 0o755))
		}},
		"replaced by a file": {none, func(t *testing.T, store string) {
			must(t, os.RemoveAll(store))
			must(t, os.WriteFile(store, nil, 0o644))
		}},
		"parent renamed": {none, func(t *testing.T, store string) {
			must(t, os.Rename(filepath.Dir(store), filepath.Dir(store)+"-away"))
		}},
		"mounted over": {none, func(t *testing.T, store string) {
			testfs.Bind(t, testfs.Small(t, 1<<20), store)
		}},
		"unmounted": {func(t *testing.T, store string) {
			other := testfs.Small(t, 1<<20)
			must(t, unix.Mount(other, store, "", unix.MS_BIND, ""))
		}, func(t *testing.T, store string) { must(t, unix.Unmount(store, unix.MNT_DETACH)) }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := filepath.Join(t.TempDir(), "parent", "store")
			must(t, os.MkdirAll(store, 0o755))
			test.make(t, store)
			d := open(t, store)
			must(t, put(d, nar, "content"))
			staged, err := d.Stage(t.Context(), nar+"-staged", strings.NewReader("x"), 1)
			must(t, err)
			test.lose(t, store)

			unknown := func(what string, err error) {
				t.Helper()
				if err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v, want an error that is not fs.ErrNotExist", what, err)
				}
			}
			_, err = d.Stat(t.Context(), "nar/lzip/absent")
			unknown("Stat of a missing nar", err)
			_, _, err = d.Open(t.Context(), "nar/absent/absent", 0, -1)
			unknown("Open of a missing nar", err)
			unknown("Remove of a missing nar", d.Remove(t.Context(), "nar/lzip/absent"))
			unknown("Flush of a missing nar", d.Flush(t.Context(), "nar/lzip/absent"))
			unknown("Probe", d.Probe(t.Context()))
			unknown("Sync", d.Sync(t.Context()))
			// Successful reads return the right content.
			if _, err := d.Stat(t.Context(), nar); err != nil {
				unknown("Stat", err)
			}
			// A Sync precedes each row.
			unknown("Stage, Commit and Sync", errors.Join(staged.Commit(t.Context()), d.Sync(t.Context())))
			unknown("all that", errors.Join(put(d, nar, "content"), d.Sync(t.Context())))
			var listErr error
			for _, err := range d.List(t.Context()) {
				listErr = errors.Join(listErr, err)
			}
			unknown("List", listErr)
		})
	}
}

// refusal asserts that the error is about permissions, and doesn't mean absent.
func refusal(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want an error that is not fs.ErrNotExist", what, err)
	} else if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("%s: %v, want one about permission", what, err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	lay(t, filepath.Join(store, nar), "content")
	lay(t, store+"/nar/lzip/"+temporaryPrefix+"left", "left")
	source := filepath.Join(store, "source")
	lay(t, source, "content")
	d := open(t, testfs.ReadOnly(t, store))
	if info, err := d.Stat(t.Context(), nar); err != nil || info.Size != 7 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	reader, _, err := d.Open(t.Context(), nar, 0, -1)
	if err != nil {
		t.Errorf("Open: %v", err)
	} else {
		reader.Close()
	}
	refusal(t, "Stage", put(d, nar, "new"))
	refusal(t, "Stage below a new directory", put(d, "new/nar", "new"))
	refusal(t, "Remove", d.Remove(t.Context(), nar))
	refusal(t, "Probe", d.Probe(t.Context()))
	if _, err := stageFile(t, d, source, 7); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("StageFile: %v", err)
	}
	if content, err := os.ReadFile(filepath.Join(store, nar)); err != nil || string(content) != "content" {
		t.Errorf("the nar is %q, %v", content, err)
	}
}

// TestPermission needs a user other than root.
func TestPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root has all permissions: see TestReadOnly")
	}
	store := t.TempDir()
	lay(t, filepath.Join(store, nar), "content")
	d := open(t, store)
	chmod := func(name string, mode fs.FileMode) {
		t.Helper()
		if err := os.Chmod(filepath.Join(store, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(nar, 0)
	_, _, err := d.Open(t.Context(), nar, 0, -1)
	refusal(t, "Open", err)
	chmod(nar, 0o644)
	chmod("nar/lzip", 0o500)
	refusal(t, "Stage", put(d, nar, "new"))
	refusal(t, "Remove", d.Remove(t.Context(), nar))
	chmod("nar/lzip", 0)
	_, err = d.Stat(t.Context(), nar)
	refusal(t, "Stat", err)
	_, err = d.Stat(t.Context(), nar+"-absent")
	refusal(t, "Stat of a missing nar", err)
	var listErr error
	for _, err := range d.List(t.Context()) {
		listErr = errors.Join(listErr, err)
	}
	refusal(t, "List", listErr)
	chmod("nar/lzip", 0o755)
	if err := put(d, nar, "new"); err != nil {
		t.Error(err)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	store := testfs.Small(t, size)
	d := open(t, store)
	if err := put(d, nar, "content"); err != nil {
		t.Fatal(err)
	}
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", what, err)
		}
		if found := listed(t, d); len(found) != 1 || found[nar].Size != 7 {
			t.Errorf("%s: the storage has %v, want no change", what, found)
		}
	}
	large := strings.Repeat("x", 2*size)
	full("Stage of too much", put(d, nar, large))
	full("Stage of too much below a new directory", put(d, "nar/zstd/new", large))
	file := filepath.Join(t.TempDir(), "large")
	lay(t, file, large)
	source, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	_, err = d.Stage(t.Context(), nar, source, 2*size)
	full("Stage of a file", err)
	if _, err := stageFile(t, d, file, 2*size); !errors.Is(err, bytestore.ErrCantShare) {
		t.Errorf("StageFile from another file system: %v, want ErrCantShare", err)
	}
	if err := put(d, "nar/half", large[:size/2]); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := d.Remove(t.Context(), "nar/half"); err != nil {
		t.Error(err)
	}

	free := testfs.Fill(t, store)
	if err := d.Probe(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Probe of a full disk: %v, want ENOSPC", err)
	}
	if err := d.Sync(t.Context()); err != nil {
		t.Errorf("Sync: %v", err)
	}
	// Removing nars frees space, so it must work.
	if err := d.Remove(t.Context(), nar); err != nil {
		t.Errorf("Remove: %v", err)
	}
	free()
	if err := errors.Join(d.Probe(t.Context()), put(d, nar, "content")); err != nil {
		t.Error(err)
	}
	if found := listed(t, d); len(found) != 1 {
		t.Errorf("left behind: %v", found)
	}
}
