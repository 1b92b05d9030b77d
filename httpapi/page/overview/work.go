package overview

import (
	"context"
	"time"

	"nar-herder/compression/cached"
	"nar-herder/httpapi/page"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/removal"
	"nar-herder/removal/deletion"
	"nar-herder/removal/eviction"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/scrub"
)

// Workers are the parts of the server that know which items they work on; nil for those that a
// server doesn't have. Only the administrator sees the items.
type Workers struct {
	Index    *index.Index
	Cache    *cached.Cache
	Fetcher  *nars.Fetcher
	Scrubber *scrub.Scrubber
	Remover  *removal.Remover
	Evictor  *eviction.Evictor
}

// List is items that the server works on, in one way.
type List struct {
	Title string
	Items []Work
}

// Work is an item that the server works on.
type Work struct {
	Hash, Name string
	// Note says how far the work is, or when it is done.
	Note string
}

// mostListed is the length of a list.
const mostListed = 10

func work(path narinfo.StorePath, note string) Work {
	return Work{path.Hash.String(), path.Name, note}
}

// list returns a list unless it is empty.
func list(title string, items []Work) []List {
	if len(items) == 0 {
		return nil
	}
	return []List{{title, items}}
}

func (w *Workers) compressing(ctx context.Context, now time.Time) ([]List, error) {
	if w.Cache == nil {
		return nil, nil
	}
	var items []Work
	for _, making := range w.Cache.Making(ctx, mostListed) {
		items = append(items, work(making.Path, making.Type+", for "+page.Duration(max(0, now.Sub(making.Since)))))
	}
	return list("being compressed", items), nil
}

func (w *Workers) fetching(context.Context, time.Time) ([]List, error) {
	if w.Fetcher == nil {
		return nil, nil
	}
	var items []Work
	for _, f := range w.Fetcher.Fetching(mostListed) {
		note := page.Bytes(f.Have)
		if f.Size >= 0 {
			note += " of " + page.Bytes(f.Size)
		}
		if f.OnDemand {
			note += ", for a client"
		}
		items = append(items, work(f.Path, note))
	}
	return list("being fetched", items), nil
}

func (w *Workers) verifying(context.Context, time.Time) ([]List, error) {
	if w.Scrubber == nil {
		return nil, nil
	}
	item := w.Scrubber.Verifying()
	if item == nil {
		return nil, nil
	}
	return list("being verified", []Work{work(item.Narinfo.StorePath, page.Bytes(item.StoredBytes()))}), nil
}

func (w *Workers) removing(ctx context.Context, now time.Time) ([]List, error) {
	withdrawn, err := w.withdrawn(ctx, now)
	if err != nil {
		return nil, err
	}
	lists := list("withdrawn, to be deleted next", withdrawn)
	if w.Remover != nil {
		lists = append(lists, list("nars removed last", evicted(w.Remover.Latest(), now))...)
	}
	return lists, nil
}

func (w *Workers) evicting(_ context.Context, now time.Time) ([]List, error) {
	if w.Evictor == nil {
		return nil, nil
	}
	return list("nars evicted last", evicted(w.Evictor.Latest(), now)), nil
}

// withdrawn returns the items that will be deleted next.
func (w *Workers) withdrawn(ctx context.Context, now time.Time) (items []Work, err error) {
	var first index.WithdrawnCursor
	rows, _, err := w.Index.WithdrawnPage(ctx, now.AddDate(1000, 0, 0), &first, mostListed)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		item, err := storage.NewItem(row)
		if err != nil {
			continue
		}
		note := "due"
		if left := row.DeleteAfter.Sub(now); left > 0 {
			note = "in " + page.Duration(left)
		}
		items = append(items, work(item.Narinfo.StorePath, note))
	}
	return items, nil
}

func evicted(latest []deletion.Evicted, now time.Time) (items []Work) {
	for _, one := range latest {
		items = append(items, work(one.Path, page.Bytes(one.Bytes)+", "+ago(one.At, now)))
	}
	return items
}

// ago says how long ago a time was.
func ago(at, now time.Time) string { return page.Duration(max(0, now.Sub(at))) + " ago" }
