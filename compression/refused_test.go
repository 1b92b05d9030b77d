package compression

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestRefused distinguishes data that needs too much memory from wrong data.
func TestRefused(t *testing.T) {
	t.Parallel()
	frame := func(window int) string {
		out := new(bytes.Buffer)
		w, err := zstd.NewWriter(out, zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
		if err != nil {
			t.Fatal(err)
		}
		// Flushed, so that the encoder does not know the size.
		_, _ = w.Write([]byte("data"))
		_ = w.Flush()
		_ = w.Close()
		return out.String()
	}
	for _, test := range []struct {
		kind, data string
		want       bool
	}{
		{"br", "data", true}, {Zstd, frame(2 * maxWindow), true}, {Zstd, frame(1 << 20)[:9], false}, {Zstd, "garbage", false},
		{Lzip, "LZIP", false}, {Xz, "garbage", false}, {Gzip, "", false},
	} {
		reader, err := NewReader(test.kind, strings.NewReader(test.data))
		if err == nil {
			_, err = io.Copy(io.Discard, reader)
			reader.Close()
		}
		if err == nil || Refused(err) != test.want {
			t.Errorf("%s %q: %v is refused: %v, want %v", test.kind, test.data, err, Refused(err), test.want)
		}
	}
	if Refused(nil) || Refused(io.EOF) {
		t.Error("no error is a refusal")
	}
}
