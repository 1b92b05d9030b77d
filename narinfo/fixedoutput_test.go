package narinfo

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// helloTarball is a nar in ../testdata/published of a single file, not compressed. It isn't
// the real archive of that name.
const helloTarball = "g699dxrv55xnrdq6z90qwfmsgz16p3xg-hello-2.10.tar.gz"

func TestFixedOutputPath(t *testing.T) {
	for _, test := range []struct{ name, sum, want string }{
		{"hello-2.10.tar.gz", "0ssi1wpaf7plaswqqjwigppsg5fyh99vdlb9kzl7c9lng89ndq1i", "/gnu/store/hbdalsf5lpf01x4dcknwx6xbn6n5km6k-hello-2.10.tar.gz"},
		{"hello-2.10.tar.gz", "0wz7x8ngv5y6qk5w3i659y2ccawyfniixrghnr4km447cls0p45k", "/gnu/store/" + helloTarball},
	} {
		var sum [sha256.Size]byte
		if err := DecodeBase32(sum[:], test.sum); err != nil {
			t.Fatal(err)
		}
		got, err := FixedOutputPath(test.name, sum)
		if err != nil || got.String() != test.want {
			t.Errorf("FixedOutputPath(%q, %s) = %v, %v, want %s", test.name, test.sum, got, err, test.want)
		}
	}
	for _, name := range []string{"", ".hidden", "a/b", "a b", strings.Repeat("n", MaxNameLen+1)} {
		if got, err := FixedOutputPath(name, [sha256.Size]byte{}); err == nil {
			t.Errorf("FixedOutputPath(%q) = %v, want an error", name, got)
		}
	}
}

// From the nar to its store path, through all steps of serving the file.
func TestFlatNarOfTestdata(t *testing.T) {
	dir := filepath.FromSlash("../testdata/published")
	nar, err := os.ReadFile(filepath.Join(dir, "nar", helloTarball))
	if err != nil {
		t.Fatal(err)
	}
	size, err := ParseFlatHeader(nar)
	if err != nil {
		t.Fatal(err)
	}
	if got := FlatNarSize(size); got != int64(len(nar)) {
		t.Fatalf("FlatNarSize(%d) = %d, the nar has %d", size, got, len(nar))
	}
	path, err := FixedOutputPath("hello-2.10.tar.gz", sha256.Sum256(nar[FlatHeaderSize:][:size]))
	if err != nil || path.BaseName() != helloTarball {
		t.Errorf("FixedOutputPath of the content: %v, %v", path, err)
	}

	text, err := os.ReadFile(filepath.Join(dir, path.Hash.String()+".narinfo"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if n.NarHash != sha256.Sum256(nar) || n.NarSize != int64(len(nar)) {
		t.Errorf("narinfo has %v and %d, the nar isn't that", n.NarHash, n.NarSize)
	}
}
