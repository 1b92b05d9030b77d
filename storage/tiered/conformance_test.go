package tiered

import (
	"errors"
	"testing"
	"time"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/storagetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{
		"Large": 1 << 30,
		// A small cache: copies are evicted all the time, and some nars never fit.
		"Tiny": 300 << 10,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) bytestore.Store {
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
			storagetest.Run(t, func(t *testing.T) bytestore.Store {
				return open(t, newFar(t), Options{Directory: t.TempDir(), MaxSize: size})
			})
		})
	}
}

// TestListUnfinished: a store that can't list unfinished uploads returns ErrUnsupported.
func TestListUnfinished(t *testing.T) {
	t.Parallel()
	var got []error
	for _, err := range open(t, newFar(t), Options{Directory: t.TempDir(), MaxSize: 1 << 20}).ListUnfinished(t.Context(), time.Now()) {
		got = append(got, err)
	}
	if len(got) != 1 || !errors.Is(got[0], errors.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", got)
	}
}
