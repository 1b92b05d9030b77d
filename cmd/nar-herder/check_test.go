package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const (
	emptyFile = "whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file"
)

// small returns items that are fast to verify, and refer only to each other.
func small() (names []string) {
	for _, base := range []string{greeting, emptyFile, libgreet, greet, "2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z"} {
		names = append(names, published(base))
	}
	return names
}

// nar returns the path of an item's lzip nar in the storage.
func (p place) nar(base string) string { return filepath.Join(p.storage, "nar/lzip", base) }

// checked is the output of a check.
type checked struct {
	result
	findings []foundLine
	totals   checkTotals
}

// kinds returns the findings as "kind base", sorted.
func (c checked) kinds() []string {
	kinds := []string{}
	for _, finding := range c.findings {
		kinds = append(kinds, finding.Kind+" "+filepath.Base(finding.File))
	}
	slices.Sort(kinds)
	return kinds
}

// check runs a check with --json, and parses every line. If it decompresses nars, it runs
// in a separate process, as decoders are many times slower with the race detector.
func (p place) check(t testing.TB, more ...string) checked {
	t.Helper()
	run := within
	if slices.Contains(more, "--verify") {
		run = command
	}
	return readChecked(t, run(p.args("check", append([]string{"--json"}, more...)...)...).run(t))
}

func readChecked(t testing.TB, r result) checked {
	t.Helper()
	c := checked{result: r}
	all := lines(r.out)
	for i, line := range all {
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.DisallowUnknownFields()
		var err error
		if i < len(all)-1 {
			var finding foundLine
			err = decoder.Decode(&finding)
			c.findings = append(c.findings, finding)
		} else {
			last := struct{ Totals *checkTotals }{&c.totals}
			err = decoder.Decode(&last)
		}
		if err != nil {
			t.Errorf("line %q: %v", line, err)
		}
	}
	if c.totals.Status != r.status {
		t.Errorf("exit status %d, the totals have %d", r.status, c.totals.Status)
	}
	return c
}

func (c checked) want(t testing.TB, status int, kinds ...string) {
	t.Helper()
	slices.Sort(kinds)
	if got := c.kinds(); c.status != status || !slices.Equal(got, kinds) {
		t.Errorf("status %d, found %q; want %d, %q\n%s%s", c.status, got, status, kinds, c.out, c.err)
	}
}

// damage does each kind of damage to a place with the small items.
func (p place) damage(t testing.TB) {
	t.Helper()
	for _, err := range []error{
		os.Remove(p.nar(greeting)),
		os.Truncate(p.nar(libgreet), 100),
		appendTo(p.nar(emptyFile), "more"),
		flip(p.nar(greet)),
		os.WriteFile(filepath.Join(p.storage, "README"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// flip changes a bit in the middle of a file.
func flip(name string) error {
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	content[len(content)/2] ^= 1
	return os.WriteFile(name, content, 0o644)
}

// tree describes all files below a directory.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			fmt.Fprintln(&all, name, info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestCheckCommand finds each kind of damage without changing anything, and then repairs it
// from another instance, beside a server.
func TestCheckCommand(t *testing.T) {
	t.Parallel()
	p, other := newPlace(t), newPlace(t)
	p.imports(t, small()...)
	other.imports(t, small()...)
	if out := succeed(t, p.args("check")...); out != "10 rows and files compared: nothing is wrong\n" {
		t.Errorf("%q", out)
	}
	c := p.check(t, "--verify")
	c.want(t, 0)
	if c.totals.VerifiedFiles != 5 || c.totals.VerifiedBytes < 900 || !c.totals.Complete {
		t.Errorf("%+v", c.totals)
	}
	p.damage(t)
	before := tree(t, p.storage)
	found := []string{"missing " + greeting, "wrong size " + libgreet, "wrong size " + emptyFile, "stranger README"}
	p.check(t).want(t, 1, found...)
	p.check(t, "--verify").want(t, 1, append(found, "corrupt "+greet)...)
	r := runProgram(t, p.args("check", "--verify")...)
	if r.status != 1 || r.err != "" || len(lines(r.out)) != 6 || !strings.Contains(r.out, "missing: nar/lzip/"+greeting+" of /gnu/store/"+greeting+": should have 107 bytes\n") ||
		!strings.HasSuffix(r.out, "4 remain wrong\n") {
		t.Errorf("status %d: %s%s", r.status, r.out, r.err)
	}
	if after := tree(t, p.storage); after != before {
		t.Errorf("a check has changed the storage:\n%s%s", before, after)
	}

	s := p.serve(t)
	from := "--from=http://" + other.serve(t).addresses[0]
	c = p.check(t, "--verify", "--repair", "--from=http://127.0.0.1:1", from)
	for _, base := range []string{libgreet, emptyFile, greet} {
		if _, err := os.Stat(filepath.Join(p.storage, "quarantine/nar/lzip", base)); err != nil {
			t.Error(err)
		}
	}
	if c.status != 0 || c.totals.Repaired != 4 || c.totals.Repairs["fetched"] != 4 || c.totals.Remaining != 0 || c.totals.FetchedBytes < 800 || c.totals.Findings["quarantined"] != 3 {
		t.Errorf("status %d, %+v: %s", c.status, c.totals, c.err)
	}
	notices := []string{"stranger README", "quarantined " + libgreet, "quarantined " + emptyFile, "quarantined " + greet}
	p.check(t, "--verify").want(t, 0, notices...)
	for _, base := range []string{greeting, libgreet, emptyFile, greet} {
		if got := get(t, s.addresses[0], "/nar/lzip/"+base); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", base) {
			t.Errorf("%s: %s", base, got.Status)
		}
	}
	if got := get(t, s.addresses[0], "/quarantine/nar/lzip/"+greet); got.StatusCode != 404 {
		t.Errorf("quarantine is served: %s", got.Status)
	}
}

// TestCheckRepairsFromBad repairs from sources without usable nars.
func TestCheckRepairsFromBad(t *testing.T) {
	t.Parallel()
	answer := func(change func(w http.ResponseWriter, content string)) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			content, err := os.ReadFile(filepath.Join(testdata, "published", r.URL.Path))
			if err != nil {
				http.NotFound(w, r)
				return
			}
			change(w, string(content))
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	empty, whole := newPlace(t), newPlace(t)
	whole.imports(t, small()...)
	good := "http://" + whole.serve(t).addresses[0]
	// A source that is down or fails may have the nar, so the record of the nar stays.
	unsure := []string{"down", "500", "truncated", "short"}
	for name, url := range map[string]string{
		"down": "http://" + ownHost() + ":" + instancePort,
		"404":  "http://" + empty.serve(t).addresses[0],
		"500":  answer(func(w http.ResponseWriter, _ string) { w.WriteHeader(500) }),
		"garbage": answer(func(w http.ResponseWriter, content string) {
			_, _ = io.WriteString(w, strings.Repeat("g", len(content)))
		}),
		"truncated": answer(func(w http.ResponseWriter, content string) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = io.WriteString(w, content[:len(content)/2])
		}),
		"short": answer(func(w http.ResponseWriter, content string) { _, _ = io.WriteString(w, content[:len(content)/2]) }),
		"flipped": answer(func(w http.ResponseWriter, content string) {
			_, _ = io.WriteString(w, content[:len(content)/2]+"\x00\xff\x00\xff"+content[len(content)/2+4:])
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.imports(t, small()...)
			p.damage(t)
			s := p.serve(t)
			c := p.check(t, "--verify", "--repair", "--from="+url)
			// All records stay while a source may have the nars.
			unclaimed, aside := int64(1), int64(3)
			statuses := map[string]int{greeting: 404, libgreet: 404, emptyFile: 404, greet: 404}
			if slices.Contains(unsure, name) {
				unclaimed, aside = 0, 0
				statuses = map[string]int{greeting: 500, libgreet: 500, emptyFile: 500}
			}
			if c.status != 1 || c.totals.Remaining != 4 || c.totals.Repaired != 0 || c.totals.FetchedBytes != 0 ||
				c.totals.Repairs["set aside"] != aside || c.totals.Repairs["unclaimed"] != unclaimed || c.totals.Findings["quarantined"] != aside {
				t.Errorf("status %d, %+v: %s", c.status, c.totals, c.out)
			}
			for _, finding := range c.findings {
				if finding.Repair != nil && finding.Repair.Outcome != "untouched" && !strings.Contains(finding.Repair.Note, url) {
					t.Errorf("%+v", finding.Repair)
				}
			}
			for base, status := range statuses {
				if got := get(t, s.addresses[0], "/nar/lzip/"+base); got.StatusCode != status {
					t.Errorf("%s: %s", base, got.Status)
				}
				// If certainly no source has its nar, the narinfo is hidden.
				announced := 200
				if status == 404 {
					announced = 404
				}
				until(t, fmt.Sprintf("the narinfo of %s is answered with %d", base, announced), func() bool {
					return get(t, s.addresses[0], "/"+narinfoName(base)).StatusCode == announced
				})
			}
			// A later run with a good source completes the repair.
			c = p.check(t, "--verify")
			if c.status != 1 || c.totals.Remaining != 4 || unclaimed == 1 && c.totals.Findings["unstored"] != 4 {
				t.Errorf("then: status %d, %q", c.status, c.kinds())
			}
			c = p.check(t, "--verify", "--repair", "--from="+good)
			if c.status != 0 || c.totals.Repaired != 4 || c.totals.Repairs["fetched"] != 4 || c.totals.Findings["quarantined"] != 3 {
				t.Errorf("with a good source: status %d, %+v: %s", c.status, c.totals, c.out)
			}
			p.check(t, "--verify").want(t, 0, "stranger README", "quarantined "+libgreet, "quarantined "+emptyFile, "quarantined "+greet)
		})
	}
}

// TestCheckUnrecorded adds nars to the storage that the index doesn't record.
func TestCheckUnrecorded(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	succeed(t, "import", "--narinfos-only", "--database="+p.database, published(greeting), published(entropy))
	if err := os.CopyFS(p.storage, os.DirFS(copyCorpus(t, "published"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range must(filepath.Glob(p.storage + "/*.narinfo")) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	c := p.check(t)
	if c.status != 1 || c.totals.Findings["unrecorded"] != 2 || c.totals.Findings["stranger"] != 11 {
		t.Errorf("status %d, %+v", c.status, c.totals)
	}
	p.serve(t).stop(t, syscall.SIGTERM) // claims the storage
	if c := p.check(t, "--repair"); c.status != 0 || c.totals.Repairs["recorded"] != 2 {
		t.Errorf("status %d, %+v", c.status, c.totals)
	}
	s := p.serve(t)
	if got := get(t, s.addresses[0], "/nar/lzip/"+entropy); got.body != read(t, testdata, "published/nar/lzip", entropy) {
		t.Errorf("%s", got.Status)
	}
	if c := p.check(t, "--verify"); c.status != 0 {
		t.Errorf("status %d", c.status)
	}
}

func must[V any](value V, err error) V {
	if err != nil {
		panic(err)
	}
	return value
}

func TestCheckIncomplete(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greet), published(greeting))
	c := p.check(t)
	if len(c.findings) != 1 || c.status != 1 {
		t.Fatalf("status %d, %+v", c.status, c.findings)
	}
	if f := c.findings[0]; f.Kind != "incomplete" || f.StorePath != "/gnu/store/"+greet || !slices.Equal(f.References, []string{"/gnu/store/" + libgreet}) {
		t.Errorf("%+v", f)
	}
	p.check(t, "--no-closures").want(t, 0)
	r := runProgram(t, p.args("check")...)
	if want := "incomplete: /gnu/store/" + greet + ": no narinfo for /gnu/store/" + libgreet + "\n"; !strings.HasPrefix(r.out, want) {
		t.Errorf("%q, want %q", r.out, want)
	}
	p.imports(t, published(libgreet))
	p.check(t).want(t, 0)
}

// TestCheckUnknown: files in an unreadable directory are not missing. Root runs the program
// as nobody.
func TestCheckUnknown(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "nar-herder") // accessible to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Chmod(filepath.Join(dir, "storage/nar/lzip"), 0o755)
		os.RemoveAll(dir)
	})
	p := place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
	program := filepath.Join(dir, "nar-herder")
	if err := os.Mkdir(p.storage, 0o777); err != nil {
		t.Fatal(err)
	}
	p.imports(t, filepath.Join(testdata, "published-multi"))
	if err := os.Remove(filepath.Join(p.storage, "nar/zstd", greeting)); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Link(binary, program), os.Chmod(dir, 0o777), os.Chmod(p.database, 0o666), os.Chmod(filepath.Join(p.storage, "nar/lzip"), 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, filepath.Join(p.storage, "nar/zstd")) + tree(t, filepath.Join(p.storage, "nar/gzip"))
	check := func(more ...string) checked {
		t.Helper()
		cmd := exec.Command(program, p.args("check", append(more, "--json", "--no-closures")...)...)
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		c := commandOf(cmd)
		c.start(t)
		status := c.wait(t)
		return readChecked(t, result{c.out.String(), c.err.String(), status})
	}
	c := check("--verify")
	// Nine nars and the directory; with --verify, the nine nars again.
	if c.status != 2 || c.totals.Complete || c.totals.Findings["unknown"] != 19 || c.totals.Findings["missing"] != 1 || len(c.totals.Findings) != 2 || c.totals.VerifiedFiles != 17 {
		t.Errorf("status %d, %+v: %s", c.status, c.totals, c.err)
	}
	for _, finding := range c.findings {
		if finding.Kind == "unknown" && (!strings.Contains(finding.Error, "permission denied") || !strings.HasPrefix(finding.File, "nar/lzip")) {
			t.Errorf("%+v", finding)
		}
	}
	if c := check("--repair"); c.status != 2 || c.totals.Findings["unknown"] != 10 || c.totals.Repairs["unclaimed"] != 1 || len(c.totals.Repairs) != 1 {
		t.Errorf("with --repair: status %d, %+v", c.status, c.totals)
	}
	if err := os.Chmod(filepath.Join(p.storage, "nar/lzip"), 0o755); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, filepath.Join(p.storage, "nar/zstd")) + tree(t, filepath.Join(p.storage, "nar/gzip")); after != before {
		t.Errorf("changed:\n%s%s", before, after)
	}
	if c := check("--verify"); c.status != 0 || c.totals.VerifiedFiles != 26 {
		t.Errorf("then: status %d, %+v", c.status, c.totals)
	}
}

// TestCheckFails: commands that are refused, in one line.
func TestCheckFails(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	database := "--database=" + p.database
	misuse(t, []string{"check", database}, "--storage")
	misuse(t, []string{"check", database, "--verify"}, "--storage")
	misuse(t, []string{"check", database, "--repair"}, "--storage")
	misuse(t, p.args("check", "--restart"), "--restart", "--verify")
	misuse(t, p.args("check", "--from=http://x.example"), "--from", "--repair")
	misuse(t, p.args("check", "--repair", "--from=x"), "--from", "invalid URL")
	misuse(t, p.args("check", "--verify", "--verify-rate=0"), "--verify-rate")
	misuse(t, p.args("check", "--verify", "--verify-rate=fast"), "--verify-rate", "fast")
	misuse(t, p.args("check", "more"), "more")
	failWith(t, int(statusUnknown), []string{"check", "--database=" + p.dir + "/absent", "--storage=" + p.storage}, "absent")
	failWith(t, int(statusUnknown), []string{"check", database, "--storage=" + p.dir + "/absent"}, "absent")
	// An index without nars needs no storage, but it has nothing to serve.
	succeed(t, "import", "--narinfos-only", "--database="+p.dir+"/bare.db", published(greeting))
	r := runProgram(t, "check", "--database="+p.dir+"/bare.db")
	if want := "unstored: /gnu/store/" + greeting + ": not in the storage: nar/lzip/" + greeting + "\n"; r.status != 1 || !strings.HasPrefix(r.out, want) || !strings.HasSuffix(r.out, "1 unstored: 1 remain wrong\n") {
		t.Errorf("an index alone: %+v", r)
	}
	for _, text := range []string{"Exit status", "quarantine", "--verify-rate"} {
		if out := succeed(t, "check", "--help"); !strings.Contains(out, text) {
			t.Errorf("the help lacks %q", text)
		}
	}
}
