package httpapi

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDecodePath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{ // "" for those that are refused
		"/":                  "/",
		"/a":                 "/a",
		"/a/":                "/a/",
		"/a/b":               "/a/b",
		"/nar/x+y=z":         "/nar/x+y=z",
		"/nar/x%2By%3dz%3F":  "/nar/x+y=z?",
		"/%61%2e%62":         "/a.b",
		"/.a/..b/c..":        "/.a/..b/c..",
		"/...":               "/...",
		"/%2525":             "/%25",
		"/%c3%bc":            "/ü",
		"/\xff":              "/\xff",
		"/a b":               "/a b",
		"":                   "",
		"a":                  "",
		"*":                  "",
		"//":                 "",
		"//a":                "",
		"/a//b":              "",
		"/a//":               "",
		"/.":                 "",
		"/..":                "",
		"/a/..":              "",
		"/a/../b":            "",
		"/a/./b":             "",
		"/a/%2e%2e/b":        "",
		"/a/%2E./b":          "",
		"/a%2fb":             "",
		"/a%2Fb":             "",
		"/..%2fetc":          "",
		"/a%00":              "",
		"/a\x00":             "",
		"/a%0a":              "",
		"/a%0d%0aX-Header:b": "",
		"/a%7f":              "",
		"/a\x7f":             "",
		"/a\tb":              "",
		"/%":                 "",
		"/%4":                "",
		"/a%zz":              "",
		"/a%g1":              "",
		"/a%-1":              "",
		"/a%+1":              "",
		"/a%u0041":           "",
	} {
		got, err := decodePath([]byte(path))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("decodePath(%q) = %q, %v, want %q", path, got, err, want)
		}
	}
}

func FuzzDecodePath(f *testing.F) {
	for _, path := range []string{"/", "/nar/lzip/" + oddURL, "/a/../b", "/%2e%2e/", "/a%00b", "//", "/%", "/%2f", "/\xff%ff", "/a/./b"} {
		f.Add([]byte(path))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		before := slices.Clone(path)
		decoded, err := decodePath(path)
		if !slices.Equal(path, before) {
			t.Error("the argument was changed")
		}
		if err != nil {
			if decoded != "" {
				t.Errorf("%q with an error", decoded)
			}
			return
		}
		if unescaped, err := url.PathUnescape(string(path)); err != nil || unescaped != decoded {
			t.Errorf("decoded to %q, package url has %q, %v", decoded, unescaped, err)
		}
		if !strings.HasPrefix(decoded, "/") || strings.ContainsAny(decoded, "\x00\r\n\x7f") {
			t.Errorf("decoded to %q", decoded)
		}
		segments := strings.Split(decoded[1:], "/")
		for i, segment := range segments {
			if segment == "." || segment == ".." || segment == "" && i < len(segments)-1 {
				t.Errorf("decoded to %q, which has the part %q", decoded, segment)
			}
		}
	})
}

func TestMaxAge(t *testing.T) {
	t.Parallel()
	if got := maxAge(nil); got != "" {
		t.Errorf("maxAge(nil) = %q", got)
	}
	for ttl, want := range map[time.Duration]string{
		0:                         "max-age=0",
		time.Second:               "max-age=1",
		30 * 24 * time.Hour:       "max-age=2592000",
		9223372036 * time.Second:  "max-age=9223372036",
		1500 * time.Millisecond:   "max-age=1",
		time.Duration(1<<63 - 1):  "max-age=9223372036",
		5 * time.Hour:             "max-age=18000",
		7 * 24 * 60 * time.Minute: "max-age=604800",
	} {
		if got := maxAge(&ttl); got != want {
			t.Errorf("maxAge(%v) = %q, want %q", ttl, got, want)
		}
	}
}
