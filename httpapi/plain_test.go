package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/verify"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// plainContents are nars that are compared before the status line, and longer ones.
var plainContents = []string{strings.Repeat("0123456789", 1000), strings.Repeat("0123456789", 30_000)}

// inBucket makes items of which one is in a bucket: its file has a tag, and is not local.
func (m *made) inBucket(t testing.TB) *fakeItems {
	items := m.items(t)
	items.open = func(_ *storage.Item, _ int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		end := int64(len(m.file))
		if length >= 0 {
			end = min(end, offset+length)
		}
		return io.NopCloser(bytes.NewReader(m.file[offset:end])), bytestore.Info{Name: m.url(), Size: m.fileSize, ModTime: time.Unix(1, 0), Tag: "tag"}, nil
	}
	return items
}

// TestPlainDamage flips one bit of a nar that is stored without compression, and requests it,
// or its content, in each way.
func TestPlainDamage(t *testing.T) {
	t.Parallel()
	for _, content := range plainContents {
		good := make1(t, "source", content, "none")
		isShort := len(content) < verify.CheckedFirst
		undamaged := start(t, good.items(t), options()).address
		for where, at := range map[string]int{"begin": 100, "end": 95 + len(content)} {
			m := *good
			m.file = bytes.Clone(good.file)
			m.file[at] ^= 1
			stored := newStore(t, good.write(t, t.TempDir()))
			if err := os.WriteFile(filepath.Join(stored.directory, m.url()), m.file, 0o644); err != nil {
				t.Fatal(err)
			}
			for store, items := range map[string]Items{"directory": stored, "bucket": m.inBucket(t)} {
				server := start(t, items, options())
				for _, target := range []string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest} {
					etag := dial(t, undamaged).ask("HEAD", target).Header.Get("ETag")
					for _, test := range []struct {
						method string
						header []string
						part   bool
					}{
						{"GET", nil, false},
						{"HEAD", nil, false},
						{"GET", []string{"Range: bytes=0-"}, false},
						{"GET", []string{"Range: bytes=5-14", `If-Range: "other"`}, false},
						{"GET", []string{"Range: bytes=5-14"}, true},
						{"GET", []string{"Range: bytes=5-"}, true},
						{"GET", []string{"Range: bytes=-10"}, true},
						{"GET", []string{"Range: bytes=5-14", "If-Range: " + etag}, true},
					} {
						if strings.HasPrefix(target, "/nar/") && len(test.header) > 1 && test.part {
							continue // the tag is made of the file's time
						}
						c := dial(t, server.address)
						c.send(request(test.method, target, test.header...))
						response, err := http.ReadResponse(c.r, &http.Request{Method: test.method})
						if err != nil {
							t.Errorf("%s of %d bytes, %s wrong, %s %s %q: %v", store, len(content), where, test.method, target, test.header, err)
							continue
						}
						body, err := io.ReadAll(response.Body)
						got := outcome{response, string(body), err}
						ok := got.StatusCode == 500 && err == nil
						switch {
						case isShort:
						case test.method == "HEAD":
							ok = got.StatusCode == 200
						case !test.part:
							ok = got.cut() || ok && len(test.header) > 1 // the range is opened before the tags are compared
						case store == "bucket":
							ok = got.StatusCode == 206
						}
						if !ok {
							t.Errorf("%s of %d bytes, %s wrong, %s %s %q: %s, %d bytes, %v",
								store, len(content), where, test.method, target, test.header, got.Status, len(body), err)
						}
						c.Close()
					}
				}
			}
		}
	}
}
