package httpapi

import (
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/peer"
)

func TestParseRange(t *testing.T) {
	t.Parallel()
	const all = -1 // the header counts for nothing
	const no = -2  // it can't be satisfied
	for _, test := range []struct {
		header        string
		size          int64
		start, length int64
	}{
		{"bytes=0-0", 10, 0, 1},
		{"bytes=0-9", 10, 0, 10},
		{"bytes=0-", 10, 0, 10},
		{"bytes=9-", 10, 9, 1},
		{"bytes=9-9", 10, 9, 1},
		{"bytes=3-5", 10, 3, 3},
		{"bytes=3-500", 10, 3, 7},
		{" bytes=3-5 ", 10, 3, 3},
		{"bytes= 3-5", 10, 3, 3},
		{"bytes=003-005", 10, 3, 3},
		{"bytes=0-99999999999999999999999999", 10, 0, 10},
		{"bytes=0-9223372036854775807", 10, 0, 10},
		{"bytes=5-5", math.MaxInt64, 5, 1},
		{"bytes=5-", math.MaxInt64, 5, math.MaxInt64 - 5},

		{"bytes=-1", 10, 9, 1},
		{"bytes=-10", 10, 0, 10},
		{"bytes=-11", 10, 0, 10},
		{"bytes=-99999999999999999999999999", 10, 0, 10},

		{"bytes=10-", 10, no, 0},
		{"bytes=10-10", 10, no, 0},
		{"bytes=11-20", 10, no, 0},
		{"bytes=99999999999999999999999999-", 10, no, 0},
		{"bytes=-0", 10, no, 0},
		{"bytes=0-", 0, no, 0},
		{"bytes=0-0", 0, no, 0},
		{"bytes=-1", 0, no, 0},

		{"", 10, all, 0},
		{"bytes", 10, all, 0},
		{"bytes=", 10, all, 0},
		{"bytes=-", 10, all, 0},
		{"bytes=--1", 10, all, 0},
		{"bytes=+1-2", 10, all, 0},
		{"bytes=1-+2", 10, all, 0},
		{"bytes=1 - 2", 10, all, 0},
		{"bytes=5-4", 10, all, 0},
		{"bytes=0x1-2", 10, all, 0},
		{"bytes=1", 10, all, 0},
		{"bytes=1-2-3", 10, all, 0},
		{"bytes=1-2,4-5", 10, all, 0},
		{"bytes=1-2,", 10, all, 0},
		{"bytes=a-b", 10, all, 0},
		{"bytes=１-２", 10, all, 0},
		{"lines=1-2", 10, all, 0},
		{"items=0-1", 10, all, 0},
	} {
		got, partial, err := parseRange(test.header, test.size)
		want, wantPartial := byteRange{test.start, test.length}, true
		if test.start < 0 {
			want, wantPartial = byteRange{0, test.size}, false
		}
		if got != want || partial != wantPartial || (err != nil) != (test.start == no) {
			t.Errorf("parseRange(%q, %d) = %v, %v, %v, want %v, %v", test.header, test.size, got, partial, err, want, wantPartial)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, header := range []string{"bytes=0-", "bytes=-5", "bytes=1-2", "bytes=9-3", "bytes=-0", "bytes=1-2,3-4", "bytes=99999999999999999999-", ""} {
		f.Add(header, int64(10))
		f.Add(header, int64(0))
		f.Add(header, int64(math.MaxInt64))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		r, partial, err := parseRange(header, size)
		if r.start < 0 || r.length < 0 || r.start > size || r.length > size-r.start {
			t.Errorf("%v lies outside of %d bytes", r, size)
		}
		if partial && (r.length == 0 || err != nil) {
			t.Errorf("a part %v, error %v", r, err)
		}
		if !partial && r != (byteRange{0, size}) {
			t.Errorf("%v is not the whole of %d bytes", r, size)
		}
	})
}

func TestNotModified(t *testing.T) {
	t.Parallel()
	modified := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	const etag = `"abc-1"`
	for _, test := range []struct {
		match, since string
		modified     time.Time
		want         bool
	}{
		{"", "", modified, false},
		{etag, "", modified, true},
		{`W/` + etag, "", modified, true},
		{`"x", ` + etag, "", modified, true},
		{`"x",` + etag + `,"y"`, "", modified, true},
		{"*", "", modified, true},
		{" * ", "", modified, true},
		{`"abc-2"`, "", modified, false},
		{`abc-1`, "", modified, false},
		{`"ABC-1"`, "", modified, false},
		{`garbage`, "", modified, false},
		// The tag decides where there is one, whatever the date says.
		{`"abc-2"`, "Fri, 02 Jan 2026 03:04:05 GMT", modified, false},
		{etag, "Fri, 02 Jan 2015 03:04:05 GMT", modified, true},
		{"", "Fri, 02 Jan 2026 03:04:05 GMT", modified, true},
		{"", "Fri, 02 Jan 2026 03:04:06 GMT", modified, true},
		{"", "Fri, 02 Jan 2026 03:04:04 GMT", modified, false},
		{"", "2026-01-02", modified, false},
		{"", "Fri, 02 Jan 2026 03:04:05 GMT", time.Time{}, false},
	} {
		var header fasthttp.RequestHeader
		if test.match != "" {
			header.Set("If-None-Match", test.match)
		}
		if test.since != "" {
			header.Set("If-Modified-Since", test.since)
		}
		if got := notModified(&header, test.modified, []string{etag, ""}); got != test.want {
			t.Errorf("If-None-Match %s, If-Modified-Since %s: %v, want %v", test.match, test.since, got, test.want)
		}
	}
}

func TestRangeStillGood(t *testing.T) {
	t.Parallel()
	modified := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for ifRange, want := range map[string]bool{
		"":                              true,
		`"abc"`:                         true,
		` "abc" `:                       true,
		`"abd"`:                         false,
		`W/"abc"`:                       false,
		`abc`:                           false,
		`"abc", "abd"`:                  false,
		"Fri, 02 Jan 2026 03:04:05 GMT": true,
		"Fri, 02 Jan 2026 03:04:06 GMT": false,
		"Fri, 02 Jan 2026 03:04:04 GMT": false,
		"yesterday":                     false,
	} {
		if got := rangeStillGood(ifRange, `"abc"`, modified); got != want {
			t.Errorf("If-Range %s: %v, want %v", ifRange, got, want)
		}
	}
}

func TestEscapePath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"":                 "",
		"nar/lzip/a-b_c.d": "nar/lzip/a-b_c.d",
		"nar/x+y=z?w":      "nar/x%2By%3Dz%3Fw",
		"nar/a b%c\nd":     "nar/a%20b%25c%0Ad",
		"nar/ü~#":          "nar/%C3%BC~%23",
	} {
		got := escapePath(path)
		if got != want {
			t.Errorf("escapePath(%q) = %q, want %q", path, got, want)
		}
		if back, err := url.PathUnescape(got); err != nil || back != path {
			t.Errorf("escapePath(%q) = %q, which is %q, %v", path, got, back, err)
		}
		if strings.ContainsAny(got, "\r\n +?") {
			t.Errorf("escapePath(%q) = %q is not safe in a header", path, got)
		}
	}
}

// TestPreconditions has If-Match and If-Unmodified-Since, of clients that resume a
// download only if it is still the same, for each kind of content.
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
			{412, []string{"If-Match: W/" + etag}}, // a weak tag says nothing about bytes
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
			{200, []string{"If-Match: " + etag, "If-Unmodified-Since: " + before}}, // the tag decides
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
	// What is not there has no version that could match.
	for target, want := range map[string]int{"/nar/lzip/" + nobody + "-x": 404, "/nar/gzip/" + greeting: 404} {
		if got := c.ask("GET", target, `If-Match: "x"`); got.StatusCode != want {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
}
