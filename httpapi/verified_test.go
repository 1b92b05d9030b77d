package httpapi

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestDamageBeforeStatus flips one bit of nars: requests for short ones fail, and answers with
// long ones are cut, but never complete.
func TestDamageBeforeStatus(t *testing.T) {
	t.Parallel()
	short, long := strings.Repeat("0123456789", 1000), strings.Repeat("0123456789", 100_000)
	for _, how := range []string{"none", "gzip", "zstd"} {
		for _, content := range []string{short, long} {
			good := make1(t, "source", content, how)
			file := "/file/source/sha256/" + good.digest
			for _, target := range []string{"/nar/" + good.path.BaseName(), file} {
				if how == "none" && target != file {
					continue // sent unchanged
				}
				if got := fetch(t, start(t, good.items(t), options()).address, target); got.err != nil || got.StatusCode != 200 {
					t.Errorf("%s, %d bytes, %s, good: %v, %v", how, len(content), target, got.Response, got.err)
				}
				m := *good
				m.file = bytes.Clone(good.file)
				if at := len(m.file) / 2; how == "none" {
					m.file[at] ^= 1
				} else {
					other := bytes.Clone(good.nar)
					other[len(other)/2] ^= 1 // in a good file
					m.file = compress(t, how, other)
				}
				m.fileSize = int64(len(m.file))
				server := start(t, m.items(t), options())
				got := fetch(t, server.address, target)
				if len(content) == len(short) && (got.err != nil || got.StatusCode != 500 || strings.Contains(got.body, "0123456789")) {
					t.Errorf("%s, short, %s: %v, %d bytes, %v", how, target, got.Response, len(got.body), got.err)
				}
				if len(content) == len(long) && !got.cut() {
					t.Errorf("%s, long, %s: %v, %d bytes, %v", how, target, got.Response, len(got.body), got.err)
				}
				if damaged := damagedCount(t, server); damaged != 1 {
					t.Errorf("%s, %d bytes, %s: counted %d times", how, len(content), target, damaged)
				}
				until(t, "decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
			}
		}
	}
}

// TestWrongRemote: another instance sends other bytes of the right length, which are never
// passed on completely.
func TestWrongRemote(t *testing.T) {
	t.Parallel()
	for _, content := range []string{strings.Repeat("0123456789", 1000), strings.Repeat("0123456789", 100_000)} {
		m := make1(t, "secret", content, "none")
		a := without(t, m)
		var wrong []byte
		there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		}))
		t.Cleanup(there.Close)
		server := start(t, a, remoteAt(t, a, there.Listener.Addr().String()))
		isShort := len(content) < 64<<10
		for _, at := range []int{0, len(m.file) / 2, len(m.file) - 1} {
			wrong = bytes.Clone(m.file)
			wrong[at] ^= 1
			for _, header := range []string{"", "Range: bytes=0-", "Range: bytes=5-", "Range: bytes=-10"} {
				c := dial(t, server.address)
				c.send(request("GET", "/"+m.url(), fields(header)...))
				response, err := http.ReadResponse(c.r, nil)
				if err != nil {
					continue // cut before anything was sent
				}
				var body bytes.Buffer
				_, err = body.ReadFrom(response.Body)
				switch {
				case isShort && (response.StatusCode != 502 || err != nil):
					t.Errorf("short, wrong at %d, %q: %s, %d bytes, %v", at, header, response.Status, body.Len(), err)
				case !isShort && response.StatusCode != 502 && (err == nil || body.Len() > len(m.file)-64<<10):
					t.Errorf("long, wrong at %d, %q: %s, %d bytes, %v", at, header, response.Status, body.Len(), err)
				}
				c.Close()
			}
		}
		// The right one, also in ranges.
		wrong = m.file
		c := dial(t, server.address)
		got := c.ask("GET", "/"+m.url(), "Range: bytes=-10")
		if got.StatusCode != 206 || got.body != string(m.file[len(m.file)-10:]) || got.err != nil {
			t.Errorf("the end: %s, %d bytes, %v", got.Status, len(got.body), got.err)
		}
		got = c.ask("GET", "/"+m.url(), "Range: bytes=5-14")
		if got.StatusCode != 206 || got.body != string(m.file[5:15]) {
			t.Errorf("a part: %s, %d bytes", got.Status, len(got.body))
		}
		c.stillOpen()
	}
}

func fields(header string) []string {
	if header == "" {
		return nil
	}
	return []string{header}
}
