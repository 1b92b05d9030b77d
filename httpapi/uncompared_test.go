package httpapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// watchedRemote counts the files that were opened for each kind of context.
type watchedRemote struct {
	Remote
	mu                   sync.Mutex
	compared, uncompared int
}

func (e *watchedRemote) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (io.ReadCloser, int64, error) {
	e.mu.Lock()
	if peer.IsUncompared(ctx) {
		e.uncompared++
	} else {
		e.compared++
	}
	e.mu.Unlock()
	return e.Remote.OpenFile(ctx, item, n, offset, length, via)
}

// TestDecodedOnce: a nar of another instance that is decompressed here is compared only after
// that. A wrong one is never sent completely.
func TestDecodedOnce(t *testing.T) {
	t.Parallel()
	for _, content := range plainContents {
		m := make1(t, "source", content, "gzip")
		a := without(t, m)
		other := bytes.Clone(m.nar)
		other[len(other)/2] ^= 1
		for isWrong, file := range map[bool][]byte{false: m.file, true: compress(t, "gzip", other)} {
			there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
			}))
			t.Cleanup(there.Close)
			opts := remoteAt(t, a, there.Listener.Addr().String())
			watched := &watchedRemote{Remote: opts.Remote}
			opts.Remote = watched
			server := start(t, a, opts)
			for target, want := range map[string]string{"/nar/" + m.path.BaseName(): string(m.nar), "/file/source/sha256/" + m.digest: content} {
				got := fetch(t, server.address, target)
				switch {
				case !isWrong && (got.err != nil || got.StatusCode != 200 || got.body != want):
					t.Errorf("%s: %v, %d bytes, %v", target, got.Response, len(got.body), got.err)
				case isWrong && !got.cut() && (got.err != nil || got.StatusCode != 502):
					t.Errorf("%s, wrong: %v, %d bytes, %v", target, got.Response, len(got.body), got.err)
				}
			}
			if watched.compared != 0 || watched.uncompared == 0 {
				t.Errorf("%d files were compared on their way, %d not", watched.compared, watched.uncompared)
			}
			got := fetch(t, server.address, "/"+m.url())
			if isWhole := got.err == nil && got.StatusCode == 200; isWhole == isWrong || watched.compared != 1 {
				t.Errorf("as it is: %v, %v, %d compared", got.Response, got.err, watched.compared)
			}
		}
	}
}

// TestPartComparedRemote: a range of a file that turns out not to be stored here is not sent
// if the file at the other instance is wrong.
func TestPartComparedRemote(t *testing.T) {
	t.Parallel()
	for _, content := range plainContents {
		m := make1(t, "source", content, "none")
		wrong := bytes.Clone(m.file)
		wrong[110] ^= 1
		there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		}))
		t.Cleanup(there.Close)
		opts := remoteAt(t, without(t, m), there.Listener.Addr().String())
		watched := &watchedRemote{Remote: opts.Remote}
		opts.Remote = watched
		items := m.items(t)
		items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
			return nil, bytestore.Info{}, storage.ErrNotStored
		}
		c := dial(t, start(t, items, opts).address)
		c.send(request("GET", "/file/source/sha256/"+m.digest, "Range: bytes=-10"))
		if response, err := http.ReadResponse(c.r, nil); err == nil {
			if body, err := io.ReadAll(response.Body); err == nil && response.StatusCode < 500 {
				t.Errorf("%d bytes: %s, %q", len(content), response.Status, body)
			}
		}
		if watched.compared == 0 {
			t.Errorf("%d bytes: none was compared", len(content))
		}
	}
}
