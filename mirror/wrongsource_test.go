package mirror

import (
	"errors"
	"nar-herder/mirror/health"
	"path/filepath"
	"testing"
)

// TestWrongSource: an original has no id, so a mirror detects another source by its URL,
// and refuses to remove items, however few.
func TestWrongSource(t *testing.T) {
	t.Parallel()
	own, source, wrong := newInstance(t), newOriginal(t), newOriginal(t)
	for n := range 20 {
		source.added(at(n), n, 1)
	}
	wrong.added(at(100), 100, 1)
	source.dump(false)
	wrong.dump(false)
	source.added(at(30), 30, 1)
	downloads := filepath.Join(t.TempDir(), "download")
	right := mirrorOf2(t, own, source.instance, downloads)
	for range 2 { // the dump, and the changes after it
		if _, err := right.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := len(own.list())
	var refused *health.RefusedError
	if _, err := mirrorOf2(t, own, wrong.instance, downloads).step(t.Context()); !errors.As(err, &refused) {
		t.Errorf("another original is followed: %v", err)
	}
	if left := len(own.list()); before != 21 || left != before {
		t.Errorf("%d items of %d are left", left, before)
	}
}
