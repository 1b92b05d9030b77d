package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// taggingOptions are those of tag and untag.
type taggingOptions struct {
	databaseOption `embed:""`

	Closure bool `group:"items" argumentsonly:"" help:"Also all items that they refer to."`

	Tag   tagValue `arg:"" name:"key=value" help:"Tag."`
	Items []string `arg:"" name:"store-path" help:"Store paths, their base names, or their hashes; - reads them from standard input, one per line."`
}

type tagCommand struct {
	taggingOptions `embed:""`
}

func (c *tagCommand) Run(ctx context.Context, s *streams) error {
	return c.each(ctx, s, "tag", "tagged", func(tx *index.Tx, hash narinfo.PathHash) (bool, error) {
		return true, tx.AddTags(hash, []index.Tag{index.Tag(c.Tag)})
	})
}

type untagCommand struct {
	taggingOptions `embed:""`
}

func (c *untagCommand) Run(ctx context.Context, s *streams) error {
	return c.each(ctx, s, "untag", "untagged", func(tx *index.Tx, hash narinfo.PathHash) (bool, error) {
		return tx.RemoveTag(hash, index.Tag(c.Tag))
	})
}

// each calls change for each named item, and prints for how many it returned true. It prints a
// line for each failure, and continues.
func (c *taggingOptions) each(ctx context.Context, s *streams, command, done string, change func(*index.Tx, narinfo.PathHash) (bool, error)) (err error) {
	failed := 0
	fail := func(what string, err error) {
		failed++
		printf(s.err, "nar-herder: %s %s: %s\n", command, what, oneLine(err))
	}
	list, err := readItems(ctx, s, c.Items, fail)
	if err != nil {
		return fmt.Errorf("%s: %w: nothing was changed", command, err)
	}
	store, err := openExisting(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	hashes := list.hashes
	if c.Closure {
		if hashes, err = closureOf(ctx, store, hashes, fail); err != nil {
			return err
		}
	}
	changed := 0
	for batch := range slices.Chunk(hashes, storage.BatchSize) {
		var unknown []narinfo.PathHash
		var count int
		err := store.index.Update(ctx, func(tx *index.Tx) error {
			unknown, count = nil, 0
			for _, hash := range batch {
				isChanged, err := change(tx, hash)
				if errors.Is(err, storage.ErrNotFound) {
					unknown = append(unknown, hash)
				} else if err != nil {
					return err
				} else if isChanged {
					count++
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %s were %s, then: %w", command, countOf(changed, "item"), done, err)
		}
		for _, hash := range unknown {
			fail(hash.String(), storage.ErrNotFound)
		}
		changed += count
	}
	printf(s.out, "%s %s\n", done, countOf(changed, "item"))
	if failed > 0 {
		return statusFailed
	}
	return nil
}

// closureOf returns the items and everything that they refer to. Roots without a narinfo are
// reported to fail.
func closureOf(ctx context.Context, store *opened, roots []narinfo.PathHash, fail func(what string, err error)) (all []narinfo.PathHash, err error) {
	closure, err := store.index.Closure(ctx, roots)
	if err != nil {
		return nil, err
	}
	for row, err := range store.index.ItemsOf(ctx, closure) {
		if err != nil {
			return nil, err
		}
		all = append(all, row.Hash)
	}
	for _, root := range roots {
		if closure.Missing(root) {
			fail(root.String(), storage.ErrNotFound)
		}
	}
	return all, nil
}
