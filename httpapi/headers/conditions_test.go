package headers

import (
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

func TestParseRange(t *testing.T) {
	t.Parallel()
	const all = -1 // the header is ignored
	const no = -2  // unsatisfiable
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
		got, partial, err := ParseRange(test.header, test.size)
		want, wantPartial := Range{test.start, test.length}, true
		if test.start < 0 {
			want, wantPartial = Range{0, test.size}, false
		}
		if got != want || partial != wantPartial || (err != nil) != (test.start == no) {
			t.Errorf("ParseRange(%q, %d) = %v, %v, %v, want %v, %v", test.header, test.size, got, partial, err, want, wantPartial)
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
		r, partial, err := ParseRange(header, size)
		if r.Start < 0 || r.Length < 0 || r.Start > size || r.Length > size-r.Start {
			t.Errorf("%v lies outside of %d bytes", r, size)
		}
		if partial && (r.Length == 0 || err != nil) {
			t.Errorf("a part %v, error %v", r, err)
		}
		if !partial && r != (Range{0, size}) {
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
		// If there is a tag, the date is ignored.
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
		if got := RangeStillGood(ifRange, `"abc"`, modified); got != want {
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
		got := EscapePath(path)
		if got != want {
			t.Errorf("EscapePath(%q) = %q, want %q", path, got, want)
		}
		if back, err := url.PathUnescape(got); err != nil || back != path {
			t.Errorf("EscapePath(%q) = %q, which is %q, %v", path, got, back, err)
		}
		if strings.ContainsAny(got, "\r\n +?") {
			t.Errorf("EscapePath(%q) = %q is not safe in a header", path, got)
		}
	}
}

// FuzzConditions: contradictory conditions are never met, and nothing panics.
func FuzzConditions(f *testing.F) {
	const date = "Fri, 02 Jan 2026 03:04:05 GMT"
	for _, seed := range []string{"*", `"abc-1"`, `W/"abc-1"`, `"x", W/"abc-1"`, `"a,b", *`, date, "Friday, 02-Jan-26 03:04:05 GMT", "", ",", `"`} {
		f.Add(seed)
	}
	modified := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		const etag = `"abc-1"`
		with := func(name string) *fasthttp.RequestHeader {
			header := new(fasthttp.RequestHeader)
			header.Set(name, value)
			return header
		}
		etags := []string{etag}
		strong, weak := hasTag([][]byte{[]byte(value)}, etags, false), hasTag([][]byte{[]byte(value)}, etags, true)
		if strong && !weak {
			t.Errorf("%q has the tag, but not as a weak one", value)
		}
		if weak && !strings.Contains(value, etag) && !strings.Contains(value, "*") {
			t.Errorf("%q does not have the tag", value)
		}
		if RangeStillGood(value, etag, modified) && strings.HasPrefix(strings.TrimSpace(value), "W/") {
			t.Errorf("%q is a weak tag", value)
		}
		for _, modified := range []time.Time{modified, {}} {
			since, unmodified := notModified(with("If-Modified-Since"), modified, etags), isAnother(with("If-Unmodified-Since"), modified, etags)
			if since && unmodified {
				t.Errorf("%q: it was changed since, and was not", value)
			}
			notModified(with("If-None-Match"), modified, etags)
			isAnother(with("If-Match"), modified, etags)
		}
	})
}

// FuzzEscapePath: an escaped path decodes to the same path, unless it is malformed.
func FuzzEscapePath(f *testing.F) {
	for _, seed := range []string{"nar/lzip/" + "2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0%2Bx%3Dy%3Fz", "a b", "a+b", "%", "é", "a/../b", "\x00", "a\r\nX: y", "?#"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		escaped := EscapePath("/" + path)
		if strings.ContainsFunc(escaped, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`?#"<>\\`, r) }) {
			t.Errorf("%q is escaped as %q", path, escaped)
		}
		if decoded, err := DecodePath([]byte(escaped)); err == nil && decoded != "/"+path {
			t.Errorf("%q is escaped as %q, which is %q", path, escaped, decoded)
		}
	})
}
