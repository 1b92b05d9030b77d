package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/s3server"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/owner"
)

// ownerOf reads the owner file of a directory.
func ownerOf(t *testing.T, p place) (o owner.Owner) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, p.storage, bytestore.OwnerName)), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// claims takes the storage from its owner, after a run that shows the owner.
func (p place) claims(t *testing.T, from owner.Owner) {
	t.Helper()
	fail(t, p.args("claim-storage"), "--yes="+from.Instance)
	fail(t, p.args("claim-storage", "--yes=another"), "--yes=another", from.Instance)
	if out := succeed(t, p.args("claim-storage", "--yes="+from.Instance)...); !strings.Contains(out, from.Database) {
		t.Errorf("claim-storage: %s", out)
	}
}

// TestLostDatabase: if the database is missing or empty, as on an unmounted file system,
// and the storage belongs to another database, neither server nor import creates a new one,
// so clients get no 404; claim-storage does.
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
			lost := p
			lost.database = filepath.Join(t.TempDir(), "index.db")
			refused := func() {
				t.Helper()
				for _, args := range [][]string{
					lost.args("run-server", "--port=0"), lost.args("run-server", "--port=0", "--mirror=http://127.0.0.1:1"),
					lost.args("import", "--keep", filepath.Join(testdata, "published")),
				} {
					fail(t, args, lost.database, "claim-storage --yes=", p.database)
				}
			}
			refused()
			if _, err := os.Stat(lost.database); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a database was created: %v", err)
			}
			if err := os.WriteFile(lost.database, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			refused()
			if bucket != nil {
				bucket.Stop()
				fail(t, lost.args("run-server", "--port=0"), lost.database, "can't be read")
				if err := bucket.Start(); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := os.Remove(lost.database); err != nil {
				t.Fatal(err)
			}
			owned := ownerOf(t, p)
			fail(t, lost.args("claim-storage"))
			succeed(t, lost.args("claim-storage", "--yes="+owned.Instance)...)
			lost.imports(t, filepath.Join(testdata, "published"))
			fail(t, p.args("run-server", "--port=0"), "another instance", lost.database)
		})
	}
}

// TestUnownedStorage: a server or an import claims a storage with nars and without an owner, but a
// mirror and other commands don't.
func TestUnownedStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if err := os.CopyFS(filepath.Join(p.storage, "nar"), os.DirFS(filepath.Join(testdata, "published/nar"))); err != nil {
		t.Fatal(err)
	}
	succeed(t, "import", "--narinfos-only", "--database="+p.database, filepath.Join(testdata, "published")) // without nars
	fail(t, p.args("run-server", "--port=0", "--mirror=http://127.0.0.1:1"), "--storage-read-only", "claim-storage")
	mirror := newPlace(t) // has no database yet
	mirror.storage = p.storage
	fail(t, mirror.args("run-server", "--port=0", "--mirror=http://127.0.0.1:1"), "--storage-read-only", "claim-storage")
	for _, args := range [][]string{p.args("remove", greeting), p.args("check", "--repair")} {
		if r := runProgram(t, args...); r.status == 0 || !strings.Contains(r.err, "no owner") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if _, err := os.Stat(filepath.Join(p.storage, bytestore.OwnerName)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("it has an owner: %v", err)
	}
	p.serve(t).stop(t, syscall.SIGTERM)
	if o := ownerOf(t, p); o.Database != p.database || o.Host == "" || o.Since.IsZero() {
		t.Errorf("the owner is %+v", o)
	}
	// An owner file of an earlier version.
	if err := os.WriteFile(filepath.Join(p.storage, bytestore.OwnerName), []byte(ownerOf(t, p).Instance+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.imports(t, filepath.Join(testdata, "published"))
	if o := ownerOf(t, p); o.Database != p.database {
		t.Errorf("the owner is %+v", o)
	}
}

// TestOwnershipLost: a server that loses its storage stops writing, and reports it at /health.
func TestOwnershipLost(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--log-level=INFO")
	q := newPlace(t)
	q.storage = p.storage
	succeed(t, "import", "--narinfos-only", "--database="+q.database, filepath.Join(testdata, "published"))
	q.claims(t, ownerOf(t, p))
	fail(t, p.args("remove", greeting), "another instance")
	until(t, "the health reports it", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, "belongs to another instance")
	})
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)+"/info"); got.body != `{"stored": false}` {
		t.Errorf("it says that a nar is stored: %s", got.body)
	}
	if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != http.StatusOK {
		t.Errorf("a nar: %s", got.Status)
	}
}

// TestCopiedDatabase: a copy of a database is refused with both remedies: new-identity for
// a copy, claim-storage for a moved database.
func TestCopiedDatabase(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	q := newPlace(t)
	q.storage = p.storage
	if err := os.WriteFile(q.database, []byte(read(t, p.database)), 0o644); err != nil {
		t.Fatal(err)
	}
	owned := ownerOf(t, p)
	for _, args := range [][]string{
		q.args("run-server", "--port=0"), q.args("remove", greeting), q.args("import", filepath.Join(testdata, "published")),
	} {
		fail(t, args, "new-identity", "claim-storage --yes="+owned.Instance, p.database, q.database)
	}
	// The database was moved.
	moved := q
	moved.claims(t, owned)
	fail(t, p.args("remove", greeting), "new-identity")
	p.claims(t, ownerOf(t, q))
	// The database is a copy: a front end that follows the original.
	succeed(t, "dump", "--database="+p.database, "--database-dump="+filepath.Join(p.dir, "dump.db"))
	primary := p.serve(t)
	front := q.serve(t, "--log-level=INFO", "--mirror=http://"+primary.addresses[0], "--storage-read-only")
	until(t, "the log names the remedy", func() bool { return strings.Contains(front.err.String(), "new-identity") })
	fail(t, []string{"new-identity", "--database=" + q.database}, "in use by process")
	front.stop(t, syscall.SIGTERM)
	succeed(t, "new-identity", "--database="+q.database)
	fail(t, q.args("remove", greeting), "another instance")
	front = q.serve(t, "--log-level=INFO", "--mirror=http://"+primary.addresses[0], "--storage-read-only")
	if got := get(t, front.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != http.StatusOK {
		t.Errorf("a nar: %s", got.Status)
	}
}

// TestOneServer: resources of one server or instance are refused to a second.
func TestOneServer(t *testing.T) {
	t.Parallel()
	p, q := newPlace(t), newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	cached, cache, dump := filepath.Join(p.dir, "zstd"), filepath.Join(p.dir, "cache"), filepath.Join(p.dir, "dump.db")
	mark := filepath.Join(cached, strings.Repeat("0", 32)+"-x")
	if err := errors.Join(os.Mkdir(cached, 0o755), os.WriteFile(mark, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	s := p.serve(t, "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+cached, "--storage-cache="+cache)
	until(t, "the first scan removes the file", func() bool {
		_, err := os.Stat(mark)
		return errors.Is(err, fs.ErrNotExist)
	})
	fail(t, p.args("run-server", "--port=0"), "--database="+p.database, "process", s.addresses[0])
	refused := func() {
		t.Helper()
		for option, name := range map[string]string{"--cached-compression-directory=zstd=": cached, "--storage-cache=": cache, "--database-dump=": dump} {
			if err := os.WriteFile(mark, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			args := q.args("run-server", "--port=0", option+name)
			if strings.HasPrefix(option, "--cached") {
				args = append(args, "--enable-cached-compression=zstd")
			}
			if r := runProgram(t, args...); r.status != 1 || !strings.Contains(r.err, "nar-herder: "+option+name) || !strings.Contains(r.err, p.database) {
				t.Errorf("%v: %+v", args, r)
			}
			if _, err := os.Stat(mark); err != nil {
				t.Errorf("%s: the second server changed it: %v", option, err)
			}
		}
		fail(t, []string{"dump", "--database=" + q.database, "--database-dump=" + dump}, "--database-dump", p.database)
	}
	refused()
	succeed(t, "dump", "--database="+p.database, "--database-dump="+dump)
	s.stop(t, syscall.SIGTERM)
	refused()
	p.serve(t, "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+cached, "--storage-cache="+cache)
}

// TestDefaultPaths: by default, dumps and cached nars are beside the database.
func TestDefaultPaths(t *testing.T) {
	t.Parallel()
	for database, want := range map[string][2]string{
		defaultDatabase: {"/var/lib/nar-herder/nar_herder_dump.db", "/var/cache/nar-herder/nar"},
		"/srv/index.db": {"/srv/index_dump.db", "/srv/index_cached"},
		"/srv/a.b/x":    {"/srv/a.b/x_dump.db", "/srv/a.b/x_cached"},
	} {
		if got := [2]string{besideDatabase(database, dumpSuffix), cacheDirectory(database)}; got != want {
			t.Errorf("%s: %v, want %v", database, got, want)
		}
	}
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	if out := succeed(t, "dump", "--database="+p.database); !strings.Contains(out, filepath.Join(p.dir, "index_dump.db")) {
		t.Errorf("dump: %s", out)
	}
}
