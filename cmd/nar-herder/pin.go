package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

type pinCommand struct {
	databaseOption `embed:""`

	AllowMissing bool     `group:"work" help:"Also pin items without a narinfo."`
	Items        []string `arg:"" name:"store-path" help:"Store paths, their base names, or their hashes."`
}

func (c *pinCommand) Run(ctx context.Context, s *streams) error {
	return eachItem(ctx, s, "pin", c.Database, c.Items, func(store *opened, hash narinfo.PathHash, name string) error {
		if _, err := store.Item(ctx, hash); errors.Is(err, storage.ErrNotFound) {
			if !c.AllowMissing {
				return fmt.Errorf("%w: import it first, or use --allow-missing", err)
			}
		} else if err != nil {
			return err
		}
		var first bool
		err := store.index.Update(ctx, func(tx *index.Tx) (err error) {
			first, err = tx.Pin(hash, time.Now())
			return err
		})
		if err != nil {
			return err
		}
		stay, err := restore(ctx, store, []narinfo.PathHash{hash})
		if err != nil {
			return fmt.Errorf("it is pinned, but items that it refers to may still be removed: %w", err)
		}
		if first {
			printf(s.out, "pinned %s\n", name)
		} else {
			printf(s.out, "%s was pinned before\n", name)
		}
		if stay > 0 {
			printf(s.out, "restored %s that it refers to\n", countOf(stay, "item"))
		}
		return nil
	})
}

// restore cancels the withdrawal of the items that pins keep, and counts them.
func restore(ctx context.Context, store *opened, pins []narinfo.PathHash) (restored int, err error) {
	closure, err := store.index.Closure(ctx, pins)
	if err != nil {
		return 0, err
	}
	for batch := range slices.Chunk(closure.Withdrawn(), storage.BatchSize) {
		count := 0
		err := store.index.Update(ctx, func(tx *index.Tx) error {
			for _, hash := range batch {
				done, err := tx.Restore(hash, time.Now())
				if err != nil && !errors.Is(err, storage.ErrNotFound) {
					return err
				}
				if done {
					count++
				}
			}
			return nil
		})
		if err != nil {
			return restored, err
		}
		restored += count
	}
	return restored, nil
}

type unpinCommand struct {
	databaseOption `embed:""`

	Items []string `arg:"" name:"store-path" help:"Store paths, their base names, or their hashes."`
}

func (c *unpinCommand) Run(ctx context.Context, s *streams) error {
	return eachItem(ctx, s, "unpin", c.Database, c.Items, func(store *opened, hash narinfo.PathHash, name string) error {
		var was bool
		err := store.index.Update(ctx, func(tx *index.Tx) (err error) {
			was, err = tx.Unpin(hash)
			return err
		})
		if err != nil {
			return err
		}
		if was {
			printf(s.out, "unpinned %s\n", name)
		} else {
			printf(s.out, "%s was not pinned\n", name)
		}
		return nil
	})
}

// eachItem calls do for each named item, with its store path if that is known. It prints a
// line for each failure, and continues.
func eachItem(ctx context.Context, s *streams, command, database string, names []string, do func(store *opened, hash narinfo.PathHash, name string) error) (err error) {
	store, err := openExisting(ctx, database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	failed := false
	for _, name := range names {
		hash, err := parseItem(name)
		if err == nil {
			var path string
			if path, err = pathOf(ctx, store, hash); err == nil {
				err = do(store, hash, path)
			}
		}
		if err != nil {
			printf(s.err, "nar-herder: %s %s: %s\n", command, name, oneLine(err))
			failed = true
		}
	}
	if failed {
		return statusFailed
	}
	return nil
}

type pinsCommand struct {
	databaseOption `embed:""`

	JSON bool `group:"output" name:"json" help:"Print each pin as a line of JSON."`
}

// pinned is a pin in JSON.
type pinned struct {
	Hash      string    `json:"hash"`
	StorePath string    `json:"store_path,omitempty"` // if it is known
	PinnedAt  time.Time `json:"pinned_at"`
	// Items and Bytes are those of its closure. Missing counts items of the closure without
	// a narinfo.
	Items   int   `json:"items"`
	Bytes   int64 `json:"bytes"`
	Missing int   `json:"missing"`
}

func (c *pinsCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openForReading(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	pins, err := store.index.Pins(ctx)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(redact.JSON{W: s.out})
	for _, pin := range pins {
		closure, err := store.index.Closure(ctx, []narinfo.PathHash{pin.Hash})
		if err != nil {
			return err
		}
		name, err := pathOf(ctx, store, pin.Hash)
		if err != nil {
			return err
		}
		p := pinned{Hash: pin.Hash.String(), PinnedAt: pin.At, Bytes: closure.Size()}
		p.Items, p.Missing = closure.Len()
		p.Items -= p.Missing
		if name != p.Hash {
			p.StorePath = name
		}
		if c.JSON {
			err = encoder.Encode(p)
		} else {
			_, err = printf(s.out, "%s\tsince %s, %s, %s", name, p.PinnedAt.Format(time.RFC3339), countOf(p.Items, "item"), byteCount(p.Bytes))
			if p.Missing > 0 {
				printf(s.out, ", %d without a narinfo", p.Missing)
			}
			fmt.Fprintln(s.out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
