package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"nar-herder/compression"
)

// heldBytes count the memory of all decompressors.
type heldBytes struct{ now, most atomic.Int64 }

func (h *heldBytes) decompress(name string, r io.Reader, memory int64) (io.ReadCloser, error) {
	z, err := compression.NewReaderWithin(name, r, memory)
	if err != nil {
		return nil, err
	}
	now := h.now.Add(memory)
	for most := h.most.Load(); now > most && !h.most.CompareAndSwap(most, now); most = h.most.Load() {
	}
	var once sync.Once
	return readCloser{z, closeFunc(func() {
		once.Do(func() { h.now.Add(-memory) })
		z.Close()
	})}, nil
}

// TestHostileFiles: 32 clients at once request each of some files that need much memory, or
// are damaged. Decoders stay within the budget, and no client gets wrong bytes as a complete
// nar.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	hugeXz, err := os.ReadFile("../cmd/nar-herder/testdata/hostile.xz")
	if err != nil {
		t.Fatal(err)
	}
	content := string(randomContent(300_000)) // too long to be compared before the status line
	long := make1(t, "long", content, "zstd")
	long.file = zstdWithWindow(t, 128<<20, long.nar) // as zstd --long=27
	items := map[string]*made{"zstd with a long window": long}
	xz := make1(t, "xz", content, "none")
	xz.compression, xz.file = "xz", hugeXz
	items["xz with a huge dictionary"] = xz
	for _, how := range []string{"none", "gzip", "zstd", "lzip"} {
		m := make1(t, how, content, how)
		m.file = bytes.Clone(m.file)
		m.file[len(m.file)/2] ^= 1
		items[how+" with a flipped bit"] = m
	}
	for name, m := range items {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m.fileSize = int64(len(m.file))
			var held heldBytes
			opts := options()
			opts.Decompress = held.decompress
			most := int64(300 << 20)
			server := startWith(t, m.items(t), opts, func(s *Server) { s.checker.Options.Decoders = decodersWithin(2, most) })
			var clients sync.WaitGroup
			var good, refused atomic.Int32
			for i := range 32 {
				clients.Go(func() {
					got := fetch(t, server.address, []string{"/nar/" + m.path.BaseName(), "/file/" + m.path.Name + "/sha256/" + m.digest}[i%2])
					switch {
					case got.Response == nil || got.cut():
					case got.err == nil && got.StatusCode >= http.StatusInternalServerError:
						refused.Add(1)
					case got.err == nil && got.StatusCode == http.StatusOK && m == long && got.body == []string{string(m.nar), content}[i%2]:
						good.Add(1)
					default:
						t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
					}
				})
			}
			clients.Wait()
			if (m == long) != (good.Load() > 0) || held.most.Load() > most {
				t.Errorf("%d clients got the nar, %d were refused; decoders held %d MiB", good.Load(), refused.Load(), held.most.Load()>>20)
			}
			until(t, "all is given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 && held.now.Load() == 0 })
			t.Logf("%d got the nar, %d were refused, %d MiB", good.Load(), refused.Load(), held.most.Load()>>20)
		})
	}
}

// zstdWithWindow compresses with a window of a given size.
func zstdWithWindow(t testing.TB, window int, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err == nil {
		_, err = w.Write(content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
