package httpapi

import (
	"bytes"
	"strings"
	"testing"
)

// TestDamageBeforeStatus flips one bit of nars: the answers to requests for what is in
// them are errors where they are short, and cut where they are long, never whole.
func TestDamageBeforeStatus(t *testing.T) {
	t.Parallel()
	short, long := strings.Repeat("0123456789", 1000), strings.Repeat("0123456789", 100_000)
	for _, how := range []string{"none", "gzip", "zstd"} {
		for _, content := range []string{short, long} {
			good := make1(t, "source", content, how)
			file := "/file/source/sha256/" + good.digest
			for _, target := range []string{"/nar/" + good.path.BaseName(), file} {
				if how == "none" && target != file {
					continue // sent as it is stored
				}
				if got := fetch(t, start(t, good.items(t), options()).address, target); got.err != nil || got.StatusCode != 200 {
					t.Errorf("%s, %d bytes, %s, good: %v, %v", how, len(content), target, got.Response, got.err)
				}
				m := *good
				m.file = bytes.Clone(good.file)
				if at := len(m.file) / 2; how == "none" {
					m.file[at] ^= 1
				} else {
					other := bytes.Clone(good.nar)
					other[len(other)/2] ^= 1 // in a file without a fault
					m.file = compress(t, how, other)
				}
				m.fileSize = int64(len(m.file))
				server := start(t, m.items(t), options())
				got := fetch(t, server.address, target)
				if len(content) == len(short) && (got.err != nil || got.StatusCode != 500 || strings.Contains(got.body, "0123456789")) {
					t.Errorf("%s, short, %s: %v, %d bytes, %v", how, target, got.Response, len(got.body), got.err)
				}
				if len(content) == len(long) && !got.cut() {
					t.Errorf("%s, long, %s: %v, %d bytes, %v", how, target, got.Response, len(got.body), got.err)
				}
				if damaged := damagedCount(t, server); damaged != 1 {
					t.Errorf("%s, %d bytes, %s: counted %d times", how, len(content), target, damaged)
				}
				until(t, "decoders are given back", func() bool { return server.decoders.left() == 0 })
			}
		}
	}
}
