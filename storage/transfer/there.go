package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"nar-herder/storage/bytestore"
	"slices"
	"sync/atomic"
)

const (
	// askFirst is how many files are looked up one by one in a remote target before
	// it is listed. A listing returns a thousand per call, but of all files, and a
	// small storage may be copied into one with millions.
	askFirst = 2000
	// mostListed is how many files of the target are kept in memory, at 24 bytes each
	// and some room to grow. Further ones are looked up one by one.
	mostListed = 10 << 20
	// listedEvery is how many files lie between two calls of Listed.
	listedEvery = 1000
)

// there knows the files of the target. It looks up files of a directory one by one. It
// lists a remote store if there are many files: for millions, a call each would take days.
type there struct {
	store    bytestore.Store
	remote   bool
	listed   func(files int64)
	expected int // calls of expect
	first    int
	most     int
	names    atomic.Pointer[listing] // nil before the listing
}

func newThere(store bytestore.Store, listed func(int64)) *there {
	return &there{store: store, remote: store.IsRemote(), listed: listed, first: askFirst, most: mostListed}
}

// expect is called before each file, by one goroutine. It lists a remote store when the
// limit is exceeded.
func (t *there) expect(ctx context.Context) error {
	if t.expected++; !t.remote || t.expected != t.first+1 {
		return nil
	}
	names := &listing{complete: true}
	count := 0
	for info, err := range t.store.List(ctx) {
		switch {
		case err != nil && info.Name == "":
			return fmt.Errorf("list the target: %w", err)
		case err != nil || count >= t.most:
			names.complete = false
			continue
		case info.Temporary:
			continue
		}
		names.add(info.Name, info.Size)
		if count++; t.listed != nil && count%listedEvery == 0 {
			t.listed(int64(count))
		}
	}
	names.sort()
	t.names.Store(names)
	return nil
}

// size returns the length in bytes of a file in the target, -1 if it is absent.
func (t *there) size(ctx context.Context, name string) (int64, error) {
	if names := t.names.Load(); names != nil {
		if size, found := names.size(name); found || names.complete {
			return size, nil
		}
	}
	info, err := t.store.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	} else if err != nil {
		return -1, err
	}
	return info.Size, nil
}

// listing is the sizes of many files by a hash of their names: the names would take four
// times the memory.
type listing struct {
	// Many slices, as a slice is copied as a whole when it grows.
	shards   [4096][]listed
	complete bool // it has all files
}

type listed struct {
	sum  [16]byte
	size int64
}

func sumOf(name string) (sum [16]byte, shard int) {
	whole := sha256.Sum256([]byte(name))
	return [16]byte(whole[:16]), int(binary.BigEndian.Uint16(whole[16:])) % len(listing{}.shards)
}

func (l *listing) add(name string, size int64) {
	sum, shard := sumOf(name)
	l.shards[shard] = append(l.shards[shard], listed{sum, size})
}

func compare(a listed, sum [16]byte) int { return bytes.Compare(a.sum[:], sum[:]) }

func (l *listing) sort() {
	for _, shard := range l.shards {
		slices.SortFunc(shard, func(a, b listed) int { return compare(a, b.sum) })
	}
}

// size returns -1 and false for a name that is not in the listing.
func (l *listing) size(name string) (int64, bool) {
	sum, shard := sumOf(name)
	at, found := slices.BinarySearchFunc(l.shards[shard], sum, compare)
	if !found {
		return -1, false
	}
	return l.shards[shard][at].size, true
}
