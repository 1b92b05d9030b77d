package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// TestOtherCompression: the file that takes the least work to decompress is not available at the
// other server, so the nar and its content come from another one.
func TestOtherCompression(t *testing.T) {
	t.Parallel()
	for _, content := range plainContents {
		m := make1(t, "source", content, "lzip")
		base := m.path.BaseName()
		text := fmt.Appendf(m.text(), "URL: nar/zstd/%s\nCompression: zstd\nFileSize: 100\nURL: nar/%s\nCompression: none\nFileSize: %d\n", base, base, len(m.nar))
		item, err := storage.NewItem(&index.Item{Hash: m.path.Hash, Text: text})
		if err != nil {
			t.Fatal(err)
		}
		for kinds, want := range map[string]int{
			"404 404 200": 200, "500 404 200": 200, "404 500 200": 200,
			"404 404 404": 404, "500 404 404": 502, "404 404 500": 502,
		} {
			status := strings.Fields(kinds)
			there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				kind := map[string]int{"/nar/" + base: 0, "/nar/zstd/" + base: 1, "/" + m.url(): 2}[r.URL.Path]
				if status[kind] != "200" {
					w.WriteHeader(map[string]int{"404": 404, "500": 500}[status[kind]])
					return
				}
				_, _ = w.Write(m.file)
			}))
			t.Cleanup(there.Close)
			items := m.items(t)
			items.item = func(narinfo.PathHash) (*storage.Item, error) { return item, nil }
			items.open = nil
			a := without(t, m)
			server := start(t, items, remoteAt(t, a, there.Listener.Addr().String()))
			for target, body := range map[string]string{"/nar/" + base: string(m.nar), "/file/source/sha256/" + m.digest: content} {
				got := fetch(t, server.address, target)
				if got.StatusCode != want || want == 200 && (got.body != body || got.err != nil) {
					t.Errorf("%s, %s: %s, %d bytes, %v, want %d", kinds, target, got.Status, len(got.body), got.err, want)
				}
			}
		}
	}
}
