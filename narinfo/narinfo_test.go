package narinfo

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/parsed.golden anew")

// forEachNarinfo runs test for each file that matches pattern; there must be some.
func forEachNarinfo(t *testing.T, pattern string, test func(*testing.T, []byte)) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file))+"/"+filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			test(t, text)
		})
	}
}

func mustParse(t testing.TB, text []byte) *Narinfo {
	t.Helper()
	n, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const (
	item    = helloHash + "-hello-2.10"
	narHash = "sha256:0qhasy0w9w9mfv0vacgzymxl4nww8cslyza5x2ci42v7i2b13lyl"
	block   = "URL: nar/lzip/" + item + "\nCompression: lzip\nFileSize: 68076\n"
	signed  = "StorePath: /gnu/store/" + item + "\nNarHash: " + narHash + "\nNarSize: 282616\nReferences: " + item + "\n"
	whole   = signed + "Signature: 1;host;AAAA\n" + block
)

// describe formats all fields, for comparison.
func describe(n *Narinfo) string {
	var b strings.Builder
	fmt.Fprintf(&b, "item %v hash %v size %d\n", n.StorePath, n.NarHash, n.NarSize)
	fmt.Fprintf(&b, "deriver %q system %q signature of %d signed %d append %v\n",
		n.Deriver, n.System, len(n.Signature()), len(n.Signed()), n.CanAppend())
	for _, reference := range n.References {
		fmt.Fprintf(&b, "reference %s\n", reference.BaseName())
	}
	for _, f := range n.Files {
		path, err := f.Path()
		fmt.Fprintf(&b, "file %+v path %q %v\n", f, path, err)
	}
	return b.String()
}

// All fields of all narinfos in the test data.
func TestParseGolden(t *testing.T) {
	var got strings.Builder
	describeFile := func(t *testing.T, text []byte) {
		got.WriteString("== " + strings.TrimPrefix(t.Name(), "TestParseGolden/") + "\n")
		before := bytes.Clone(text)
		n, err := Parse(text)
		if !bytes.Equal(text, before) {
			t.Error("the text was changed")
		}
		if err != nil {
			got.WriteString("error " + err.Error() + "\n")
			return
		}
		if !bytes.Equal(n.Text, before) {
			t.Error("Text isn't the text")
		}
		got.WriteString(describe(n))
	}
	for _, dir := range []string{"cases", "production", "published", "published-multi", "published-none"} {
		forEachNarinfo(t, "../testdata/"+dir+"/*.narinfo", describeFile)
	}
	golden := filepath.Join("testdata", "parsed.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("not as in %s; run go test with -update and look at the difference", golden)
	}
}

var signedHash = regexp.MustCompile(`\(hash sha256 #([0-9A-F]{64})#\)`)

// A signature contains the hash of the signed bytes, so real signatures show whether Signed
// is right.
func TestSignedIsWhatWasSigned(t *testing.T) {
	for _, pattern := range []string{"../testdata/production/*.narinfo", "../testdata/published*/*.narinfo", "../testdata/cases/ok-*.narinfo"} {
		forEachNarinfo(t, pattern, func(t *testing.T, text []byte) {
			n := mustParse(t, text)
			parts := strings.Split(n.Signature(), ";")
			signature, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
			if err != nil {
				t.Fatal(err)
			}
			match := signedHash.FindSubmatch(signature)
			if match == nil {
				t.Fatalf("no hash in %s", signature)
			}
			sum := sha256.Sum256(n.Signed())
			if got := strings.ToUpper(hex.EncodeToString(sum[:])); got != string(match[1]) {
				t.Errorf("sha256 of Signed() is %s, signed was %s", got, match[1])
			}
			if _, err := n.SigningKey(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The nars are stored under Path, with the narinfo's size.
func TestFilesOfTestdata(t *testing.T) {
	for _, dir := range []string{"published", "published-multi", "published-none"} {
		forEachNarinfo(t, "../testdata/"+dir+"/*.narinfo", func(t *testing.T, text []byte) {
			n := mustParse(t, text)
			if !n.CanAppend() {
				t.Error("CanAppend() is false")
			}
			for _, f := range n.Files {
				path, err := f.Path()
				if err != nil {
					t.Fatal(err)
				}
				// Some nars are missing: large ones were left out.
				info, err := os.Stat(filepath.Join("../testdata", dir, filepath.FromSlash(path)))
				if errors.Is(err, os.ErrNotExist) {
					t.Logf("%s isn't in the test data", path)
					continue
				}
				if err != nil || info.Size() != f.Size {
					t.Errorf("%s: %v, size isn't %d", path, err, f.Size)
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	hello, err := ParseBaseName(item)
	if err != nil {
		t.Fatal(err)
	}
	lzip := File{"nar/lzip/" + item, "lzip", 68076}
	unsized := lzip
	unsized.Size = -1
	sum, err := ParseNarHash(narHash)
	if err != nil {
		t.Fatal(err)
	}
	base := Narinfo{
		StorePath: hello, NarHash: sum, NarSize: 282616, References: []StorePath{hello},
		Files: []File{lzip}, signature: "1;host;AAAA", signedLen: len(signed), sized: true,
	}
	for _, test := range []struct {
		name string
		text string
		want func(*Narinfo)
	}{
		{"plain", whole, func(n *Narinfo) {}},
		{"no final newline", strings.TrimSuffix(whole, "\n"), func(n *Narinfo) {}},
		{"block before signature", block + signed + "Signature: 1;host;AAAA\n", func(n *Narinfo) { n.signedLen += len(block) }},
		{"no signature", signed + block, func(n *Narinfo) { n.signature, n.signedLen = "", -1 }},
		{"no NarSize", strings.Replace(whole, "NarSize: 282616\n", "", 1), func(n *Narinfo) {
			n.NarSize = -1
			n.signedLen -= len("NarSize: 282616\n")
		}},
		{"deriver and system", whole + "Deriver: " + item + ".drv\nSystem: i586-gnu\n", func(n *Narinfo) {
			n.Deriver, n.System = item+".drv", "i586-gnu"
		}},
		{"empty deriver", whole + "Deriver: \n", func(n *Narinfo) {}},
		{"unknown fields", whole + "X-Note: a\nX-Note: b\n%rec: narinfo\nFileHash: sha256:x\nétat: x\n", func(n *Narinfo) {}},
		{"fields are told apart by case and space", whole + "url: a\nURL : b\nUrl: c\n", func(n *Narinfo) {}},
		{"comments", "# a\n" + whole + "# b: c\n#\n", func(n *Narinfo) { n.signedLen += len("# a\n") }},
		{"empty lines first", "\n\n" + whole, func(n *Narinfo) { n.signedLen += 2 }},
		{"comment and empty line first", "# a\n\n" + whole, func(n *Narinfo) { n.signedLen += 5 }},
		{"empty line ends", whole + "\nURL: nar/b\nCompression: none\nDuplicate\n", func(n *Narinfo) { n.ended = true }},
		{"empty line last", whole + "\n", func(n *Narinfo) { n.ended = true }},
		{"no references", strings.Replace(whole, "References: "+item, "References:", 1), func(n *Narinfo) {
			n.References = nil
			n.signedLen -= len(item) + 1
		}},
		{"continued references", strings.Replace(whole, "References: "+item, "References: "+item+" \n# why\n+ "+item+"\n+"+item+"\t"+item, 1), func(n *Narinfo) {
			n.References = []StorePath{hello, hello, hello, hello}
			n.signedLen += len(" \n# why\n+ \n+\t") + 3*len(item)
		}},
		{"continued unknown field", whole + "X-Note: a\n+ URL: b\n+\n+Signature: c\n", func(n *Narinfo) {}},
		{"continued system", whole + "System: a\n+  b\n", func(n *Narinfo) { n.System = "a\n b" }},
		{"space around", strings.Replace(whole, "NarSize: ", "NarSize:\t \u00a0", 1), func(n *Narinfo) { n.signedLen += 3 }},
		{"no space", strings.Replace(whole, "NarSize: ", "NarSize:", 1), func(n *Narinfo) { n.signedLen-- }},
		{"two blocks", whole + "URL: nar/b\nCompression: none\nFileSize: 0\n", func(n *Narinfo) {
			n.Files = append(n.Files, File{"nar/b", "none", 0})
		}},
		{"blocks out of order", signed + "Signature: 1;host;AAAA\nFileSize: 68076\nFileSize: 5\nCompression: lzip\nURL: nar/lzip/" + item + "\nURL: https://example.org/b\nCompression: none\n", func(n *Narinfo) {
			n.Files = append(n.Files, File{"https://example.org/b", "none", 5})
		}},
		{"no sizes", strings.Replace(whole, "FileSize: 68076\n", "", 1), func(n *Narinfo) {
			n.Files, n.sized = []File{unsized}, false
		}},
		{"less sizes than nars", whole + "URL: nar/b\nCompression: none\n", func(n *Narinfo) {
			n.Files, n.sized, n.mixed = []File{unsized, {"nar/b", "none", -1}}, false, true
		}},
		{"more sizes than nars", whole + "FileSize: 5\n", func(n *Narinfo) {
			n.Files, n.sized, n.mixed = []File{unsized}, false, true
		}},
		{"mark of the signature in a line", "X-Signature: a\n" + whole, func(n *Narinfo) { n.signedLen = len("X-") }},
		{"mark of the signature in a comment", "# Signature:\n" + whole, func(n *Narinfo) { n.signedLen = len("# ") }},
		{"mark of the signature first", "Signature:\n" + signed + block, func(n *Narinfo) { n.signature, n.signedLen = "", 0 }},
		{"signature after the end", signed + block + "\nSignature: 1;host;AAAA\n", func(n *Narinfo) {
			n.signature, n.signedLen, n.ended = "", len(signed+block+"\n"), true
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := []byte(test.text)
			got, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			want := base
			want.Files = append([]File(nil), base.Files...)
			want.Text = []byte(test.text)
			test.want(&want)
			if got.signedFirst {
				got.signedFirst = false
				if err := got.checkSignedFields(); err != nil {
					t.Errorf("the signed fields are complete, but not when parsed alone: %v", err)
				}
			}
			if !reflect.DeepEqual(got, &want) {
				t.Errorf("got\n%+v, want\n%+v", *got, want)
			}
			if got.CanAppend() != (!want.mixed && !want.ended) {
				t.Errorf("CanAppend() = %v", got.CanAppend())
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	without := func(field string) string {
		return regexp.MustCompile("(?m)^"+field+":.*\n").ReplaceAllString(whole, "")
	}
	with := func(field, value string) string {
		return regexp.MustCompile("(?m)^"+field+":.*\n").ReplaceAllString(whole, field+": "+value+"\n")
	}
	for _, test := range []struct {
		name string
		text string
		want string
	}{
		{"nothing", "", "narinfo: the text is empty"},
		{"empty lines", "\n\n", "StorePath: is missing"},
		{"HTML", "<!DOCTYPE html>\n<title>404</title>\n", `line 1: "<!DOCTYPE html>": a line must begin`},
		{"not found", "not found", "has no colon"},
		{"CRLF", strings.ReplaceAll(whole, "\n", "\r\n"), "line 1: has a carriage return"},
		{"CR", strings.Replace(whole, "lzip", "lzip\r", 1), "line 6: has a carriage return"},
		{"NUL", whole + "X: \x00\n", "line 9: has a NUL byte"},
		{"Latin-1", whole + "X: caf\xe9\n", "line 9: has the byte 0xe9, must be UTF-8"},
		{"byte order mark", "\ufeff" + whole, "line 1: "},
		{"space first", " " + whole, "line 1: "},
		{"digit first", "1: a\n" + whole, "line 1: "},
		{"continues nothing", "+ a\n" + whole, "line 1: '+' must continue"},
		{"continues after the start", "\n# a\n+ a\n" + whole, "line 3: '+' must continue"},
		{"no StorePath", without("StorePath"), "StorePath: is missing; StorePath, NarHash, References and URL are needed"},
		{"no NarHash", without("NarHash"), "NarHash: is missing"},
		{"no References", without("References"), "References: is missing"},
		{"no URL", without("URL"), "URL: is missing"},
		{"no Compression", without("Compression"), "Compression: there are 0 for 1 URL"},
		{"two Compression", whole + "Compression: gzip\n", "Compression: there are 2 for 1 URL"},
		{"two URL", whole + "URL: b\n", "Compression: there are 1 for 2 URL"},
		{"URL after the end", strings.Replace(whole, "URL", "\nURL", 1), "URL: is missing"},
		{"two StorePath", whole + "StorePath: /gnu/store/" + item + "\n", "line 9: StorePath: is given twice"},
		{"two NarHash", whole + "NarHash: " + narHash + "\n", "NarHash: is given twice"},
		{"two NarSize", whole + "NarSize: 1\n", "NarSize: is given twice"},
		{"two References", whole + "References: \n", "References: is given twice"},
		{"two Deriver", whole + "Deriver: \nDeriver: \n", "Deriver: is given twice"},
		{"two System", whole + "System: a\nSystem: a\n", "System: is given twice"},
		{"two Signature", whole + "Signature: a\n", "Signature: is given twice"},
		{"StorePath elsewhere", with("StorePath", "/nix/store/"+item), "line 1: StorePath: store path"},
		{"StorePath below", with("StorePath", "/gnu/store/"+item+"/bin"), `StorePath: item name "hello-2.10/bin": character '/'`},
		{"NarHash of another kind", with("NarHash", "sha512:00"), "line 2: NarHash: hash"},
		{"NarHash cut off", signed[:strings.Index(signed, "NarHash")+40], "line 2: NarHash: hash"},
		{"NarHash with space after", with("NarHash", narHash+" "), "line 2: NarHash: hash"},
		{"NarSize negative", with("NarSize", "-1"), "line 3: NarSize: \"-1\": must be a decimal number"},
		{"NarSize signed", with("NarSize", "+1"), "NarSize: "},
		{"NarSize hexadecimal", with("NarSize", "0x10"), "NarSize: "},
		{"NarSize too large", with("NarSize", "9223372036854775808"), "NarSize: "},
		{"NarSize empty", with("NarSize", ""), "NarSize: is empty"},
		{"NarSize continued", with("NarSize", "1\n+2"), "NarSize: "},
		{"FileSize", with("FileSize", "1.5"), "line 8: FileSize: "},
		{"reference", with("References", item+" hello"), `line 4: References: store item "hello": must be HASH-NAME`},
		{"reference with comma", with("References", item+","), `character ','`},
		{"reference as path", with("References", "/gnu/store/"+item), "References: "},
		{"empty URL", with("URL", ""), "line 6: URL: is empty"},
		{"empty Compression", with("Compression", ""), "line 7: Compression: is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, err := Parse([]byte(test.text))
			if err == nil {
				t.Fatalf("got %+v, want an error", n)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q in it", err, test.want)
			}
			if strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("the error isn't one line: %q", err)
			}
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || errors.Is(err, ErrTooLarge) {
				t.Errorf("%T isn't a SyntaxError alone", err)
			}
		})
	}
}

// A truncated text is refused, or has all required fields.
func TestParseCutOff(t *testing.T) {
	for i := range len(whole) {
		n, err := Parse([]byte(whole[:i]))
		if err != nil {
			continue
		}
		if i < strings.Index(whole, "Compression: ")+len("Compression: ") {
			t.Errorf("cut to %d bytes it was taken: %+v", i, n)
		}
	}
}

func TestParseLimits(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		ok   bool
	}{
		{"largest text", whole + strings.Repeat("#\n", (MaxSize-len(whole))/2), true},
		{"text", whole + strings.Repeat("#", MaxSize), false},
		{"most references", strings.Replace(whole, "References: "+item, "References:"+strings.Repeat(" "+helloHash+"-a", MaxReferences), 1), true},
		{"references", strings.Replace(whole, "References: "+item, "References:"+strings.Repeat(" "+helloHash+"-a", MaxReferences+1), 1), false},
		{"longest value", whole + "X: " + strings.Repeat("x", MaxValueLen) + "\n", true},
		{"value", whole + "X: " + strings.Repeat("x", MaxValueLen+1) + "\n", false},
		{"continued value", whole + "X: " + strings.Repeat("\n+x", MaxValueLen/2+1) + "\n", false},
		{"most nars", whole + strings.Repeat(block, MaxFiles-1), true},
		{"nars", whole + strings.Repeat(block, MaxFiles), false},
		// A million lines of one value must not take minutes.
		{"continued references", strings.Replace(whole, "References: "+item, "References: "+item+strings.Repeat("\n+", 1_000_000), 1), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			if test.ok && err != nil {
				t.Error(err)
			}
			if !test.ok && !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v, want %v", err, ErrTooLarge)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../testdata/*/*.narinfo")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(whole))
	f.Add([]byte(whole + "\n"))
	f.Add([]byte("X-Signature: a\n" + block + signed))
	f.Add([]byte(strings.TrimSuffix(whole, "\n")))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		n, err := Parse(text)
		if !bytes.Equal(text, before) {
			t.Fatal("the text was changed")
		}
		if err != nil {
			var syntax *SyntaxError
			if errors.As(err, &syntax) == errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v is neither or both", err)
			}
			return
		}
		if !bytes.Equal(n.Text, before) {
			t.Fatal("Text isn't the text")
		}
		if rest, ok := bytes.CutPrefix(text, n.Signed()); !ok || n.Signed() != nil && !bytes.HasPrefix(rest, []byte("Signature:")) {
			t.Fatalf("Signed() = %q", n.Signed())
		}
		n.SigningKey()
		if len(n.Files) == 0 {
			t.Fatal("no files")
		}
		for _, file := range n.Files {
			if path, err := file.Path(); err == nil {
				checkPath(t, file.URL, path)
			}
			if n.sized != (file.Size >= 0) {
				t.Fatalf("size %d, Sized() %v", file.Size, n.Sized())
			}
		}
		if !n.CanAppend() || len(n.Files) == MaxFiles || len(text) > MaxSize-1000 {
			return
		}
		added := File{"nar/zstd/" + n.StorePath.BaseName(), "zstd", 1}
		if !n.Sized() {
			added.Size = -1
		}
		served := AppendFiles(nil, text, []File{added})
		if !bytes.HasPrefix(served, text) {
			t.Fatal("AppendFiles changed the text")
		}
		again := mustParse(t, served)
		if !bytes.Equal(again.Signed(), n.Signed()) || (again.Signed() == nil) != (n.Signed() == nil) || again.Signature() != n.Signature() {
			t.Fatalf("AppendFiles changed the signed bytes to %q", again.Signed())
		}
		last := again.Files[len(again.Files)-1]
		path, err := last.Path()
		if err != nil || path != added.URL || last.Compression != "zstd" || last.Size != added.Size ||
			!reflect.DeepEqual(again.Files[:len(n.Files)], n.Files) || !again.CanAppend() {
			t.Fatalf("AppendFiles made %+v of %+v", again.Files, n.Files)
		}
		if again.StorePath != n.StorePath || again.NarHash != n.NarHash || !reflect.DeepEqual(again.References, n.References) {
			t.Fatal("AppendFiles changed the fields of the narinfo")
		}
	})
}

// benchmarkText is a typical narinfo with n references; with 20 it has 2.4 KB.
func benchmarkText(n int) []byte {
	return []byte("StorePath: /gnu/store/" + item + "\nNarHash: " + narHash + "\nNarSize: 282616\nReferences:" +
		strings.Repeat(" "+helloHash+"-some-library-1.2.3", n) + "\nSystem: x86_64-linux\nDeriver: " + item + ".drv\nSignature: 1;host;" +
		strings.Repeat("KHNpZ25hdHVyZSAK", 48) + "\n" + block + strings.ReplaceAll(block, "lzip", "zstd"))
}

// TestParseInto: no field of the previous narinfo is left.
func TestParseInto(t *testing.T) {
	t.Parallel()
	var again Narinfo
	for _, pattern := range []string{"../testdata/production/*.narinfo", "../testdata/cases/*.narinfo", "../testdata/published*/*.narinfo"} {
		forEachNarinfo(t, pattern, func(t *testing.T, text []byte) {
			want, err := Parse(text)
			if againErr := ParseInto(&again, text); fmt.Sprint(againErr) != fmt.Sprint(err) {
				t.Fatalf("%v, want %v", againErr, err)
			}
			if err != nil {
				return
			}
			got := again
			if len(got.References) == 0 {
				got.References = want.References // nil or empty
			}
			if !reflect.DeepEqual(&got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{0, 3, 20, 3000} {
		b.Run(fmt.Sprintf("references=%d", n), func(b *testing.B) {
			text := benchmarkText(n)
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := Parse(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
