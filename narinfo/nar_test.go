package narinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// narOf writes a nar of the given strings.
func narOf(parts ...string) []byte {
	var nar []byte
	for _, part := range parts {
		nar = binary.LittleEndian.AppendUint64(nar, uint64(len(part)))
		nar = append(nar, part...)
		nar = append(nar, make([]byte, -len(part)&7)...)
	}
	return nar
}

func flatNar(content string) []byte {
	return narOf("nix-archive-1", "(", "type", "regular", "contents", content, ")")
}

func flatHeader(length uint64) []byte {
	nar := flatNar("")[:FlatHeaderSize]
	binary.LittleEndian.PutUint64(nar[FlatHeaderSize-8:], length)
	return nar
}

func TestParseFlatHeader(t *testing.T) {
	for _, content := range []string{"", "a", "1234567", "12345678", "123456789", strings.Repeat("x", 5000)} {
		nar := flatNar(content)
		size, err := ParseFlatHeader(nar)
		if err != nil || size != int64(len(content)) {
			t.Errorf("content of %d bytes: %d, %v", len(content), size, err)
		}
		if got := FlatNarSize(size); got != int64(len(nar)) {
			t.Errorf("FlatNarSize(%d) = %d, want %d", size, got, len(nar))
		}
		if got := string(nar[FlatHeaderSize:][:size]); got != content {
			t.Errorf("wrong content at %d", FlatHeaderSize)
		}
	}
	if size, err := ParseFlatHeader(flatHeader(maxFlatSize)); err != nil || size != maxFlatSize {
		t.Errorf("largest content: %d, %v", size, err)
	}
	if got := FlatNarSize(maxFlatSize); got < maxFlatSize {
		t.Errorf("FlatNarSize(%d) = %d", int64(maxFlatSize), got)
	}
}

func TestParseFlatHeaderErrors(t *testing.T) {
	file := flatNar("some content")
	for _, test := range []struct {
		name string
		nar  []byte
		want error
	}{
		{"directory", narOf("nix-archive-1", "(", "type", "directory", "entry", "(", "name", "a", "node"), ErrNotFlat},
		{"empty directory", narOf("nix-archive-1", "(", "type", "directory", ")"), ErrNotFlat},
		{"symbolic link", narOf("nix-archive-1", "(", "type", "symlink", "target", "/gnu/store", ")"), ErrNotFlat},
		{"executable", narOf("nix-archive-1", "(", "type", "regular", "executable", "", "contents", "a", ")"), ErrNotFlat},
		{"nothing", nil, ErrNotNar},
		{"short", file[:FlatHeaderSize-1], ErrNotNar},
		{"zeros", make([]byte, FlatHeaderSize), ErrNotNar},
		{"gzip", append([]byte("\x1f\x8b"), make([]byte, FlatHeaderSize)...), ErrNotNar},
		{"another version", bytes.Replace(file, []byte("nix-archive-1"), []byte("nix-archive-2"), 1), ErrNotNar},
		{"unknown type", narOf("nix-archive-1", "(", "type", "socket", "contents", "a", ")"), ErrNotNar},
		{"padding that isn't zero", append(append([]byte(nil), file[:21]...), append([]byte{1}, file[22:]...)...), ErrNotNar},
		{"hostile length", flatHeader(maxFlatSize + 1), ErrNotNar},
		{"largest length", flatHeader(math.MaxUint64), ErrNotNar},
	} {
		size, err := ParseFlatHeader(test.nar)
		if !errors.Is(err, test.want) || size != 0 {
			t.Errorf("%s: %d, %v, want %v", test.name, size, err, test.want)
		}
	}
}

func FuzzParseFlatHeader(f *testing.F) {
	f.Add(flatNar("content"))
	f.Add(flatHeader(math.MaxUint64))
	f.Add(narOf("nix-archive-1", "(", "type", "directory", ")"))
	if nar, err := os.ReadFile(filepath.FromSlash("../testdata/published/nar/" + helloTarball)); err == nil {
		f.Add(nar[:FlatHeaderSize])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		size, err := ParseFlatHeader(b)
		if err != nil {
			if errors.Is(err, ErrNotFlat) == errors.Is(err, ErrNotNar) {
				t.Fatalf("%v is neither or both", err)
			}
			return
		}
		if size < 0 || FlatNarSize(size) < FlatHeaderSize+size+narClose || FlatNarSize(size)%8 != 0 {
			t.Fatalf("content of %d bytes in a nar of %d", size, FlatNarSize(size))
		}
		if !bytes.Equal(b[:FlatHeaderSize], flatHeader(uint64(size))) {
			t.Fatalf("took %q", b[:FlatHeaderSize])
		}
	})
}
