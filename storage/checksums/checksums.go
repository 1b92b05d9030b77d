// Package checksums computes the checksums of files once, and keeps them in the index, so
// that a file has the same entity tag wherever the same bytes are served.
package checksums

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const (
	// mostWanted bounds the files that wait to be read. One more is wanted again at its
	// next use.
	mostWanted = 1000
	// flushInterval and flushAtOnce bound how long checksums wait to be written, and
	// how many are written in one transaction.
	flushInterval = time.Second
	flushAtOnce   = 500
	// retryAfter is how long a file that can't be read is left alone.
	retryAfter = 10 * time.Minute
)

// Opener opens all of a file. The reader is the caller's to close.
type Opener func(context.Context) (io.ReadCloser, bytestore.Info, error)

// Keeper computes checksums in the background and keeps them in an index. Its methods may
// be called from several goroutines at once.
type Keeper struct {
	index *index.Index
	log   *slog.Logger

	queue chan job
	mu    sync.Mutex
	// pending are the files that wait to be read or written down, with the zero time,
	// and those that could not be read, with the time of that.
	pending map[key]time.Time
}

type key struct {
	hash narinfo.PathHash
	file string
}

type job struct {
	key
	open Opener
}

// New makes a keeper. log is for operators.
func New(x *index.Index, log *slog.Logger) *Keeper {
	return &Keeper{index: x, log: log, queue: make(chan job, mostWanted), pending: make(map[key]time.Time)}
}

// Checksums returns the checksums of an item's files that are known.
func (k *Keeper) Checksums(ctx context.Context, hash narinfo.PathHash) ([]index.Checksum, error) {
	return k.index.Checksums(ctx, hash)
}

// Want asks for the checksum of a file of an item, which open opens. It returns at once.
func (k *Keeper) Want(hash narinfo.PathHash, file string, open Opener) {
	wanted := job{key{hash, file}, open}
	k.mu.Lock()
	defer k.mu.Unlock()
	if failed, ok := k.pending[wanted.key]; ok && (failed.IsZero() || time.Since(failed) < retryAfter) {
		return
	}
	select {
	case k.queue <- wanted:
		k.pending[wanted.key] = time.Time{}
	default:
	}
}

// Run computes checksums, one file at a time, until the context ends. It calls changed for
// each item that has a new one.
func (k *Keeper) Run(ctx context.Context, changed func(narinfo.PathHash)) {
	var computed []index.Checksum
	flush := time.NewTimer(0)
	<-flush.C
	defer flush.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case wanted := <-k.queue:
			sum, err := compute(ctx, wanted)
			if err != nil {
				k.failed(wanted.key)
				if ctx.Err() == nil && !errors.Is(err, storage.ErrNotStored) {
					k.log.Warn("can't compute the checksum of a file: its entity tag is by its time; this is tried again after 10 min",
						"item", wanted.hash.String(), "file", wanted.file, "error", err)
				}
				continue
			}
			if computed = append(computed, sum); len(computed) == 1 {
				flush.Reset(flushInterval)
			}
			if len(computed) < flushAtOnce {
				continue
			}
		case <-flush.C:
		}
		flush.Stop()
		k.write(ctx, computed, changed)
		computed = computed[:0]
	}
}

// compute reads the file.
func compute(ctx context.Context, wanted job) (index.Checksum, error) {
	reader, info, err := wanted.open(ctx)
	if err != nil {
		return index.Checksum{}, err
	}
	defer reader.Close()
	sum := sha256.New()
	size := int64(0)
	for {
		n, err := io.CopyN(sum, reader, 1<<20)
		size += n
		if err == io.EOF {
			break
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return index.Checksum{}, err
		}
	}
	if size != info.Size {
		return index.Checksum{}, fmt.Errorf("it has %d bytes, and had %d when it was opened", size, info.Size)
	}
	return index.Checksum{
		Hash: wanted.hash, File: wanted.file, Size: size, Changed: info.Changed,
		Sum: [16]byte(sum.Sum(nil)[:16]),
	}, nil
}

func (k *Keeper) write(ctx context.Context, computed []index.Checksum, changed func(narinfo.PathHash)) {
	err := k.index.Update(ctx, func(tx *index.Tx) error {
		for _, sum := range computed {
			if err := tx.PutChecksum(sum); err != nil && !errors.Is(err, index.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		k.log.Warn("can't write down the checksums of files; they are computed again", "files", len(computed), "error", err)
	}
	for _, sum := range computed {
		k.done(key{sum.Hash, sum.File})
		if err == nil {
			changed(sum.Hash)
		}
	}
}

// failed notes that a file could not be read. What failed long ago is forgotten.
func (k *Keeper) failed(of key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(k.pending, func(_ key, failed time.Time) bool { return !failed.IsZero() && now.Sub(failed) >= retryAfter })
	k.pending[of] = now
}

func (k *Keeper) done(of key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pending, of)
}
