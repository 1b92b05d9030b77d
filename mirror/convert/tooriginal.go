package convert

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nar-herder/mirror/exchange"
	"nar-herder/storage/index"
)

// toOriginal makes the index at from a database of the original at to. It is read
// while others may write it. What has changed meanwhile may be in it or not; the
// log ends where it ended at the start, so that whoever follows from there on is
// told again.
func toOriginal(ctx context.Context, from, to string, o Options) (result Result, err error) {
	x, err := index.Open(ctx, from, index.Options{})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	made := to + written
	// One from a run that was killed is of no use.
	if err := remove(made); err != nil {
		return result, err
	}
	w, err := exchange.Create(ctx, made)
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

// export writes all of an index that the original knows of.
func export(ctx context.Context, x *index.Index, w *exchange.Writer, o Options, result *Result) error {
	newest, err := x.LastChange(ctx)
	if err != nil {
		return err
	}
	totals, err := x.Totals(ctx)
	if err != nil {
		return err
	}
	for row, err := range x.Items(ctx) {
		if err != nil {
			return err
		}
		if !row.WithdrawnAt.IsZero() {
			result.Withdrawn++
			continue
		}
		item := exchange.Item{Text: row.Text, AddedAt: row.AddedAt}
		tags, err := x.Tags(ctx, row.Hash)
		if err != nil {
			return err
		}
		for _, tag := range tags {
			item.Tags = append(item.Tags, exchange.Tag(tag))
		}
		files, err := x.CachedFiles(ctx, row.Hash)
		if err != nil {
			return err
		}
		for _, file := range files {
			if file.WithdrawnAt.IsZero() {
				item.Cached = append(item.Cached, exchange.Cached{Compression: file.Type, Size: file.Size})
			}
		}
		if err := w.Add(item); err != nil {
			return fmt.Errorf("item %s: %w", row.Hash, err)
		}
		result.Items++
		result.Cached += int64(len(item.Cached))
		if len(tags) > 0 {
			result.Tagged++
		}
		if result.Items%progressEvery == 0 {
			o.progress(result.Items+result.Withdrawn, totals.Items)
		}
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
			err := w.AddChange(exchange.Change{At: change.At, Removal: change.Kind == index.Removed, Data: data})
			if err != nil {
				return err
			}
			result.Changes++
		}
		after, more = page.Position, page.More
	}
	return nil
}

const (
	// progressEvery is after how many items progress is told.
	progressEvery = 1000
	// changesAtOnce is how many rows of the log are read at a time, with texts of
	// some kilobytes.
	changesAtOnce = 500
)
