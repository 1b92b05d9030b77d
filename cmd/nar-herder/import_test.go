package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// copyCorpus copies a directory of the corpus, so that a test may change it.
func copyCorpus(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(testdata, name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func lines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// TestEndToEnd imports, lists, tags and removes items beside a running server.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.serve(t)
	address := s.addresses[0]
	source := copyCorpus(t, "published")
	const items = 13

	out := succeed(t, p.args("import", "--tag=origin=published", "--tag", "a=b=c,d", source)...)
	if !strings.HasPrefix(out, fmt.Sprintf("%d added; ", items)) || strings.Count(out, "\n") != 1 {
		t.Errorf("import: %q", out)
	}
	// The nars were moved.
	if left, err := filepath.Glob(source + "/nar/lzip/*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if got := get(t, address, "/nar/lzip/"+greeting); got.body != read(t, testdata, "published/nar/lzip", greeting) {
		t.Errorf("nar: %s", got.Status)
	}
	if out := succeed(t, p.args("import", source)...); out != fmt.Sprintf("%d known; 0 B of nars added to the storage\n", items) {
		t.Errorf("import again: %q", out)
	}

	database := "--database=" + p.database
	listed := lines(succeed(t, "list", database))
	if len(listed) != items || !slices.Contains(listed, "/gnu/store/"+greeting) {
		t.Errorf("list: %q", listed)
	}
	for tag, want := range map[string]int{"origin=published": items, "a=b=c,d": items, "origin=other": 0, "a=b": 0} {
		if out := succeed(t, "list", database, "--tag="+tag); strings.Count(out, "\n") != want {
			t.Errorf("list --tag=%s: %d lines, want %d", tag, strings.Count(out, "\n"), want)
		}
	}
	if out := succeed(t, "list", database, "--tag=origin=published", "--tag=origin=other"); out != "" {
		t.Errorf("list with two tags: %q", out)
	}
	for _, line := range lines(succeed(t, "list", database, "--json")) {
		var object struct {
			StorePath  string                              `json:"store_path"`
			NarHash    string                              `json:"nar_hash"`
			NarSize    int64                               `json:"nar_size"`
			AddedAt    time.Time                           `json:"added_at"`
			References []string                            `json:"references"`
			Files      []struct{ Compression, URL string } `json:"files"`
			Tags       []string                            `json:"tags"`
		}
		err := json.Unmarshal([]byte(line), &object)
		if err != nil || !slices.Contains(listed, object.StorePath) || object.References == nil || len(object.Files) != 1 ||
			!slices.Equal(object.Tags, []string{"a=b=c,d", "origin=published"}) || object.NarSize <= 0 || time.Since(object.AddedAt).Abs() > time.Hour {
			t.Errorf("list --json: %v: %s", err, line)
		}
	}
	var stats map[string]int64
	if err := json.Unmarshal([]byte(succeed(t, "stats", database, "--json")), &stats); err != nil || stats["items"] != items || stats["stored_nars"] != items || stats["stored_bytes"] < 8_000_000 || stats["database_bytes"] == 0 {
		t.Errorf("stats --json: %v, %v", stats, err)
	}
	if out := succeed(t, "stats", database); !strings.Contains(out, "store items      13\n") {
		t.Errorf("stats: %q", out)
	}

	// Items are named by path, base name and hash; the others are removed even if one
	// is unknown.
	names := []string{"/gnu/store/" + greeting, entropy, gosrc[:32], narinfoName("mjwaskpdj87sw34j24x3fy7bmg45jckp")}
	r := runProgram(t, p.args("remove", append(append([]string{"--now"}, names...), "00000000000000000000000000000000")...)...)
	if r.status != 1 || strings.Count(r.out, "removed /gnu/store/") != len(names) || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "00000000000000000000000000000000") {
		t.Errorf("remove: status %d, %q, %q", r.status, r.out, r.err)
	}
	begin := time.Now()
	until(t, "the server no longer serves them", func() bool { return get(t, address, "/"+narinfoName(greeting)).StatusCode == 404 })
	if took := time.Since(begin); took > 200*time.Millisecond {
		t.Logf("noticed after %v", took)
	}
	for _, target := range []string{"/nar/lzip/" + greeting, "/nar/" + greeting, "/" + narinfoName(entropy)} {
		if got := get(t, address, target); got.StatusCode != 404 {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
	if _, err := os.Stat(filepath.Join(p.storage, "nar/lzip", greeting)); !os.IsNotExist(err) {
		t.Errorf("its nar: %v", err)
	}
	if left := lines(succeed(t, "list", database)); len(left) != items-len(names) {
		t.Errorf("left: %q", left)
	}
	fail(t, []string{"remove", "--now", database, "whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file"}, "--storage")
}

// TestImportFailures: bad files don't prevent the import of the others.
func TestImportFailures(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := copyCorpus(t, "published")
	damage := map[string]func(narinfo, nar string) error{
		greeting: func(_, nar string) error { return os.Remove(nar) },
		entropy:  func(_, nar string) error { return os.Truncate(nar, 1000) },
		gosrc:    func(narinfo, _ string) error { return os.WriteFile(narinfo, []byte("garbage\x00"), 0o644) },
		"nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0": func(narinfo, _ string) error { return os.Truncate(narinfo, 0) },
		"vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26": func(narinfo, _ string) error {
			return os.Rename(narinfo, filepath.Dir(narinfo)+"/00000000000000000000000000000000.narinfo")
		},
		"whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file":   func(_, nar string) error { return appendTo(nar, "more") },
		"zmqc3v2dxk37sfk9lan5fc9hxii1i6km-deep-tree-1":  func(narinfo, _ string) error { return replaceIn(narinfo, "URL: nar/lzip/", "URL: ../nar/lzip/") },
		"gvwwzfzg1796x97nb72b9ycjy2gs53vb-zeros-1":      func(narinfo, _ string) error { return replaceIn(narinfo, "\n", "\r\n") },
		"j0kmdkzywjvv7224iwrm7xdc2fx2y8c9-libgreet-1.0": func(_, nar string) error { return replaceByLink(nar, "/etc/passwd") },
	}
	for base, change := range damage {
		if err := change(filepath.Join(source, narinfoName(base)), filepath.Join(source, "nar/lzip", base)); err != nil {
			t.Fatal(err)
		}
	}
	r := runProgram(t, p.args("import", source, filepath.Join(source, "nonexistent"))...)
	if r.status != 1 || !strings.Contains(r.out, fmt.Sprintf("%d failed, %d added", len(damage), 13-len(damage))) {
		t.Errorf("status %d, %s", r.status, r.out)
	}
	reported := lines(r.err)
	if len(reported) != len(damage)+1 {
		t.Errorf("%d lines for %d failures: %s", len(reported), len(damage)+1, r.err)
	}
	for _, line := range reported {
		if !strings.HasPrefix(line, "nar-herder: import") {
			t.Errorf("line %q", line)
		}
	}
	s := p.serve(t)
	for base := range damage {
		if got := get(t, s.addresses[0], "/"+narinfoName(base)); got.StatusCode != 404 {
			t.Errorf("%s: %s", base, got.Status)
		}
	}
	if got := strings.Count(succeed(t, "list", "--database="+p.database), "\n"); got != 13-len(damage) {
		t.Errorf("%d items are listed", got)
	}
	// After a repair, they are imported.
	if out := succeed(t, p.args("import", "--keep", filepath.Join(testdata, "published"))...); !strings.HasPrefix(out, fmt.Sprintf("%d added, %d known", len(damage), 13-len(damage))) {
		t.Errorf("import of good ones: %q", out)
	}
}

func appendTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}

func replaceIn(name, old, new string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(strings.ReplaceAll(string(text), old, new)), 0o644)
}

func replaceByLink(name, target string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// TestReferences imports items only with their references.
func TestReferences(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := filepath.Join(testdata, "published")
	const profile, greet = "f4frwhhcw2cy8wc2dk5crynrbalbb82g-profile", "nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"
	fail2 := func(want string, files ...string) {
		t.Helper()
		args := p.args("import", "--keep", "--ensure-references-exist")
		for _, file := range files {
			args = append(args, filepath.Join(source, narinfoName(file)))
		}
		if r := runProgram(t, args...); r.status != 1 || !strings.Contains(r.err, want) || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%v: status %d, %q, want %q", files, r.status, r.err, want)
		}
	}
	fail2(gosrc, profile)
	fail2(gosrc, profile, greeting)
	fail2("libgreet", greet) // greeting is imported, and refers to itself
	// A closure in any order.
	if out := succeed(t, p.args("import", "--keep", "--ensure-references-exist", source)...); !strings.HasPrefix(out, "12 added, 1 known") {
		t.Errorf("%q", out)
	}
}

// TestConcurrentImports imports the same and other items with several processes beside the
// server: all succeed, and clients see each row when its import is done.
func TestConcurrentImports(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.serveProcess(t)
	address := s.addresses[0]
	published, multi := copyCorpus(t, "published"), copyCorpus(t, "published-multi")
	var group sync.WaitGroup
	for _, source := range []string{published, published, copyCorpus(t, "published-none"), multi} {
		group.Go(func() {
			r := command(p.args("import", "--keep", source)...).run(t)
			if r.status != 0 || r.err != "" {
				t.Errorf("import %s: status %d, %s", source, r.status, r.err)
			}
		})
	}
	// Meanwhile, every served narinfo has its nar.
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got, err := tryGet(address, "/"+narinfoName(greeting)); err != nil || got.StatusCode != 200 && got.StatusCode != 404 {
				t.Errorf("narinfo meanwhile: %v %v", got.Response, err)
			} else if got.StatusCode == 200 {
				if got, err := tryGet(address, "/nar/lzip/"+greeting); err != nil || got.StatusCode != 200 {
					t.Errorf("nar meanwhile: %v %v", got.Response, err)
				}
			}
		}
	})
	group.Wait()
	close(stop)
	watching.Wait()
	if got := strings.Count(succeed(t, "list", "--database="+p.database), "\n"); got != 13 {
		t.Errorf("%d items", got)
	}
	names, err := filepath.Glob(published + "/*.narinfo")
	if err != nil || len(names) != 13 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		until(t, name+" is served", func() bool { return get(t, address, "/"+filepath.Base(name)).StatusCode == 200 })
	}
	s.stop(t, syscall.SIGTERM)
}

// TestInterruptedImport interrupts imports: no item is incomplete, and the import can be
// repeated.
func TestInterruptedImport(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for n, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt, os.Kill, os.Kill} {
		i := command(p.args("import", "--keep", filepath.Join(testdata, "published"), filepath.Join(testdata, "published-multi"))...)
		i.start(t)
		time.Sleep(time.Duration(5+20*n) * time.Millisecond) // a different moment each time
		_ = i.Process.Signal(signal)
		i.wait(t)
	}
	succeed(t, p.args("import", "--keep", filepath.Join(testdata, "published"))...)
	s := p.serve(t)
	for _, base := range []string{greeting, entropy, gosrc} {
		got := get(t, s.addresses[0], "/nar/lzip/"+base)
		// An interrupted import may have stored the other file of the greeting, of the same
		// nar and length, and the last import keeps what is stored.
		isOther := base == greeting && got.body == read(t, testdata, "published-multi/nar/lzip", base)
		if got.body != read(t, testdata, "published/nar/lzip", base) && !isOther {
			t.Errorf("%s: %s, %d bytes", base, got.Status, len(got.body))
		}
	}
}

// TestImportWithoutStorage imports without a storage, as with an empty shell variable: the
// nars would be 404.
func TestImportWithoutStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	database, source := "--database="+p.database, filepath.Join(testdata, "published")
	for _, more := range [][]string{{}, {"--storage="}} {
		misuse(t, append([]string{"import", database, source}, more...), "--storage", "--narinfos-only")
	}
	misuse(t, p.args("import", "--narinfos-only", source), "--narinfos-only", "--storage")
	isEmpty(t, p.storage)
	succeed(t, "import", database, "--narinfos-only", source)
	p.makeDump(t)
	s := p.serve(t)
	until(t, "the server warns", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, "13 items without a nar in the storage")
	})
	if body := get(t, s.addresses[0], "/metrics").body; !strings.Contains(body, "\nnarherder_items_without_nars 13\n") {
		t.Error("the metric is not 13")
	}
	// With an instance that has the nars, there is no warning.
	other := p.serve(t, "--mirror=http://"+s.addresses[0], "--database="+filepath.Join(p.dir, "mirror.db"), "--storage="+t.TempDir(), "--mirror-nars=none", "--database-dump="+filepath.Join(p.dir, "mirror-dump.db"))
	until(t, "the mirror counts", func() bool {
		return strings.Contains(get(t, other.addresses[0], "/metrics").body, "\nnarherder_items_without_nars 13\n")
	})
	if body := get(t, other.addresses[0], "/health").body; strings.Contains(body, "without a nar") {
		t.Errorf("the mirror warns: %s", body)
	}
	succeed(t, "check", "--database="+filepath.Join(p.dir, "mirror.db"))
}
