package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
)

// TestStartFull starts with a full file system of the database and without a reserve: the
// server serves, and recovers when there is room.
func TestStartFull(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := testfs.Small(t, 8<<20)
			p := newPlace(t)
			p.database = filepath.Join(disk, "index.db")
			p.imports(t, filepath.Join(testdata, "published"))
			s := p.serveProcess(t, "--log-level=INFO")
			if err := s.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			s.wait(t)
			if err := os.Remove(p.database + ".reserve"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if signal == syscall.SIGKILL {
				// As after a power failure.
				if err := os.Truncate(p.database+"-shm", 0); err != nil {
					t.Fatal(err)
				}
			}
			free := testfs.Fill(t, disk)
			source := filepath.Join(p.dir, "more")
			generate(t, source, 3)
			// Connections of one process share pages that they can't write.
			s = p.serveProcess(t, "--log-level=INFO", "--storage-hard-limit=1T")
			warns := func() bool {
				got := get(t, s.addresses[0], "/health")
				if got.StatusCode != 200 || strings.Contains(got.body, disk) {
					t.Errorf("%s %s", got.Status, got.body)
				}
				return strings.Contains(got.body, "nothing can be written")
			}
			if !warns() {
				t.Error("/health doesn't say that nothing can be written")
			}
			until(t, "the log says what is full", func() bool { return strings.Contains(s.err.String(), "nothing can be written") })
			target := "/" + narinfoName(greeting)
			for range 3 {
				if got := get(t, s.addresses[0], target); got.StatusCode != 200 || got.body != read(t, testdata, "published", narinfoName(greeting)) {
					t.Errorf("%s: %s", target, got.Status)
				}
				if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", greeting) {
					t.Errorf("nar: %s", got.Status)
				}
				if got := get(t, s.addresses[0], "/00000000000000000000000000000001.narinfo"); got.StatusCode != 404 {
					t.Errorf("an unknown item: %s", got.Status)
				}
			}
			if got := command(p.args("import", "--keep", source)...).run(t); got.status == 0 || !strings.Contains(got.err, "no space left for the database") {
				t.Errorf("import: %+v", got)
			}
			free()
			until(t, "the server writes again", func() bool { return !warns() })
			p.imports(t, source)
			until(t, "the imported item is served", func() bool {
				return get(t, s.addresses[0], "/00000000000000000000000000000001.narinfo").StatusCode == 200
			})
			s.stop(t, syscall.SIGTERM)
			succeed(t, "remove", "--now", "--database="+p.database, "--storage="+p.storage, greeting)
		})
	}
}
