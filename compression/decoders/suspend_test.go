package decoders

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"nar-herder/compression"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// remoteFile is a compressed nar that must be opened again to be read again.
type remoteFile struct {
	content []byte
	// reader replaces the reader of the opening with that number, from 1 on; may be nil.
	reader       func(opening int32) (io.Reader, error)
	opened, open atomic.Int32
}

func (f *remoteFile) opener() func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	return func(int64, int64) (io.ReadCloser, bytestore.Info, error) {
		var r io.Reader = bytes.NewReader(f.content)
		opening := f.opened.Add(1)
		if f.reader != nil {
			other, err := f.reader(opening)
			if err != nil {
				return nil, bytestore.Info{}, err
			}
			if other != nil {
				r = other
			}
		}
		f.open.Add(1)
		return closingReader{r, func() { f.open.Add(-1) }}, bytestore.Info{Size: int64(len(f.content))}, nil
	}
}

// decoder opens a gzip decoder of the file.
func (f *remoteFile) decoder(t *testing.T, d *Pool) *Decoder {
	t.Helper()
	file := NewFile(f.opener())
	head, err := file.Head()
	if err != nil {
		t.Fatal(err)
	}
	z, err := d.Open(t.Context(), t.Context(), "gzip", file, compression.Memory("gzip", head, -1), compression.NewReaderWithin)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestSuspendClosesFile: a suspended decoder keeps no connection to the nar's bucket or
// instance open.
func TestSuspendClosesFile(t *testing.T) {
	t.Parallel()
	content := randomBytes(1 << 20)
	file := &remoteFile{content: gzipped(t, content)}
	d := poolWithin(2, 10*Piece)
	d.SlowAfter = 0
	z := file.decoder(t, d)
	got := make([]byte, 1000)
	if _, err := io.ReadFull(z, got); err != nil {
		t.Fatal(err)
	}
	suspendAll(t, d)
	if n := file.open.Load(); n != 0 {
		t.Errorf("%d files are open", n)
	}
	rest, err := io.ReadAll(z)
	if !bytes.Equal(append(got, rest...), content) || err != nil || file.opened.Load() != 2 {
		t.Errorf("%d bytes, opened %d times, %v", len(got)+len(rest), file.opened.Load(), err)
	}
	z.Close()
	if n := file.open.Load(); n != 0 || d.Memory() != 0 {
		t.Errorf("%d files are open, %d bytes are left", n, d.Memory())
	}
}

// TestSuspendKeepsGrowingFile: closing a growing file could cancel its download.
func TestSuspendKeepsGrowingFile(t *testing.T) {
	t.Parallel()
	file := &File{open: func(int64, int64) (io.ReadCloser, bytestore.Info, error) {
		return growingReader{}, bytestore.Info{Size: 10}, nil
	}}
	if _, err := file.Head(); err != nil {
		t.Fatal(err)
	}
	if c := file.Suspend(); c != nil {
		t.Error("it is to be closed")
	}
}

type growingReader struct{ bytestore.GrowingFile }

func (growingReader) Read([]byte) (int, error) { return 0, io.EOF }
func (growingReader) Close() error             { return nil }

// TestSuspendedRetries: a decoder that restarts retries once if reading fails.
func TestSuspendedRetries(t *testing.T) {
	t.Parallel()
	content := randomBytes(1 << 20)
	packed := gzipped(t, content)
	broken := func() io.Reader {
		return io.MultiReader(bytes.NewReader(packed[:300_000]), iotest.ErrReader(errRead))
	}
	for name, test := range map[string]struct {
		reader func(opening int32) (io.Reader, error)
		opened int32
		err    error
	}{
		"broken once": {func(opening int32) (io.Reader, error) {
			if opening == 2 {
				return broken(), nil
			}
			return nil, nil
		}, 3, nil},
		"not opened once": {func(opening int32) (io.Reader, error) {
			if opening == 2 {
				return nil, errRead
			}
			return nil, nil
		}, 3, nil},
		"broken": {func(opening int32) (io.Reader, error) {
			if opening >= 2 {
				return broken(), nil
			}
			return nil, nil
		}, 3, errRead},
		"removed": {func(opening int32) (io.Reader, error) {
			if opening >= 2 {
				return nil, storage.ErrNotStored
			}
			return nil, nil
		}, 2, storage.ErrNotStored},
	} {
		file := &remoteFile{content: packed, reader: test.reader}
		d := poolWithin(2, 10*Piece)
		d.SlowAfter = 0
		z := file.decoder(t, d)
		got := make([]byte, 500_000)
		if _, err := io.ReadFull(z, got); err != nil {
			t.Fatal(err)
		}
		suspendAll(t, d)
		rest, err := io.ReadAll(z)
		if test.err == nil && (err != nil || !bytes.Equal(append(got, rest...), content)) {
			t.Errorf("%s: %d bytes, %v", name, len(got)+len(rest), err)
		}
		if test.err != nil && (!errors.Is(err, test.err) || !errors.Is(err, ErrNotRestarted)) {
			t.Errorf("%s: %v", name, err)
		}
		if file.opened.Load() != test.opened {
			t.Errorf("%s: opened %d times", name, file.opened.Load())
		}
		z.Close()
		if file.open.Load() != 0 || d.Memory() != 0 {
			t.Errorf("%s: %d files are open, %d bytes are left", name, file.open.Load(), d.Memory())
		}
	}
}
