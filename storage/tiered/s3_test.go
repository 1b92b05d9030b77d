package tiered

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"nar-herder/internal/s3server"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/s3"
	"nar-herder/storage/storagetest"
)

// TestBucket runs the suite with a bucket behind the cache. Copies are served after the server
// has stopped.
func TestBucket(t *testing.T) {
	t.Parallel()
	server := s3server.New(t)
	var places atomic.Int64
	bucket := func(t *testing.T) *s3.Bucket {
		t.Helper()
		b, err := s3.Open(t.Context(), server.URL(fmt.Sprintf("tiered/%d", places.Add(1))), s3.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	t.Run("Conformance", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) bytestore.Store {
			return open(t, bucket(t), Options{Directory: t.TempDir(), MaxSize: 4 << 20})
		})
	})
	clock := newClock()
	cache := open(t, bucket(t), Options{Directory: t.TempDir(), MaxSize: 1 << 30, Now: clock.now})
	cache.checkTimeout = 1 // of a nanosecond: the server won't answer
	content := random(3<<20, 1)
	staged, err := cache.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
	if err == nil {
		err = staged.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	there, err := cache.Stat(t.Context(), name)
	if err != nil || there.Tag == "" || there.Sum == [16]byte{} {
		t.Fatalf("%+v, %v", there, err)
	}
	cached(t, cache, name, content)
	server.Stop()
	clock.pass(fresh)
	want(t, cache, name, content)
	if _, info, err := read(t.Context(), cache, name, 0, 10); err != nil || info.Name != there.Name || !sameContent(info, there) || info.Usage != there.Usage {
		t.Errorf("%+v, want %+v, %v", info, there, err)
	}
}
