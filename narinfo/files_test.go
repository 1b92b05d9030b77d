package narinfo

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFilePath(t *testing.T) {
	for _, test := range []struct{ url, want string }{
		{"nar/lzip/cs56-hello-2.12.2", "nar/lzip/cs56-hello-2.12.2"},
		{"/nar/lzip/cs56-hello-2.12.2", "nar/lzip/cs56-hello-2.12.2"},
		{"nar/lzip/2y8b-odd_name-1.0%2Bx%3Dy%3Fz", "nar/lzip/2y8b-odd_name-1.0+x=y?z"},
		{"nar/gzip/mjwa-gtk%2b-2.24", "nar/gzip/mjwa-gtk+-2.24"},
		{"nar/gzip/mjwa-gtk+-2.24", "nar/gzip/mjwa-gtk+-2.24"}, // a plus, not a space
		{"hello", "hello"},
		{"nar/a=b;c,d", "nar/a=b;c,d"},
		{"nar/a:b", "nar/a:b"},
		{"nar/a%23b", "nar/a#b"},
		{"nar/a%25b", "nar/a%b"},
		{"nar/%2e%2e%2e", "nar/..."},
		{"nar/..a", "nar/..a"},
		{`nar\a`, `nar\a`},
		{"nar/caf%C3%A9", "nar/café"},
		{"n/" + strings.Repeat("a", MaxURLLen-2), "n/" + strings.Repeat("a", MaxURLLen-2)},
	} {
		got, err := File{URL: test.url}.Path()
		if err != nil || got != test.want {
			t.Errorf("Path() of %q = %q, %v, want %q", test.url, got, err, test.want)
		}
	}
}

func TestFilePathErrors(t *testing.T) {
	for _, test := range []struct{ url, want string }{
		{"", "empty part"},
		{"/", "empty part"},
		{"//example.org/nar/a", "empty part, or a host"},
		{"nar//a", "empty part"},
		{"nar/", "empty part"},
		{"http://example.org/nar/a", "scheme"},
		{"https:nar/a", "scheme"},
		{"file:///etc/passwd", "scheme"},
		{"urn:eris:B4A", "scheme"},
		{"/http://example.org/a", "scheme"},
		{":a", "scheme"},
		{"..", `the part ".."`},
		{"../etc/passwd", `the part ".."`},
		{"nar/../../etc/passwd", `the part ".."`},
		{"nar/..", `the part ".."`},
		{"nar/./a", `the part "."`},
		{"nar/%2e%2e/a", `the part ".."`},
		{"nar/.%2E/a", `the part ".."`},
		{"nar/%2e/a", `the part "."`},
		{"/../a", `the part ".."`},
		{"nar/a%2Fb", "escape"},
		{"nar%2f..%2fa", "escape"},
		{"nar/a%00", "escape"},
		{"nar/a%0A", "escape"},
		{"nar/a%7f", "escape"},
		{"nar/a%", "ends within"},
		{"nar/a%2", "ends within"},
		{"nar/a%zz", "two hexadecimal digits"},
		{"nar/a%+1", "two hexadecimal digits"},
		{"nar/a%ff", "UTF-8"},
		{"nar/a?b", `'?'`},
		{"nar/a#b", `'#'`},
		{"nar/a b", "0x20"},
		{"nar/a\nb", "0x0a"},
		{"nar/a\x00", "0x00"},
		{"nar/café", "0xc3"},
		{"nar/" + strings.Repeat("a", MaxURLLen), "at most 1024"},
	} {
		got, err := File{URL: test.url}.Path()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Path() of %q = %q, %v, want %q in the error", test.url, got, err, test.want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("Path() of %q: error isn't one plain line: %q", test.url, err)
		}
	}
}

func TestAppendFiles(t *testing.T) {
	zstd := File{"nar/zstd/2y8b-odd_name-1.0+x=y?z", "zstd", 110}
	const block = "URL: nar/zstd/2y8b-odd_name-1.0%2Bx%3Dy%3Fz\nCompression: zstd\nFileSize: 110\n"
	for _, test := range []struct {
		name  string
		text  string
		files []File
		want  string
	}{
		{"nothing to add", "A: b", nil, "A: b"},
		{"after a newline", "A: b\n", []File{zstd}, "A: b\n" + block},
		{"no final newline", "A: b", []File{zstd}, "A: b\n" + block},
		{"two", "A: b\n", []File{zstd, {"nar/a", "none", 0}}, "A: b\n" + block + "URL: nar/a\nCompression: none\nFileSize: 0\n"},
		{"escaped already", "A: b\n", []File{{"nar/a%2Bb", "zstd", 1}}, "A: b\nURL: nar/a%2Bb\nCompression: zstd\nFileSize: 1\n"},
		{"without size", "A: b\n", []File{{"nar/a", "zstd", -1}}, "A: b\nURL: nar/a\nCompression: zstd\n"},
		{"no field is smuggled in", "A: b\n", []File{{"nar/a\nSignature: x", "zstd", 1}}, "A: b\nURL: nar/a%0ASignature%3A%20x\nCompression: zstd\nFileSize: 1\n"},
	} {
		if got := AppendFiles([]byte("before|"), []byte(test.text), test.files); string(got) != "before|"+test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// AppendFiles escapes like guix publish.
func TestAppendFilesLikePublish(t *testing.T) {
	forEachNarinfo(t, "../testdata/published*/*.narinfo", func(t *testing.T, text []byte) {
		n := mustParse(t, text)
		for _, f := range n.Files {
			decoded, err := f.Path()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(appendEscaped(nil, decoded)); got != f.URL {
				t.Errorf("%q is escaped as %q, guix publish wrote %q", decoded, got, f.URL)
			}
		}
	})
}

func FuzzFilePath(f *testing.F) {
	for _, url := range []string{
		"nar/lzip/2y8b-odd_name-1.0%2Bx%3Dy%3Fz", "/nar/a", "../a", "nar/%2e%2e/a", "nar/a%2Fb",
		"http://example.org/a", "//host/a", "nar/a%", "nar/a%00", "nar//a", "nar/caf%C3%A9",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		got, err := File{URL: url}.Path()
		if err != nil {
			return
		}
		checkPath(t, url, got)
		// The path, escaped, is a URL of the same file. (A plain segment with a
		// percent sign isn't escaped again, so it differs; and escaping can exceed
		// the maximum length.)
		escaped := string(appendEscaped(nil, got))
		if strings.Contains(got, "%") || len(escaped) > MaxURLLen {
			return
		}
		if again, err := (File{URL: escaped}).Path(); err != nil || again != got {
			t.Fatalf("%q is %q, which is escaped and decoded to %q, %v", url, got, again, err)
		}
	})
}

// checkPath fails unless p stays below the directory it is joined to.
func checkPath(t *testing.T, url, p string) {
	t.Helper()
	rooted := path.Join("/root", p)
	if p == "" || p[0] == '/' || p != path.Clean(p) || rooted != "/root/"+p ||
		strings.HasPrefix(p, "../") || p == ".." || p == "." ||
		strings.ContainsAny(p, "\x00\n\r") || !utf8.ValidString(p) || len(p) > MaxURLLen {
		t.Fatalf("URL %q has the path %q", url, p)
	}
}

func BenchmarkAppendFiles(b *testing.B) {
	text := benchmarkText(20)
	files := []File{{"nar/zstd/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z", "zstd", 110}}
	dst := make([]byte, 0, 2*len(text))
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		AppendFiles(dst, text, files)
	}
}
