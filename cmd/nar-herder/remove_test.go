package main

import (
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
)

// Items of the corpus with references: profile refers to greet, gosrc and gofmt, and greet
// to libgreet and greeting.
const (
	profile  = "f4frwhhcw2cy8wc2dk5crynrbalbb82g-profile"
	greet    = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"
	libgreet = "j0kmdkzywjvv7224iwrm7xdc2fx2y8c9-libgreet-1.0"
	gofmtBin = "vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26"
	empty    = "whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file"
	deepTree = "zmqc3v2dxk37sfk9lan5fc9hxii1i6km-deep-tree-1"
)

const corpusItems = 13

// runWith runs the program with standard input.
func runWith(t testing.TB, input string, args ...string) result {
	t.Helper()
	p := within(args...)
	p.stdin = input
	p.start(t)
	status := p.wait(t)
	return result{p.out.String(), p.err.String(), status}
}

// listed returns the base names that list prints.
func (p place) listed(t testing.TB, args ...string) (names []string) {
	t.Helper()
	for line := range strings.Lines(succeed(t, append([]string{"list", "--database=" + p.database}, args...)...)) {
		path, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		names = append(names, strings.TrimPrefix(path, "/gnu/store/"))
	}
	slices.Sort(names)
	return names
}

// wantListed asserts which items of the corpus are removed.
func (p place) wantListed(t testing.TB, without ...string) {
	t.Helper()
	names := p.listed(t)
	if len(names) != corpusItems-len(without) {
		t.Errorf("%d items are listed, want %d: %q", len(names), corpusItems-len(without), names)
	}
	for _, name := range without {
		if slices.Contains(names, name) {
			t.Errorf("%s is listed", name)
		}
	}
}

// hasNar reports whether the storage has an item's nar.
func (p place) hasNar(t testing.TB, base string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(p.storage, "nar/lzip", base))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return err == nil
}

// dump returns a description of the whole database and all files of the storage.
func (p place) dump(t testing.TB) string {
	t.Helper()
	dump := sha256.New()
	db, err := sql.Open("sqlite", p.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	query := func(query string) (rows [][]any) {
		result, err := db.Query(query)
		if err != nil {
			t.Fatal(err)
		}
		defer result.Close()
		columns, err := result.Columns()
		if err != nil {
			t.Fatal(err)
		}
		for result.Next() {
			row := make([]any, len(columns))
			for i := range row {
				row[i] = new(any)
			}
			if err := result.Scan(row...); err != nil {
				t.Fatal(err)
			}
			for i := range row {
				row[i] = *row[i].(*any)
			}
			rows = append(rows, row)
		}
		if err := result.Err(); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	for _, table := range query("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name") {
		fmt.Fprintln(dump, table[0])
		for _, row := range query("SELECT * FROM " + table[0].(string)) {
			for _, value := range row {
				text, isBytes := value.([]byte)
				if isBytes {
					value = len(text)
				}
				fmt.Fprintf(dump, "%T %v\n%s\n", value, value, text)
			}
		}
	}
	err = filepath.WalkDir(p.storage, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			fmt.Fprintln(dump, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(dump.Sum(nil))
}

// TestRemoveDryRun: each way of removing prints what would change, without changing it, and
// prints the same when it does.
func TestRemoveDryRun(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"items":        {greeting, libgreet},
		"tag":          {"--tag=set=one"},
		"now":          {"--now", greeting, libgreet},
		"force":        {"--now", "--force", empty},
		"json":         {"--json", greeting},
		"json and now": {"--json", "--now", greeting},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.imports(t, "--tag=set=one", published(deepTree), published(gosrc))
			p.imports(t, filepath.Join(testdata, "published"))
			succeed(t, "pin", "--database="+p.database, empty)
			before := p.dump(t)
			would := succeed(t, p.args("remove", append([]string{"--dry-run"}, args...)...)...)
			if after := p.dump(t); after != before {
				t.Error("the dry run has changed something")
			}
			did := succeed(t, p.args("remove", args...)...)
			if after := p.dump(t); after == before {
				t.Error("nothing has changed")
			}
			for _, change := range [][2]string{
				{"would remove ", "removed "}, {"would withdraw ", "withdrew "}, {"would be removed", "removed"}, {"would be withdrawn", "withdrawn"},
				{"would be freed", "are freed"}, {`"dry_run":true`, `"dry_run":false`},
			} {
				would = strings.ReplaceAll(would, change[0], change[1])
			}
			// A second may have passed.
			date := regexp.MustCompile(`20\d\d-\d\d-\d\dT[\d:]+Z`)
			if date.ReplaceAllString(would, "") != date.ReplaceAllString(did, "") {
				t.Errorf("the dry run says\n%swhat was done is\n%s", would, did)
			}
		})
	}
}

// TestRemoveByPathTagAndList names items by path, by tag, and by a list.
func TestRemoveByPathTagAndList(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, "--tag=set=one", "--tag=also=this", published(deepTree))
	p.imports(t, "--tag=set=one", published(empty))
	p.imports(t, filepath.Join(testdata, "published"))
	out := succeed(t, p.args("remove", "--now", "--tag=set=one", "--tag=also=this", entropy)...)
	if lines := lines(out); len(lines) != 3 || !strings.HasPrefix(lines[2], "2 items removed, 2.9 MiB freed") {
		t.Errorf("by path and tag: %s", out)
	}
	p.wantListed(t, deepTree, entropy)
	if out := succeed(t, p.args("remove", "--now", "--tag=set=two")...); out != "0 items removed, 0 B freed\n" {
		t.Errorf("by a tag that no item has: %s", out)
	}

	const unknown = "00000000000000000000000000000000"
	list := "# a list\n\n/gnu/store/" + gofmtBin + "\n  " + gosrc[:32] + "  \r\n" + gosrc + "\n#" + greet + "\n" + strings.Repeat("x", 100_000) + "\nnonsense\n" + unknown + "\n" + libgreet
	r := runWith(t, list, p.args("remove", "--now", empty, "-")...)
	reported := lines(r.err)
	if r.status != 1 || len(reported) != 3 || !strings.Contains(reported[0], "line 7 of the list: it is longer") ||
		!strings.Contains(reported[1], `line 8 of the list: "nonsense"`) || !strings.Contains(reported[2], "remove "+unknown+": not in the index") {
		t.Errorf("status %d, %s", r.status, r.err)
	}
	if !strings.Contains(r.out, "\n4 items removed, ") {
		t.Errorf("stdout: %s", r.out)
	}
	// greet and profile stay, with references to removed items.
	if _, after, _ := strings.Cut(r.out, "2 remaining items refer to them:\n"); len(lines(after)) != 2 || !strings.Contains(after, greet) || !strings.Contains(after, profile) {
		t.Errorf("stdout: %s", r.out)
	}
	p.wantListed(t, deepTree, entropy, gofmtBin, gosrc, libgreet, empty)

	// Nothing is removed if an argument is not an item, or if there are no arguments.
	misuse(t, p.args("remove", "--now", greeting, "nonsense"), `"nonsense"`, "/gnu/store/HASH-NAME")
	misuse(t, p.args("remove"), "--tag", "standard input")
	p.wantListed(t, deepTree, entropy, gofmtBin, gosrc, libgreet, empty)
}

// TestRemoveMany removes a long list of items with many referrers.
func TestRemoveMany(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := t.TempDir()
	base := func(n int) string { return fmt.Sprintf("%032d-item-%d", n, n) }
	const items = 350
	nar := narinfo.NarHash(sha256.Sum256([]byte("bytes")))
	for n := range items {
		text := string(mirrortest.Sign(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: 5\nReferences: %s\nURL: nar/%s\nCompression: none\nFileSize: 5\n", base(n), nar, base(n%2), base(n))))
		for name, content := range map[string]string{base(n)[:32] + ".narinfo": text, "nar/" + base(n): "bytes"} {
			name = filepath.Join(source, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.imports(t, source)
	out := succeed(t, p.args("remove", "--now", "--dry-run", base(0))...)
	if !strings.Contains(out, "\n174 remaining items refer to them:\n") || !strings.HasSuffix(out, "\n  and 164 more\n") || strings.Count(out, "\n  /gnu/store/") != 10 {
		t.Errorf("%s", out)
	}
	var list strings.Builder
	for n := range items - 1 {
		fmt.Fprintln(&list, base(n))
	}
	r := runWith(t, list.String(), p.args("remove", "--now", "--json", "-")...)
	var summary removed
	if err := json.Unmarshal([]byte(r.out), &summary); err != nil || r.status != 0 || summary.Items != items-1 || summary.Bytes != 5*(items-1) || summary.Broken != 1 || summary.BrokenItems[0] != "/gnu/store/"+base(items-1) {
		t.Errorf("%+v, %v, %+v", r, err, summary)
	}
	if left, err := filepath.Glob(p.storage + "/nar/*"); err != nil || len(left) != 1 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestPinCommands(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	database := "--database=" + p.database
	p.imports(t, filepath.Join(testdata, "published"))
	const unknown = "00000000000000000000000000000001"
	r := runProgram(t, "pin", database, "nonsense", greet, unknown)
	if r.status != 1 || r.out != "pinned /gnu/store/"+greet+"\n" || strings.Count(r.err, "\n") != 2 || !strings.Contains(r.err, "pin nonsense: ") || !strings.Contains(r.err, "pin "+unknown+": not in the index") || !strings.Contains(r.err, "--allow-missing") {
		t.Errorf("pin: %+v", r)
	}
	if out := succeed(t, "pin", database, greet); out != "/gnu/store/"+greet+" was pinned before\n" {
		t.Errorf("pin again: %s", out)
	}
	if out := succeed(t, "pin", database, "--allow-missing", unknown); out != "pinned "+unknown+"\n" {
		t.Errorf("pin an unknown one: %s", out)
	}
	listed := lines(succeed(t, "pins", database))
	if len(listed) != 2 || !strings.HasPrefix(listed[0], "/gnu/store/"+greet+"\tsince 20") || !strings.Contains(listed[0], ", 3 items, ") || strings.Contains(listed[0], "without") ||
		!strings.HasPrefix(listed[1], unknown+"\tsince 20") || !strings.HasSuffix(listed[1], ", 0 items, 0 B, 1 without a narinfo") {
		t.Errorf("pins: %q", listed)
	}
	var first pinned
	if err := json.Unmarshal([]byte(lines(succeed(t, "pins", database, "--json"))[0]), &first); err != nil ||
		first.StorePath != "/gnu/store/"+greet || first.Hash != greet[:32] || first.Items != 3 || first.Missing != 0 || first.Bytes == 0 || time.Since(first.PinnedAt).Abs() > time.Hour {
		t.Errorf("pins --json: %+v, %v", first, err)
	}
	if out := succeed(t, "stats", database, "--json"); !strings.Contains(out, `"pins":2`) || !strings.Contains(out, `"withdrawn_items":0`) {
		t.Errorf("stats: %s", out)
	}
	if out := succeed(t, "list", database, "--json"); strings.Count(out, `"pinned":true`) != 1 {
		t.Errorf("list: %s", out)
	}

	// The closure stays, the others are removed.
	r = runProgram(t, p.args("remove", "--now", greet, libgreet, greeting, profile)...)
	if r.status != 1 || strings.Count(r.err, "\n") != 3 || !strings.Contains(r.err, "remove "+greet[:32]+": it is pinned: unpin that, or use --force\n") ||
		!strings.Contains(r.err, "remove "+libgreet[:32]+": it is needed by "+greet+", which is pinned: unpin that") || !strings.Contains(r.out, "\n1 item removed, ") {
		t.Errorf("remove: %+v", r)
	}
	p.wantListed(t, profile)
	if out := succeed(t, p.args("remove", "--now", "--force", libgreet)...); !strings.Contains(out, "1 remaining item refers to them:\n  /gnu/store/"+greet+"\n") {
		t.Errorf("remove --force: %s", out)
	}
	if out := succeed(t, "pins", database); !strings.Contains(out, ", 2 items, ") || !strings.Contains(out, "1 without a narinfo") {
		t.Errorf("pins: %s", out)
	}
	for _, want := range []string{"unpinned /gnu/store/" + greet + "\n", "/gnu/store/" + greet + " was not pinned\n"} {
		if out := succeed(t, "unpin", database, greet); out != want {
			t.Errorf("unpin: %s", out)
		}
	}
	if out := succeed(t, "unpin", database, unknown); out != "unpinned "+unknown+"\n" {
		t.Errorf("unpin: %s", out)
	}
	succeed(t, p.args("remove", "--now", greet, greeting)...)
	p.wantListed(t, profile, libgreet, greet, greeting)
}

// TestWithdrawn withdraws items beside a running server, which keeps serving their nars
// until the grace is over.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	database := "--database=" + p.database
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--ttl=1d", "--negative-ttl=7s")
	ask := func(target string) answer { t.Helper(); return get(t, s.addresses[0], target) }
	for range 3 { // so that answers are cached
		for _, target := range []string{"/" + narinfoName(greeting), "/" + narinfoName(greeting) + "/info", "/nar/lzip/" + greeting, "/nar/" + greeting} {
			if got := ask(target); got.StatusCode != 200 {
				t.Fatalf("%s: %s", target, got.Status)
			}
		}
	}
	out := succeed(t, "remove", database, greeting, empty, deepTree) // without the storage
	due := time.Now().Add(24 * time.Hour).UTC().Format("2006-01-02T15:")
	if !strings.Contains(out, "withdrew /gnu/store/"+greeting+", 107 B of nars\n") || !strings.Contains(out, "3 items withdrawn, ") || !strings.Contains(out, "from about "+due) && time.Now().Minute() != 0 {
		t.Errorf("remove: %s", out)
	}
	begin := time.Now()
	until(t, "it is withdrawn", func() bool { return ask("/"+narinfoName(greeting)).StatusCode == 404 })
	if took := time.Since(begin); took > 200*time.Millisecond {
		t.Logf("noticed after %v", took)
	}
	for _, target := range []string{"/" + narinfoName(greeting), "/" + narinfoName(greeting) + "/info"} {
		if got := ask(target); got.StatusCode != 404 || got.Header.Get("Cache-Control") != "max-age=7" {
			t.Errorf("%s: %s %v", target, got.Status, got.Header)
		}
	}
	nar := read(t, testdata, "published/nar/lzip", greeting)
	if got := ask("/nar/lzip/" + greeting); got.StatusCode != 200 || got.body != nar {
		t.Errorf("the nar: %s", got.Status)
	}
	if got := ask("/nar/" + greeting); got.StatusCode != 200 {
		t.Errorf("the nar without compression: %s", got.Status)
	}
	p.wantListed(t, greeting, empty, deepTree)
	if names := p.listed(t, "--withdrawn"); !slices.Equal(names, []string{greeting, empty, deepTree}) {
		t.Errorf("list --withdrawn: %q", names)
	}
	if out := succeed(t, "list", database, "--withdrawn"); strings.Count(out, "\twithdrawn 20") != 3 || strings.Count(out, ", kept until 20") != 3 {
		t.Errorf("list --withdrawn: %s", out)
	}
	if out := succeed(t, "list", database, "--withdrawn", "--json"); strings.Count(out, `"withdrawn_at":"20`) != 3 || strings.Count(out, `"delete_after":"20`) != 3 {
		t.Errorf("list --withdrawn --json: %s", out)
	}
	if out := succeed(t, "list", database, "--json"); strings.Contains(out, "withdrawn_at") {
		t.Errorf("list --json: %s", out)
	}
	if out := succeed(t, "stats", database); !strings.Contains(out, "  withdrawn      3, ") {
		t.Errorf("stats: %s", out)
	}
	if out := succeed(t, "remove", database, greeting); !strings.Contains(out, "was withdrawn before, at 20") || !strings.Contains(out, "0 items withdrawn") {
		t.Errorf("once more: %s", out)
	}

	// An import restores one item, a pin of a referrer another, and one is deleted at
	// once.
	p.imports(t, published(deepTree))
	if out := succeed(t, "pin", database, greet); !strings.Contains(out, "restored 1 item that it refers to") {
		t.Errorf("pin: %s", out)
	}
	until(t, "it is served again", func() bool {
		return ask("/"+narinfoName(greeting)).StatusCode == 200 && ask("/"+narinfoName(deepTree)).StatusCode == 200
	})
	succeed(t, p.args("remove", "--now", empty)...)
	until(t, "it is deleted", func() bool { return ask("/nar/lzip/"+empty).StatusCode == 404 })
	if p.hasNar(t, empty) || !p.hasNar(t, greeting) || !p.hasNar(t, deepTree) {
		t.Error("the wrong item is deleted")
	}
	p.wantListed(t, empty)

	// Each change is logged once: an item that is withdrawn and then removed at once
	// has one removal. After a restart, the server still serves the nar.
	succeed(t, "remove", database, entropy)
	s.stop(t, syscall.SIGTERM)
	s = p.serve(t, "--ttl=1d")
	if got := ask("/nar/lzip/" + entropy); got.StatusCode != 200 {
		t.Errorf("after a restart: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	// Other options don't shorten promises to clients, even after the server was
	// killed: a narinfo may have been sent just before its withdrawal.
	s = p.serveProcess(t, "--ttl=30d")
	s.kill(t)
	s = p.serve(t, "--ttl=1s", "--log-level=INFO")
	succeed(t, "remove", database, gosrc)
	const kept = "SELECT cast((delete_after - withdrawn_at) / 3600000.0 + 0.5 AS INTEGER) FROM narinfos WHERE withdrawn_at IS NOT NULL ORDER BY delete_after LIMIT 1 OFFSET "
	for n, want := range []int{24, 30 * 24} {
		if hours := count(t, p.database, kept+strconv.Itoa(n)); hours != want {
			t.Errorf("withdrawal %d is kept for %d hours, want %d", n, hours, want)
		}
	}
	for _, item := range []string{entropy, gosrc} {
		if got := ask("/nar/lzip/" + item); got.StatusCode != 200 {
			t.Errorf("%s after a restart with a short time to live: %s", item, got.Status)
		}
	}
	execute(t, p.database, "PRAGMA busy_timeout = 5000", "UPDATE narinfos SET delete_after = withdrawn_at WHERE delete_after < withdrawn_at + 48 * 3600000")
	until(t, "the server removes it", func() bool { return ask("/nar/lzip/"+entropy).StatusCode == 404 })
	until(t, "its nar is deleted", func() bool { return !p.hasNar(t, entropy) })
	s.stop(t, syscall.SIGTERM)
	if log := s.err.String(); !strings.Contains(log, `level=INFO msg="removed items that were withdrawn" items=1 bytes=3041079`) || strings.Contains(log, "level=ERROR") {
		t.Errorf("log: %s", log)
	}
	p.wantListed(t, empty, entropy, gosrc)
	changes := make(map[string]int)
	for line := range strings.Lines(recentRemovals(t, p.database)) {
		changes[strings.TrimSpace(line)]++
	}
	for base, want := range map[string]int{empty: 1, entropy: 1, greeting: 1, deepTree: 1, gosrc: 1, libgreet: 0} {
		if got := changes["/gnu/store/"+base]; got != want {
			t.Errorf("%s has %d removals among the changes, want %d", base, got, want)
		}
	}
}

// recentRemovals returns the removed paths of the recent changes, one per line.
func recentRemovals(t *testing.T, database string) string {
	t.Helper()
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var paths sql.NullString
	if err := db.QueryRow("SELECT group_concat(store_path, char(10)) FROM recent_changes WHERE kind = 2").Scan(&paths); err != nil {
		t.Fatal(err)
	}
	return paths.String
}

// TestRemoveFailedDeletions: on a disk where nothing can be deleted, the items are removed, and
// the errors name the remaining files.
func TestRemoveFailedDeletions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	succeed(t, p.args("remove", "--now", entropy)...) // claims the storage
	stuck := testfs.ReadOnly(t, p.storage)
	r := runProgram(t, "remove", "--now", "--database="+p.database, "--storage="+stuck, greeting, empty, "00000000000000000000000000000000")
	if r.status != 1 || strings.Count(r.err, "\n") != 3 || strings.Count(r.err, "the item is removed, but bytes of it are left in storage "+stuck) != 2 ||
		!strings.Contains(r.err, "remove /gnu/store/"+greeting+": ") || !strings.Contains(r.err, "nar/lzip/"+greeting) || !strings.Contains(r.out, "2 items removed, 0 B freed") {
		t.Errorf("%+v", r)
	}
	p.wantListed(t, greeting, empty, entropy)
	if !p.hasNar(t, greeting) || !p.hasNar(t, empty) {
		t.Error("the nars are deleted")
	}
	// Everything else is unchanged.
	succeed(t, p.args("remove", "--now", deepTree)...)
	p.wantListed(t, greeting, empty, entropy, deepTree)
}

// TestRemoveDoubtfulStorage: nothing changes if the storage is an empty directory, as if unmounted,
// or belongs to another instance.
func TestRemoveDoubtfulStorage(t *testing.T) {
	t.Parallel()
	p, other := newPlace(t), newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	other.imports(t, published(greeting))
	succeed(t, other.args("remove", "--now", greeting)...) // claims the storage
	before := p.dump(t)
	unmounted := t.TempDir()
	for storage, wanted := range map[string]string{unmounted: "is it mounted?", other.storage: "another instance"} {
		for _, more := range [][]string{{}, {"--now"}, {"--dry-run"}, {"--dry-run", "--now"}, {"--now", "--force"}} {
			args := append([]string{"remove", "--database=" + p.database, "--storage=" + storage, greeting}, more...)
			fail(t, args, wanted, storage, "nothing was ")
		}
	}
	if p.dump(t) != before {
		t.Error("something changed")
	}
	if left := must(os.ReadDir(unmounted)); len(left) > 0 {
		t.Errorf("the empty directory has %v", left)
	}
	misuse(t, p.args("remove", "--force", greeting), "--force", "--now")
}
