// Package cached keeps popular nars in further compressions, and removes them when no client
// can have a narinfo that names them.
//
// A cached nar is a row in the index and a file in the directory of its type. The file is
// written before the row, and the row is deleted before the file; the next start cleans up
// after a crash.
package cached

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/internal/disk"
	"nar-herder/internal/logonce"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

// Type is a compression of cached nars.
type Type struct {
	compression.Spec
	// Directory has the files of the type. It is created if missing.
	Directory string
	// MaxSize bounds the disk space of the directory, in bytes, including files that are being
	// written; negative for no bound.
	MaxSize int64
	// Unused is the time without a request after which a file is withdrawn; nil for never.
	Unused *time.Duration
	// TTLs are for narinfos that name such a file; the zero value selects Options.TTLs.
	narinfo.TTLs
}

// Options of [New].
type Options struct {
	Types []Type
	// TTLs are for all narinfos.
	narinfo.TTLs
	// StorageDirectory is the directory of the storage, which types can't share; empty
	// if the storage isn't a directory.
	StorageDirectory string
	// MinUses is the number of requests that makes a nar popular.
	MinUses int
	// Workers is the number of files that are made at a time.
	Workers int
	Uses    *uses.Counter
	// Source opens the nars to compress; nil for the storage.
	Source Source
	// Remote opens nars that are not in the storage; nil for none.
	Remote Remote
	// Decoders is the memory for decoders; nil for no limit.
	Decoders *compression.Budget
	Log      *slog.Logger // nil discards it
}

// Cache makes, serves and removes cached nars. It is safe for concurrent use, and a
// [prometheus.Collector].
type Cache struct {
	index   *index.Index
	options Options
	ttls    narinfo.TTLPolicy
	log     *slog.Logger
	// unmade and unremoved remember logged failures.
	unmade, unremoved logonce.Filter

	kinds   map[string]*kind
	queue   *queue
	changed func(narinfo.PathHash) // set by Run

	collectors []prometheus.Collector

	// finishing is read-locked by a job while it publishes its file, and locked by Run before
	// it returns.
	finishing sync.RWMutex
}

// kind is a type with the state of its directory.
type kind struct {
	Type
	bytes *directory.Directory
	space space
	// changing is held while a file and its row are published or removed, so that
	// a scan sees both or neither.
	changing sync.Mutex
	// scanned is closed after the first scan.
	scanned chan struct{}
	metrics kindMetrics

	hiddenMu sync.Mutex
	hidden   map[narinfo.PathHash]struct{} // about to be withdrawn
	// lost are items with a missing file that a request has found. Narinfos no longer name
	// the file, and Run removes its row.
	lost map[narinfo.PathHash]narinfo.StorePath
}

// New makes a cache and opens its directories.
func New(s *storage.Storage, options Options) (_ *Cache, err error) {
	c := &Cache{
		index: s.Index(), options: options, ttls: options.policy(), log: options.Log,
		kinds: make(map[string]*kind), queue: newQueue(),
		changed: func(narinfo.PathHash) {},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.options.Source == nil {
		c.options.Source = storageSource{s, options.Remote}
	}
	options.Uses.OnPopular(options.MinUses, c.enqueue)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, t := range options.Types {
		if c.kinds[t.Name] != nil {
			return nil, fmt.Errorf("cached compression %s is enabled twice", t.Name)
		}
		if err := disk.MkdirAll(t.Directory, 0o775); err != nil {
			return nil, fmt.Errorf("directory for cached %s nars: %w: create it, or name another with --cached-compression-directory=%s=DIR", t.Name, err, t.Name)
		}
		others := []string{options.StorageDirectory}
		for _, other := range c.kinds {
			others = append(others, other.Directory)
		}
		for i, other := range others {
			if other == "" {
				continue
			}
			switch overlapping, err := disk.Overlap(other, t.Directory); {
			case err != nil:
				return nil, fmt.Errorf("directory for cached %s nars: check whether %s and %s overlap: %w", t.Name, t.Directory, other, err)
			case overlapping && i == 0:
				return nil, fmt.Errorf("directory for cached %s nars: %s overlaps the storage %s, and files of the storage would be deleted: name another with --cached-compression-directory=%s=DIR",
					t.Name, t.Directory, other, t.Name)
			case overlapping:
				return nil, fmt.Errorf("cached nars of two types can't share the directory %s: name another with --cached-compression-directory=%s=DIR", t.Directory, t.Name)
			}
		}
		bytes, err := directory.Open(t.Directory)
		if err != nil {
			return nil, fmt.Errorf("directory for cached %s nars: %w", t.Name, err)
		}
		c.kinds[t.Name] = &kind{
			Type: t, bytes: bytes, scanned: make(chan struct{}),
			space: space{max: t.MaxSize}, hidden: make(map[narinfo.PathHash]struct{}), lost: make(map[narinfo.PathHash]narinfo.StorePath),
		}
		if err := c.judgeProbe(t, bytes.Probe(context.Background())); err != nil {
			return nil, err
		}
	}
	c.makeMetrics()
	return c, nil
}

// judgeProbe returns an error if the directory isn't writable. A full disk is only logged, as
// there may be room later.
func (c *Cache) judgeProbe(t Type, err error) error {
	if disk.IsFull(err) {
		c.log.Warn("can't make cached nars while the disk of their directory is full; retrying", "type", t.Name, "directory", t.Directory, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory for cached %s nars: %w: let the user of this process write it, or name another with --cached-compression-directory=%s=DIR", t.Name, err, t.Name)
	}
	return nil
}

// Close closes the directories. Run must have returned.
func (c *Cache) Close() error {
	var err error
	for _, k := range c.kinds {
		err = errors.Join(err, k.bytes.Close())
	}
	return err
}

// Text returns the narinfo with a block for each file that is ready, the types of these files,
// and the time of [index.Index.TextUntil]. The error is [storage.ErrNotFound] for an unknown item.
func (c *Cache) Text(ctx context.Context, hash narinfo.PathHash) (text []byte, types []string, freshUntil time.Time, err error) {
	text, files, freshUntil, err := c.index.TextAndCached(ctx, hash)
	if err != nil || len(files) == 0 {
		return text, nil, freshUntil, err
	}
	n, err := narinfo.Parse(text)
	if err != nil {
		return nil, nil, time.Time{}, fmt.Errorf("the narinfo of %s in the database: %w", hash, err)
	}
	var blocks []narinfo.File
	for _, file := range files {
		k := c.kinds[file.Type]
		if k == nil || names(n, file.Type) || !n.CanAppend() || len(n.Files)+len(blocks) == narinfo.MaxFiles || k.isHidden(hash) {
			continue // no longer configured, or not needed
		}
		if !n.Sized() {
			file.Size = -1
		}
		blocks = append(blocks, narinfo.File{URL: urlOf(file.Type, n.StorePath), Compression: file.Type, Size: file.Size})
		types = append(types, file.Type)
	}
	return narinfo.AppendFiles(make([]byte, 0, len(text)+150*len(blocks)), text, blocks), types, freshUntil, nil
}

// names reports whether the narinfo itself names a nar of that compression.
func names(n *narinfo.Narinfo, compression string) bool {
	for _, file := range n.Files {
		if file.Compression == compression {
			return true
		}
	}
	return false
}

func urlOf(kind string, path narinfo.StorePath) string { return "nar/" + kind + "/" + path.BaseName() }

// Files returns all files of an item, including withdrawn ones.
func (c *Cache) Files(ctx context.Context, hash narinfo.PathHash) ([]index.CachedFile, error) {
	return c.index.CachedFiles(ctx, hash)
}

// Open opens the item's file, and checks its size. If the file is certainly missing or
// incomplete, the error is [storage.ErrNotStored], narinfos no longer name the file, and Run
// removes its row.
func (c *Cache) Open(ctx context.Context, item *storage.Item, file index.CachedFile, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	k := c.kinds[file.Type]
	if k == nil {
		return nil, bytestore.Info{}, storage.ErrNotStored
	}
	reader, info, err := k.bytes.Open(ctx, item.Narinfo.StorePath.BaseName(), offset, length)
	if err == nil && info.Size == file.Size {
		return reader, info, nil
	}
	if err == nil {
		reader.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, bytestore.Info{}, err
	}
	if k.lose(item.Narinfo.StorePath) {
		c.log.Warn("a cached nar is missing or incomplete: it will be made again on request", "type", k.Name, "item", item.Narinfo.StorePath.String())
	}
	return nil, bytestore.Info{}, storage.ErrNotStored
}

// file returns the row of an item's file of the type, and whether there is one.
func (c *Cache) file(ctx context.Context, k *kind, hash narinfo.PathHash) (index.CachedFile, bool, error) {
	files, err := c.index.CachedFiles(ctx, hash)
	for _, file := range files {
		if file.Type == k.Name {
			return file, true, err
		}
	}
	return index.CachedFile{}, false, err
}

// path returns the store path of an item, or [storage.ErrNotFound].
func (c *Cache) path(ctx context.Context, hash narinfo.PathHash) (narinfo.StorePath, error) {
	row, err := c.index.Item(ctx, hash)
	if err != nil {
		return narinfo.StorePath{}, err
	}
	n, err := narinfo.Parse(row.Text)
	if err != nil {
		return narinfo.StorePath{}, fmt.Errorf("the narinfo of %s in the database: %w", hash, err)
	}
	return n.StorePath, nil
}

// reconcile removes a file and its row if one of them is missing, or they don't match. If that
// is unknown, it removes nothing and returns an error. usage is that of a file that stays.
func (c *Cache) reconcile(ctx context.Context, k *kind, path narinfo.StorePath) (usage int64, removed bool, err error) {
	k.changing.Lock()
	defer k.changing.Unlock()
	info, err := k.bytes.Stat(ctx, path.BaseName())
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return 0, false, err
	}
	file, recorded, err := c.file(ctx, k, path.Hash)
	if err != nil {
		return 0, false, err
	}
	switch {
	case gone && !recorded:
		return 0, false, nil
	case !gone && recorded && info.Size == file.Size:
		return info.Usage, false, nil
	}
	err = c.remove(ctx, k, path)
	return 0, err == nil, err
}

// remove deletes a file, its row first. k.changing is held.
func (c *Cache) remove(ctx context.Context, k *kind, path narinfo.StorePath) error {
	err := c.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.RemoveCached(path.Hash, k.Name) })
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	c.changed(path.Hash)
	return k.removeFile(ctx, path.BaseName())
}

// removeFile deletes a file without a row.
func (k *kind) removeFile(ctx context.Context, name string) error {
	info, err := k.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := errors.Join(k.bytes.Remove(ctx, name), k.bytes.Sync(ctx)); err != nil {
		return err
	}
	k.space.free(info.Usage)
	return nil
}

func (k *kind) isHidden(hash narinfo.PathHash) bool {
	k.hiddenMu.Lock()
	defer k.hiddenMu.Unlock()
	_, hidden := k.hidden[hash]
	_, lost := k.lost[hash]
	return hidden || lost
}

func (k *kind) hide(files []index.CachedFile) {
	k.hiddenMu.Lock()
	defer k.hiddenMu.Unlock()
	for _, file := range files {
		k.hidden[file.Hash] = struct{}{}
	}
}

func (k *kind) unhide(files []index.CachedFile) {
	k.hiddenMu.Lock()
	defer k.hiddenMu.Unlock()
	for _, file := range files {
		delete(k.hidden, file.Hash)
	}
}

const (
	// tick is how often due files are withdrawn and deleted.
	tick = time.Second
	// scanInterval is how often a directory is compared with the index, as other
	// processes may have removed items.
	scanInterval = time.Hour
	// scanRetry is how long to wait after a failed scan.
	scanRetry = time.Minute
	// stopWait is how long Run waits for jobs to stop. The next start removes the files of
	// others.
	stopWait = 500 * time.Millisecond
)

// Run makes and removes files until the context ends, and waits for jobs for a moment then. It
// calls changed when an item's narinfo has changed.
func (c *Cache) Run(ctx context.Context, changed func(narinfo.PathHash)) {
	c.changed = changed
	var background sync.WaitGroup
	for _, k := range c.kinds {
		background.Go(func() { c.scanAll(ctx, k) })
	}
	var workers sync.WaitGroup
	for range c.options.Workers {
		workers.Go(func() { c.work(ctx) })
	}
	background.Go(func() {
		for _, k := range c.kinds {
			c.enqueuePopular(ctx, k)
		}
	})
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			failed := false
			for _, k := range c.kinds {
				if err := c.forgetLost(ctx, k); err != nil && ctx.Err() == nil {
					failed = true
					c.unremoved.Log(c.log, slog.LevelWarn, time.Now(), "can't remove the rows of missing cached nars: will retry", "type", k.Name, "error", err)
				}
				if err := c.retire(ctx, k, time.Now()); err != nil && ctx.Err() == nil {
					failed = true
					c.unremoved.Log(c.log, slog.LevelWarn, time.Now(), "can't remove due cached nars: will retry", "type", k.Name, "error", err)
				}
			}
			if !failed && ctx.Err() == nil {
				c.unremoved.Over(c.log, "cached nars can be removed again")
			}
		}
	}
	background.Wait()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		workers.Wait()
	}()
	select {
	case <-stopped:
	case <-time.After(stopWait):
		// The others are in an encoder. Until they check the context, they only write to
		// their temporary file.
	}
	c.finishing.Lock() // forever: no job may publish its file
}
