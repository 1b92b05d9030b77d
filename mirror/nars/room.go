package nars

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nar-herder/internal/disk"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// block is what a file takes of the disk beyond its length, at the most.
const block = 4 << 10

// margin is the part of the limit that is left free by what is fetched without
// being asked for, one of so many: so that neither a rounding nor an import of a
// few nars has the remover act on nars that were just fetched. What it removes
// makes no room for such a fetch either, as it removes no more than brings the
// storage below its limit, and the nar that it removed last does not fit again.
const margin = 50

// reserve makes sure that there is room for the item's Nth file, beside all that
// is under way, and counts it until release is called. The error is
// errNoRoom when there is none below the limit, and [storage.ErrLimit] when there is
// none below the hard one.
func (f *Fetcher) reserve(ctx context.Context, item *storage.Item, n int, asked bool) (release func(), err error) {
	size := max(sizeOf(item, n), 0)
	// Before the usage is looked at: what comes to its end meanwhile is counted
	// here or there, or twice.
	coming := f.coming.Add(size + block)
	uncount := func() { f.coming.Add(-size - block) }
	if limit := f.options.Limit; limit >= 0 {
		if !asked {
			limit -= limit / margin
		}
		usage, err := f.options.Usage(ctx)
		if err != nil {
			uncount()
			return nil, localError{fmt.Errorf("find out what the storage takes: %w", err)}
		}
		if usage+coming > limit {
			uncount()
			return nil, fmt.Errorf("%w: of %d bytes, %d are taken and %d are coming with this nar", errNoRoom, limit, usage, coming)
		}
	}
	unreserve, err := f.storage.Reserve(ctx, size)
	if err != nil {
		uncount()
		return nil, localError{err}
	}
	return sync.OnceFunc(func() { unreserve(); uncount() }), nil
}

// errNoRoom is about the limit above which nars are removed.
var errNoRoom = errors.New("the storage is at its limit")

// isFull says whether an error means that nothing more can be written for now.
func isFull(err error) bool {
	return disk.IsFull(err) || errors.Is(err, storage.ErrLimit) || errors.Is(err, index.ErrFull)
}
