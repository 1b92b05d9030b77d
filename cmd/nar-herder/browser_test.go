package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	browserTests = "testdata/browser"
	// screenshotsVariable names a directory for pictures of the pages.
	screenshotsVariable = environmentPrefix + "SCREENSHOTS"
	// browsing is how long Chromium may take beside other tests.
	browsing = 5 * time.Minute
)

// strangerNarinfo is a valid narinfo that would break a careless page.
func strangerNarinfo() string {
	name := strings.Repeat("very-long-name_", 14)
	var references []string
	for n := range 250 {
		references = append(references, fmt.Sprintf("%032d-%s", n, name))
	}
	const script = `"><script>document.title = "broken"</script><img src=http://example.org/x onerror=alert(1)>`
	return "StorePath: /gnu/store/" + strings.Repeat("1", 32) + "-" + name + "\nNarHash: sha256:" + strings.Repeat("0", 52) +
		"\nNarSize: 9000000000000\nReferences: " + strings.Join(references, " ") + "\nSystem: " + script + "\nDeriver: " + script + "\nX-Mark: " + strings.Repeat("x", 5000) +
		"\nURL: javascript:alert(1)\nCompression: " + script + "\nFileSize: 1\nURL: nar/lzip/" + strings.Repeat("1", 32) + "-" + name + "\nCompression: lzip\nFileSize: 9000000000000\n"
}

// TestBrowser looks at the pages of a server with the corpus in Chromium; see check.mjs for what
// it checks. 'npm ci --omit=optional --ignore-scripts' in testdata/browser installs what it needs.
// It doesn't run in parallel, as Chromium needs all processors.
func TestBrowser(t *testing.T) {
	node, chromium := required(t, "node"), required(t, "chromium")
	if _, err := os.Stat(filepath.Join(browserTests, "node_modules", "playwright-core")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("run 'npm ci' in %s: %v", browserTests, err)
		}
		t.Skipf("run 'npm ci' in %s: %v", browserTests, err)
	}
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	p.imports(t, filepath.Join(testdata, "published-multi"))
	stranger := filepath.Join(p.dir, "stranger.narinfo")
	if err := os.WriteFile(stranger, []byte(strangerNarinfo()), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := runProgram(t, "import", "--database="+p.database, "--narinfos-only", stranger); r.status != 0 { // with a warning: it is unsigned
		t.Fatal(r.err)
	}
	s := p.serveProcess(t, "--ttl=1d", "--log-level=INFO")
	const greet = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9"
	input, err := json.Marshal(map[string]any{
		"base": "http://" + s.addresses[0],
		"pages": map[string]string{
			"home": "/", "status": "/status", "search": "/search?q=e", "item": "/item/" + greet, "stranger": "/item/" + strings.Repeat("1", 32), "missing": "/item/" + strings.Repeat("0", 32), "missing-page": "/no/such-page",
		},
		"typed": "greet", "found": greet,
		"chromium": chromium, "screenshots": variables[screenshotsVariable],
	})
	if err != nil {
		t.Fatal(err)
	}
	check := commandOf(exec.Command(node, "check.mjs"))
	check.Dir, check.Stdin = browserTests, strings.NewReader(string(input))
	check.Env = append(os.Environ(), "HOME="+t.TempDir())
	check.start(t)
	select {
	case <-check.ended:
	case <-time.After(browsing):
		t.Fatal("Chromium still looks at the pages")
	}
	for fault := range strings.Lines(check.out.String()) {
		t.Error(strings.TrimSuffix(fault, "\n"))
	}
	if check.status != 0 {
		t.Errorf("check.mjs: status %d: %s", check.status, tail(check.err.String()))
	}
}
