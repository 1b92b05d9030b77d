package nars

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage"
)

// failing is a source that fails some times, and then has one file.
type failing struct {
	failures int
	content  []byte
}

func (s *failing) OpenFile(context.Context, *storage.Item, int, int64, int64, []string) (io.ReadCloser, int64, error) {
	if s.failures > 0 {
		s.failures--
		return nil, 0, errors.New("connection refused")
	}
	return io.NopCloser(bytes.NewReader(s.content)), int64(len(s.content)), nil
}

func (s *failing) Resume(ctx context.Context, item *storage.Item, n int, _ io.ReaderAt, _ int64, via []string) (io.ReadCloser, int64, error) {
	return s.OpenFile(ctx, item, n, 0, -1, via)
}

func (*failing) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "", [16]byte{}, storage.ErrNotStored
}

// TestRetryAfterSource: an item that failed because the source was down is fetched soon
// after the source is up again, and not a minute later.
func TestRetryAfterSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		item := spec{n: 1, size: 1000}.make(t)
		m := newMirror(t, item)
		f, err := New(m.Storage, &failing{2, item.files[item.names[0]]}, Options{All: true, Limit: -1, Decode: decode})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		start := time.Now()
		run(t, f)
		m.wantStored(item)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
