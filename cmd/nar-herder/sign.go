package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/resign"
)

type signCommand struct {
	databaseOption `embed:""`

	Key textValue `group:"keys" required:"" placeholder:"FILE" help:"Private key, as keygen writes it. A file that others can read is refused."`

	signerOption `embed:""`

	Replace   bool        `group:"work" argumentsonly:"" help:"Also replace valid signatures by other keys, which are lost."`
	Mirrored  bool        `group:"items" argumentsonly:"" help:"Also sign items that a mirror has from its source. They become items of this instance, which the source doesn't change or remove any more."`
	DryRun    bool        `group:"work" help:"Change nothing; show what would change."`
	Stdout    bool        `group:"output" argumentsonly:"" help:"Print the signed narinfo instead of rewriting its file. For a single file."`
	Tag       []tagValue  `group:"items" argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Sign the items with this tag. May be repeated: then items with all of them."`
	ClosureOf []itemValue `group:"items" argumentsonly:"" sep:"none" placeholder:"ITEM" help:"Sign this item and everything it refers to. May be repeated."`
	All       bool        `group:"items" argumentsonly:"" help:"Sign all items of the index."`
	Names     []string    `arg:"" optional:"" name:"file-or-store-path" help:"Narinfo files, directories to search for narinfo files, or items of the index: store paths, their base names, or their hashes; - reads items from standard input, one per line."`
}

// Help is shown below the options.
func (signCommand) Help() string {
	return `A narinfo has one signature: Guix ignores further ones. What happens to a narinfo depends on the one that it has:

    none                    it is signed
    by this key             it stays as it is
    by another key          it stays as it is, or is replaced with --replace
    not valid               it is refused, since a new signature would hide that the text may be wrong

Clients that authorize only the old key refuse a narinfo with another signature: let clients authorize the new key first. --dry-run shows whose signatures --replace would lose.

Withdrawn items are skipped. Items that a mirror has from its source stay as they are without --mirrored: sign them at the source. Nars are not read: 'import' and 'check --verify' compare them with the narinfos. The running server serves the new narinfos at once, and mirrors follow.

To resume an interrupted run, run the command again. Files are replaced atomically. An argument that begins with /gnu/store/ is an item, and so is a hash or the base name of a store path; others are files.

Exit status: 0, all named narinfos have a signature by this key, or would have it, or are withdrawn; 1, some do not.`
}

func (c *signCommand) Run(ctx context.Context, s *streams) (err error) {
	signer, err := c.begin()
	if err != nil {
		return err
	}
	summary := newSignSummary(s, c.DryRun)
	files, items, err := c.sort(ctx, s, summary)
	if err != nil {
		return fmt.Errorf("sign: %w: nothing was signed", err)
	}
	if c.Stdout {
		return signToStdout(ctx, s, signer, files, items)
	}
	if items != nil {
		err = c.signItems(ctx, s, signer, items, summary)
	}
	if err == nil && len(files) > 0 {
		err = signFiles(ctx, signer, files, c.DryRun, summary)
	}
	summary.end()
	switch {
	case ctx.Err() != nil:
		return errors.New("sign: interrupted: the same command signs the rest")
	case err != nil:
		return fmt.Errorf("sign: %w", err)
	case summary.incomplete():
		return statusFailed
	}
	return nil
}

// begin checks the options and reads the key.
func (c *signCommand) begin() (*resign.Signer, error) {
	ways := 0
	for _, given := range []bool{len(c.Names) > 0, len(c.Tag) > 0, len(c.ClosureOf) > 0, c.All} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return nil, usagef("sign: give either files and store paths, or --tag, or --closure-of, or --all")
	}
	signer, err := c.signer("--key", c.Key)
	if err != nil {
		return nil, err
	}
	signer.Replace, signer.Mirrored = c.Replace, c.Mirrored
	return signer, nil
}

// sort returns the files and the items to sign. items is nil if none are named.
func (c *signCommand) sort(ctx context.Context, s *streams, summary *signSummary) (files []string, items *itemList, err error) {
	var names []string
	for _, name := range c.Names {
		if name == "" {
			return nil, nil, usagef("the name of a file or store path is empty")
		}
		if isItem(name) || name == "-" {
			names = append(names, name)
		} else {
			files = append(files, name)
		}
	}
	if len(names) > 0 || len(c.Names) == 0 {
		items, err = readItems(ctx, s, names, summary.fail)
	}
	return files, items, err
}

// signItems signs items of the index.
func (c *signCommand) signItems(ctx context.Context, s *streams, signer *resign.Signer, list *itemList, summary *signSummary) (err error) {
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	how := opening{Options: index.Options{Access: index.Write, WriterCache: importCache, Bulk: true}}
	if c.DryRun {
		how = opening{Options: index.Options{Access: index.Read}}
	}
	store, err := open(ctx, c.Database, "", how, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	total, items, err := c.items(ctx, store, list, summary)
	if err != nil {
		return err
	}
	summary.begin(total)
	return signer.Items(ctx, store.Storage, items, c.DryRun, summary.add)
}

// items returns the items to sign, and how many they are at most; 0 if that is unknown.
func (c *signCommand) items(ctx context.Context, store *opened, list *itemList, summary *signSummary) (int64, iter.Seq2[*index.Item, error], error) {
	switch {
	case c.All:
		totals, err := store.Totals(ctx)
		return totals.Items, store.index.Items(ctx), err
	case len(c.Tag) > 0:
		return 0, store.index.Items(ctx, tags(c.Tag)...), nil
	case len(c.ClosureOf) > 0:
		var roots []narinfo.PathHash
		for _, item := range c.ClosureOf {
			roots = append(roots, narinfo.PathHash(item))
		}
		closure, err := store.index.Closure(ctx, roots)
		if err != nil {
			return 0, nil, err
		}
		for _, root := range roots {
			if closure.Missing(root) {
				summary.fail(root.String(), storage.ErrNotFound)
			}
		}
		count, missing := closure.Len()
		return int64(count - missing), store.index.ItemsOf(ctx, closure), nil
	}
	var known []narinfo.PathHash
	err := store.index.EachAt(ctx, list.hashes, func(i int, item *index.Item, err error) error {
		if item == nil && err == nil {
			summary.fail(list.hashes[i].String(), storage.ErrNotFound)
		} else {
			known = append(known, list.hashes[i])
		}
		return nil
	})
	return int64(len(known)), resign.ItemsAt(ctx, store.index, known), err
}
