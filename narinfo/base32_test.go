package narinfo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
)

func TestBase32(t *testing.T) {
	for _, test := range []struct{ hex, text string }{
		{"", ""},
		{"00", "00"},
		{"01", "01"},
		{"1f", "0z"},
		{"ff", "7z"},
		{"0001", "0080"},
		// The sha256 of no bytes, as printed by guix hash for an empty file.
		{"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"},
	} {
		src, err := hex.DecodeString(test.hex)
		if err != nil {
			t.Fatal(err)
		}
		if got := EncodeBase32(src); got != test.text {
			t.Errorf("EncodeBase32(%s) = %q, want %q", test.hex, got, test.text)
		}
		dst := bytes.Repeat([]byte{0xaa}, len(src))
		if err := DecodeBase32(dst, test.text); err != nil || !bytes.Equal(dst, src) {
			t.Errorf("DecodeBase32(%q) = %x, %v, want %s", test.text, dst, err, test.hex)
		}
	}
}

func TestDecodeBase32Errors(t *testing.T) {
	for _, test := range []struct {
		n    int
		text string
		want string
	}{
		{1, "0", "1 characters, 2 are needed"},
		{1, "000", "3 characters, 2 are needed"},
		{0, "0", "1 characters, 0 are needed"},
		{1, "0e", "none of"},
		{1, "0Z", "none of"},
		{1, "80", "bits beyond"}, // the ninth bit
		{1, "zz", "bits beyond"},
		{32, "2" + strings.Repeat("0", 51), "bits beyond"},
		{32, strings.Repeat("0", 51) + "\xff", "none of"},
	} {
		err := DecodeBase32(make([]byte, test.n), test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("DecodeBase32(%d bytes, %q) = %v, want %q in it", test.n, test.text, err, test.want)
		}
	}
}

func TestAppendBase32Appends(t *testing.T) {
	if got := string(AppendBase32([]byte("before "), []byte{0x1f})); got != "before 0z" {
		t.Errorf("got %q", got)
	}
}

func FuzzBase32(f *testing.F) {
	sum := sha256.Sum256(nil)
	f.Add(sum[:], "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")
	f.Add([]byte{0x1f}, "zz")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, src []byte, text string) {
		encoded := EncodeBase32(src)
		decoded := make([]byte, len(src))
		if err := DecodeBase32(decoded, encoded); err != nil || !bytes.Equal(decoded, src) {
			t.Fatalf("%x became %q and then %x, %v", src, encoded, decoded, err)
		}
		// The decoded value has no other text.
		dst := make([]byte, len(text)*5/8)
		if err := DecodeBase32(dst, text); err == nil && EncodeBase32(dst) != text {
			t.Fatalf("%q decoded to %x, whose text is %q", text, dst, EncodeBase32(dst))
		}
	})
}

func BenchmarkDecodeBase32(b *testing.B) {
	const text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
	dst := make([]byte, sha256.Size)
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodeBase32(dst, text); err != nil {
			b.Fatal(err)
		}
	}
}
