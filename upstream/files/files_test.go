package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

const content = "the content of a nar"

func testItem(t *testing.T, origin int64) *storage.Item {
	t.Helper()
	base := strings.Repeat("1", narinfo.PathHashLen) + "-a+b"
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%s\nReferences:\nURL: nar/%s\nCompression: none\nFileSize: %d\n",
		base, strings.Repeat("0", 52), strings.ReplaceAll(base, "+", "%2B"), len(content))
	item, err := storage.NewItem(&index.Item{Hash: path.Hash, Text: []byte(text), Origin: origin})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// servers are HTTP servers that don't have the file and record that they were asked.
type servers struct {
	mu    sync.Mutex
	asked []string
}

func (s *servers) start(t *testing.T, name string) *url.URL {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, name)
		s.mu.Unlock()
		http.NotFound(w, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestOrder: the upstream that an item came from is asked first, and peers are asked first for
// items of no upstream.
func TestOrder(t *testing.T) {
	t.Parallel()
	var all servers
	a, b, p, q := all.start(t, "a"), all.start(t, "b"), all.start(t, "p"), all.start(t, "q")
	set := upstream.New(upstream.Options{URLs: []*url.URL{a, b}})
	origins := map[int64]string{1: peer.Name(a), 2: peer.Name(b), 3: "http://former.example"}
	reads := 0
	source := New(Options{
		Upstreams: set.Upstreams(), Peers: peer.Peers{peer.New(p, peer.Self{}), peer.New(q, peer.Self{})},
		Origins: func(context.Context) (map[int64]string, error) {
			if reads++; reads == 1 {
				return nil, errors.New("the database is busy")
			}
			return origins, nil
		},
	})
	for _, test := range []struct {
		origin int64
		want   string
	}{
		{2, "abpq"}, // the database fails once
		{0, "pqab"}, {1, "abpq"}, {2, "bapq"}, {3, "abpq"}, {2, "bapq"},
	} {
		all.asked = nil
		if _, _, err := source.OpenFile(t.Context(), testItem(t, test.origin), 0, 0, -1, nil); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("origin %d: %v", test.origin, err)
		}
		if got := strings.Join(all.asked, ""); got != test.want {
			t.Errorf("origin %d: asked %s, want %s", test.origin, got, test.want)
		}
	}
	if reads != 2 {
		t.Errorf("the origins were read %d times", reads)
	}
}

// TestFolder opens files of a directory.
func TestFolder(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	name := item.FileName(0)
	write := func(t *testing.T, dir, text string) {
		t.Helper()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "nar"), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for what, test := range map[string]struct {
		make func(t *testing.T, dir string)
		want string // of the error; "" for none, "absent" for storage.ErrNotStored
	}{
		"there":   {func(t *testing.T, dir string) { write(t, dir, content) }, ""},
		"missing": {func(t *testing.T, dir string) { write(t, dir, content); remove(t, dir, name) }, "absent"},
		"empty":   {func(*testing.T, string) {}, "is it mounted?"},
		"gone":    {func(t *testing.T, dir string) { remove(t, dir, ".") }, "no such file or directory"},
		"short":   {func(t *testing.T, dir string) { write(t, dir, content[:5]) }, "wrong size: 5 bytes"},
		"a named pipe": {func(t *testing.T, dir string) {
			write(t, dir, "")
			remove(t, dir, name)
			if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		"a link to another directory": {func(t *testing.T, dir string) {
			other := t.TempDir()
			write(t, other, content)
			if err := os.Symlink(filepath.Join(other, "nar"), filepath.Join(dir, "nar")); err != nil {
				t.Fatal(err)
			}
		}, "escapes from parent"},
		"a file in place of a directory": {func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "nar"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "absent"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "cache")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			test.make(t, dir)
			set := upstream.New(upstream.Options{URLs: []*url.URL{{Scheme: "file", Path: dir}}})
			source := New(Options{Upstreams: set.Upstreams(), Origins: func(context.Context) (map[int64]string, error) { return nil, nil }})
			body, size, err := source.OpenFile(t.Context(), item, 0, 4, 7, nil)
			_, _, locateErr := source.Locate(t.Context(), item, 0, nil)
			for _, err := range []error{err, locateErr} {
				switch {
				case test.want == "" && err != nil, test.want == "absent" && !errors.Is(err, storage.ErrNotStored):
					t.Errorf("%v", err)
				case test.want != "" && test.want != "absent" && (err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, storage.ErrNotStored)):
					t.Errorf("%v, want %s", err, test.want)
				}
			}
			if err == nil {
				got, err := io.ReadAll(body)
				if string(got) != content[4:11] || size != int64(len(content)) || err != nil {
					t.Errorf("%q of %d bytes, %v", got, size, err)
				}
				body.Close()
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil && name != "." {
		t.Fatal(err)
	} else if name == "." {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnyServer: the file is requested from a web server that isn't a Nar Herder: with the
// name of the narinfo's URL, in ranges or not.
func TestAnyServer(t *testing.T) {
	t.Parallel()
	for _, ranges := range []bool{true, false} {
		var paths []string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			paths = append(paths, r.URL.EscapedPath())
			w.Header().Set("Server", "Other")
			if !ranges {
				r.Header.Del("Range")
			}
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
		}))
		defer server.Close()
		base, err := url.Parse(server.URL + "/guix/")
		if err != nil {
			t.Fatal(err)
		}
		set := upstream.New(upstream.Options{URLs: []*url.URL{base}})
		source := New(Options{Upstreams: set.Upstreams(), Origins: func(context.Context) (map[int64]string, error) { return nil, nil }})
		item := testItem(t, 1)
		body, size, err := source.Resume(t.Context(), item, 0, strings.NewReader(content), 5, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); string(got) != content[5:] || size != int64(len(content)) || err != nil {
			t.Errorf("ranges %v: %q of %d bytes, %v", ranges, got, size, err)
		}
		body.Close()
		if want := "/guix/nar/" + strings.Repeat("1", narinfo.PathHashLen) + "-a%2Bb"; !slices.Equal(paths, []string{want}) {
			t.Errorf("paths %q, want %q", paths, want)
		}
	}
}
