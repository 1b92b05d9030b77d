package readers

import (
	"bytes"
	"io"
	"os"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
)

// TestUnread: items are protected from two deletions at once, and from readers meanwhile.
func TestUnread(t *testing.T) {
	t.Parallel()
	r := New()
	a, b, c := narinfo.PathHash{1}, narinfo.PathHash{2}, narinfo.PathHash{3}
	release := r.TryHold(c)
	first, done := r.Unread([]narinfo.PathHash{a, c})
	second, alsoDone := r.Unread([]narinfo.PathHash{a, b, b, c})
	if len(first) != 1 || first[0] != a || len(second) != 1 || second[0] != b {
		t.Errorf("%v, %v", first, second)
	}
	if r.TryHold(a) != nil || r.TryHold(b) != nil {
		t.Error("a nar that is being deleted can be opened")
	}
	r.Hold(b)()
	done()
	alsoDone()
	release()
	release()
	third, done := r.Unread([]narinfo.PathHash{a, b, c})
	done()
	if len(third) != 3 || len(r.open) != 0 || len(r.leaving) != 0 {
		t.Errorf("%v, %v, %v", third, r.open, r.leaving)
	}
}

// growingFile is a file that doesn't grow.
type growingFile struct{ bytestore.FileReader }

func (*growingFile) Next() (int64, error) { return 0, io.EOF }
func (*growingFile) Skip(int64)           {}

// TestReleasing: the reader of a file stays one.
func TestReleasing(t *testing.T) {
	t.Parallel()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for n, reader := range []io.ReadCloser{io.NopCloser(new(bytes.Buffer)), &bytestore.FileReader{File: file}, &growingFile{bytestore.FileReader{File: file}}} {
		released := 0
		reader = Releasing(reader, func() { released++ })
		_, local := reader.(bytestore.LocalFile)
		_, growing := reader.(bytestore.GrowingFile)
		if local != (n > 0) || growing != (n == 2) {
			t.Errorf("reader %d: local %v, growing %v", n, local, growing)
		}
		if err := reader.Close(); err != nil || released != 1 {
			t.Errorf("reader %d: released %d times, %v", n, released, err)
		}
	}
}
