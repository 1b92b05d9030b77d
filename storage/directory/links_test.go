package directory

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"nar-herder/storage/bytestore"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const nar = "nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"

// lay writes a file, and creates its directories.
func lay(t testing.TB, file, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name)); err != nil {
		t.Fatal(err)
	}
}

// put stages and commits content.
func put(d *Directory, name, content string) error {
	staged, err := d.Stage(context.Background(), name, strings.NewReader(content), int64(len(content)))
	if err != nil {
		return err
	}
	if err := staged.Commit(context.Background()); err != nil {
		staged.Abort()
		return err
	}
	return nil
}

// listed returns the results of List.
func listed(t testing.TB, d *Directory) map[string]bytestore.Info {
	t.Helper()
	found := map[string]bytestore.Info{}
	for info, err := range d.List(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		found[info.Name] = info
	}
	return found
}

func TestSymlinksThatLeadOut(t *testing.T) {
	t.Parallel()
	tests := map[string]func(top, store string){
		"absolute file": func(top, store string) { link(t, top+"/outside/nar", store+"/"+nar) },
		"relative file": func(top, store string) { link(t, "../../../outside/nar", store+"/"+nar) },
		"through another": func(top, store string) {
			link(t, "hop", store+"/"+nar)
			link(t, "../../../outside/nar", store+"/nar/lzip/hop")
		},
		"dangling":          func(top, store string) { link(t, top+"/outside/absent", store+"/"+nar) },
		"to root":           func(top, store string) { link(t, "/etc/passwd", store+"/"+nar) },
		"directory":         func(top, store string) { link(t, top+"/outside", store+"/nar") },
		"directory below":   func(top, store string) { link(t, "../../outside/lzip", store+"/nar/lzip") },
		"directory, absent": func(top, store string) { link(t, top+"/absent", store+"/nar") },
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			store := filepath.Join(top, "store")
			lay(t, top+"/outside/nar", "secret")
			lay(t, top+"/outside/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0", "secret")
			lay(t, top+"/source", "content")
			lay(t, store+"/placeholder", "")
			make(top, store)
			d := open(t, store)

			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, bytestore.ErrOutside) || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v, want ErrOutside", what, err)
				}
			}
			_, err := d.Stat(t.Context(), nar)
			refused("Stat", err)
			reader, _, err := d.Open(t.Context(), nar, 0, -1)
			refused("Open", err)
			if err == nil {
				reader.Close()
			}
			refused("Flush", d.Flush(t.Context(), nar))
			if strings.HasPrefix(name, "directory") {
				refused("Stage", put(d, nar, "overwritten"))
				_, err := stageFile(t, d, top+"/source", 7)
				refused("StageFile", err)
				refused("Remove", d.Remove(t.Context(), nar))
			} else {
				// Replace and remove affect the link itself, not its target.
				if err := put(d, nar, "content"); err != nil {
					t.Errorf("replace the link: %v", err)
				}
				if err := d.Remove(t.Context(), nar); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if found := listed(t, d); len(found) != 1 {
				t.Errorf("List has %v, want only the placeholder", found)
			}
			for _, file := range []string{"/outside/nar", "/outside/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"} {
				if content, err := os.ReadFile(top + file); err != nil || string(content) != "secret" {
					t.Errorf("%s outside of the storage: %q, %v", file, content, err)
				}
			}
		})
	}
}

// TestSymlinksWithin: symbolic links within the storage are followed, but not listed.
func TestSymlinksWithin(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	lay(t, store+"/disk2/lzip/"+filepath.Base(nar), "content")
	link(t, "disk2", store+"/nar")
	d := open(t, store)
	if info, err := d.Stat(t.Context(), nar); err != nil || info.Size != 7 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	if found := listed(t, d); len(found) != 1 {
		t.Errorf("List has %v, want one", found)
	}
	link(t, "loop", store+"/loop")
	if _, err := d.Stat(t.Context(), "loop"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to itself: %v, want an error that is not fs.ErrNotExist", err)
	}
}

// TestIrregularFile: a file that is not regular is not a nar, and doesn't block.
func TestIrregularFile(t *testing.T) {
	t.Parallel()
	tests := map[string]func(name string) error{
		"pipe":      func(name string) error { return unix.Mkfifo(name, 0o666) },
		"directory": func(name string) error { return os.Mkdir(name, 0o777) },
		"full directory": func(name string) error {
			return errors.Join(os.Mkdir(name, 0o777), os.WriteFile(name+"/file", nil, 0o666))
		},
		"socket": func(name string) error { return unix.Mknod(name, unix.S_IFSOCK|0o666, 0) },
	}
	if os.Geteuid() == 0 {
		tests["device"] = func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }
	}
	for kind, make := range tests {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			lay(t, store+"/nar/lzip/other", "other")
			if err := make(filepath.Join(store, nar)); err != nil {
				t.Skip(err)
			}
			d := open(t, store)
			done := timer(t)
			if _, err := d.Stat(t.Context(), nar); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat: %v, want fs.ErrNotExist", err)
			}
			if reader, _, err := d.Open(t.Context(), nar, 0, -1); err == nil {
				t.Error("Open succeeds")
				reader.Close()
			}
			err := put(d, nar, "content")
			if _, statErr := d.Stat(t.Context(), nar); (err == nil) != (statErr == nil) {
				t.Errorf("Commit over it: %v; then Stat: %v", err, statErr)
			}
			err = d.Remove(t.Context(), nar)
			if _, statErr := os.Lstat(filepath.Join(store, nar)); (err == nil) != errors.Is(statErr, fs.ErrNotExist) {
				t.Errorf("Remove: %v, then Lstat: %v", err, statErr)
			}
			done()
			for name, info := range listed(t, d) {
				if info.Temporary {
					t.Errorf("left behind: %s", name)
				}
			}
		})
	}
}

// timer fails the test if it blocks.
func timer(t *testing.T) (done func()) {
	timer := time.AfterFunc(20*time.Second, func() { panic(t.Name() + " waits for a pipe or the like") })
	return func() { timer.Stop() }
}

// TestOddFiles: other files in the directory do no harm.
func TestOddFiles(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	for _, name := range []string{"a", "nar/b c", "nar/new\nline", "nar/caf\xe9", "nar/\xff\xfe/deep", `back\slash`} {
		lay(t, filepath.Join(store, name), "odd")
	}
	lay(t, filepath.Join(store, nar), "content")
	d := open(t, store)
	found := listed(t, d)
	if _, ok := found[nar]; !ok || len(found) < 5 {
		t.Errorf("List has %v", found)
	}
}

// TestTemporary: temporary files are listed as temporary, can be removed, and can't be read as
// nars.
func TestTemporary(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	d := open(t, store)
	staged, err := d.Stage(t.Context(), nar, bytes.NewReader(make([]byte, 5000)), 5000)
	if err != nil {
		t.Fatal(err)
	}
	lay(t, store+"/"+temporaryPrefix+"left", "left")
	found := listed(t, d)
	if len(found) != 2 {
		t.Errorf("List has %v, want two", found)
	}
	for name, info := range found {
		if !info.Temporary || info.Usage == 0 {
			t.Errorf("List yields %+v, want a temporary file that uses space", info)
		}
		if _, err := d.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat of %s: %v, want fs.ErrNotExist", name, err)
		}
		if reader, _, err := d.Open(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %s: %v, want fs.ErrNotExist", name, err)
			if err == nil {
				reader.Close()
			}
		}
		if err := put(d, name, "evil"); err == nil {
			t.Errorf("Stage accepted the name %s", name)
		}
		if err := d.Remove(t.Context(), name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if err := staged.Commit(t.Context()); err == nil {
		t.Error("Commit after Remove succeeds")
	}
	if found := listed(t, d); len(found) != 0 {
		t.Errorf("left behind: %v", found)
	}
}
