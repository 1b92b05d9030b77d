package httpapi

import (
	"path/filepath"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// TestAccelRedirect checks the internal paths, which nginx configurations for the original Nar
// Herder depend on.
func TestAccelRedirect(t *testing.T) {
	t.Parallel()
	s := newStore(t, filepath.Join(published, hashOf(odd)+".narinfo"), filepath.Join(published, hashOf(gtk)+".narinfo"), filepath.Join(published, hashOf(hello)+".narinfo"))
	opts := options()
	opts.AccelRedirect, opts.TTL = true, seconds(5)
	c := dial(t, start(t, s, opts).address)
	for target, want := range map[string]string{
		"/nar/lzip/" + oddURL: "/internal/nar/lzip/" + oddURL,
		"/nar/lzip/" + gtk:    "/internal/nar/lzip/mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk%2B-2.24.33-doc",
		"/nar/" + hello:       "/internal/nar/" + hello,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			got := c.ask(method, target, "Range: bytes=3-5")
			if got.StatusCode != 200 || got.body != "" || got.Header.Get("X-Accel-Redirect") != want {
				t.Errorf("%s %s: %s %v %q, want %s", method, target, got.Status, got.Header, got.body, want)
			}
			if got.Header.Get("Cache-Control") != "public, max-age=5" {
				t.Errorf("%s %s: Cache-Control: %s", method, target, got.Header.Get("Cache-Control"))
			}
			// nginx replaces the file's headers with these.
			for _, name := range []string{"ETag", "Last-Modified", "Content-Range", "Accept-Ranges"} {
				if got.Header.Get(name) != "" {
					t.Errorf("%s %s: %s: %s", method, target, name, got.Header.Get(name))
				}
			}
		}
	}
	// The server itself sends what nginx can't.
	for _, target := range []string{"/nar/" + gtk, "/file/hello-2.10.tar.gz/sha256/" + helloHash, "/" + hashOf(gtk) + ".narinfo", "/nix-cache-info"} {
		if got := c.ask("GET", target); got.StatusCode != 200 || got.body == "" || got.Header.Get("X-Accel-Redirect") != "" {
			t.Errorf("%s: %s %v", target, got.Status, got.Header)
		}
	}
	if got := c.ask("GET", "/nar/gzip/"+gtk); got.StatusCode != 404 || got.Header.Get("X-Accel-Redirect") != "" {
		t.Errorf("%s %v", got.Status, got.Header)
	}
	// A missing file is not redirected.
	m := make1(t, "x", "x", "none")
	items := m.items(t)
	items.open = failingOpen(storage.ErrMismatch)
	isFault(t, dial(t, start(t, items, opts).address).ask("GET", "/"+m.url()), 500)
	items.item = func(narinfo.PathHash) (*storage.Item, error) { return nil, errBroken }
	isFault(t, dial(t, start(t, items, opts).address).ask("GET", "/"+m.url()), 500)
}
