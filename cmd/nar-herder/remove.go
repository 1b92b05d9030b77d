package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/removal/named"
	"nar-herder/storage"
)

type removeCommand struct {
	databaseOption `embed:""`

	Storage string     `group:"storage" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Tag     []tagValue `group:"items" argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Also items with this tag. May be repeated: then items with all of them."`
	Now     bool       `group:"work" argumentsonly:"" help:"Delete narinfos and nars at once. Clients that have the narinfo get 404 for its nar."`
	DryRun  bool       `group:"work" help:"Change nothing; show what would change."`
	Force   bool       `group:"work" argumentsonly:"" help:"With --now: also remove pinned items and what they refer to."`
	JSON    bool       `group:"output" name:"json" help:"Print the summary as JSON, without a line for each item."`
	Items   []string   `arg:"" optional:"" name:"store-path" help:"Store paths, their base names, or their hashes; - reads them from standard input, one per line."`
}

// Help is shown below the options.
func (removeCommand) Help() string {
	return `Items are withdrawn: their narinfos are no longer served, and the running server deletes the nars when no client can still have such a narinfo. Until then, importing or pinning an item restores it. With --now, items are deleted at once.

With --storage, the command changes nothing if the storage belongs to another instance or seems not to be mounted. --now requires it for items with stored nars.`
}

// listedBroken is the number of items listed that refer to removed ones.
const listedBroken = 10

// removed is the summary in JSON.
type removed struct {
	DryRun bool  `json:"dry_run"`
	Now    bool  `json:"now"`
	Items  int   `json:"items"`
	Bytes  int64 `json:"bytes"`
	Failed int   `json:"failed"`
	// Due is when the last of the items will be deleted, if known.
	Due *time.Time `json:"due,omitempty"`
	// Broken counts remaining items that refer to removed ones. BrokenItems are the first
	// of them.
	Broken      int      `json:"broken"`
	BrokenItems []string `json:"broken_items"`
}

func (c *removeCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Force && !c.Now {
		return usagef("--force needs --now: pinned items can't be withdrawn, unless you unpin them")
	}
	if len(c.Items) == 0 && len(c.Tag) == 0 {
		return usagef("remove: no <store-path> is named: name items, or give --tag=KEY=VALUE, or - to read a list from standard input")
	}
	summary := &removed{DryRun: c.DryRun, Now: c.Now, BrokenItems: []string{}}
	failed := func(what string, err error) {
		summary.Failed++
		printf(s.err, "nar-herder: remove %s: %s\n", what, oneLine(err))
	}
	list, err := readItems(ctx, s, c.Items, failed)
	if err != nil {
		return fmt.Errorf("remove: %w: nothing was removed", err)
	}
	log := slog.New(newLogHandler(s.err, slog.LevelInfo))
	openStore := openExisting
	if c.DryRun {
		openStore = openForReading
	}
	store, err := openStore(ctx, c.Database, c.Storage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := store.MayDelete(ctx); err != nil {
		return fmt.Errorf("remove: nothing was %s: %w", c.verb(), err)
	}
	if len(c.Tag) > 0 {
		for item, err := range store.index.Items(ctx, tags(c.Tag)...) {
			if err != nil {
				return err
			}
			list.addHash(item.Hash)
		}
	}

	// There may be a million lines.
	out := bufio.NewWriter(s.out)
	gone := make(map[narinfo.PathHash]struct{}, len(list.hashes))
	remover := &named.Remover{Storage: store.Storage, Now: c.Now, Force: c.Force, DryRun: c.DryRun}
	wait := newWait(s.err, "removing")
	defer wait.end()
	doErr := remover.Do(ctx, list.hashes, func(r storage.Removal) {
		if r.Err != nil {
			failed(itemName(r), explainRemoval(r.Err))
		}
		if r.Err == nil || r.Left {
			c.report(out, summary, r)
			gone[r.Hash] = struct{}{}
		}
	})
	if doErr != nil && len(gone) == 0 && summary.Failed == 0 {
		return fmt.Errorf("remove: nothing was %s: %w", c.verb(), doErr)
	}
	if doErr != nil {
		return errors.Join(fmt.Errorf("remove: %d items were %s, then: %w", summary.Items, c.verb(), doErr), out.Flush())
	}
	if len(gone) > 0 || summary.Failed == 0 || c.JSON { // else only failures were reported
		if err := c.finish(ctx, out, store, summary, gone); err != nil {
			return errors.Join(err, out.Flush())
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if summary.Failed > 0 {
		return statusFailed
	}
	return nil
}

func (c *removeCommand) verb() string {
	if c.Now {
		return "removed"
	}
	return "withdrawn"
}

// report counts and prints a removed item.
func (c *removeCommand) report(out io.Writer, summary *removed, r storage.Removal) {
	before := !c.Now && !r.WithdrawnAt.IsZero()
	if !before {
		summary.Items++
		summary.Bytes += r.Bytes
	}
	switch {
	case c.JSON:
	case before:
		printf(out, "%s was withdrawn before, at %s\n", r.StorePath, r.WithdrawnAt.Format(time.RFC3339))
	case c.DryRun && c.Now:
		printf(out, "would remove %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	case c.DryRun:
		printf(out, "would withdraw %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	case c.Now:
		printf(out, "removed %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	default:
		printf(out, "withdrew %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	}
}

// finish prints the summary.
func (c *removeCommand) finish(ctx context.Context, out io.Writer, store *opened, summary *removed, gone map[narinfo.PathHash]struct{}) error {
	if !c.Now && summary.Items > 0 {
		due, err := store.DeleteAfter(ctx)
		if err != nil {
			return err
		}
		due = due.UTC().Truncate(time.Second)
		summary.Due = &due
	}
	broken, count, err := named.Broken(ctx, store.index, gone, listedBroken)
	if err != nil {
		return err
	}
	summary.Broken = count
	for _, hash := range broken {
		path, err := pathOf(ctx, store, hash)
		if err != nil {
			return err
		}
		summary.BrokenItems = append(summary.BrokenItems, path)
	}
	if c.JSON {
		return json.NewEncoder(redact.JSON{W: out}).Encode(summary)
	}
	would, will := "", "are"
	if c.DryRun {
		would, will = "would be ", "would be"
	}
	printf(out, "%s %s%s, %s", countOf(summary.Items, "item"), would, c.verb(), byteCount(summary.Bytes))
	switch {
	case c.Now:
		fmt.Fprintln(out, " freed")
	case summary.Due != nil:
		printf(out, " of nars, which %s freed by a running server from about %s on\n", will, summary.Due.Format(time.RFC3339))
	default:
		fmt.Fprintln(out, " of nars")
	}
	if count > 0 {
		refer := "items refer"
		if count == 1 {
			refer = "item refers"
		}
		printf(out, "%d remaining %s to them:\n", count, refer)
		for _, path := range summary.BrokenItems {
			printf(out, "  %s\n", path)
		}
		if more := count - len(summary.BrokenItems); more > 0 {
			printf(out, "  and %d more\n", more)
		}
	}
	return nil
}

// countOf formats a number of things.
func countOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// itemName returns the name of an item in errors.
func itemName(r storage.Removal) string {
	if r.StorePath != (narinfo.StorePath{}) {
		return r.StorePath.String()
	}
	return r.Hash.String()
}

// explainRemoval adds the remedy to an error.
func explainRemoval(err error) error {
	var pinned *named.PinnedError
	switch {
	case errors.Is(err, storage.ErrElsewhere):
		return fmt.Errorf("%w: add --storage", err)
	case errors.As(err, &pinned):
		return fmt.Errorf("%w: unpin that, or use --force", err)
	}
	return err
}

// pathOf returns an item's store path, or its hash if the item is unknown.
func pathOf(ctx context.Context, store *opened, hash narinfo.PathHash) (string, error) {
	item, err := store.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return hash.String(), nil
	} else if err != nil {
		return "", err
	}
	return item.Narinfo.StorePath.String(), nil
}
