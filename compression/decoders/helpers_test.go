package decoders

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"nar-herder/compression"
)

// poolWithin makes a pool with its own budget.
func poolWithin(processors int, bytes int64) *Pool {
	return New(processors, compression.NewBudget(bytes))
}

func gzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(content)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// closingReader reads, and calls a function when it is closed.
type closingReader struct {
	io.Reader
	closed func()
}

func (r closingReader) Close() error { r.closed(); return nil }

var errRead = errors.New("broken")

func randomBytes(n int) []byte {
	content := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(content)
	return content
}
