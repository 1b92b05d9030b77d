package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"nar-herder/internal/redact"
)

type statsCommand struct {
	databaseOption `embed:""`

	JSON bool `group:"output" name:"json" help:"Print JSON."`
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
	verification, err4 := store.index.Verification(ctx)
	dropped, err5 := store.index.DroppedPending(ctx)
	upstreams, err6 := store.index.OriginCounts(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return err
	}
	var size, ofUpstreams int64
	for _, count := range upstreams {
		ofUpstreams += count
	}
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(c.Database + suffix); err == nil {
			size += info.Size()
		}
	}
	if c.JSON {
		figures := map[string]int64{
			"items": totals.Items, "stored_nars": totals.StoredNars, "stored_bytes": totals.StoredSize, "database_bytes": size,
			"withdrawn_items": withdrawn, "withdrawn_bytes": withdrawnUsage.Size, "pins": int64(len(pins)), "upstream_items": ofUpstreams, "never_verified_items": verification.Never,
			"dropped_pending_items": dropped.Items,
		}
		if !verification.Oldest.IsZero() {
			figures["oldest_verification_timestamp_seconds"] = verification.Oldest.Unix()
		}
		return json.NewEncoder(redact.JSON{W: s.out}).Encode(figures)
	}
	verified := countOf(int(verification.Never), "item")
	if !verification.Oldest.IsZero() {
		verified += "; the others since " + verification.Oldest.Local().Format(time.DateTime) + " or later"
	}
	printf(s.out, "store items      %d\n  withdrawn      %d, %s\n  pinned         %d\n", totals.Items, withdrawn, byteCount(withdrawnUsage.Size), len(pins))
	for _, url := range slices.Sorted(maps.Keys(upstreams)) {
		printf(s.out, "  of upstream    %d, %s\n", upstreams[url], url)
	}
	printf(s.out, "nars in storage  %d, %s\n  never verified %s\ndatabase         %s\n",
		totals.StoredNars, byteCount(totals.StoredSize), verified, byteCount(size))
	if dropped.Items > 0 {
		printf(s.out, "dropped files of %s are deleted from %s to %s\n", countOf(int(dropped.Items), "item"), dropped.First.Local().Format(time.DateTime), dropped.Last.Local().Format(time.DateTime))
	}
	return nil
}
