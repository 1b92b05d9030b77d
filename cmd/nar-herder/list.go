package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

type listCommand struct {
	databaseOption `embed:""`

	Tag        []tagValue `sep:"none" placeholder:"KEY=VALUE" help:"Only items that have the tag. May be repeated."`
	Withdrawn  bool       `help:"Only items that are about to be removed, and since when."`
	Since      sinceValue `placeholder:"DAY|DURATION" help:"Only items that were added on this day, YYYY-MM-DD, or later, or within this time, such as 7d."`
	Unstored   bool       `help:"Only items without a nar in the storage."`
	Pinned     bool       `help:"Only items that are pinned themselves."`
	LargerThan sizeValue  `default:"none" placeholder:"BYTES" help:"Only items whose nars in the storage have more bytes than this."`
	JSON       bool       `name:"json" help:"All that is known of each item, as a JSON object on a line."`
}

// Help is shown below the options.
func (listCommand) Help() string {
	return `Items are sorted by name, then by hash. Each option leaves out more of them.`
}

// sinceValue is a time in the past: a day, or how long ago.
type sinceValue time.Time

func (v *sinceValue) UnmarshalText(text []byte) error {
	day, err := time.Parse(time.DateOnly, string(text))
	if err != nil {
		ago, err := narinfo.ParseDuration(string(text))
		if err != nil {
			return fmt.Errorf("want a day, YYYY-MM-DD, or a duration, such as 7d: %w", err)
		}
		day = time.Now().Add(-ago)
	}
	*v = sinceValue(day)
	return nil
}

// listed is an item for programs.
type listed struct {
	StorePath  string       `json:"store_path"`
	NarHash    string       `json:"nar_hash"`
	NarSize    int64        `json:"nar_size"`
	AddedAt    time.Time    `json:"added_at"`
	References []string     `json:"references"`
	Files      []listedFile `json:"files"`
	Tags       []string     `json:"tags"` // KEY=VALUE each
	// WithdrawnAt is since when the item is hidden from clients, and DeleteAfter from
	// when on it may be deleted.
	WithdrawnAt *time.Time `json:"withdrawn_at,omitempty"`
	DeleteAfter *time.Time `json:"delete_after,omitempty"`
	Pinned      bool       `json:"pinned,omitempty"` // itself
}

type listedFile struct {
	URL         string `json:"url"`
	Compression string `json:"compression"`
	Size        int64  `json:"size"`
	Stored      bool   `json:"stored"`
}

// listEntry is what is kept of each item to sort them.
type listEntry struct {
	name      string
	hash      narinfo.PathHash
	withdrawn int64 // in seconds; 0 if it is not
	kept      int64 // until then, in seconds
}

func (c *listCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openForReading(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	pins, err := store.index.Pins(ctx)
	if err != nil {
		return err
	}
	pinned := make(map[narinfo.PathHash]bool, len(pins))
	for _, pin := range pins {
		pinned[pin.Hash] = true
	}
	var entries []listEntry
	for item, err := range store.Items(ctx, tags(c.Tag)...) {
		if err != nil {
			return err
		}
		if c.wants(item, pinned) {
			entry := listEntry{name: strings.Clone(item.Narinfo.StorePath.Name), hash: item.Hash}
			if !item.WithdrawnAt.IsZero() {
				entry.withdrawn, entry.kept = item.WithdrawnAt.Unix(), item.DeleteAfter.Unix()
			}
			entries = append(entries, entry)
		}
	}
	slices.SortFunc(entries, func(a, b listEntry) int {
		return cmp.Or(cmp.Compare(a.name, b.name), slices.Compare(a.hash[:], b.hash[:]))
	})
	out := bufio.NewWriter(s.out)
	if c.JSON {
		err = c.describeAll(ctx, store, out, entries, pinned)
		return errors.Join(err, out.Flush())
	}
	for _, entry := range entries {
		fmt.Fprint(out, narinfo.StorePath{Hash: entry.hash, Name: entry.name})
		if entry.withdrawn != 0 {
			fmt.Fprint(out, "\twithdrawn ", time.Unix(entry.withdrawn, 0).UTC().Format(time.RFC3339), ", kept until ", time.Unix(entry.kept, 0).UTC().Format(time.RFC3339))
		}
		fmt.Fprintln(out)
	}
	return out.Flush()
}

// wants says whether the item is listed.
func (c *listCommand) wants(item *storage.Item, pinned map[narinfo.PathHash]bool) bool {
	return item.WithdrawnAt.IsZero() != c.Withdrawn &&
		!item.AddedAt.Before(time.Time(c.Since)) &&
		(!c.Unstored || item.Stored == 0) &&
		(!c.Pinned || pinned[item.Hash]) &&
		(c.LargerThan == noLimit || item.StoredBytes() > int64(c.LargerThan))
}

// listBatch is how many items are read together.
const listBatch = 500

// describeAll writes an object for each item. Those that were removed meanwhile are
// skipped.
func (c *listCommand) describeAll(ctx context.Context, store *opened, out *bufio.Writer, entries []listEntry, pinned map[narinfo.PathHash]bool) error {
	encoder := json.NewEncoder(redact.JSON{W: out})
	for batch := range slices.Chunk(entries, listBatch) {
		hashes := make([]narinfo.PathHash, len(batch))
		for i, entry := range batch {
			hashes[i] = entry.hash
		}
		rows, err := store.index.ItemsAt(ctx, hashes)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row == nil {
				continue
			}
			item, err := storage.NewItem(row)
			if err != nil {
				return err
			}
			object, err := describe(ctx, store, item)
			if err != nil {
				return err
			}
			object.Pinned = pinned[item.Hash]
			if !item.WithdrawnAt.IsZero() {
				object.WithdrawnAt, object.DeleteAfter = &item.WithdrawnAt, &item.DeleteAfter
			}
			if err := encoder.Encode(object); err != nil {
				return err
			}
		}
	}
	return nil
}
