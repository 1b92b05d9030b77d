package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"nar-herder/internal/redact"
)

type statsCommand struct {
	databaseOption `embed:""`

	JSON bool `name:"json" help:"Print JSON."`
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
