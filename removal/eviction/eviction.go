// Package eviction makes room in the storage of a cache: it removes the least recently used nars
// of items that came from an upstream, where they can be fetched again.
//
// The rows and narinfos of the items stay. [Evictor.Run] removes them, too, when no client has
// requested them for long.
package eviction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// ErrNone says that no more nars may be evicted for now.
var ErrNone = errors.New("no other nars of upstreams can be evicted for now")

// Options of [New].
type Options struct {
	// IsUpstream reports whether nars can be fetched from the upstream with a recorded URL. Items
	// of others, which are not configured any more, stay.
	IsUpstream func(url string) bool
	// Uses knows the uses that are not written to the index yet.
	Uses interface {
		// LastUse returns the last of them, or the zero time.
		LastUse(hash narinfo.PathHash) time.Time
		Pending() map[narinfo.PathHash]time.Time
	}
	// Limit is that of the storage in bytes; negative for none.
	Limit int64
	// Keep is how long items stay that no client requests; 0 for ever.
	Keep time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil for the system's.
	Now func() time.Time
}

const (
	// surplusShare is the share of the limit, one of so many, that is evicted beyond the need of
	// a client, so that not each nar evicts others, and mostSurplus bounds that: the client waits.
	surplusShare = 100
	mostSurplus  = 64 << 20
	// listed is how many of the least recently used items are looked up at a time: listing them
	// takes a second for a million items.
	listed = 10_000
	// restShare is how many times as long as a list took another is not made, if none of it could
	// be evicted.
	restShare = 20
	// perNar is what [storage.Storage.Usage] adds to the length of a nar.
	perNar = 2 << 10
	// stuckPause is how long nothing is evicted after files could not be deleted.
	stuckPause = time.Minute
	// mostTries is how often a batch is tried when the index changes meanwhile.
	mostTries = 20
)

// Evictor evicts nars. Its methods are safe for concurrent use. It is a
// [prometheus.Collector] of its own metrics.
type Evictor struct {
	storage *storage.Storage
	index   *index.Index
	options Options
	log     *slog.Logger
	now     func() time.Time
	metrics metrics
	latest  deletion.Latest
	logged  logonce.Filter
	rest    time.Duration // restShare, except in tests

	// evicting is a semaphore, and guards what follows.
	evicting chan struct{}
	// least are the least recently used items as of some time. All others were used later. An
	// item that was used since is skipped when its turn comes, so the order stays right.
	least []index.LeastUsed
	// complete says that least had all items when it was made, and fruitful that some of it were
	// evicted.
	complete, fruitful bool
	// Until restUntil, no other list is made after one that was not fruitful. Until stuckUntil,
	// nothing is evicted.
	restUntil, stuckUntil time.Time
	// pinned is nil only if least is empty.
	pinned *pins.Set
}

// New makes an evictor for a storage that this instance owns.
func New(s *storage.Storage, options Options) *Evictor {
	e := &Evictor{storage: s, index: s.Index(), options: options, log: options.Log, now: options.Now, evicting: make(chan struct{}, 1), rest: restShare}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.now == nil {
		e.now = time.Now
	}
	e.makeMetrics()
	return e
}

// MakeRoom evicts nars for a client until so many bytes are free, and some more. If that is
// impossible, it evicts none. The error is [ErrNone] if there are too few.
func (e *Evictor) MakeRoom(ctx context.Context, bytes int64) error {
	done, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	enough, err := e.hasEnough(ctx, bytes)
	if err != nil {
		return err
	}
	if !enough {
		return ErrNone
	}
	surplus := int64(mostSurplus)
	if limit := e.options.Limit; limit >= 0 {
		surplus = min(surplus, limit/surplusShare)
	}
	freed, err := e.evict(ctx, bytes+surplus)
	if freed.Usage >= bytes {
		return nil
	}
	return err
}

// Evict evicts nars until so many bytes are free, or none is left, and returns what it has freed.
func (e *Evictor) Evict(ctx context.Context, bytes int64) (storage.Freed, error) {
	done, err := e.begin(ctx)
	if err != nil {
		return storage.Freed{}, err
	}
	defer done()
	freed, err := e.evict(ctx, bytes)
	if errors.Is(err, ErrNone) {
		err = nil
	}
	return freed, err
}

// Latest returns the items that lost their nars last, the newest first.
func (e *Evictor) Latest() []deletion.Evicted { return e.latest.Items() }

// Evicted returns how many bytes of the disk were freed so far.
func (e *Evictor) Evicted() int64 { return e.metrics.bytes.Load() }

// begin waits for other evictions.
func (e *Evictor) begin(ctx context.Context) (done func(), err error) {
	select {
	case e.evicting <- struct{}{}:
		return func() { <-e.evicting }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hasEnough reports whether so many bytes can probably be evicted.
func (e *Evictor) hasEnough(ctx context.Context, bytes int64) (bool, error) {
	if e.sum() >= bytes {
		return true, nil
	}
	_, err := e.list(ctx)
	return e.sum() >= bytes || !e.complete, err
}

// sum returns about how many bytes the listed items take.
func (e *Evictor) sum() (bytes int64) {
	for _, used := range e.least {
		bytes += used.Size + perNar
	}
	return bytes
}

// evict evicts nars until so many bytes are free. The error is [ErrNone] if there are too few.
func (e *Evictor) evict(ctx context.Context, bytes int64) (freed storage.Freed, err error) {
	if e.now().Before(e.stuckUntil) {
		return freed, fmt.Errorf("%w: files could not be deleted, which is tried again from %s on", ErrNone, e.stuckUntil.UTC().Format(time.RFC3339))
	}
	for hasListed := false; ; {
		left := bytes - countedOf(freed)
		if left <= 0 {
			return freed, nil
		}
		if len(e.least) == 0 {
			if hasListed && !e.fruitful {
				return freed, ErrNone
			}
			if some, err := e.list(ctx); err != nil {
				return freed, err
			} else if !some {
				return freed, ErrNone
			}
			hasListed = true
		}
		// As many as suffice, if all of them are still the least recently used.
		n := 0
		for n < min(len(e.least), storage.BatchSize) && left > 0 {
			left -= e.least[n].Size + perNar
			n++
		}
		batch := e.least[:n]
		e.least = e.least[n:]
		gone, err := e.evictBatch(ctx, batch)
		freed.Items += gone.Items
		freed.Size += gone.Size
		freed.Usage += gone.Usage
		e.fruitful = e.fruitful || gone.Items > 0
		e.metrics.nars.Add(int64(gone.Items))
		e.metrics.bytes.Add(gone.Usage)
		if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
			// Their rows claim nothing any more, and the remover deletes them when it can.
			e.stuckUntil = e.now().Add(stuckPause)
		}
		if err != nil {
			return freed, err
		}
	}
}

// countedOf returns by how much the estimated usage of the storage has decreased, but no more than
// was freed; see [storage.Storage.Usage].
func countedOf(freed storage.Freed) int64 {
	return min(freed.Usage, freed.Size+perNar*int64(freed.Items))
}

// list lists the least recently used items, and reports whether there are any. It rests if the
// last list had none that could be evicted.
func (e *Evictor) list(ctx context.Context) (some bool, err error) {
	if !e.fruitful && time.Now().Before(e.restUntil) {
		return false, nil
	}
	begun := time.Now()
	origins, err := e.origins(ctx)
	if err != nil {
		return false, err
	}
	current := false
	if e.pinned != nil {
		if current, err = e.pinned.IsCurrent(ctx, e.index); err != nil {
			return false, err
		}
	}
	if !current {
		if err := e.readPins(ctx); err != nil {
			return false, err
		}
	}
	query := index.LeastUsedQuery{Origins: origins, Kept: e.pinned.Closure(), Uses: e.options.Uses.Pending(), Now: e.now()}
	if e.least, err = e.index.LeastRecentlyUsed(ctx, query, listed); err != nil {
		return false, err
	}
	e.complete, e.fruitful = len(e.least) < listed, false
	e.restUntil = begun.Add(e.rest * time.Since(begun))
	return len(e.least) > 0, nil
}

// readPins reads the pins. After an error, the next list reads them.
func (e *Evictor) readPins(ctx context.Context) error {
	pinned, err := pins.Read(ctx, e.index)
	if err != nil {
		e.pinned, e.least = nil, nil
		return err
	}
	e.pinned = pinned
	return nil
}

// origins returns the numbers of the upstreams where nars can be fetched again.
func (e *Evictor) origins(ctx context.Context) (origins []int64, err error) {
	all, err := e.index.Origins(ctx)
	if err != nil {
		return nil, err
	}
	for number, url := range all {
		if e.options.IsUpstream(url) {
			origins = append(origins, number)
			continue
		}
		if !e.logged.IsDue(url, e.now()) {
			continue
		}
		if some, err := e.index.HasStoredFrom(ctx, number); err != nil {
			return nil, err
		} else if some {
			e.log.Warn("nars of an upstream that --upstream doesn't name are kept, since they can't be fetched again: name it again, or remove their items", "upstream", url)
		}
	}
	return origins, nil
}

// evictBatch evicts those of the items that are still the least recently used.
func (e *Evictor) evictBatch(ctx context.Context, batch []index.LeastUsed) (freed storage.Freed, err error) {
	for tries := 1; ; tries++ {
		freed, err = e.tryBatch(ctx, batch)
		if errors.Is(err, pins.ErrChanged) {
			if err = e.readPins(ctx); err == nil {
				err = deletion.ErrOutdated
			}
		}
		if !errors.Is(err, deletion.ErrOutdated) || tries == mostTries {
			return freed, err
		}
	}
}

func (e *Evictor) tryBatch(ctx context.Context, batch []index.LeastUsed) (freed storage.Freed, err error) {
	since, err := e.index.LastChange(ctx) // before the items are read
	if err != nil {
		return freed, err
	}
	var items []*storage.Item
	at := make(map[narinfo.PathHash]time.Time, len(batch))
	err = e.index.View(ctx, func(tx *index.Tx) error {
		for _, used := range batch {
			if _, kept := e.pinned.By(used.Hash); kept {
				continue
			}
			wasUsed, err := e.wasUsed(tx, used.Hash, used.At)
			if err != nil {
				return err
			}
			if wasUsed {
				continue
			}
			row, err := tx.Item(used.Hash)
			if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
				continue
			} else if err != nil {
				return err
			}
			if row.Origin == 0 || row.Stored == 0 || !row.WithdrawnAt.IsZero() {
				continue
			}
			item, err := storage.NewItem(row)
			if err != nil {
				continue // others report it
			}
			items = append(items, item)
			at[used.Hash] = used.At
		}
		return nil
	})
	if err != nil {
		return freed, err
	}
	unread, done := e.unread(items)
	defer done()
	if len(unread) == 0 {
		return freed, nil
	}
	evicted, freed, err := deletion.Evict(ctx, e.storage, unread, since, func(tx *index.Tx, _ map[narinfo.PathHash]index.ChangeKind) error {
		if err := e.pinned.Guard(tx); err != nil {
			return err
		}
		// Uses are not changes of an item, and the origin isn't one.
		for _, item := range unread {
			if wasUsed, err := e.wasUsed(tx, item.Hash, at[item.Hash]); err != nil {
				return err
			} else if wasUsed {
				return deletion.ErrOutdated
			}
			if origin, err := tx.OriginOf(item.Hash); err != nil {
				return err
			} else if origin == 0 { // it was imported
				return deletion.ErrOutdated
			}
		}
		return nil
	})
	e.latest.Add(e.now(), evicted...)
	for _, item := range evicted {
		e.log.Debug("evicted the nars of an item", "item", item.Narinfo.StorePath.String(), "bytes", item.StoredBytes(), "last_used", at[item.Hash])
	}
	return freed, err
}

// wasUsed reports whether an item was used after a time.
func (e *Evictor) wasUsed(tx *index.Tx, hash narinfo.PathHash, after time.Time) (bool, error) {
	if e.options.Uses.LastUse(hash).Truncate(time.Millisecond).After(after) { // as it is recorded
		return true, nil
	}
	last, err := tx.LastUsed(hash)
	return last.After(after) && !stamp.IsWrong(last, e.now()), err
}

// unread returns the items that nobody reads, without those that can't be deleted. Until done is
// called, nobody can open them.
func (e *Evictor) unread(items []*storage.Item) (unread []*storage.Item, done func()) {
	var hashes []narinfo.PathHash
	for _, item := range items {
		if err := e.storage.MayDrop(item); err == nil {
			hashes = append(hashes, item.Hash)
		} else if e.logged.IsDue("undeletable", e.now()) {
			e.log.Warn("the nars of an item can't be evicted, and others are instead", "item", item.Narinfo.StorePath.String(), "error", err)
		}
	}
	hashes, done = e.storage.Unread(hashes)
	return slices.DeleteFunc(items, func(item *storage.Item) bool { return !slices.Contains(hashes, item.Hash) }), done
}
