package httpapi

import (
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// FuzzParseSince: what is read as a time can be written and read again.
func FuzzParseSince(f *testing.F) {
	for _, seed := range []string{"2026-01-02 03:04:05", "2026-01-02T03:04:05", "2026-01-02T03:04:05+14:00", "2026-01-02", "0000-01-01", "9999-12-31T23:59:59-23:59", "", "2026-02-30"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		since, ok := parseSince(text)
		if !ok {
			return
		}
		if again, ok := parseSince(since.Format(time.DateTime)); since.Year() >= 0 && since.Year() <= 9999 && (!ok || !again.Equal(since.Truncate(time.Second))) {
			t.Errorf("%q is %v, and then %v, %v", text, since, again, ok)
		}
	})
}

// FuzzParseForwarded: an address that is read is one, and is its own form.
func FuzzParseForwarded(f *testing.F) {
	for _, seed := range []string{"192.0.2.1", "192.0.2.1:80", "[2001:db8::1]", "[2001:db8::1]:80", "::ffff:192.0.2.1", "fe80::1%eth0", "unknown", "_hidden", "", "[", "1.2.3.4]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, ok := parseForwarded(text)
		if !ok {
			return
		}
		if !address.IsValid() || address.Is4In6() {
			t.Fatalf("%q is %v", text, address)
		}
		if again, ok := parseForwarded(address.String()); !ok || again != address {
			t.Errorf("%q is %v, and then %v, %v", text, address, again, ok)
		}
	})
}

// FuzzConditions: conditions that can't be met together are not, and nothing panics.
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
		if rangeStillGood(value, etag, modified) && strings.HasPrefix(strings.TrimSpace(value), "W/") {
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

// FuzzEscapePath: what is escaped is decoded to the same, unless it is not a path.
func FuzzEscapePath(f *testing.F) {
	for _, seed := range []string{"nar/lzip/" + oddURL, "a b", "a+b", "%", "é", "a/../b", "\x00", "a\r\nX: y", "?#"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		escaped := escapePath("/" + path)
		if strings.ContainsFunc(escaped, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`?#"<>\\`, r) }) {
			t.Errorf("%q is escaped as %q", path, escaped)
		}
		if decoded, err := decodePath([]byte(escaped)); err == nil && decoded != "/"+path {
			t.Errorf("%q is escaped as %q, which is %q", path, escaped, decoded)
		}
	})
}
