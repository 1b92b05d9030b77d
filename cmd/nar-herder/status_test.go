package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExitStatuses: an exit status means the same in every command.
func TestExitStatuses(t *testing.T) {
	t.Parallel()
	const absent = "/gnu/store/00000000000000000000000000000000-x"
	p := newPlace(t)
	p.imports(t, small()...)
	if err := os.Remove(p.nar(greeting)); err != nil {
		t.Fatal(err)
	}
	database, there, nowhere := "--database="+p.database, p.newStorage(t, "there"), filepath.Join(p.dir, "nowhere")
	peer := newPlace(t)
	peer.imports(t, small()...)
	from := peer.serve(t).addresses[0]
	mirror := func(state string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(state))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	unready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"status": "failing"}`))
	}))
	defer unready.Close()
	for _, test := range []struct {
		status int
		args   []string
	}{
		{0, []string{"list", database}},
		{0, []string{"mirror-status", mirror(`{"mirror": {"state": "following"}}`)}},
		{0, []string{"health", "http://" + from}},
		{0, []string{"pin", database, "--allow-missing", absent}},

		{1, p.args("check")},
		{1, p.args("check", "--repair", "--from="+mirror("{}"))},
		{1, []string{"mirror-status", mirror(`{"mirror": {"state": "syncing"}}`)}},
		{1, []string{"health", unready.URL}},
		{1, []string{"pin", database, strings.Replace(absent, "0", "1", 1)}},
		{1, p.args("remove", "--now", absent)},
		{1, p.args("import", "--keep", published(greet), nowhere)},
		{1, p.args("export", filepath.Join(p.dir, "export"))},
		{1, []string{"list", database + "x"}},
		{1, []string{"convert", nowhere, nowhere + "2"}},

		{2, []string{"check", database + "x"}},
		{2, []string{"check", database, "--storage=" + nowhere}},
		{2, []string{"mirror-status", "http://127.0.0.1:1"}},
		{2, []string{"mirror-status", mirror(`{}`)}},
		{2, []string{"health", "http://127.0.0.1:1"}},
		{2, []string{"health", mirror(`{}`)}},
		{2, []string{"copy-storage", "--database=none", "--from=" + nowhere, "--to=" + there}},

		// A repaired fault is no longer a finding.
		{0, p.args("check", "--repair", "--from=http://"+from)},
		{0, p.copyArgs(there)},
	} {
		if r := runProgram(t, test.args...); r.status != test.status {
			t.Errorf("%q: status %d, want %d: %s%s", test.args, r.status, test.status, r.out, r.err)
		}
	}
	for _, command := range subcommands {
		misuse(t, []string{command.name, "--frobnicate"}, "--frobnicate", command.name)
	}
}

// TestOldNames: names from before the first release are unknown as arguments and in a
// configuration file, and their variables have no effect.
func TestOldNames(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, args := range [][]string{
		{"copy", "--database=none", "--from=" + p.storage, "--to=" + p.dir}, p.args("take-storage"), {"mirror-accept", "--database=" + p.database},
		{"help", "copy"}, {"help", "take-storage"}, {"help", "mirror-accept"},
		p.args("run-server", "--stored-nars=stream"), p.args("run-server", "--nars-elsewhere=stream"), p.args("run-server", "--mirror-nars=asked"),
		{"pin", "--database=" + p.database, "--unknown", greeting}, p.args("export", "--missing-ok", p.dir),
	} {
		old := args[len(args)-1]
		for _, arg := range args {
			for _, name := range []string{"copy", "take-storage", "mirror-accept", "--stored-nars", "--nars-elsewhere", "asked", "--unknown", "--missing-ok"} {
				if strings.Contains(arg, name) && !strings.Contains(arg, p.dir) {
					old = name
				}
			}
		}
		misuse(t, args, old)
	}
	for _, key := range []string{"stored-nars", "nars-elsewhere", "unknown", "missing-ok"} {
		misuse(t, []string{"config", "--config=" + writeConfig(t, key+" = 'x'\n")}, "unknown option", key)
		name := variable(key)
		if r := runIn(t, []string{name + "=x"}, "config"); r.status != 0 || !strings.Contains(r.err, name+" sets no option") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	misuse(t, []string{"config", "--config=" + writeConfig(t, "mirror-nars = 'asked'\n")}, "--mirror-nars", "on-demand")
	if r := runIn(t, []string{"NAR_HERDER_MIRROR_NARS=asked"}, "config"); r.status != statusUsage || !strings.Contains(r.err, "on-demand") {
		t.Errorf("%+v", r)
	}
	isEmpty(t, p.storage)
}
