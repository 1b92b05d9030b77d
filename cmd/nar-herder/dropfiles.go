package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"nar-herder/removal/dropping"
	"nar-herder/storage"
	"nar-herder/storage/dropped"
	"nar-herder/storage/index"
)

type dropFilesCommand struct {
	databaseOption `embed:""`

	Storage     string     `group:"storage" required:"" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Compression string     `group:"items" required:"" enum:"none,gzip,lzip,zstd,xz,bzip2" placeholder:"TYPE" help:"The compression to drop: ${enum}."`
	Tag         []tagValue `group:"items" argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Of items with this tag. May be repeated: then of items with all of them."`
	All         bool       `group:"items" argumentsonly:"" help:"Of all items."`
	Undo        bool       `group:"work" argumentsonly:"" help:"Announce dropped files again that are not deleted yet, or that the mirrored instance or an upstream may have."`
	DryRun      bool       `group:"work" help:"Change nothing; show what would change."`
	Items       []string   `arg:"" optional:"" name:"store-path" help:"Store paths, their base names, or their hashes; - reads them from standard input, one per line."`
}

// Help is shown below the options.
func (dropFilesCommand) Help() string {
	return `Only items that have a nar of another compression in the storage lose theirs. Narinfos no longer name the dropped files, except where that part of a narinfo is signed. The running server deletes the files when no client can still have a narinfo that names them. Until then, --undo undoes it, or importing the item with them.

Give store paths, --tag or --all. The command can be interrupted and repeated. It changes nothing if the storage belongs to another instance or seems not to be mounted.`
}

func (c *dropFilesCommand) Run(ctx context.Context, s *streams) (err error) {
	ways := 0
	for _, given := range []bool{len(c.Items) > 0, len(c.Tag) > 0, c.All} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return usagef("drop-files: give either store paths, or --tag, or --all")
	}
	counts := make(map[dropping.Outcome]int)
	failed := func(what string, err error) {
		counts[dropping.Failed]++
		printf(s.err, "nar-herder: drop-files %s: %s\n", what, oneLine(err))
	}
	list, err := readItems(ctx, s, c.Items, failed)
	if err != nil {
		return fmt.Errorf("drop-files: %w: nothing was dropped", err)
	}
	openStore := openExisting
	if c.DryRun {
		openStore = openForReading
	}
	store, err := openStore(ctx, c.Database, c.Storage, slog.New(newLogHandler(s.err, slog.LevelInfo)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	totals, err := store.Totals(ctx)
	if err != nil {
		return err
	}
	items, all := c.items(ctx, store, list, failed), int64(len(list.hashes))
	if c.All {
		all = totals.Items
	}
	what, done := "dropping ", "lost"
	if c.Undo {
		what, done = "announcing ", "got back"
	}
	doing := newProgress(s.err, what+c.Compression+" nars", "items", all)
	var bytes int64
	unverified := 0
	dropper := &dropping.Dropper{Storage: store.Storage, Compression: c.Compression, Undo: c.Undo, DryRun: c.DryRun}
	err = dropper.Do(ctx, counted(items, doing), func(r dropping.Result) {
		if r.Outcome == dropping.Failed {
			doing.clear()
			failed(r.StorePath.String(), r.Err)
			return
		}
		counts[r.Outcome]++
		bytes += r.Bytes
		if r.Unverified {
			unverified++
		}
	})
	doing.end()
	dropped := counts[dropping.Dropped]
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("drop-files: interrupted after %s: the same command continues", countOf(dropped, "item"))
	case err != nil && dropped > 0:
		return fmt.Errorf("drop-files: %s %s their %s nars, then: %w", countOf(dropped, "item"), done, c.Compression, err)
	case err != nil:
		return fmt.Errorf("drop-files: nothing was dropped: %w", err)
	}
	if err := c.summarize(ctx, s, store, counts, unverified, bytes); err != nil {
		return err
	}
	if counts[dropping.Failed] > 0 {
		return statusFailed
	}
	return nil
}

// items returns the items that the arguments name.
func (c *dropFilesCommand) items(ctx context.Context, store *opened, list *itemList, failed func(string, error)) iter.Seq2[*storage.Item, error] {
	if len(c.Items) == 0 {
		return store.Items(ctx, tags(c.Tag)...)
	}
	return func(yield func(*storage.Item, error) bool) {
		for _, hash := range list.hashes {
			item, err := store.Item(ctx, hash)
			if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
				failed(hash.String(), err)
				continue
			}
			if !yield(item, err) {
				return
			}
		}
	}
}

// counted shows the progress over items.
func counted(items iter.Seq2[*storage.Item, error], doing *progress) iter.Seq2[*storage.Item, error] {
	return func(yield func(*storage.Item, error) bool) {
		for item, err := range items {
			doing.add(0)
			if !yield(item, err) {
				return
			}
		}
	}
}

// summarize prints what was done.
func (c *dropFilesCommand) summarize(ctx context.Context, s *streams, store *opened, counts map[dropping.Outcome]int, unverified int, bytes int64) error {
	if c.Undo {
		would := ""
		if c.DryRun {
			would = "would "
		}
		printf(s.out, "%s %sname files in compression %s again, %s stored\n", countOf(counts[dropping.Dropped], "narinfo"), would, c.Compression, byteCount(bytes))
		return nil
	}
	lose, freed := "lost", "are freed"
	if c.DryRun {
		lose, freed = "would lose", "would be freed"
	}
	printf(s.out, "%s %s files in compression %s, %s", countOf(counts[dropping.Dropped], "item"), lose, c.Compression, byteCount(bytes))
	if bytes > 0 {
		due, err := dropped.DeleteAfter(ctx, store.Storage)
		if err != nil {
			return err
		}
		printf(s.out, ", which %s by a running server from about %s on", freed, due.UTC().Format(time.RFC3339))
	}
	printf(s.out, "\n")
	if unverified > 0 {
		printf(s.out, "%d of them have nars that were never verified; next: nar-herder check --verify\n", unverified)
	}
	if before := counts[dropping.Before]; before > 0 {
		printf(s.out, "%s lost them before\n", countOf(before, "item"))
	}
	if only := counts[dropping.Only]; only > 0 {
		keep := "keep"
		if only == 1 {
			keep = "keeps"
		}
		printf(s.out, "%s %s them, because no nar of another compression is in the storage\n", countOf(only, "item"), keep)
	}
	return nil
}
