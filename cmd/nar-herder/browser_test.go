package main

import (
	"encoding/json"
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
	browsing = 3 * time.Minute
)

// TestBrowser looks at the pages of a server with the corpus in Chromium; see check.mjs for what
// it checks. 'npm ci --omit=optional --ignore-scripts' in testdata/browser installs what it needs.
func TestBrowser(t *testing.T) {
	t.Parallel()
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
	s := p.serveProcess(t, "--ttl=1d", "--log-level=INFO")
	const greet = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9"
	input, err := json.Marshal(map[string]any{
		"base":  "http://" + s.addresses[0],
		"pages": map[string]string{"home": "/", "status": "/status", "search": "/search?q=e", "item": "/item/" + greet, "missing": "/item/" + strings.Repeat("0", 32)},
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
