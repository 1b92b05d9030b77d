package tiered

import (
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/storagetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{
		"Large": 1 << 30,
		// So that something goes all the time, and some of it never fits.
		"Tiny": 300 << 10,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.ByteStore {
				behind, err := directory.Open(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { behind.Close() })
				return open(t, behind, Options{Directory: t.TempDir(), MaxSize: size})
			})
		})
		t.Run(name+"Far", func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.ByteStore {
				return open(t, newFar(t), Options{Directory: t.TempDir(), MaxSize: size})
			})
		})
	}
}
