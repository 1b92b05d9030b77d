package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// parseItem takes what people have at hand for a store item.
func parseItem(name string) (narinfo.PathHash, error) {
	base := strings.TrimPrefix(strings.TrimSuffix(name, ".narinfo"), narinfo.StoreDir+"/")
	if hash, err := narinfo.ParsePathHash(base); err == nil {
		return hash, nil
	}
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		return narinfo.PathHash{}, fmt.Errorf("%q is not a store item: name /gnu/store/HASH-NAME, HASH-NAME or HASH", name)
	}
	return path.Hash, nil
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
	for i, file := range n.Files {
		object.Files = append(object.Files, listedFile{file.URL, file.Compression, item.StoredSize(i), item.HasStored(i)})
	}
	tags, err := store.index.Tags(ctx, item.Hash)
	for _, tag := range tags {
		object.Tags = append(object.Tags, tag.String())
	}
	return object, err
}

// openExisting is open for what makes no sense with a new index.
func openExisting(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Write}}, log)
}

// openForReading is openExisting for commands that change nothing in the index. They
// need no permission to write, and don't disturb a server, whatever its version.
func openForReading(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Read}}, log)
}

type statsCommand struct {
	databaseOption `embed:""`

	JSON bool `name:"json" help:"As a JSON object."`
}

func (c *statsCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openForReading(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	totals, err := store.Totals(ctx)
	if err != nil {
		return err
	}
	withdrawn, err1 := store.index.WithdrawnCount(ctx)
	withdrawnUsage, err2 := store.index.WithdrawnStored(ctx)
	pins, err3 := store.index.Pins(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var size int64
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(c.Database + suffix); err == nil {
			size += info.Size()
		}
	}
	if c.JSON {
		return json.NewEncoder(redact.JSON{W: s.out}).Encode(map[string]int64{
			"items": totals.Items, "stored_nars": totals.StoredNars, "stored_bytes": totals.StoredSize, "database_bytes": size,
			"withdrawn_items": withdrawn, "withdrawn_bytes": withdrawnUsage.Size, "pins": int64(len(pins)),
		})
	}
	printf(s.out, "store items      %d\n  withdrawn      %d, %s\n  pinned         %d\nnars in storage  %d, %s\ndatabase         %s\n",
		totals.Items, withdrawn, byteCount(withdrawnUsage.Size), len(pins), totals.StoredNars, byteCount(totals.StoredSize), byteCount(size))
	return nil
}
