package directory

import (
	"testing"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/storagetest"
)

// open opens a directory for the test.
func open(t *testing.T, name string) *Directory {
	t.Helper()
	d, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) bytestore.Store { return open(t, t.TempDir()) })
}
