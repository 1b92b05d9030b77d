package httpapi

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/peer"
)

// TestRanges requests ranges of a stored nar, of a decompressed one, and of a file in a stored
// nar.
func TestRanges(t *testing.T) {
	t.Parallel()
	address := start(t, corpus(), options()).address
	stored := contents(t, published, "nar", hello)
	for _, path := range []struct {
		target, content string
		ranges          bool
	}{
		{"/nar/" + hello, stored, true},
		{"/file/hello-2.10.tar.gz/sha256/" + helloHash, stored[96 : 96+1329], true},
		{"/nar/" + greeting, string(flatNar("Hello, herder!\n")), false},
	} {
		size := len(path.content)
		whole := dial(t, address).ask("GET", path.target)
		etag, modified := whole.Header.Get("ETag"), whole.Header.Get("Last-Modified")
		if whole.body != path.content || !strings.HasPrefix(etag, `"`) || strings.HasPrefix(etag, "W/") {
			t.Fatalf("%s: ETag %s, %d bytes", path.target, etag, len(whole.body))
		}
		if want := map[bool]string{true: "bytes", false: "none"}[path.ranges]; whole.Header.Get("Accept-Ranges") != want {
			t.Errorf("%s: Accept-Ranges %q, want %s", path.target, whole.Header.Get("Accept-Ranges"), want)
		}
		if !path.ranges {
			modified = "Fri, 02 Jan 2099 03:04:05 GMT" // of content without a time
		}
		const full, none, changed = 0, -1, -2
		type part struct{ start, length int }
		for _, test := range []struct {
			header []string
			want   part
		}{
			{nil, part{full, 0}},
			{[]string{"Range: bytes=0-9"}, part{0, 10}},
			{[]string{"Range: bytes=10-19"}, part{10, 10}},
			{[]string{fmt.Sprintf("Range: bytes=%d-", size-1)}, part{size - 1, 1}},
			{[]string{fmt.Sprintf("Range: bytes=%d-999999", size-5)}, part{size - 5, 5}},
			{[]string{"Range: bytes=-7"}, part{size - 7, 7}},
			{[]string{"Range: bytes=-999999"}, part{0, size}},
			{[]string{"Range: bytes=0-"}, part{0, size}},
			{[]string{fmt.Sprintf("Range: bytes=%d-", size)}, part{none, 0}},
			{[]string{"Range: bytes=99999999-"}, part{none, 0}},
			{[]string{"Range: bytes=-0"}, part{none, 0}},
			{[]string{"Range: bytes=0-1,3-4"}, part{full, 0}},
			{[]string{"Range: bytes=4-3"}, part{full, 0}},
			{[]string{"Range: lines=0-1"}, part{full, 0}},
			{[]string{"Range: nonsense"}, part{full, 0}},

			{[]string{"Range: bytes=5-6", "If-Range: " + etag}, part{5, 2}},
			{[]string{"Range: bytes=5-6", `If-Range: "another"`}, part{full, 0}},
			{[]string{"Range: bytes=5-6", "If-Range: W/" + etag}, part{full, 0}},
			{[]string{"Range: bytes=5-6", "If-Range: Fri, 02 Jan 2015 03:04:05 GMT"}, part{full, 0}},
			// The range that a client lacks of another file may be past the end of
			// this one: it needs the whole file.
			{[]string{"Range: bytes=99999999-", `If-Range: "another"`}, part{full, 0}},
			{[]string{"Range: bytes=99999999-", "If-Range: " + etag}, part{none, 0}},
			{[]string{"If-Range: " + etag}, part{full, 0}},

			{[]string{"If-None-Match: " + etag}, part{changed, 0}},
			{[]string{"If-None-Match: W/" + etag}, part{changed, 0}},
			{[]string{`If-None-Match: "a", ` + etag}, part{changed, 0}},
			{[]string{"If-None-Match: *"}, part{changed, 0}},
			{[]string{`If-None-Match: "another"`}, part{full, 0}},
			{[]string{`If-None-Match: "another"`, "If-Modified-Since: " + modified}, part{full, 0}},
			{[]string{"If-None-Match: " + etag, "Range: bytes=5-6"}, part{changed, 0}},
			{[]string{"If-None-Match: " + etag, "Range: bytes=99999999-"}, part{changed, 0}},
			{[]string{`If-None-Match: "another"`, "Range: bytes=5-6"}, part{5, 2}},
			{[]string{"If-Modified-Since: Fri, 02 Jan 2015 03:04:05 GMT"}, part{full, 0}},
			{[]string{"If-Modified-Since: nonsense"}, part{full, 0}},
			{[]string{"If-Modified-Since: " + modified}, map[bool]part{true: {changed, 0}, false: {full, 0}}[path.ranges]},
		} {
			want := test.want
			if !path.ranges && want.start != changed {
				want = part{full, 0}
			}
			body, status, contentRange := path.content, 200, ""
			switch {
			case want.start == none:
				status, contentRange, body = 416, fmt.Sprintf("bytes */%d", size), fmt.Sprintf("the body has %d bytes\n", size)
			case want.start == changed:
				status, body = 304, ""
			case want.length > 0:
				status, contentRange = 206, fmt.Sprintf("bytes %d-%d/%d", want.start, want.start+want.length-1, size)
				body = path.content[want.start : want.start+want.length]
			}
			for _, method := range []string{"GET", "HEAD"} {
				c := dial(t, address)
				got := c.ask(method, path.target, test.header...)
				if got.StatusCode != status || got.Header.Get("Content-Range") != contentRange {
					t.Errorf("%s %s %q: %s, Content-Range %q, want %d, %q",
						method, path.target, test.header, got.Status, got.Header.Get("Content-Range"), status, contentRange)
					continue
				}
				if method == "GET" && got.body != body {
					t.Errorf("%s %q: %d bytes, want %d", path.target, test.header, len(got.body), len(body))
				}
				if status != 304 && got.Header.Get("Content-Length") != fmt.Sprint(len(body)) {
					t.Errorf("%s %s %q: Content-Length %s, want %d", method, path.target, test.header, got.Header.Get("Content-Length"), len(body))
				}
				if status != 416 && status != 304 && got.Header.Get("ETag") != etag {
					t.Errorf("%s %q: ETag %s, want %s", path.target, test.header, got.Header.Get("ETag"), etag)
				}
				if status == 304 && got.Header.Get("ETag") == "" {
					t.Errorf("%s %q: 304 without an ETag", path.target, test.header)
				}
				c.stillOpen()
				c.Close()
			}
		}
	}
}

// TestETagTellsFilesApart replaces a nar by other bytes of the same length, as if it were
// compressed again.
func TestETagTellsFilesApart(t *testing.T) {
	t.Parallel()
	s := newStore(t, filepath.Join(published, hashOf(gtk)+".narinfo"))
	address := start(t, s, options()).address
	target := "/nar/lzip/" + gtk
	before := dial(t, address).ask("GET", target)
	file := filepath.Join(s.directory, "nar/lzip", gtk)
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(5*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	after := dial(t, address).ask("GET", target, "Range: bytes=5-9", "If-Range: "+before.Header.Get("ETag"))
	if after.StatusCode != http.StatusOK || after.Header.Get("ETag") == before.Header.Get("ETag") {
		t.Errorf("%s, ETag %s and %s", after.Status, before.Header.Get("ETag"), after.Header.Get("ETag"))
	}
	// Another compression of the same nar is another body.
	plain := dial(t, address).ask("GET", "/nar/"+strings.ReplaceAll(gtk, "+", "%2B"))
	if plain.Header.Get("ETag") == after.Header.Get("ETag") {
		t.Errorf("one ETag %s for two bodies", plain.Header.Get("ETag"))
	}
}

// TestEmptyFile sends empty bodies.
func TestEmptyFile(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"none", "gzip"} {
		m := make1(t, "empty", "", how)
		s := newStore(t, m.write(t, t.TempDir()))
		server := start(t, s, options())
		c := dial(t, server.address)
		target := "/file/empty/sha256/" + m.digest
		for range 3 {
			if got := c.ask("GET", target); got.StatusCode != 200 || got.body != "" || got.Header.Get("Content-Length") != "0" || got.err != nil {
				t.Errorf("%s: %s, %q, %v, %v", how, got.Status, got.body, got.Header, got.err)
			}
		}
		if got := c.ask("HEAD", target); got.StatusCode != 200 || got.Header.Get("Content-Length") != "0" {
			t.Errorf("%s: HEAD: %s, %v", how, got.Status, got.Header)
		}
		want := 200
		if how == "none" {
			want = 416
		}
		if got := c.ask("GET", target, "Range: bytes=0-"); got.StatusCode != want {
			t.Errorf("%s: Range: %s, want %d", how, got.Status, want)
		}
		c.stillOpen()
		if got := server.checker.Options.Decoders.Memory(); got != 0 {
			t.Errorf("%s: %d decoders are left", how, got)
		}
	}
	// The nar of the corpus' empty file is not empty.
	if got := dial(t, start(t, corpus(), options()).address).ask("GET", "/nar/"+emptyFile); got.body != string(flatNar("")) {
		t.Errorf("%s, %d bytes", got.Status, len(got.body))
	}
}

// TestPreconditions sends If-Match and If-Unmodified-Since, as clients do that resume a
// download, for each kind of content.
func TestPreconditions(t *testing.T) {
	t.Parallel()
	dumps := newDumps(t)
	dumps.add(t, 1)
	c := dial(t, startDumps(t, dumps, nil).address)
	const before, after = "Fri, 02 Jan 2015 03:04:05 GMT", "Fri, 02 Jan 2099 03:04:05 GMT"
	for target, dated := range map[string]bool{
		"/nar/lzip/" + greeting: true, "/nar/" + hello: true, "/nar/" + greeting: false,
		"/file/hello-2.10.tar.gz/sha256/" + helloHash: true, peer.DumpPath: true, peer.IndexPath: true,
	} {
		whole := c.ask("GET", target)
		etag, modified := whole.Header.Get("ETag"), whole.Header.Get("Last-Modified")
		if etag == "" || (modified != "") != dated {
			t.Fatalf("%s: %v", target, whole.Header)
		}
		unless := func(dated bool, status int) int {
			if dated {
				return status
			}
			return 200
		}
		ranged := 206
		if whole.Header.Get("Accept-Ranges") != "bytes" {
			ranged = 200
		}
		for _, test := range []struct {
			status int
			header []string
		}{
			{200, []string{"If-Match: " + etag}},
			{200, []string{"If-Match: *"}},
			{200, []string{`If-Match: "x", ` + etag}},
			{200, []string{`If-Match: "x"`, "If-Match: " + etag}},
			{412, []string{`If-Match: "x"`}},
			{412, []string{"If-Match: W/" + etag}}, // a weak tag doesn't identify bytes
			{412, []string{`If-Match: "x"`, `If-Match: "y"`}},
			{412, []string{`If-Match: "x"`, "If-None-Match: " + etag}},
			{304, []string{"If-Match: " + etag, "If-None-Match: " + etag}},
			{304, []string{`If-None-Match: "x"`, "If-None-Match: " + etag}},
			{ranged, []string{"If-Match: " + etag, "Range: bytes=0-3"}},
			{412, []string{`If-Match: "x"`, "Range: bytes=0-3"}},
			{412, []string{`If-Match: "x"`, "Range: bytes=999999999-"}},
			{200, []string{"If-Unmodified-Since: " + after}},
			{unless(dated, 412), []string{"If-Unmodified-Since: " + before}},
			{200, []string{"If-Unmodified-Since: yesterday"}},
			{200, []string{"If-Match: " + etag, "If-Unmodified-Since: " + before}}, // If-Match takes precedence
			{412, []string{`If-Match: "x"`, "If-Unmodified-Since: " + after}},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				got := c.ask(method, target, test.header...)
				if got.StatusCode != test.status || got.err != nil || method == "GET" && test.status == 200 && got.body != whole.body {
					t.Errorf("%s %s %q: %s, want %d", method, target, test.header, got.Status, test.status)
				}
			}
		}
		if dated {
			if got := c.ask("GET", target, "If-Unmodified-Since: "+modified); got.StatusCode != 200 {
				t.Errorf("%s, unmodified since %s: %s", target, modified, got.Status)
			}
		}
	}
	// Missing content never matches.
	for target, want := range map[string]int{"/nar/lzip/" + nobody + "-x": 404, "/nar/gzip/" + greeting: 404} {
		if got := c.ask("GET", target, `If-Match: "x"`); got.StatusCode != want {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
}
