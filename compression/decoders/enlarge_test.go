package decoders

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"nar-herder/compression"
)

// compressWith compresses with a dictionary or window of a given size, if the format's writer
// supports that.
func compressWith(t testing.TB, how string, dictionary int, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "xz":
		w, err = xz.WriterConfig{DictCap: dictionary}.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(dictionary))
	case "lzip":
		level := 0 // 64 KiB
		if dictionary > 64<<10 {
			level = 6 // 8 MiB, or the length of the content
		}
		w, err = compression.NewWriter(how, level, &out)
	}
	if err == nil {
		_, err = w.Write(content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestDecodersLargerStream has a second stream that needs more memory than the first, which ends in the middle of a
// piece. With a suspension, the decoder loses its decompressor between the two.
func TestDecodersLargerStream(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"xz", "lzip", "zstd"} {
		second := randomBytes(Piece + 1000)
		packedSecond := compressWith(t, how, 8<<20, second)
		for _, length := range []int{1000, 300_000} {
			first := randomBytes(length)
			packed := append(compressWith(t, how, 64<<10, first), packedSecond...)
			for _, suspended := range []bool{false, true} {
				t.Run(fmt.Sprint(how, " ", length, " ", suspended), func(t *testing.T) {
					memory := compression.Memory(how, packed[:compression.HeadBytes], -1)
					if memory >= 2<<20 {
						t.Fatalf("%d bytes for the first stream", memory)
					}
					d := poolWithin(1, 256<<20)
					d.SlowAfter = 0
					z, err := d.Open(t.Context(), t.Context(), how, &memoryFile{content: packed}, memory, compression.NewReaderWithin)
					if err != nil {
						t.Fatal(err)
					}
					var got []byte
					for piece := make([]byte, Piece); ; {
						n, err := z.Read(piece)
						got = append(got, piece[:n]...)
						if err == io.EOF {
							break
						}
						if err != nil {
							t.Fatalf("after %d bytes: %v", len(got), err)
						}
						if suspended && len(got) <= length {
							suspendAll(t, d)
						}
					}
					if !bytes.Equal(got, slices.Concat(first, second)) {
						t.Errorf("%d bytes", len(got))
					}
					if d.restarted.Load() == 0 {
						t.Error("the second stream needed no more memory")
					}
					z.Close()
					if d.Memory() != 0 {
						t.Errorf("%d bytes are left", d.Memory())
					}
				})
			}
		}
	}
}

// suspendAll suspends all decoders, which must be idle.
func suspendAll(t *testing.T, d *Pool) {
	t.Helper()
	d.mu.Lock()
	pieces := d.pieces
	d.mu.Unlock()
	release, err := d.take(t.Context(), d.budget.Total()-pieces)
	if err != nil {
		t.Fatal(err)
	}
	release()
}
