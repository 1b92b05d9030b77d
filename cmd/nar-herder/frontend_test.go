package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFrontEnd: a front end serves the nars of the primary's storage, also while the
// primary is down, writes nothing, and replaces the primary at the end.
func TestFrontEnd(t *testing.T) {
	t.Parallel()
	const nars = 6
	p := newPlace(t)
	host := ownHost()
	source, texts, targets := generated(t, nars)
	file := func(n int) string { return filepath.Join(source, strings.TrimPrefix(targets[n], "/")) }
	p.imports(t, file(0), file(1))
	primaryOptions := []string{"--host=" + host, "--port=" + instancePort, "--log-level=INFO", "--ttl=1s", "--database-dump-interval=1s"}
	primary := p.serve(t, primaryOptions...)

	q := newPlace(t)
	q.storage = p.storage
	front := q.serve(t, "--log-level=INFO", "--ttl=1s", "--mirror=http://"+primary.addresses[0], "--storage-read-only",
		"--storage-limit=0", "--storage-nar-removal-criteria=unreferenced")
	address := front.addresses[0]
	served := func(n int) bool {
		got, err := tryGet(address, targets[n])
		if err != nil || got.StatusCode != http.StatusOK {
			return false
		}
		_, name := narOf(t, texts[targets[n]])
		nar := get(t, address, "/"+name)
		return nar.StatusCode == http.StatusOK && nar.body == read(t, source, name)
	}
	p.imports(t, file(2))
	for n := range 3 {
		until(t, "the front end serves "+targets[n], func() bool { return served(n) })
	}
	if sent := narsSent(t, primary.addresses[0]); sent != 0 {
		t.Errorf("the primary sent %v nars", sent)
	}
	if info := get(t, address, strings.Replace(targets[0], ".narinfo", ".narinfo/info", 1)).body; info != `{"stored": false}` {
		t.Errorf("the front end vouches for a nar: %s", info)
	}

	// It writes nothing and removes nothing.
	refused := func(p place, n int) {
		t.Helper()
		if r := runProgram(t, p.args("import", file(n))...); r.status != 1 || !strings.Contains(r.err, "belongs to another instance") || !strings.Contains(r.err, "claim-storage") {
			t.Errorf("import: %+v", r)
		}
	}
	refused(q, 3)
	fail(t, q.args("remove", "--now", targets[1][1:33]), "another instance", "claim-storage")
	fail(t, q.args("run-server", "--port=0", "--database-dump="+filepath.Join(q.dir, "another")), "in use by process", front.addresses[0])
	if _, name := narOf(t, texts[targets[1]]); read(t, p.storage, name) == "" {
		t.Error("the front end has removed a nar")
	}

	failWith(t, int(statusUnknown), q.args("check"), "another instance")
	fail(t, q.args("export", t.TempDir()), "another instance")
	succeed(t, "check", "--database="+q.database, "--no-closures")

	// Items that the primary removes are removed at the front end.
	succeed(t, p.args("remove", "--now", targets[0][1:33])...)
	until(t, "the front end has removed it", func() bool { return get(t, address, targets[0]).StatusCode == http.StatusNotFound })
	_, name := narOf(t, texts[targets[0]])
	if got := get(t, address, "/"+name); got.StatusCode != http.StatusNotFound {
		t.Errorf("a nar that was removed: %s", got.Status)
	}

	// Without the primary, also after a restart.
	primary.stop(t, syscall.SIGTERM)
	if !served(2) {
		t.Error("without the primary, the front end doesn't serve a nar")
	}
	front.stop(t, syscall.SIGTERM)
	fail(t, q.args("run-server", "--port=0", "--mirror=http://"+primary.addresses[0]), "another instance", "--storage-read-only", "claim-storage --yes=")
	front = q.serve(t, "--log-level=INFO", "--ttl=1s", "--mirror=http://"+primary.addresses[0], "--storage-read-only")
	if address = front.addresses[0]; !served(2) {
		t.Error("after a restart without the primary, the front end doesn't serve a nar")
	}
	front.stop(t, syscall.SIGTERM)

	// The front end replaces the primary.
	q.claims(t, ownerOf(t, p))
	q.imports(t, file(3))
	front = q.serve(t, "--log-level=INFO", "--ttl=1s")
	if address = front.addresses[0]; !served(2) || !served(3) {
		t.Error("the new primary does not serve what it should")
	}
	if r := runProgram(t, q.args("check", "--verify")...); r.status != 0 {
		t.Errorf("check: %+v", r)
	}
	if info := get(t, address, strings.Replace(targets[2], ".narinfo", ".narinfo/info", 1)).body; info != `{"stored": true}` {
		t.Errorf("the new primary does not vouch for a nar: %s", info)
	}
	// The former primary can't change anything.
	refused(p, 4)
}
