package httpapi

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/compression/decoders"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// cachedFake has a nar of one item in a further compression.
type cachedFake struct {
	hash    narinfo.PathHash
	content string
	ttl     *time.Duration
}

func (c cachedFake) Text(context.Context, narinfo.PathHash) ([]byte, []string, time.Time, error) {
	return nil, nil, time.Time{}, storage.ErrNotFound
}

func (c cachedFake) TTL([]string) *time.Duration { return c.ttl }

func (c cachedFake) Files(_ context.Context, hash narinfo.PathHash) ([]index.CachedFile, error) {
	if hash != c.hash {
		return nil, nil
	}
	return []index.CachedFile{{Type: "zstd", Size: int64(len(c.content))}}, nil
}

func (c cachedFake) Open(_ context.Context, _ *storage.Item, _ index.CachedFile, offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
	return io.NopCloser(strings.NewReader(c.content[offset:])), bytestore.Info{Size: int64(len(c.content)), ModTime: time.Unix(1e9, 0)}, nil
}

// TestCacheControlOfNars checks what shared caches may keep, and for how long.
func TestCacheControlOfNars(t *testing.T) {
	t.Parallel()
	const forever, absent = "public, max-age=1000", "max-age=60"
	s := newStore(t, filepath.Join(published, hashOf(greeting)+".narinfo"), filepath.Join(published, hashOf(hello)+".narinfo"))
	opts := options()
	opts.TTL, opts.NegativeTTL = seconds(1000), seconds(60)
	cached := cachedFake{mustHash(t, greeting), "compressed", seconds(7)}
	opts.Cached = cached
	c := dial(t, start(t, s, opts).address)
	etag := c.ask("GET", "/nar/lzip/"+greeting).Header.Get("ETag")
	fileTag := c.ask("GET", "/file/hello-2.10.tar.gz/sha256/"+helloHash).Header.Get("ETag")
	decodedTag := c.ask("GET", "/nar/"+greeting).Header.Get("ETag")
	for _, test := range []struct {
		target string
		status int
		cache  string
		header string
	}{
		{"/nar/lzip/" + greeting, 200, forever, ""},
		{"/nar/lzip/" + greeting, 206, forever, "Range: bytes=1-3"},
		{"/nar/lzip/" + greeting, 304, forever, "If-None-Match: " + etag},
		{"/nar/lzip/" + greeting, 416, "", "Range: bytes=999999-"},
		{"/nar/" + hello, 200, forever, ""},
		{"/nar/" + greeting, 200, forever, ""},
		{"/nar/" + greeting, 304, forever, "If-None-Match: " + decodedTag},
		{"/nar/zstd/" + greeting, 200, "public, max-age=7", ""},
		{"/nar/zstd/" + greeting, 206, "public, max-age=7", "Range: bytes=1-3"},
		{"/file/hello-2.10.tar.gz/sha256/" + helloHash, 200, forever, ""},
		{"/file/hello-2.10.tar.gz/sha256/" + helloHash, 206, forever, "Range: bytes=1-3"},
		{"/file/hello-2.10.tar.gz/sha256/" + helloHash, 304, forever, "If-None-Match: " + fileTag},
		{"/nar/gzip/" + greeting, 404, absent, ""},
		{"/nar/lzip/" + nobody + "-x", 404, absent, ""},
		{"/nar/" + nobody + "-x", 404, absent, ""},
		{"/nar/x", 404, absent, ""},
		{"/file/hello-2.11.tar.gz/sha256/" + helloHash, 404, absent, ""},
		{"/nar/%zz", 400, "", ""},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			var header []string
			if test.header != "" {
				header = []string{test.header}
			}
			got := c.ask(method, test.target, header...)
			if got.StatusCode != test.status || got.Header.Get("Cache-Control") != test.cache {
				t.Errorf("%s %s %s: %s, Cache-Control %q, want %d, %q", method, test.target, test.header, got.Status, got.Header.Get("Cache-Control"), test.status, test.cache)
			}
		}
	}
}

// TestCacheControlOfMissing requests a missing nar of a known item, before and after the item
// is in memory.
func TestCacheControlOfMissing(t *testing.T) {
	t.Parallel()
	m := make1(t, "evicted", "content", "gzip")
	opts := options()
	opts.NegativeTTL = seconds(60)
	c := dial(t, start(t, without(t, m), opts).address)
	for range 2 {
		if got := c.ask("GET", "/"+m.url()); got.StatusCode != 404 || got.Header.Get("Cache-Control") != "max-age=60" {
			t.Errorf("%s %v", got.Status, got.Header)
		}
	}
}

// TestCacheControlNewTTL: nars have the current TTL of narinfos, and none if none is
// configured, as in guix publish.
func TestCacheControlNewTTL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		ttl, newTTL, negative *time.Duration
		want, wantNegative    string
	}{
		{nil, nil, nil, "", ""},
		{seconds(500), seconds(5), nil, "public, max-age=5", ""},
		{nil, seconds(7), seconds(3), "public, max-age=7", "max-age=3"},
		{seconds(0), nil, seconds(0), "public, max-age=0", "max-age=0"},
	} {
		opts := options()
		opts.TTL, opts.NewTTL, opts.NegativeTTL = test.ttl, test.newTTL, test.negative
		c := dial(t, start(t, corpus(), opts).address)
		if got := c.ask("GET", "/nar/lzip/"+greeting).Header.Get("Cache-Control"); got != test.want {
			t.Errorf("Cache-Control: %q, want %q", got, test.want)
		}
		if got := c.ask("GET", "/nar/lzip/"+nobody+"-x").Header.Get("Cache-Control"); got != test.wantNegative {
			t.Errorf("of what is not there: %q, want %q", got, test.wantNegative)
		}
	}
}

// TestCacheControlUnsure: caches must revalidate nars that may be removed soon, or are not
// verified.
func TestCacheControlUnsure(t *testing.T) {
	t.Parallel()
	plain, gone := make1(t, "plain.tar", strings.Repeat("0123456789", 100), "none"), make1(t, "gone.tar", "gone", "gzip")
	source := newStore(t, plain.write(t, t.TempDir()))
	there := start(t, source, options())
	s := without(t, plain)
	s.importAll(t, importer.Options{}, gone.write(t, t.TempDir()))
	err := s.index.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(gone.path.Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	opts := remoteAt(t, s, there.address)
	opts.TTL = seconds(1000)
	c := dial(t, start(t, s, opts).address)
	for _, target := range []string{
		"/" + plain.url(), "/nar/" + plain.path.BaseName(), "/file/plain.tar/sha256/" + plain.digest,
		"/" + gone.url(), "/nar/" + gone.path.BaseName(), "/file/gone.tar/sha256/" + gone.digest,
	} {
		if got := c.ask("GET", target); got.StatusCode != 200 || got.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %s %v", target, got.Status, got.Header)
		}
	}
}

// TestCacheControlOfFailures: caches never keep failures.
func TestCacheControlOfFailures(t *testing.T) {
	t.Parallel()
	broken := &fakeItems{
		text:   func(narinfo.PathHash) ([]byte, error) { return nil, errBroken },
		item:   func(narinfo.PathHash) (*storage.Item, error) { return nil, errBroken },
		totals: func() (index.Totals, error) { return index.Totals{}, errBroken },
	}
	opts := options()
	opts.TTL, opts.NegativeTTL, opts.DumpsExpected, opts.Pages = seconds(1000), seconds(60), true, brokenPages()
	c := dial(t, start(t, broken, opts).address)
	m := make1(t, "x", "content", "gzip")
	unopened := m.items(t)
	unopened.open = failingOpen(errBroken)
	d := dial(t, start(t, unopened, opts).address)
	full := startWith(t, m.items(t), opts, func(s *Server) {
		s.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece)
		s.checker.Options.Wait = time.Millisecond
	})
	if _, err := takeMemory(t, full.checker.Options.Decoders, 2*decoders.Piece); err != nil {
		t.Fatal(err)
	}
	busy := dial(t, full.address)
	for _, test := range []struct {
		c      *client
		target string
		header string
	}{
		{c, "/" + nobody + ".narinfo", ""}, {c, "/" + nobody + ".narinfo/info", ""}, {c, "/nar/lzip/" + greeting, ""}, {c, "/nar/" + greeting, ""},
		{c, "/file/hello-2.10.tar.gz/sha256/" + helloHash, ""}, {c, peer.DumpPath, ""}, {c, "/", "Accept: text/html"},
		{d, "/" + m.url(), ""}, {d, "/" + m.url(), "Range: bytes=1-2"}, {d, "/nar/" + m.path.BaseName(), ""}, {d, "/file/x/sha256/" + m.digest, ""},
		{busy, "/nar/" + m.path.BaseName(), ""},
	} {
		var header []string
		if test.header != "" {
			header = []string{test.header}
		}
		got := test.c.ask("GET", test.target, header...)
		if got.StatusCode < 500 || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %s %v", test.target, test.header, got.Status, got.Header)
		}
	}
}

func mustHash(t *testing.T, base string) narinfo.PathHash {
	t.Helper()
	hash, err := narinfo.ParsePathHash(hashOf(base))
	if err != nil {
		t.Fatal(err)
	}
	return hash
}
