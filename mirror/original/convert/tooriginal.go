package convert

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nar-herder/mirror/original"
	"nar-herder/storage/index"
)

// toOriginal converts an index, which was opened from a file of that name, into a database of
// the original at to, and closes it. Others may write to the index meanwhile: these changes
// may be missing, and the log ends where it ended at the start, so that mirrors which follow
// from there get them again.
func toOriginal(ctx context.Context, x *index.Index, from, to string, o Options) (result Result, err error) {
	defer func() { err = errors.Join(err, x.Close()) }()
	made := to + written
	// Remove that of a killed run.
	if err := remove(made); err != nil {
		return result, err
	}
	w, err := original.Create(ctx, made)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	result = Result{ToOriginal: true}
	if err := export(ctx, x, w, o, &result); err != nil {
		return result, fmt.Errorf("convert %s: %w", from, err)
	}
	if err := w.Finish(ctx); err != nil {
		return result, err
	}
	if err := errors.Join(likeness(from, made), putInPlace(made, to)); err != nil {
		return result, errors.Join(err, os.Remove(made))
	}
	return result, nil
}

// export writes everything of an index that the original has as well.
func export(ctx context.Context, x *index.Index, w *original.Writer, o Options, result *Result) error {
	newest, err := x.LastChange(ctx)
	if err != nil {
		return err
	}
	totals, err := x.Totals(ctx)
	if err != nil {
		return err
	}
	err = inLots(ctx, func(ctx context.Context, next func(original.Item) error) error {
		return readAll(ctx, x, next, &result.Withdrawn)
	}, func(lot []original.Item) error {
		for _, item := range lot {
			if err := w.Add(item); err != nil {
				return err
			}
			result.Items++
			result.Cached += int64(len(item.Cached))
			if len(item.Tags) > 0 {
				result.Tagged++
			}
		}
		o.progress(result.Items, totals.Items)
		return nil
	})
	if err != nil {
		return err
	}
	for after, more := int64(0), true; more; {
		page, err := x.ChangesAfter(ctx, after, changesAtOnce)
		if err != nil {
			return err
		}
		for _, change := range page.Changes {
			if change.ID > newest {
				return nil
			}
			data := change.StorePath
			if change.Kind == index.Added {
				data = string(change.Text)
			}
			err := w.AddChange(original.Change{At: change.At, Removal: change.Kind == index.Removed, Data: data})
			if err != nil {
				return err
			}
			result.Changes++
		}
		after, more = page.Position, page.More
	}
	return nil
}

// readAll reads the items, and counts withdrawn ones.
func readAll(ctx context.Context, x *index.Index, next func(original.Item) error, withdrawn *int64) error {
	for row, err := range x.Items(ctx) {
		if err != nil {
			return err
		}
		if !row.WithdrawnAt.IsZero() {
			*withdrawn++
			continue
		}
		item := original.Item{Text: row.Announced(), AddedAt: row.AddedAt}
		tags, err1 := x.Tags(ctx, row.Hash)
		files, err2 := x.CachedFiles(ctx, row.Hash)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		for _, tag := range tags {
			item.Tags = append(item.Tags, original.Tag(tag))
		}
		for _, file := range files {
			if file.WithdrawnAt.IsZero() {
				item.Cached = append(item.Cached, original.Cached{Compression: file.Type, Size: file.Size})
			}
		}
		if err := next(item); err != nil {
			return err
		}
	}
	return nil
}

// inLots runs read and write concurrently, and returns when both have ended.
func inLots(ctx context.Context, read func(context.Context, func(original.Item) error) error, write func([]original.Item) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	lots, ended := make(chan []original.Item, 1), make(chan error, 1)
	go func() {
		var lot []original.Item
		pass := func() error {
			select {
			case lots <- lot:
				lot = nil
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := read(ctx, func(item original.Item) error {
			if lot = append(lot, item); len(lot) < lotSize {
				return nil
			}
			return pass()
		})
		if err == nil {
			err = pass()
		}
		close(lots)
		ended <- err
	}()
	var err error
	for lot := range lots {
		if err == nil {
			if err = write(lot); err != nil {
				stop()
			}
		}
	}
	readErr := <-ended
	if err != nil {
		return err
	}
	return readErr
}

const (
	// lotSize is how many items are read ahead, in each of two lots.
	lotSize = 256
	// changesAtOnce is how many rows of the log are read at a time, with texts of
	// some kilobytes.
	changesAtOnce = 500
)
