package index

import (
	"context"
	"path/filepath"
	"testing"
)

// openTest opens an index of the test's own.
func openTest(t testing.TB) *Index {
	t.Helper()
	x, err := Open(context.Background(), filepath.Join(t.TempDir(), "nar_herder.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}
