package content

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/headers"
	"nar-herder/storage/bytestore"
)

// localFile is a [bytestore.LocalFile] that counts open files.
type localFile struct {
	*os.File
	offset int64
	open   *atomic.Int32
}

func (f *localFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	return n, err
}

func (f *localFile) Local() (*os.File, int64) { return f.File, f.offset }

func (f *localFile) Close() error {
	f.open.Add(-1)
	return f.File.Close()
}

// unfinished is a file that is still being written.
type unfinished struct{ *localFile }

func (unfinished) Next() (int64, error) { return 0, errors.ErrUnsupported }
func (unfinished) Skip(int64)           {}

// opening is a file on disk that a test opens through a Kept.
type opening struct {
	name   string
	sender Sender
	kept   Kept
	opened int
	open   atomic.Int32
}

const openingContent = "0123456789"

func newOpening(t *testing.T) *opening {
	o := &opening{name: filepath.Join(t.TempDir(), "nar")}
	o.sender.mostKept = mostOpen
	if err := os.WriteFile(o.name, []byte(openingContent), 0o644); err != nil {
		t.Fatal(err)
	}
	return o
}

// reader opens a range of the file, as Send does.
func (o *opening) reader(t *testing.T, r headers.Range, wrap func(*localFile) io.ReadCloser) io.ReadCloser {
	t.Helper()
	reader, v, err := o.sender.openPart(new(fasthttp.RequestCtx), &File{Kept: &o.kept, Length: wholeFile.Length, Source: &Funcs{
		OpenFunc: func(offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
			file, err := os.Open(o.name)
			if err != nil {
				return nil, bytestore.Info{}, err
			}
			o.opened++
			o.open.Add(1)
			return wrap(&localFile{file, offset, &o.open}), bytestore.Info{Size: wholeFile.Length, ModTime: time.Unix(1, 0)}, nil
		},
		TagFunc: ByContent("tag"),
	}}, r)
	if err != nil {
		t.Fatal(err)
	}
	if string(v.etag) != `"tag"` || !v.modified.Equal(time.Unix(1, 0)) {
		t.Errorf("entity tag %s", v.etag)
	}
	return reader
}

func plainFile(f *localFile) io.ReadCloser { return f }

var wholeFile = headers.Range{Start: 0, Length: int64(len(openingContent))}

// TestKeptFile: answers within keepOpen share one open file, each with its own offset. The
// file is closed after keepOpen and the last answer.
func TestKeptFile(t *testing.T) {
	t.Parallel()
	o := newOpening(t)
	synctest.Test(t, func(t *testing.T) {
		first := o.reader(t, wholeFile, plainFile)
		part := o.reader(t, headers.Range{Start: 4, Length: 2}, plainFile)
		if _, offset := part.(bytestore.LocalFile).Local(); offset != 4 {
			t.Errorf("the part starts at %d", offset)
		}
		var readers sync.WaitGroup
		for range 20 {
			reader := o.reader(t, wholeFile, plainFile)
			readers.Go(func() {
				if got, err := io.ReadAll(reader); err != nil || string(got) != openingContent {
					t.Errorf("read %q, %v", got, err)
				}
				if err := errors.Join(reader.Close(), reader.Close()); err != nil {
					t.Error(err)
				}
			})
		}
		readers.Wait()
		if o.opened != 1 {
			t.Errorf("the file was opened %d times", o.opened)
		}
		first.Close()
		time.Sleep(keepOpen)
		synctest.Wait()
		if open, kept := o.open.Load(), o.sender.kept.Load(); open != 1 || kept != 0 {
			t.Errorf("%d files are open and %d kept, want the one that is being read", open, kept)
		}
		if got, err := io.ReadAll(part); err != nil || string(got) != openingContent[4:] {
			t.Errorf("the part gives %q, %v after a moment", got, err)
		}
		part.Close()
		if open := o.open.Load(); open != 0 {
			t.Errorf("%d files are open in the end", open)
		}
		o.reader(t, wholeFile, plainFile).Close()
		if o.opened != 2 {
			t.Errorf("the file was opened %d times, want once more after keepOpen", o.opened)
		}
		time.Sleep(keepOpen)
		synctest.Wait()
		if open := o.open.Load(); open != 0 {
			t.Errorf("%d files are open in the end", open)
		}
	})
}

// TestNotKept uses files that answers must not share.
func TestNotKept(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*opening)
		part   headers.Range
		wrap   func(*localFile) io.ReadCloser
	}{
		"a part":              {func(*opening) {}, headers.Range{Start: 0, Length: 5}, plainFile},
		"still being written": {func(*opening) {}, wholeFile, func(f *localFile) io.ReadCloser { return unfinished{f} }},
		"no file": {func(*opening) {}, wholeFile, func(f *localFile) io.ReadCloser {
			return struct {
				io.Reader
				io.Closer
			}{f, f}
		}},
		"many are kept": {func(o *opening) { o.sender.kept.Store(mostOpen) }, wholeFile, plainFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOpening(t)
			test.change(o)
			before := o.sender.kept.Load()
			for n := range 3 {
				reader := o.reader(t, test.part, test.wrap)
				if got, err := io.ReadAll(reader); err != nil || !strings.HasPrefix(openingContent, string(got)) {
					t.Errorf("read %q, %v", got, err)
				}
				reader.Close()
				if open := o.open.Load(); o.opened != n+1 || open != 0 || o.sender.kept.Load() != before {
					t.Errorf("opened %d times, %d are open", o.opened, open)
				}
			}
		})
	}
}
