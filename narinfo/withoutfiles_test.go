package narinfo

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestWithoutFiles(t *testing.T) {
	const head = "StorePath: /gnu/store/0123456789abcdfghijklmnpqrsvwxyz-a\nNarHash: sha256:0000000000000000000000000000000000000000000000000000\nNarSize: 1\nReferences: \n"
	const signature = "Signature: 1;host;AAAA\n"
	block := func(kind string) string { return "URL: nar/" + kind + "/a\nCompression: " + kind + "\nFileSize: 5\n" }
	unsized := func(kind string) string { return "URL: nar/" + kind + "/a\nCompression: " + kind + "\n" }
	gzip, lzip, zstd := block("gzip"), block("lzip"), block("zstd")
	for name, test := range map[string]struct {
		text  string
		files uint64
		want  string
	}{
		"none":              {head + signature + gzip + lzip, 0, head + signature + gzip + lzip},
		"first":             {head + signature + gzip + lzip + zstd, 0b001, head + signature + lzip + zstd},
		"middle":            {head + signature + gzip + lzip + zstd, 0b010, head + signature + gzip + zstd},
		"last":              {head + signature + gzip + lzip + zstd, 0b100, head + signature + gzip + lzip},
		"two":               {head + signature + gzip + lzip + zstd, 0b101, head + signature + lzip},
		"all":               {head + signature + gzip + lzip, 0b11, head + signature + gzip + lzip},
		"beyond":            {head + signature + gzip + lzip, 0b101, head + signature + lzip},
		"unsigned narinfo":  {head + gzip + lzip, 0b01, head + lzip},
		"signed":            {head + gzip + lzip + signature, 0b01, head + gzip + lzip + signature},
		"one signed":        {head + gzip + signature + lzip + zstd, 0b011, head + gzip + signature + zstd},
		"all but signed":    {head + gzip + signature + lzip, 0b10, head + gzip + signature},
		"half signed":       {head + "URL: nar/gzip/a\n" + signature + "Compression: gzip\n" + lzip, 0b01, head + "URL: nar/gzip/a\n" + signature + "Compression: gzip\n" + lzip},
		"no sizes":          {head + signature + unsized("gzip") + unsized("lzip"), 0b01, head + signature + unsized("lzip")},
		"some sizes":        {head + signature + gzip + unsized("lzip"), 0b10, head + signature + gzip + unsized("lzip")},
		"not in blocks":     {head + signature + "URL: nar/gzip/a\nURL: nar/lzip/a\nCompression: gzip\nCompression: lzip\nFileSize: 1\nFileSize: 2\n", 0b01, head + signature + "URL: nar/lzip/a\nCompression: lzip\nFileSize: 2\n"},
		"hashes":            {head + signature + gzip + "FileHash: sha256:1\n" + lzip + "FileHash: sha256:2\n", 0b01, head + signature + lzip + "FileHash: sha256:2\n"},
		"one hash":          {head + signature + gzip + lzip + "FileHash: sha256:2\n", 0b01, head + signature + lzip + "FileHash: sha256:2\n"},
		"continued":         {head + signature + "URL: nar\n#c\n+ /gzip/a\nCompression: gzip\n+\nDeriver: x\n" + unsized("lzip"), 0b01, head + signature + "#c\nDeriver: x\n" + unsized("lzip")},
		"after the end":     {head + signature + gzip + lzip + "\nURL: x\n", 0b01, head + signature + lzip + "\nURL: x\n"},
		"empty lines first": {"\n\n" + head + signature + gzip + lzip, 0b10, "\n\n" + head + signature + gzip},
		"no last newline":   {head + signature + gzip + strings.TrimSuffix(lzip, "\n"), 0b10, head + signature + gzip},
		"mark in a URL":     {head + "URL: nar/gzip/Signature:a\nCompression: gzip\n" + unsized("lzip"), 0b01, head + "URL: nar/gzip/Signature:a\nCompression: gzip\n" + unsized("lzip")},
	} {
		n, err := Parse([]byte(test.text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := n.WithoutFiles(test.files); string(got) != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, test.want)
		}
		checkWithout(t, n, test.files)
	}
}

// checkWithout checks that the text without some files describes the others, and that no
// signed byte has changed.
func checkWithout(t *testing.T, n *Narinfo, files uint64) {
	t.Helper()
	before := string(n.Text)
	text := n.WithoutFiles(files)
	if string(n.Text) != before {
		t.Fatal("the text itself has changed")
	}
	cut, err := Parse(text)
	if err != nil {
		t.Fatalf("%q without %b can't be parsed: %v", n.Text, files, err)
	}
	if !bytes.Equal(cut.Signed(), n.Signed()) || cut.Signature() != n.Signature() || cut.NarHash != n.NarHash || cut.StorePath != n.StorePath ||
		!slices.Equal(cut.References, n.References) {
		t.Errorf("%q without %b is %q", n.Text, files, text)
	}
	var kept []File
	for i, file := range n.Files {
		if slices.Index(n.Files, file) != i {
			return // two blocks are the same
		}
		if files&(1<<i) == 0 || slices.Contains(cut.Files, file) {
			kept = append(kept, file)
		}
	}
	if !slices.Equal(kept, cut.Files) {
		t.Errorf("%q without %b has the files %v, want %v", n.Text, files, cut.Files, kept)
	}
}

// FuzzWithoutFiles: signed bytes and the other files stay as they are.
func FuzzWithoutFiles(f *testing.F) {
	const head = "StorePath: /gnu/store/0123456789abcdfghijklmnpqrsvwxyz-a\nNarHash: sha256:0000000000000000000000000000000000000000000000000000\nReferences: \n"
	f.Add([]byte(head+"URL: a\nCompression: gzip\nFileSize: 1\nSignature: 1;h;A\nURL: b\nCompression: lzip\nFileSize: 2\nURL: c\n+ d\nCompression: zstd\nFileSize: 3\nFileHash: x\n"), uint64(2))
	f.Add([]byte(head+"URL: a\nURL: b\nCompression: gzip\nCompression: lzip\nSignature: 1;h;A\n\nURL: b"), uint64(1))
	f.Fuzz(func(t *testing.T, text []byte, files uint64) {
		n, err := Parse(text)
		if err == nil {
			checkWithout(t, n, files)
		}
	})
}
