package sourcedump

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"nar-herder/internal/disk"
	"nar-herder/internal/mirrortest"
	"nar-herder/mirror/health"
	"nar-herder/mirror/original"
)

// TestDecompressRoom: decompression leaves room on the disk, and is bounded by the size of
// the compressed file.
func TestDecompressRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bomb := filepath.Join(dir, "bomb")
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 200 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), os.WriteFile(bomb, packed.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	if err := decompress(t.Context(), bomb, to, nil); err == nil || health.IsLocal(err) {
		t.Errorf("%d bytes become 200 MiB: %v", packed.Len(), err)
	}
	if info, err := os.Stat(to); err != nil || info.Size() > 100<<20 {
		t.Errorf("it was written as %d bytes, %v", info.Size(), err)
	}
	packed.Reset()
	wide, err := zstd.NewWriter(&packed, zstd.WithWindowSize(16<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := wide.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(wide.Close(), os.WriteFile(bomb+"2", packed.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := decompress(t.Context(), bomb+"2", to, nil); !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("a window of 16 MiB: %v", err)
	}
	full := func(string) (int64, int64, error) { return 1 << 30, 100 << 30, nil }
	err = decompress(t.Context(), bomb, to, full)
	if !errors.Is(err, disk.ErrNoRoom) || !health.IsLocal(err) || bad(err) != err {
		t.Errorf("on a disk that is full: %v", err)
	}
}

// TestAdmit: items of a dump without a sum must match their signatures, and must have one
// if the dump may be damaged.
func TestAdmit(t *testing.T) {
	t.Parallel()
	signed := string(mirrortest.Narinfo(1, 1, 1).Text)
	before, rest, _ := strings.Cut(signed, "Signature: ")
	_, after, _ := strings.Cut(rest, "\n")
	unsigned, bad := before+after, strings.Replace(signed, "Version: 1", "Version: 2", 1)
	for _, test := range []struct {
		dump                  Dump
		signed, unsigned, bad bool
	}{
		{Dump{}, true, false, false},
		{Dump{Sum: "1"}, true, false, false},
		{Dump{Verified: true}, true, false, false},
		{Dump{Verified: true, Sum: "1"}, true, true, true},
	} {
		for text, want := range map[string]bool{signed: test.signed, unsigned: test.unsigned, bad: test.bad} {
			if _, err := test.dump.Admit(Entry{Item: original.Item{Text: []byte(text)}}, nil); (err == nil) != want {
				t.Errorf("verified %v, sum %q: %v of\n%s", test.dump.Verified, test.dump.Sum, err, text)
			}
		}
	}
}
