package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// TestRejected: an instance that sent a wrong nar is asked last for it. One that failed is not, and
// neither is one with a file that this server can't decompress.
func TestRejected(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789", 50_000)
	gzip, zstd := make1(t, "source", content, "gzip"), make1(t, "source", content, "zstd")
	other := bytes.Clone(gzip.nar)
	other[len(other)/2] ^= 1
	// The head of a frame with a window of 2 GiB.
	large := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3}, zstd.file[6:]...)
	const nar, file = "/nar/", "/file/source/sha256/"
	for name, test := range map[string]struct {
		item       *made
		file       []byte // that the first instance sends
		isCut      bool
		target     string
		isRejected bool
	}{
		"another nar":                     {gzip, compress(t, "gzip", other), false, nar, true},
		"another nar, for a file in it":   {gzip, compress(t, "gzip", other), false, file, true},
		"garbage":                         {gzip, []byte(content), false, nar, true},
		"garbage, for a file":             {gzip, []byte(content), false, file, true},
		"another head, for a file":        {gzip, compress(t, "gzip", bytes.Repeat(other[:8], 50)), false, file, true},
		"another length, for a file":      {gzip, compress(t, "gzip", flatNar("short")), false, file, true},
		"the right nar":                   {gzip, gzip.file, false, nar, false},
		"the right nar, for a file in it": {gzip, gzip.file, false, file, false},
		"a failure":                       {gzip, gzip.file, true, nar, false},
		"a failure, for a file":           {gzip, gzip.file, true, file, false},
		"too large a window":              {zstd, large, false, nar, false},
		"too large a window, for a file":  {zstd, large, false, file, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var asked []string
			serve := func(name string, handle http.HandlerFunc) string {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					asked = append(asked, name)
					mu.Unlock()
					handle(w, r)
				}))
				t.Cleanup(server.Close)
				return server.Listener.Addr().String()
			}
			m := *test.item
			m.fileSize = int64(len(test.file)) // else the file is refused before its first byte
			first := serve("first", func(w http.ResponseWriter, r *http.Request) {
				if !test.isCut {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(test.file))
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(test.file)))
				_, _ = w.Write(test.file[:len(test.file)/2])
				panic(http.ErrAbortHandler)
			})
			a := without(t, test.item)
			items := m.items(t)
			items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
				return nil, bytestore.Info{}, storage.ErrNotStored
			}
			server := start(t, items, remoteAt(t, a, first, serve("second", http.NotFound)))
			target := test.target + test.item.digest
			if test.target == nar {
				target = nar + test.item.path.BaseName()
			}
			fetch(t, server.address, target)
			mu.Lock()
			if len(asked) == 0 || asked[0] != "first" {
				t.Errorf("asked %q", asked)
			}
			asked = nil
			mu.Unlock()
			fetch(t, server.address, target)
			mu.Lock()
			defer mu.Unlock()
			if want := map[bool]string{true: "second", false: "first"}[test.isRejected]; len(asked) == 0 || asked[0] != want {
				t.Errorf("then asked %q, want %q first", asked, want)
			}
		})
	}
}
