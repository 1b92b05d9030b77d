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
	"nar-herder/removal"
	"nar-herder/storage"
)

type removeCommand struct {
	databaseOption `embed:""`

	Storage string     `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Tag     []tagValue `argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Items that have the tag, beside those that are named. May be repeated: then items that have all of them."`
	Now     bool       `argumentsonly:"" help:"Delete narinfos and nars at once. A client that has the narinfo gets a 404 for its nar."`
	DryRun  bool       `help:"Change nothing, and tell what would be."`
	Force   bool       `argumentsonly:"" help:"With --now: remove also what is pinned, or needed by what is."`
	JSON    bool       `name:"json" help:"The summary as a JSON object, and no line for each item."`
	Items   []string   `arg:"" optional:"" name:"store-path" help:"Store paths, or their base names, or their hashes; - to read them from the standard input, one a line."`
}

// Help is shown below the options.
func (removeCommand) Help() string {
	return `Items are withdrawn: their narinfos are not served any more, and the running server deletes the nars when no client can have such a narinfo any more. Until then, an import or a pin brings an item back. With --now, they are deleted at once.

With --storage, nothing is changed if the storage belongs to another instance, or may not be mounted. --now needs it where nars are stored.`
}

// listedBroken is how many items that refer to removed ones are named.
const listedBroken = 10

// removed is what a removal came to, for programs.
type removed struct {
	DryRun bool  `json:"dry_run"`
	Now    bool  `json:"now"`
	Items  int   `json:"items"`
	Bytes  int64 `json:"bytes"`
	Failed int   `json:"failed"`
	// Due is when the last of the items goes, as far as that is known.
	Due *time.Time `json:"due,omitempty"`
	// Broken counts items that stay and refer to one that goes; BrokenItems are
	// the first of them.
	Broken      int      `json:"broken"`
	BrokenItems []string `json:"broken_items"`
}

func (c *removeCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Force && !c.Now {
		return usagef("--force: what a pin keeps can't be withdrawn: unpin it, or use --now")
	}
	if len(c.Items) == 0 && len(c.Tag) == 0 {
		return usagef("remove: no <store-path> is named: give some, --tag=KEY=VALUE, or - to read a list from the standard input")
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

	// A line for each of a million items is not worth a write each.
	out := bufio.NewWriter(s.out)
	gone := make(map[narinfo.PathHash]struct{}, len(list.hashes))
	named := &removal.Named{Storage: store.Storage, Now: c.Now, Force: c.Force, DryRun: c.DryRun}
	doErr := named.Do(ctx, list.hashes, func(r storage.Removal) {
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
	if len(gone) > 0 || summary.Failed == 0 || c.JSON { // or all has been said
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

// report counts an item that goes, and says so.
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

// finish says what it all came to.
func (c *removeCommand) finish(ctx context.Context, out io.Writer, store *opened, summary *removed, gone map[narinfo.PathHash]struct{}) error {
	if !c.Now && summary.Items > 0 {
		due, err := store.DeleteAfter(ctx)
		if err != nil {
			return err
		}
		due = due.UTC().Truncate(time.Second)
		summary.Due = &due
	}
	broken, count, err := removal.Broken(ctx, store.index, gone, listedBroken)
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
	would, will, is := "", "are", "is"
	if c.DryRun {
		would, will, is = "would be ", "would be", "would be"
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
		if count == 1 {
			printf(out, "1 item that stays refers to what %s gone:\n", is)
		} else {
			printf(out, "%d items that stay refer to what %s gone:\n", count, is)
		}
		for _, path := range summary.BrokenItems {
			printf(out, "  %s\n", path)
		}
		if more := count - len(summary.BrokenItems); more > 0 {
			printf(out, "  and %d more\n", more)
		}
	}
	return nil
}

// countOf writes a number of things.
func countOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// itemName is what an error calls an item.
func itemName(r storage.Removal) string {
	if r.StorePath != (narinfo.StorePath{}) {
		return r.StorePath.String()
	}
	return r.Hash.String()
}

// explainRemoval says what to do.
func explainRemoval(err error) error {
	var pinned *removal.PinnedError
	switch {
	case errors.Is(err, storage.ErrElsewhere):
		return fmt.Errorf("%w: name it with --storage", err)
	case errors.As(err, &pinned):
		return fmt.Errorf("%w: unpin that, or use --force", err)
	}
	return err
}

// pathOf is an item's store path, or its hash when it is not known.
func pathOf(ctx context.Context, store *opened, hash narinfo.PathHash) (string, error) {
	item, err := store.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return hash.String(), nil
	} else if err != nil {
		return "", err
	}
	return item.Narinfo.StorePath.String(), nil
}
