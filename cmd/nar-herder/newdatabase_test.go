package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/s3server"
)

// TestLostDatabase starts with a database that is missing or empty, as where a file
// system isn't mounted, although the storage was claimed by another database: the
// server doesn't start, and so gives no 404, unless --new-database is given.
func TestLostDatabase(t *testing.T) {
	t.Parallel()
	for name, bucket := range map[string]*s3server.Server{"directory": nil, "bucket": s3server.New(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if bucket != nil {
				p.storage = bucket.URL("nars/farm")
			}
			p.imports(t, filepath.Join(testdata, "published"))
			item := "/" + narinfoName(greeting)
			lost := p
			lost.database = filepath.Join(t.TempDir(), "index.db")
			refused := func(more ...string) {
				t.Helper()
				for _, args := range [][]string{
					lost.args("run-server", append(more, "--port=0", "--ttl=1h", "--negative-ttl=1h")...),
					lost.args("import", append(more, "--keep", filepath.Join(testdata, "published"))...),
				} {
					fail(t, args, lost.database, "--new-database", "storage")
				}
			}
			refused()
			if _, err := os.Stat(lost.database); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a database was made: %v", err)
			}
			if err := os.WriteFile(lost.database, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			refused()
			if bucket != nil {
				// Whose the storage is can't be known then.
				bucket.Stop()
				fail(t, lost.args("run-server", "--port=0"), lost.database, "can't be found out", "--new-database")
				if err := bucket.Start(); err != nil {
					t.Fatal(err)
				}
			}
			s := lost.serve(t, "--new-database")
			if got := get(t, s.addresses[0], item); got.StatusCode != 404 {
				t.Errorf("%s", got.Status)
			}
			s.stop(t, syscall.SIGTERM)
			lost.serve(t).stop(t, syscall.SIGTERM)
			// The server with the original database still works.
			s = p.serve(t)
			if got := get(t, s.addresses[0], item); got.StatusCode != 200 {
				t.Errorf("%s", got.Status)
			}
		})
	}
}

// TestFirstDatabase: a storage without an owner needs no --new-database, and neither does
// the storage of a mirror, which gets its items from the source.
func TestFirstDatabase(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if err := os.CopyFS(filepath.Join(p.storage, "nar"), os.DirFS(filepath.Join(testdata, "published/nar"))); err != nil {
		t.Fatal(err)
	}
	p.serve(t).stop(t, syscall.SIGTERM)
	p.imports(t, filepath.Join(testdata, "published"))
	source := p.serve(t)
	succeed(t, "dump", "--database="+p.database, "--database-dump="+filepath.Join(p.dir, "dump.db"))
	front := newPlace(t)
	front.storage = p.storage
	s := front.serve(t, "--mirror=http://"+source.addresses[0])
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	if !strings.Contains(s.err.String(), "front end") {
		t.Errorf("%s", s.err.String())
	}
}
