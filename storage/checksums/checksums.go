// Package checksums computes the checksums of files once and keeps them in the index, so
// that every instance serves the same file with the same entity tag.
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

	"nar-herder/internal/logonce"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const (
	// maxQueued limits the queue of files. A file that doesn't fit is queued at its next
	// use.
	maxQueued = 1000
	// flushInterval is how long computed checksums wait, and flushBatch how many are
	// written in one transaction.
	flushInterval = time.Second
	flushBatch    = 500
	// retryAfter is how long to wait before reading a file again that couldn't be read.
	retryAfter = 10 * time.Minute
)

// Opener opens a whole file. The caller closes the reader.
type Opener func(context.Context) (io.ReadCloser, bytestore.Info, error)

// Keeper computes checksums in the background and keeps them in an index. Its methods are
// safe for concurrent use.
type Keeper struct {
	index *index.Index
	log   *slog.Logger

	// unread and unwritten remember logged failures.
	unread, unwritten logonce.Filter

	queue chan job
	mu    sync.Mutex
	// pending has the files that are queued or being processed, with the zero time, and the
	// files that could not be read, with the time of the failure.
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

// New returns a keeper for the files of an index.
func New(x *index.Index, log *slog.Logger) *Keeper {
	return &Keeper{index: x, log: log, queue: make(chan job, maxQueued), pending: make(map[key]time.Time)}
}

// Checksums returns the known checksums of an item's files.
func (k *Keeper) Checksums(ctx context.Context, hash narinfo.PathHash) ([]index.Checksum, error) {
	return k.index.Checksums(ctx, hash)
}

// Want queues a file of an item for its checksum, and returns at once.
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
// each item that gets a new one.
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
					k.unread.Log(k.log, slog.LevelWarn, time.Now(), "can't compute the checksum of a file, so its entity tag depends on its time: will retry after 10 min",
						"item", wanted.hash.String(), "file", wanted.file, "error", err)
				}
				continue
			}
			if computed = append(computed, sum); len(computed) == 1 {
				flush.Reset(flushInterval)
			}
			if len(computed) < flushBatch {
				continue
			}
		case <-flush.C:
		}
		flush.Stop()
		k.write(ctx, computed, changed)
		computed = computed[:0]
	}
}

// compute reads the file and returns its checksum.
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
		return index.Checksum{}, fmt.Errorf("read %d bytes, but the size was %d when it was opened", size, info.Size)
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
	if err == nil {
		k.unwritten.Over(k.log, "checksums of files are written again")
	} else if ctx.Err() == nil {
		k.unwritten.Log(k.log, slog.LevelWarn, time.Now(), "can't write the checksums of files: will compute them again", "files", len(computed), "error", err)
	}
	for _, sum := range computed {
		k.done(key{sum.Hash, sum.File})
		if err == nil {
			changed(sum.Hash)
		}
	}
}

// failed records that a file could not be read, and drops old failures.
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
