package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

type listCommand struct {
	databaseOption `embed:""`

	Tag        []tagValue `group:"items" sep:"none" placeholder:"KEY=VALUE" help:"Only items with this tag. May be repeated."`
	Withdrawn  bool       `group:"items" help:"Only withdrawn items, with the time of withdrawal."`
	Since      sinceValue `group:"items" placeholder:"DAY|DURATION" help:"Only items added since this day, YYYY-MM-DD, or within this duration, such as 7d."`
	Unstored   bool       `group:"items" help:"Only items without a nar in the storage."`
	Pinned     bool       `group:"items" help:"Only items with a pin of their own."`
	LargerThan sizeValue  `group:"items" default:"none" placeholder:"BYTES" help:"Only items with more bytes of nars in the storage than this."`
	JSON       bool       `group:"output" name:"json" help:"Print everything known about each item, as a line of JSON."`
}

// Help is shown below the options.
func (listCommand) Help() string {
	return `Items are sorted by name, then by hash. An item must match all options.`
}

// sinceValue is a day, or a duration before now.
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

// listed is an item in JSON.
type listed struct {
	StorePath  string       `json:"store_path"`
	NarHash    string       `json:"nar_hash"`
	NarSize    int64        `json:"nar_size"`
	AddedAt    time.Time    `json:"added_at"`
	References []string     `json:"references"`
	Files      []listedFile `json:"files"`
	Tags       []string     `json:"tags"` // KEY=VALUE each
	// WithdrawnAt is when the item was hidden from clients, and DeleteAfter when it may be
	// deleted.
	WithdrawnAt *time.Time `json:"withdrawn_at,omitempty"`
	DeleteAfter *time.Time `json:"delete_after,omitempty"`
	// VerifiedAt is when the stored nars were last compared with the NarHash; none for never.
	VerifiedAt *time.Time `json:"verified_at,omitempty"`
	Pinned     bool       `json:"pinned,omitempty"` // by a pin of its own
	// Origin is the URL of the upstream that the item came from; "" for none.
	Origin string `json:"origin,omitempty"`
}

type listedFile struct {
	URL         string `json:"url"`
	Compression string `json:"compression"`
	Size        int64  `json:"size"`
	Stored      bool   `json:"stored"`
	Dropped     bool   `json:"dropped,omitempty"`
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
	sorter, err := index.NewSorter(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sorter.Close()) }()
	for item, err := range store.Items(ctx, tags(c.Tag)...) {
		if err != nil {
			return err
		}
		if c.wants(item, pinned) {
			if err := sorter.Add(index.Listed{StorePath: narinfo.StorePath{Hash: item.Hash, Name: item.Narinfo.StorePath.Name}, WithdrawnAt: item.WithdrawnAt, DeleteAfter: item.DeleteAfter}); err != nil {
				return err
			}
		}
	}
	out := bufio.NewWriter(s.out)
	if c.JSON {
		err = c.describeAll(ctx, store, out, sorter.Sorted(ctx), pinned)
		return errors.Join(err, out.Flush())
	}
	for item, err := range sorter.Sorted(ctx) {
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		fmt.Fprint(out, item.StorePath)
		if !item.WithdrawnAt.IsZero() {
			fmt.Fprint(out, "\twithdrawn ", item.WithdrawnAt.Format(time.RFC3339), ", kept until ", item.DeleteAfter.Format(time.RFC3339))
		}
		fmt.Fprintln(out)
	}
	return out.Flush()
}

// wants reports whether the item is listed.
func (c *listCommand) wants(item *storage.Item, pinned map[narinfo.PathHash]bool) bool {
	return item.WithdrawnAt.IsZero() != c.Withdrawn &&
		!item.AddedAt.Before(time.Time(c.Since)) &&
		(!c.Unstored || item.Stored == 0) &&
		(!c.Pinned || pinned[item.Hash]) &&
		(c.LargerThan == noLimit || item.StoredBytes() > int64(c.LargerThan))
}

// listBatch is the number of items to read at a time.
const listBatch = 500

// describeAll writes a JSON object for each item, and skips items that were removed meanwhile.
func (c *listCommand) describeAll(ctx context.Context, store *opened, out *bufio.Writer, sorted iter.Seq2[index.Listed, error], pinned map[narinfo.PathHash]bool) error {
	origins, err := store.index.Origins(ctx)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(redact.JSON{W: out})
	batch := make([]narinfo.PathHash, 0, listBatch)
	write := func() error {
		rows, err := store.index.ItemsAt(ctx, batch)
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
			object.Pinned, object.Origin = pinned[item.Hash], origins[item.Origin]
			if !item.WithdrawnAt.IsZero() {
				object.WithdrawnAt, object.DeleteAfter = &item.WithdrawnAt, &item.DeleteAfter
			}
			if err := encoder.Encode(object); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	for item, err := range sorted {
		if err != nil {
			return err
		}
		if batch = append(batch, item.Hash); len(batch) == listBatch {
			if err := write(); err != nil {
				return err
			}
		}
	}
	return write()
}

func describe(ctx context.Context, store *opened, item *storage.Item) (*listed, error) {
	n := item.Narinfo
	object := &listed{
		StorePath: n.StorePath.String(), NarHash: n.NarHash.String(), NarSize: n.NarSize, AddedAt: item.AddedAt,
		References: []string{}, Tags: []string{},
	}
	for _, reference := range n.References {
		object.References = append(object.References, reference.String())
	}
	if !item.VerifiedAt.IsZero() {
		object.VerifiedAt = &item.VerifiedAt
	}
	for i, file := range n.Files {
		object.Files = append(object.Files, listedFile{file.URL, file.Compression, item.StoredSize(i), item.HasStored(i), item.HasDropped(i)})
	}
	tags, err := store.index.Tags(ctx, item.Hash)
	for _, tag := range tags {
		object.Tags = append(object.Tags, tag.String())
	}
	return object, err
}
