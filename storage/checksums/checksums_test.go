package checksums

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const patience = 30 * time.Second

// keeper is a running Keeper.
type keeper struct {
	*Keeper
	hash    narinfo.PathHash // of an item in the index
	log     *testlog.Buffer
	changed chan narinfo.PathHash
}

func start(t *testing.T) *keeper {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := narinfo.Parse([]byte("StorePath: /gnu/store/00000000000000000000000000000001-item\n" +
		"NarHash: sha256:0000000000000000000000000000000000000000000000000000\nNarSize: 1\nReferences: \nURL: nar/00000000000000000000000000000001-item\nCompression: none\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(x.Prepare(n), nil) }); err != nil {
		t.Fatal(err)
	}
	k := &keeper{hash: n.StorePath.Hash, log: new(testlog.Buffer), changed: make(chan narinfo.PathHash, 10)}
	k.Keeper = New(x, slog.New(slog.NewTextHandler(k.log, nil)))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Run(ctx, func(hash narinfo.PathHash) { k.changed <- hash })
	}()
	t.Cleanup(func() {
		stop()
		<-done
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// wait waits for the item to change, and returns its checksums.
func (k *keeper) wait(t *testing.T) []index.Checksum {
	t.Helper()
	select {
	case hash := <-k.changed:
		sums, err := k.Checksums(t.Context(), hash)
		if err != nil {
			t.Fatal(err)
		}
		return sums
	case <-time.After(patience):
		t.Fatalf("no checksum; the log:\n%s", k.log)
		panic("")
	}
}

// file returns an opener of a file with the content.
func file(content string, size int64, opened *atomic.Int32) Opener {
	return func(context.Context) (io.ReadCloser, bytestore.Info, error) {
		opened.Add(1)
		return io.NopCloser(strings.NewReader(content)), bytestore.Info{Size: size, Changed: time.Unix(5, 7)}, nil
	}
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	k := start(t)
	var opened atomic.Int32
	for range 20 {
		k.Want(k.hash, "nar/a", file("content", 7, &opened))
	}
	sum := sha256.Sum256([]byte("content"))
	want := index.Checksum{Hash: k.hash, File: "nar/a", Size: 7, Changed: time.Unix(5, 7), Sum: [16]byte(sum[:16])}
	if sums := k.wait(t); len(sums) != 1 || sums[0] != want || opened.Load() != 1 {
		t.Errorf("checksums %+v, the file was read %d times", sums, opened.Load())
	}
	// Another file, and a replacement of the first one.
	k.Want(k.hash, "nar/b", file("other", 5, &opened))
	for sums := k.wait(t); len(sums) != 2; sums = k.wait(t) {
	}
	k.Want(k.hash, "nar/a", file("replaced", 8, &opened))
	for _, sum := range k.wait(t) {
		if sum.File == "nar/a" && sum.Size != 8 {
			t.Errorf("still %+v", sum)
		}
	}
	if opened.Load() != 3 {
		t.Errorf("files were read %d times", opened.Load())
	}
}

// TestChecksumFails: a file that can't be read has no checksum, is logged once unless it is
// missing, and is retried later.
func TestChecksumFails(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]Opener{
		"gone": func(context.Context) (io.ReadCloser, bytestore.Info, error) {
			return nil, bytestore.Info{}, storage.ErrNotStored
		},
		"not opened": func(context.Context) (io.ReadCloser, bytestore.Info, error) {
			return nil, bytestore.Info{}, errors.New("a bad sector")
		},
		"cut": func(context.Context) (io.ReadCloser, bytestore.Info, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("con"), failing{})), bytestore.Info{Size: 7}, nil
		},
		"short": file("con", 7, new(atomic.Int32)),
		"long":  file("content and more", 7, new(atomic.Int32)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := start(t)
			var tries atomic.Int32
			for n := range 3 {
				k.Want(k.hash, "nar/a", func(ctx context.Context) (io.ReadCloser, bytestore.Info, error) {
					tries.Add(1)
					return open(ctx)
				})
				// Files are read in order.
				k.Want(k.hash, "nar/"+strconv.Itoa(n), file("content", 7, new(atomic.Int32)))
				for sums := k.wait(t); len(sums) != n+1; sums = k.wait(t) {
				}
			}
			if tries.Load() != 1 {
				t.Errorf("%d tries", tries.Load())
			}
			if got := strings.Count(k.log.String(), "file=nar/a"); got != 1 && name != "gone" || got != 0 && name == "gone" {
				t.Errorf("the log:\n%s", k.log)
			}
			// As if it had failed long ago.
			k.mu.Lock()
			k.pending[key{k.hash, "nar/a"}] = time.Now().Add(-retryAfter)
			k.mu.Unlock()
			k.Want(k.hash, "nar/a", file("content", 7, new(atomic.Int32)))
			for sums := k.wait(t); len(sums) != 4; sums = k.wait(t) {
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("a bad sector") }

// TestChecksumOfRemoved: a removed item is not an error, and doesn't affect the checksums
// of others.
func TestChecksumOfRemoved(t *testing.T) {
	t.Parallel()
	k := start(t)
	gone := k.hash
	gone[0] ^= 1
	k.Want(gone, "nar/a", file("content", 7, new(atomic.Int32)))
	k.Want(k.hash, "nar/a", file("content", 7, new(atomic.Int32)))
	for sums := k.wait(t); len(sums) != 1; sums = k.wait(t) {
	}
	if log := k.log.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// TestManyWanted: files that don't fit into the queue are dropped, and queued again later.
func TestManyWanted(t *testing.T) {
	t.Parallel()
	k := New(nil, slog.New(slog.DiscardHandler))
	for n := range maxQueued + 10 {
		k.Want(narinfo.PathHash{}, strconv.Itoa(n), nil)
	}
	if len(k.queue) != maxQueued || len(k.pending) != maxQueued {
		t.Errorf("%d files wait, %d are pending", len(k.queue), len(k.pending))
	}
}
