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
	// askFirst is how many files are looked for one by one in a remote target.
	// A listing of it brings a thousand with each call, but all of them, and a
	// small storage may be copied into one with millions.
	askFirst = 2000
	// mostListed is how many files of the target are remembered, at 24 bytes
	// each and some room to grow. Those beyond are asked for one by one.
	mostListed = 10 << 20
	// listedEvery is how often a listing says how far it is.
	listedEvery = 1000
)

// there knows what the target has. A directory answers at once, and a remote
// store is listed once when there is much to ask: a call each would take days
// for millions.
type there struct {
	store  bytestore.Store
	remote bool
	told   func(files int64)
	asked  int // by the one goroutine that expects
	first  int
	most   int
	names  atomic.Pointer[listing] // nil before it was listed
}

func newThere(store bytestore.Store, told func(int64)) *there {
	return &there{store: store, remote: store.IsRemote(), told: told, first: askFirst, most: mostListed}
}

// expect is called before each file that will be asked for, by one goroutine.
func (t *there) expect(ctx context.Context) error {
	if t.asked++; !t.remote || t.asked != t.first+1 {
		return nil
	}
	names := &listing{complete: true}
	count := 0
	for info, err := range t.store.List(ctx) {
		switch {
		case err != nil && info.Name == "":
			return fmt.Errorf("find out what the target has: %w", err)
		case err != nil || count >= t.most:
			names.complete = false
			continue
		case info.Temporary:
			continue
		}
		names.add(info.Name, info.Size)
		if count++; t.told != nil && count%listedEvery == 0 {
			t.told(int64(count))
		}
	}
	names.sort()
	t.names.Store(names)
	return nil
}

// size is the length in bytes of a file in the target, -1 when it certainly
// isn't there.
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

// listing is the sizes of many files, by a hash of their names: names themselves
// take four times the room.
type listing struct {
	// Many slices, as one grows by being copied as a whole.
	shards   [4096][]listed
	complete bool // what is not in it is not there
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

// size is -1 for a name that is not in it.
func (l *listing) size(name string) (int64, bool) {
	sum, shard := sumOf(name)
	at, found := slices.BinarySearchFunc(l.shards[shard], sum, compare)
	if !found {
		return -1, false
	}
	return l.shards[shard][at].size, true
}
