package headers

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestDecodePath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{ // "" for refused paths
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
		got, err := DecodePath([]byte(path))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("DecodePath(%q) = %q, %v, want %q", path, got, err, want)
		}
	}
}

func FuzzDecodePath(f *testing.F) {
	for _, path := range []string{"/", "/nar/lzip/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0%2Bx%3Dy%3Fz", "/a/../b", "/%2e%2e/", "/a%00b", "//", "/%", "/%2f", "/\xff%ff", "/a/./b"} {
		f.Add([]byte(path))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		before := slices.Clone(path)
		decoded, err := DecodePath(path)
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
