package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestStorageCache: nars that were read once are served from the cache, also while the
// storage is unavailable and after a restart. A cache belongs to one server.
func TestStorageCache(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(gosrc))
	cache := filepath.Join(p.dir, "cache")
	s := p.serve(t, "--storage-cache="+cache, "--storage-cache-size=100MiB")
	address := s.addresses[0]
	until(t, "the cache is ready", func() bool {
		return strings.Contains(get(t, address, "/metrics").body, "narherder_storage_cache_ready 1")
	})
	target := "/nar/lzip/" + gosrc
	first := get(t, address, target)
	if first.StatusCode != 200 {
		t.Fatal(first.Status)
	}
	until(t, "the nar is in the cache", func() bool {
		return strings.Contains(get(t, address, "/metrics").body, "narherder_storage_cache_fetched_total 1")
	})
	same := func() {
		t.Helper()
		again := get(t, address, target)
		if again.StatusCode != 200 || again.body != first.body || again.Header.Get("ETag") != first.Header.Get("ETag") || again.Header.Get("Last-Modified") != first.Header.Get("Last-Modified") {
			t.Errorf("%s, %d bytes of %d, %v", again.Status, len(again.body), len(first.body), again.Header)
		}
		if part := request(t, address, "GET", target, "Range", "bytes=5000-15000"); part.StatusCode != 206 || part.body != first.body[5000:15001] {
			t.Errorf("a part: %s, %d bytes", part.Status, len(part.body))
		}
		if head := request(t, address, "HEAD", target); head.StatusCode != 200 || head.Header.Get("ETag") != first.Header.Get("ETag") {
			t.Errorf("HEAD: %s", head.Status)
		}
	}
	same()
	// The storage is missing as a whole, so the nar is not known to be missing.
	away := p.storage + "-away"
	if err := os.Rename(p.storage, away); err != nil {
		t.Fatal(err)
	}
	same()
	if err := os.Rename(away, p.storage); err != nil {
		t.Fatal(err)
	}
	s.stop(t, syscall.SIGTERM)

	s = p.serve(t, "--storage-cache="+cache, "--storage-cache-size=100MiB")
	address = s.addresses[0]
	until(t, "the cache is ready", func() bool {
		body := get(t, address, "/metrics").body
		return strings.Contains(body, "narherder_storage_cache_ready 1") && strings.Contains(body, "narherder_storage_cache_files 1")
	})
	same()
	if body := get(t, address, "/metrics").body; !strings.Contains(body, "narherder_storage_cache_misses_total 0") || !strings.Contains(body, "narherder_storage_cache_hits_total 3") {
		t.Errorf("after a restart: %s", body)
	}
	s.stop(t, syscall.SIGTERM)

	for _, bad := range []string{p.storage, filepath.Join(p.storage, "nar", "x"), p.dir} {
		misuse(t, p.args("run-server", "--port=0", "--storage-cache="+bad), "--storage-cache="+bad, "overlaps the storage")
	}
	link := filepath.Join(p.dir, "link")
	if err := os.Symlink(p.storage, link); err != nil {
		t.Fatal(err)
	}
	misuse(t, p.args("run-server", "--port=0", "--storage-cache="+filepath.Join(link, "new")), "overlaps the storage")
	misuse(t, []string{"run-server", "--port=0", "--database=" + p.database, "--mirror=http://127.0.0.1:1", "--storage-cache=" + cache}, "--storage-cache", "add --storage")
	stored, err := os.ReadFile(filepath.Join(p.storage, "nar", "lzip", gosrc))
	if err != nil || !bytes.Equal(stored, []byte(first.body)) {
		t.Errorf("the storage: %v", err)
	}
}
