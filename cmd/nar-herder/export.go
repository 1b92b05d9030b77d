package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/export"
	"nar-herder/storage/location"
)

type exportCommand struct {
	databaseOption `embed:""`

	Storage      string      `group:"storage" required:"" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Tag          []tagValue  `group:"items" argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Only items with this tag. May be repeated: then items with all of them."`
	ClosureOf    []itemValue `group:"items" argumentsonly:"" sep:"none" placeholder:"ITEM" help:"Only this item and everything it refers to. May be repeated."`
	Delete       bool        `group:"work" argumentsonly:"" help:"Remove files from the directory that are no longer exported."`
	AcceptLoss   bool        `group:"work" argumentsonly:"" help:"Let --delete remove more than a tenth of the directory."`
	Adopt        bool        `group:"work" argumentsonly:"" help:"Use a directory with files that no export wrote. Narinfos and nars in it may be replaced and removed."`
	DryRun       bool        `group:"work" help:"Change nothing; show what would change."`
	Copy         bool        `group:"work" help:"Copy nars instead of making hard links."`
	AllowMissing bool        `group:"work" help:"Skip items without stored nars, without an error."`
	Directory    string      `arg:"" name:"directory" help:"Directory to write to. It is created if it does not exist."`
}

// itemValue is a store item in any form that parseItem accepts.
type itemValue narinfo.PathHash

func (v *itemValue) UnmarshalText(text []byte) error {
	hash, err := parseItem(string(text))
	*v = itemValue(hash)
	return err
}

// listedFailures is the number of failed items that are listed.
const listedFailures = 20

func (c *exportCommand) Run(ctx context.Context, s *streams) (err error) {
	if len(c.Tag) > 0 && len(c.ClosureOf) > 0 {
		return usagef("--tag and --closure-of exclude each other, since a part of a closure is not a closure: use one of them")
	}
	if c.AcceptLoss && !c.Delete {
		return usagef("--accept-loss needs --delete")
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := openForReading(ctx, c.Database, c.Storage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := store.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
		return err
	}
	var roots []narinfo.PathHash
	for _, item := range c.ClosureOf {
		roots = append(roots, narinfo.PathHash(item))
	}
	all := int64(0)
	if len(c.Tag) == 0 && roots == nil {
		totals, err := store.Totals(ctx)
		if err != nil {
			return err
		}
		all = totals.Items
	}
	bar := newProgress(s.err, "exporting", "narinfos", all)
	listed := 0
	e := &export.Export{
		Storage: store.Storage, StorageDirectory: location.Directory(c.Storage),
		Tags: tags(c.Tag), ClosureOf: roots, Delete: c.Delete, AcceptLoss: c.AcceptLoss, Adopt: c.Adopt, DryRun: c.DryRun, Copy: c.Copy,
		Report: func(r export.Result) {
			bar.add(r.Bytes)
			if r.Err == nil || r.Outcome == export.Skipped && c.AllowMissing {
				return
			}
			if listed++; listed <= listedFailures {
				bar.clear()
				printf(s.err, "nar-herder: export %s: %s\n", r.Name, oneLine(r.Err))
			}
		},
	}
	sweeping := false
	e.Swept = func(files int) {
		if !sweeping {
			sweeping = true
			bar.end()
			bar = newProgress(s.err, "sweeping", "files", 0)
		}
		for range files {
			bar.add(0)
		}
	}
	summary, err := e.To(ctx, c.Directory)
	bar.end()
	if more := listed - listedFailures; more > 0 {
		printf(s.err, "nar-herder: export: and %d more\n", more)
	}
	if err == nil || summary != (export.Summary{}) {
		c.report(s.out, &summary)
	}
	if err != nil {
		return err
	}
	if summary.Failed > 0 || summary.Skipped > 0 && !c.AllowMissing {
		return statusFailed
	}
	return nil
}

// report prints the summary.
func (c *exportCommand) report(out io.Writer, s *export.Summary) {
	would := ""
	if c.DryRun {
		would = "would be: "
	}
	printf(out, "%s%d items exported: %d new, %d changed, %d as before\n", would, s.Added+s.Updated+s.Unchanged, s.Added, s.Updated, s.Unchanged)
	if c.DryRun {
		printf(out, "%s%d nars linked or copied, %s\n", would, s.Linked+s.Copied, byteCount(s.LinkedBytes+s.CopiedBytes))
	} else {
		printf(out, "%d nars linked, %s; %d copied, %s\n", s.Linked, byteCount(s.LinkedBytes), s.Copied, byteCount(s.CopiedBytes))
	}
	if s.Skipped+s.Withdrawn+s.Failed > 0 {
		printf(out, "not exported: %d without their nars or narinfos, %d withdrawn, %d failed\n", s.Skipped, s.Withdrawn, s.Failed)
	}
	switch {
	case s.StaleNarinfos+s.StaleNars == 0:
	case c.Delete:
		printf(out, "%s%d narinfos and %d files of nars, %s, removed because no longer exported\n", would, s.StaleNarinfos, s.StaleNars, byteCount(s.StaleBytes))
	default:
		printf(out, "%d narinfos and %d files of nars, %s, are no longer exported and were left: --delete removes them\n", s.StaleNarinfos, s.StaleNars, byteCount(s.StaleBytes))
	}
}
