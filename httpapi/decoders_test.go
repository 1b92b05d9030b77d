package httpapi

import (
	"io"
	"strings"
	"testing"
)

// TestSlowClients: clients that take little or nothing of nars that are decompressed for them, more than there could be
// decoders, don't keep another client from its nar.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	m := make1(t, "zeros", strings.Repeat("\x00", 16<<20), "gzip")
	server := start(t, m.items(t), options())
	for i := range 100 {
		c := dial(t, server.address)
		c.send(request("GET", []string{"/nar/" + m.path.BaseName(), "/file/zeros/sha256/" + m.digest}[i%2]))
		if head, err := io.ReadAll(io.LimitReader(c.r, 12)); string(head) != "HTTP/1.1 200" {
			t.Fatalf("client %d: %q, %v", i, head, err)
		}
	}
	got := fetch(t, server.address, "/nar/"+m.path.BaseName())
	if got.StatusCode != 200 || got.body != string(m.nar) || got.err != nil {
		t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
	}
}

// left is zero once all decoders have given back what they had.
func (d *decoders) left() int64 { return d.open.Load() + d.memory() }
