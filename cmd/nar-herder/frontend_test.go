package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFrontEnd has a primary and a front end with one storage: the front end serves
// what the primary has stored, also while that is down, writes nothing, and takes its
// place in the end.
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
	front := q.serve(t, "--log-level=INFO", "--ttl=1s", "--mirror=http://"+primary.addresses[0],
		"--storage-limit=1", "--storage-nar-removal-criteria=unreferenced")
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
		t.Errorf("the primary has sent %v nars", sent)
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
	fail(t, q.args("import", file(3)), "index of a front end")
	fail(t, q.args("remove", "--now", targets[1][1:33]), "another instance", "claim-storage")
	if _, name := narOf(t, texts[targets[1]]); read(t, p.storage, name) == "" {
		t.Error("the front end has removed a nar")
	}

	failWith(t, int(statusUnknown), q.args("check"), "index of a front end")
	fail(t, q.args("export", t.TempDir()), "index of a front end")
	succeed(t, "check", "--database="+q.database, "--no-closures")

	// What the primary removes is gone there, too.
	succeed(t, p.args("remove", "--now", targets[0][1:33])...)
	until(t, "the removal has come", func() bool { return get(t, address, targets[0]).StatusCode == http.StatusNotFound })
	_, name := narOf(t, texts[targets[0]])
	if got := get(t, address, "/"+name); got.StatusCode != http.StatusNotFound {
		t.Errorf("a nar that was removed: %s", got.Status)
	}

	// Without the primary, also after a restart.
	primary.stop(t, syscall.SIGTERM)
	if !served(2) {
		t.Error("without the primary, a nar can't be had")
	}
	front.stop(t, syscall.SIGTERM)
	front = q.serve(t, "--log-level=INFO", "--ttl=1s", "--mirror=http://"+primary.addresses[0])
	if address = front.addresses[0]; !served(2) {
		t.Error("after a restart without the primary, a nar can't be had")
	}
	front.stop(t, syscall.SIGTERM)

	// In its place.
	if out := succeed(t, q.args("claim-storage")...); !strings.Contains(out, "is this instance's now") {
		t.Errorf("claim-storage: %s", out)
	}
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
	// The old one can do no harm.
	refused(p, 4)
}

// TestFrontEndUnsettled: while the source does not say which storage it has, a mirror
// takes nothing of its own into the index or out of it, and when it turns out to be a
// front end, it is one from then on.
func TestFrontEndUnsettled(t *testing.T) {
	t.Parallel()
	const nars = 3
	p := newPlace(t)
	source, texts, targets := generated(t, nars)
	p.imports(t, source)
	host := ownHost()
	primaryOptions := []string{"--host=" + host, "--port=" + instancePort, "--log-level=INFO"}
	q := newPlace(t)
	q.storage = p.storage
	succeed(t, "import", "--narinfos-only", "--database="+q.database, source) // rows alone
	front := q.serve(t, "--log-level=INFO", "--mirror=http://"+host+":"+instancePort)
	until(t, "it says that it does not know", func() bool { return strings.Contains(front.err.String(), "it is not known yet") })
	fail(t, q.args("remove", "--now", targets[0][1:33]), "another instance")
	if n := metric(t, front.addresses[0], "narherder_stored_nars"); n != "0" {
		t.Errorf("it has taken %s nars into its index", n)
	}
	p.serve(t, primaryOptions...)
	until(t, "it is a front end", func() bool { return strings.Contains(front.err.String(), "this is a front end") })
	_, name := narOf(t, texts[targets[0]])
	if got := get(t, front.addresses[0], "/"+name); got.StatusCode != http.StatusOK || got.body != read(t, source, name) {
		t.Errorf("a nar: %s", got.Status)
	}
	if n := metric(t, front.addresses[0], "narherder_stored_nars"); n != "0" {
		t.Errorf("it has taken %s nars into its index", n)
	}
}

// TestCopiedDatabase: a mirror with a copy of its source's database, beside the source,
// is not taken for the owner of its storage, whether or not the source answers when it
// starts.
func TestCopiedDatabase(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source, _, targets := generated(t, 2)
	p.imports(t, source)
	q := newPlace(t)
	q.storage = p.storage
	content, err := os.ReadFile(p.database)
	if err == nil {
		err = os.WriteFile(q.database, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	host := ownHost()
	start := func() *server {
		return q.serve(t, "--log-level=INFO", "--mirror=http://"+host+":"+instancePort)
	}
	early := start()
	primary := p.serve(t, "--host="+host, "--port="+instancePort, "--log-level=INFO", "--database-dump-interval=1s")
	until(t, "it finds that it is a copy", func() bool {
		return get(t, early.addresses[0], strings.Replace(targets[0], ".narinfo", ".narinfo/info", 1)).body == `{"stored": false}`
	})
	early.stop(t, syscall.SIGTERM)
	late := start()
	until(t, "it says what is wrong", func() bool { return strings.Contains(late.err.String(), "this database is a copy") })
	// It does not vouch for nars, as it would for its own.
	info := strings.Replace(targets[0], ".narinfo", ".narinfo/info", 1)
	if got := get(t, late.addresses[0], info); got.body != `{"stored": false}` {
		t.Errorf("the copy: %s", got.body)
	}
	if got := get(t, primary.addresses[0], info); got.body != `{"stored": true}` {
		t.Errorf("the primary: %s", got.body)
	}
}
