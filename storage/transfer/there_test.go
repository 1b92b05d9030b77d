package transfer

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"testing"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// away is a remote store to which another process uploads a file.
type away struct{ bytestore.Store }

const uploading = "nar/100"

func (away) IsRemote() bool { return true }

func (away) Concurrency() int { return 1 }

func (a away) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if !yield(bytestore.Info{Name: uploading, Size: 100, Temporary: true}, nil) {
			return
		}
		a.Store.List(ctx)(yield)
	}
}

// TestThereBounded: the listing in memory is bounded, and other files are looked up.
func TestThereBounded(t *testing.T) {
	t.Parallel()
	store, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for n := range 100 {
		staged, err := store.Stage(t.Context(), fmt.Sprint("nar/", n), strings.NewReader(strings.Repeat("x", n)), int64(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	known := newThere(away{store}, nil)
	known.first, known.most = 0, 30
	if err := known.expect(t.Context()); err != nil {
		t.Fatal(err)
	}
	remembered := 0
	names := known.names.Load()
	for n := range 110 {
		want := int64(n)
		if n >= 100 {
			want = -1
		}
		name := fmt.Sprint("nar/", n)
		if size, err := known.size(t.Context(), name); size != want || err != nil {
			t.Errorf("%s: %d, %v", name, size, err)
		}
		if _, found := names.size(name); found {
			remembered++
		}
	}
	if _, found := names.size(uploading); found || remembered != 30 || names.complete {
		t.Errorf("%d files in the listing, complete: %v", remembered, names.complete)
	}
}
