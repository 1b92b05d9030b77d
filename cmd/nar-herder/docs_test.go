package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"nar-herder/internal/s3server"
)

// root is the directory of the documents' relative paths.
const root = "../.."

// document is a page: its path below root and its text.
type document struct{ name, text string }

// documents returns all pages.
func documents(t *testing.T) (pages []document) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			relative, err := filepath.Rel(root, name)
			if err != nil {
				t.Fatal(err)
			}
			pages = append(pages, document{relative, read(t, name)})
		}
	}
	if len(pages) < 20 {
		t.Fatalf("only %d pages", len(pages))
	}
	return pages
}

// block is fenced code: its language, its text, and the line of the fence.
type block struct {
	language, text string
	line           int
}

// hidden is a comment of a page with a command that the test runs and readers don't see, or
// with the reason why the next block is not run.
var hidden = regexp.MustCompile(`^<!-- (run|not run): (.+) -->$`)

// blocks returns the fenced code of a page and its hidden commands, in order, and the text
// without them. It leaves out blocks below a comment "not run".
func (d *document) blocks(t *testing.T) (found []block, prose string) {
	t.Helper()
	var rest strings.Builder
	var open *block
	skip := false
	for i, line := range strings.Split(d.text, "\n") {
		language, isFence := strings.CutPrefix(strings.TrimLeft(line, " "), "```")
		comment := hidden.FindStringSubmatch(line)
		switch {
		case isFence && open == nil:
			open = &block{language: language, line: i + 1}
		case isFence:
			if !skip {
				found = append(found, *open)
			}
			open, skip = nil, false
		case open != nil:
			open.text += line + "\n"
		case comment != nil && comment[1] == "run":
			found = append(found, block{"sh", comment[2] + "\n", i + 1})
		case comment != nil:
			skip = true
		default:
			rest.WriteString(line + "\n")
		}
	}
	if open != nil || skip {
		t.Errorf("%s: a block does not end, or a comment has no block below", d.name)
	}
	return found, rest.String()
}

// wrapper is nar-herder in the documents' commands: a server runs in the background, and
// replaces a server at the same address.
const wrapper = `#!/bin/sh
[ "$1" = run-server ] || exec "$PROGRAM" "$@"
state=$RUN/default
for argument; do
	case $argument in --host=*) state=$RUN/${argument#--host=} ;; esac
done
"$RUN/stop" "$state"
echo "$@" >"$state.arguments"
( "$PROGRAM" "$@" & echo $! >"$state.pid"; wait; touch "$state.ended" ) >"$state.log" 2>&1 </dev/null &
until grep -q msg=listening "$state.log" 2>/dev/null; do
	if [ -e "$state.ended" ]; then cat "$state.log"; exit 1; fi
	sleep 0.05
done
`

// stop ends the server of a state, if there is one.
const stop = `#!/bin/sh
[ -e "$1.pid" ] || exit 0
kill "$(cat "$1.pid")" 2>/dev/null
until [ -e "$1.ended" ]; do sleep 0.05; done
rm -f "$1.pid" "$1.ended" "$1.log"
`

// programs replace programs that a test can't run.
var programs = map[string]string{
	"nar-herder": wrapper,
	"stop":       stop,
	"systemctl": `#!/bin/sh
case $1 in
stop) exec stop "$RUN/default" ;;
start) [ -e "$RUN/default.pid" ] || exec nar-herder $(cat "$RUN/default.arguments") ;;
esac
`,
	"runuser": "#!/bin/sh\n" + `while [ "$1" != -- ]; do shift; done; shift; exec "$@"` + "\n",
}

// examples are the published substitutes that the documents use: all except the large ones
// and the item that refers to them.
var examples = []string{
	"2y8b79q71l3w1d9kh7i1b5al0mlahnd3", "f7d5xvkf9s1mdnclid1kqndn30nim936", "gvwwzfzg1796x97nb72b9ycjy2gs53vb",
	"j0kmdkzywjvv7224iwrm7xdc2fx2y8c9", "mjwaskpdj87sw34j24x3fy7bmg45jckp", "nxrz38jzshzw0q3fqi3fqimjg1zr62r9",
	"whkpn6a94flfghyx6i6fzbvrgc3wjkk7", "zmqc3v2dxk37sfk9lan5fc9hxii1i6km",
}

// publish copies these substitutes into a directory.
func publish(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "nar/lzip"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, hash := range examples {
		nars, err := filepath.Glob(filepath.Join(testdata, "published/nar/lzip", hash+"-*"))
		if err != nil || len(nars) != 1 {
			t.Fatalf("%s: %v, %v", hash, nars, err)
		}
		for from, to := range map[string]string{
			filepath.Join(testdata, "published", hash+".narinfo"): hash + ".narinfo",
			nars[0]: filepath.Join("nar/lzip", filepath.Base(nars[0])),
		} {
			if err := os.WriteFile(filepath.Join(dir, to), []byte(read(t, from)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDocumentCommands runs the shell commands of each page in order, in a new directory
// that replaces the directories of the machine. TOML blocks are written to the files that
// their first lines name.
func TestDocumentCommands(t *testing.T) {
	t.Parallel()
	var source *server
	for _, page := range documents(t) {
		blocks, _ := page.blocks(t)
		blocks = slices.DeleteFunc(blocks, func(b block) bool { return b.language != "sh" && b.language != "toml" })
		if !slices.ContainsFunc(blocks, func(b block) bool { return b.language == "sh" }) {
			continue
		}
		if source == nil { // shared by all pages
			p := newPlace(t)
			publish(t, filepath.Join(p.dir, "published"))
			p.imports(t, filepath.Join(p.dir, "published"))
			succeed(t, "dump", "--database="+p.database, "--database-dump="+p.dumpFile())
			source = p.serve(t, "--log-level=INFO")
		}
		t.Run(page.name, func(t *testing.T) {
			t.Parallel()
			runDocument(t, blocks, source)
		})
	}
}

func runDocument(t *testing.T, blocks []block, source *server) {
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	for _, name := range []string{"run", "srv/nars", "var/lib/nar-herder", "var/cache/nar-herder", "etc/nar-herder", "etc/guix", "var/tmp", "backup", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, filepath.Join(dir, "srv/published"))
	if err := os.CopyFS(filepath.Join(dir, "var/cache/guix/publish"), os.DirFS(filepath.Join(testdata, "publish-cache"))); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{"acl": "acl", "farm.pub": "main.pub"} {
		if err := os.WriteFile(filepath.Join(dir, "etc/guix", name), []byte(read(t, caseKeys(key))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/guix/signing-key.pub"), []byte(read(t, testdata, "publish-cache/signing-key.pub")), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(run, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host := ownHost()
	pairs := []string{
		"127.0.0.1", host, "10.0.0.11", ownHost(), "10.0.0.12", ownHost(), "10.0.0.1", ownHost(),
		"https://farm.example.org", "http://" + source.addresses[0], "https://mirror.example.org", "http://" + source.addresses[0],
		"https://bordeaux.guix.gnu.org", "http://" + source.addresses[0], "https://ci.guix.gnu.org", "file://" + dir + "/srv/published",
		"--host=0.0.0.0", "--host=" + host, "--control-port=8735", "--control-port=8735 --control-host=" + host,
		"control-port = 8735\n", "control-port = 8735\ncontrol-host = \"" + host + "\"\n",
	}
	for _, name := range []string{"/srv/", "/var/", "/etc/", "/backup/", "/mnt/"} {
		pairs = append(pairs, name, dir+name)
	}
	if slices.ContainsFunc(blocks, func(b block) bool { return strings.Contains(b.text, "s3.example.org") }) {
		bucket := s3server.New(t)
		bucket.URL("my-nars") // makes the bucket
		pairs = append(pairs, "https://s3.example.org", "http://"+bucket.Address)
		if err := os.WriteFile(filepath.Join(dir, "etc/nar-herder/s3"), []byte(read(t, bucket.Credentials)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer(pairs...)
	script := "set -ex\n"
	for _, b := range blocks {
		first, _, _ := strings.Cut(b.text, "\n")
		name, isFile := strings.CutPrefix(first, "# /")
		switch {
		case b.language == "sh":
			script += fmt.Sprintf(": line %d\n", b.line) + here.Replace(b.text)
		case isFile:
			name, _, _ = strings.Cut(name, ":")
			if err := os.WriteFile(filepath.Join(dir, name), []byte(here.Replace(b.text)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	shell := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	shell.Dir, shell.WaitDelay = dir, time.Second
	shell.Env = append([]string{
		"PATH=" + run + ":" + os.Getenv("PATH"), "RUN=" + run, "TESTDATA=" + must(filepath.Abs(testdata)), "PROGRAM=" + binary, "HOME=" + dir,
		"NAR_HERDER_DATABASE=" + filepath.Join(dir, "var/lib/nar-herder/nar_herder.db"), "NAR_HERDER_HOST=" + host, "NAR_HERDER_LOG_LEVEL=INFO",
	}, raceEnvironment...)
	out, err := shell.CombinedOutput()
	states, globErr := filepath.Glob(filepath.Join(run, "*.pid"))
	if globErr != nil {
		t.Error(globErr)
	}
	for _, state := range states {
		state = strings.TrimSuffix(state, ".pid")
		var pid int
		if _, scanErr := fmt.Sscan(read(t, state+".pid"), &pid); scanErr != nil {
			t.Error(scanErr)
			continue
		}
		log := read(t, state+".log")
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Errorf("the server %s has ended: %s", filepath.Base(state), log)
		}
		until(t, "the server ends", func() bool { _, err := os.Stat(state + ".ended"); return err == nil })
		if err != nil {
			t.Logf("server %s: %s", filepath.Base(state), tail(log))
		}
	}
	if err != nil {
		t.Errorf("%v: %s", err, out[max(0, len(out)-4000):])
	}
}

// TestDemo runs scripts/demo, and the requests that it prints.
func TestDemo(t *testing.T) {
	t.Parallel()
	host := ownHost()
	demo := commandOf(exec.Command(filepath.Join(root, "scripts/demo")))
	demo.Env = append(os.Environ(), "NAR_HERDER_HOST="+host)
	demo.start(t)
	for !strings.Contains(demo.out.String(), "Ctrl-C") { // the build may take long
		select {
		case <-demo.ended:
			t.Fatalf("the demo has ended: %s", demo.err.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	until(t, "the demo listens", func() bool { return strings.Contains(demo.err.String(), "msg=listening") })
	requests := 0
	for line := range strings.Lines(demo.out.String()) {
		url, ok := strings.CutPrefix(line, "  curl http://127.0.0.1:8734")
		if !ok {
			continue
		}
		requests++
		path, _, _ := strings.Cut(strings.TrimSpace(url), " ")
		if got := get(t, host+":8734", path); got.StatusCode != 200 || got.body == "" {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
	if requests != 2 {
		t.Errorf("the demo proposes %d requests: %s", requests, demo.out.String())
	}
	if err := demo.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := demo.wait(t); status != 130 {
		t.Errorf("exit status %d", status)
	}
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	inlineCode   = regexp.MustCompile("`[^`]*`")
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchor returns the anchor that web sites make of a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// TestDocumentLinks checks the links between pages, and to their headings.
func TestDocumentLinks(t *testing.T) {
	t.Parallel()
	anchors := make(map[string][]string)
	pages := documents(t)
	prose := make([]string, len(pages))
	for i, page := range pages {
		_, prose[i] = page.blocks(t)
		for _, match := range heading.FindAllStringSubmatch(prose[i], -1) {
			anchors[page.name] = append(anchors[page.name], anchor(match[1]))
		}
	}
	linked := map[string]bool{"README.md": true}
	for i, page := range pages {
		for _, match := range markdownLink.FindAllStringSubmatch(inlineCode.ReplaceAllString(prose[i], ""), -1) {
			target, fragment, hasFragment := strings.Cut(match[1], "#")
			if strings.Contains(match[1], "://") {
				continue
			}
			name := page.name
			if target != "" {
				name = filepath.Join(filepath.Dir(page.name), target)
			}
			linked[name] = true
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Errorf("%s: %s: %v", page.name, match[1], err)
			} else if hasFragment && !slices.Contains(anchors[name], fragment) {
				t.Errorf("%s: %s has no heading %q", page.name, name, fragment)
			}
		}
	}
	for _, page := range pages {
		if !linked[page.name] {
			t.Errorf("no page links to %s", page.name)
		}
	}
	if lines := strings.Count(read(t, root, "README.md"), "\n"); lines > 150 {
		t.Errorf("README.md has %d lines: move something to docs/", lines)
	}
}

// TestDocumentOptions: each option in the prose exists.
func TestDocumentOptions(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"--no-closures": true}
	for _, node := range append(commandModel(t).Children, commandModel(t).Node) {
		for _, flag := range node.Flags {
			known["--"+flag.Name] = true
		}
	}
	for _, page := range documents(t) {
		if page.name == "CHANGELOG.md" { // names removed options
			continue
		}
		_, prose := page.blocks(t)
		for _, code := range inlineCode.FindAllString(prose, -1) {
			if name := optionName.FindString(code); strings.HasPrefix(code, "`"+name) && name != "" && !strings.HasSuffix(name, "-") && !known[name] {
				t.Errorf("%s: %s is not an option", page.name, code)
			}
		}
	}
}

// TestTroubleshootingMessages: the sources have each message of docs/troubleshooting.md, in
// which "…" stands for text that varies.
func TestTroubleshootingMessages(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			sources.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	for line := range strings.Lines(read(t, root, "docs/troubleshooting.md")) {
		cell, ok := strings.CutPrefix(line, "| ")
		if !ok {
			continue
		}
		cell, _, _ = strings.Cut(cell, " |")
		for _, code := range inlineCode.FindAllString(cell, -1) {
			messages++
			for fragment := range strings.SplitSeq(strings.Trim(code, "`"), "…") {
				if fragment = strings.TrimSpace(fragment); !strings.Contains(sources.String(), fragment) {
					t.Errorf("no source has %q", fragment)
				}
			}
		}
	}
	if messages < 30 {
		t.Errorf("only %d messages", messages)
	}
}

// TestPackagesDocument: docs/architecture.md names each package, or its parent with "/…".
func TestPackagesDocument(t *testing.T) {
	t.Parallel()
	named := inlineCode.FindAllString(read(t, root, "docs/architecture.md"), -1)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		name := strings.TrimPrefix(filepath.Dir(path), root+"/")
		if !slices.Contains(named, "`"+name+"`") && !slices.Contains(named, "`"+filepath.Dir(name)+"/…`") {
			t.Errorf("no line on %s", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
