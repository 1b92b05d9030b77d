package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/s3server"
	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
)

// refusesToServe returns a slip with which the server must not start.
func refusesToServe(name string, status int, says []string, options func(t *testing.T, d *desk) []string) slip {
	return slip{name: name, status: status, says: says, args: func(t *testing.T, d *desk) []string {
		return d.args("run-server", append([]string{"--port=0", "--log-level=WARN"}, options(t, d)...)...)
	}}
}

// options returns constant options.
func options(more ...string) func(*testing.T, *desk) []string {
	return func(*testing.T, *desk) []string { return more }
}

// wantServed checks that an item is served as it was imported.
func wantServed(t *testing.T, s *server) {
	t.Helper()
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.StatusCode != 200 || got.body != read(t, published(greeting)) {
		t.Errorf("narinfo: %s %s", got.Status, got.body)
	}
	if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", greeting) {
		t.Errorf("nar: %s", got.Status)
	}
}

// healthSays waits until /health has a text.
func healthSays(t *testing.T, s *server, text string) {
	t.Helper()
	until(t, "the health says "+text, func() bool { return strings.Contains(get(t, s.addresses[0], "/health").body, text) })
}

// servedSlips are slips of the server, and slips of several steps.
var servedSlips = []slip{
	refusesToServe("an empty host", statusUsage, []string{"--host is empty"}, options("--host=")),
	refusesToServe("an empty host of the control listener", statusUsage, []string{"--control-host is empty"}, options("--control-port=0", "--control-host=")),
	refusesToServe("an empty storage and no mirror", statusUsage, []string{"--storage=DIR"}, options("--storage=")),
	refusesToServe("a limit without its unit", statusUsage, []string{"--storage-limit", "9 lacks a unit", "9T"},
		options("--storage-limit=9", "--storage-nar-removal-criteria=unpinned")),
	refusesToServe("criteria that match everything at once", statusUsage, []string{"unused-for=0s"},
		options("--storage-limit=9G", "--storage-nar-removal-criteria=unused-for=0s")),
	refusesToServe("a storage and a database of different instances", 1, []string{"another instance", "--yes="},
		func(_ *testing.T, d *desk) []string { return []string{"--storage=" + d.other.storage} }),
	refusesToServe("a socket in the place of the database", 1, []string{"--host=unix:"},
		func(_ *testing.T, d *desk) []string { return []string{"--host=unix:" + d.database} }),
	refusesToServe("a pid file in the place of the database", 1, []string{"--pid-file=", "process id"},
		func(_ *testing.T, d *desk) []string { return []string{"--pid-file=" + d.database} }),
	refusesToServe("a pid file in the place of a nar", 1, []string{"--pid-file=", "process id"},
		func(_ *testing.T, d *desk) []string { return []string{"--pid-file=" + d.nar(greeting)} }),
	refusesToServe("a pid file that is a pipe", 1, []string{"--pid-file=", "regular file"},
		func(t *testing.T, d *desk) []string {
			if err := syscall.Mkfifo(d.root+"/pipe", 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"--pid-file=" + d.root + "/pipe"}
		}),
	{name: "cached nars in the storage, or above it", run: func(t *testing.T, d *desk) {
		before := tree(t, d.storage)
		for _, dir := range []string{d.storage, d.nar(""), d.dir} {
			r := runProgram(t, d.args("run-server", "--port=0", "--enable-cached-compression=lzip", "--cached-compression-directory=lzip="+dir)...)
			if r.status != 1 || !strings.Contains(r.err, "overlaps the storage") {
				t.Errorf("%s: %+v", dir, r)
			}
		}
		if tree(t, d.storage) != before {
			t.Error("the storage has changed")
		}
	}},
	refusesToServe("a cache of the storage within it", statusUsage, []string{"overlaps the storage"},
		func(_ *testing.T, d *desk) []string { return []string{"--storage-cache=" + d.storage + "/cache"} }),
	refusesToServe("the minimum of free space is more than the disk has", statusUsage, []string{"not mounted"},
		options("--storage-minimum-free-space=8000P")),

	{name: "the paths of database and dump swapped", run: func(t *testing.T, d *desk) {
		dump := d.dir + "/dump.db"
		succeed(t, "dump", "--database="+d.database, "--database-dump="+dump)
		before := read(t, dump)
		d.runSlip(t, []string{"run-server", "--port=0", "--database=" + dump, "--database-dump=" + d.database, "--storage=" + d.storage}, 1, "is not a dump: name another file")
		if read(t, dump) != before {
			t.Error("the dump has changed")
		}
	}},
	{name: "the dump path is in the storage", run: func(t *testing.T, d *desk) {
		dump := d.storage + "/dump.db"
		succeed(t, "dump", "--database="+d.database, "--database-dump="+dump)
		wantServed(t, d.serve(t, "--database-dump="+dump))
		if c := d.check(t); c.status != 0 || c.totals.Findings["stranger"] == 0 {
			t.Errorf("check: status %d, %v", c.status, c.totals.Findings)
		}
	}},
	{name: "import from the storage of another instance", run: func(t *testing.T, d *desk) { importsFrom(t, d, d.other.storage) }},
	{name: "import from an export", run: func(t *testing.T, d *desk) {
		out := d.root + "/out"
		succeed(t, d.args("export", "--copy", out)...)
		importsFrom(t, d, out)
	}},
	{name: "a server with an unfinished copy of the storage", run: func(t *testing.T, d *desk) {
		copied := unfinishedCopy(t, d)
		s := place{d.dir, d.database, copied}.serve(t, "--log-level=INFO")
		healthSays(t, s, "the storage has no owner, and lacks nars")
		healthSays(t, s, "4 of 5 sampled nars are missing")
		if got := get(t, s.addresses[0], "/health/ready"); got.StatusCode != 200 {
			t.Errorf("/health/ready: %s", got.Status)
		}
		if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 {
			t.Errorf("a nar: %s", got.Status)
		}
		if !strings.Contains(s.err.String(), "lacks 4 of 5 sampled nars") {
			t.Error("the log doesn't report it")
		}
		if _, err := os.Stat(filepath.Join(copied, bytestore.OwnerName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the storage was claimed: %v", err)
		}
		s.stop(t, syscall.SIGTERM)
		// The remedy works, and corrects the index.
		p := place{d.dir, d.database, copied}
		succeed(t, p.args("claim-storage")...)
		if c := p.check(t); c.totals.Findings["missing"] != 0 || c.totals.Findings["unstored"] != 4 {
			t.Errorf("check: %v", c.totals.Findings)
		}
	}},
	{name: "a server with its storage not mounted", run: func(t *testing.T, d *desk) {
		unmounted := d.make(t, "unmounted")
		s := place{d.dir, d.database, unmounted}.serve(t, "--log-level=INFO")
		if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode < 500 {
			t.Errorf("nar: %s", got.Status)
		}
		if got := get(t, s.addresses[0], "/health"); got.StatusCode != 503 || !strings.Contains(got.body, "is it mounted?") {
			t.Errorf("the health: %s %s", got.Status, got.body)
		}
		if !strings.Contains(s.err.String(), "is it mounted?") {
			t.Error("the log doesn't report it")
		}
		isEmpty(t, unmounted)
	}},
	{name: "import beside a server after its owner file was deleted", run: func(t *testing.T, d *desk) {
		s := d.serve(t)
		if err := os.Remove(filepath.Join(d.storage, bytestore.OwnerName)); err != nil {
			t.Fatal(err)
		}
		d.imports(t, small()...)
		wantServed(t, s)
		if o := ownerOf(t, d.place); o.Database != d.database {
			t.Errorf("the owner is %+v", o)
		}
	}},
	{name: "import into a storage that is read-only", run: func(t *testing.T, d *desk) {
		view := testfs.ReadOnly(t, d.storage)
		d.runSlip(t, d.at(view, "import", "--keep", published(plus)), 1, "read-only file system")
	}},
	{name: "all items are removed by a list of all", run: func(t *testing.T, d *desk) {
		s := d.serve(t)
		if r := runProgram(t, d.args("remove", "--tag=kind=good")...); r.status != 0 || !strings.Contains(r.out, "5 items withdrawn") {
			t.Errorf("%+v", r)
		}
		if out := succeed(t, d.args("import", d.source(t))...); !strings.Contains(out, "5 completed") {
			t.Errorf("import: %s", out)
		}
		until(t, "it is served again", func() bool { return get(t, s.addresses[0], "/"+narinfoName(greeting)).StatusCode == 200 })
		wantServed(t, s)
	}},
	{name: "a limit of nothing, with criteria that match everything", run: func(t *testing.T, d *desk) {
		options := []string{"--log-level=INFO", "--storage-limit=0", "--storage-nar-removal-criteria=unpinned"}
		s := d.serve(t, options...)
		until(t, "all are withdrawn", func() bool { return strings.Count(s.err.String(), "withdrew an item") == 5 })
		healthSays(t, s, "limit")
		// No nar is deleted while clients may have its narinfo.
		if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 {
			t.Errorf("nar: %s", got.Status)
		}
		s.stop(t, syscall.SIGTERM)
		if out := succeed(t, d.args("import", d.source(t))...); !strings.Contains(out, "5 completed") {
			t.Errorf("import: %s", out)
		}
	}},
	{name: "criteria without a limit", run: func(t *testing.T, d *desk) {
		s := d.serve(t, "--storage-nar-removal-criteria=unpinned", "--log-level=INFO")
		until(t, "it is logged", func() bool { return strings.Contains(s.err.String(), "nothing is removed") })
	}},
	{name: "a TTL that a restart lowers after a withdrawal", run: func(t *testing.T, d *desk) {
		d.serve(t, "--ttl=30d").stop(t, syscall.SIGTERM)
		succeed(t, d.args("remove", greeting)...)
		s := d.serve(t, "--ttl=1s")
		_, kept, _ := strings.Cut(succeed(t, "list", "--withdrawn", "--database="+d.database), "kept until ")
		until, err := time.Parse(time.RFC3339, strings.TrimSpace(kept))
		if err != nil || time.Until(until) < 29*24*time.Hour {
			t.Errorf("kept until %v, %v", until, err)
		}
		if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 {
			t.Errorf("nar: %s", got.Status)
		}
	}},
	{name: "a clock that was a year ahead", run: func(t *testing.T, d *desk) {
		succeed(t, d.args("remove", greeting)...)
		execute(t, d.database, "UPDATE narinfos SET withdrawn_at = withdrawn_at + 31536000000 WHERE withdrawn_at IS NOT NULL")
		s := d.serve(t)
		if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode != 200 {
			t.Errorf("nar: %s", got.Status)
		}
		if out := succeed(t, d.args("import", d.source(t))...); !strings.Contains(out, "1 completed") {
			t.Errorf("import: %s", out)
		}
	}},
	{name: "an old backup of the database, restored alone", run: restoresOld},
	{name: "a new identity for the database that is in use", run: func(t *testing.T, d *desk) {
		succeed(t, "new-identity", "--database="+d.database)
		d.runSlip(t, d.args("run-server", "--port=0"), 1, "another instance", "claim-storage --yes=")
	}},

	{name: "a mirror of itself", run: func(t *testing.T, d *desk) {
		succeed(t, "dump", "--database="+d.database, "--database-dump="+d.dir+"/dump.db")
		s := d.serve(t)
		address := s.addresses[0]
		s.stop(t, syscall.SIGTERM)
		_, port, _ := strings.Cut(address, ":")
		s = d.serve(t, "--mirror=http://"+address, "--port="+port)
		healthSays(t, s, "it is this very instance")
		wantServed(t, s)
	}},
	{name: "a mirror of another kind of server", run: func(t *testing.T, d *desk) {
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
		defer web.Close()
		s := d.serve(t, "--mirror="+web.URL)
		healthSays(t, s, "is not followed")
		wantServed(t, s)
	}},
	{name: "a mirror that is started with another source", run: mirrorsAnother},
	{name: "a bucket's prefix one level too high", run: func(t *testing.T, d *desk) {
		bucket := s3server.New(t)
		p := place{d.root, d.root + "/bucket.db", bucket.URL("nars/farm")}
		p.imports(t, small()...)
		p.storage = bucket.URL("nars")
		if r := runProgram(t, p.args("import", "--keep", d.source(t))...); r.status != 1 || !strings.Contains(r.err, "none of the stored nars") {
			t.Errorf("%+v", r)
		}
	}},
}

// importsFrom imports from a directory that others serve, without --keep.
func importsFrom(t *testing.T, d *desk, from string) {
	t.Helper()
	for _, name := range small() {
		if err := os.WriteFile(filepath.Join(from, filepath.Base(name)), []byte(read(t, name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, from)
	third := place{d.root, d.root + "/third.db", d.make(t, "third")}
	if r := runProgram(t, third.args("import", from)...); r.status != 0 || !strings.Contains(r.out, "5 added") || !strings.Contains(r.err, from+" is a storage or an export: its nars are copied, not moved") {
		t.Errorf("import: %+v", r)
	}
	if tree(t, from) != before {
		t.Error("the served files have changed")
	}
	wantServed(t, third.serve(t))
}

// restoresOld restores an old database, after imports and removals.
func restoresOld(t *testing.T, d *desk) {
	old := read(t, d.database)
	d.imports(t, published(plus))
	succeed(t, d.args("remove", "--now", greeting)...)
	if err := os.WriteFile(d.database, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	s := d.serve(t)
	if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); got.StatusCode < 500 {
		t.Errorf("a removed nar: %s", got.Status)
	}
	if c := d.check(t); c.status != 1 || c.totals.Findings["missing"] != 1 || c.totals.Findings["stranger"] != 1 {
		t.Errorf("check: status %d, %v", c.status, c.totals.Findings)
	}
	if c := d.check(t, "--repair"); c.totals.Repairs["unclaimed"] != 1 {
		t.Errorf("check --repair: %v", c.totals.Repairs)
	}
	// Items imported since are imported again, from the storage itself.
	if out := succeed(t, d.args("import", published(plus))...); !strings.Contains(out, "1 added") {
		t.Errorf("import: %s", out)
	}
}

// mirrorsAnother starts a mirror with the URL of another instance, which has much less:
// nothing is withdrawn.
func mirrorsAnother(t *testing.T, d *desk) {
	small := place{d.root, d.root + "/small.db", d.make(t, "small")}
	small.imports(t, published(plus))
	for _, p := range []place{d.place, small} {
		succeed(t, "dump", "--database="+p.database, "--database-dump="+p.dir+"/dump.db")
	}
	mirror := place{d.make(t, "mirror"), d.root + "/mirror/index.db", d.make(t, "mirror/storage")}
	source := d.serve(t)
	m := mirror.serve(t, "--mirror=http://"+source.addresses[0])
	until(t, "it has the nar", func() bool { return get(t, m.addresses[0], "/nar/lzip/"+greeting).StatusCode == 200 })
	m.stop(t, syscall.SIGTERM)
	m = mirror.serve(t, "--mirror=http://"+small.serve(t).addresses[0])
	healthSays(t, m, "it has shrunk from 5 items to 1")
	wantServed(t, m)
}
