package main

import (
	"context"
	"fmt"
	"log/slog"

	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
)

type importCommand struct {
	databaseOption `embed:""`

	Storage               string     `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	NarinfosOnly          bool       `argumentsonly:"" help:"Import narinfos without nars, if another server has the nars. Excludes --storage."`
	Tag                   []tagValue `sep:"none" placeholder:"KEY=VALUE" help:"Tag to add to the items. May be repeated."`
	EnsureReferencesExist bool       `help:"Refuse items that refer to items without a narinfo."`
	Keep                  bool       `help:"Copy nars into the storage instead of moving them."`
	Replace               bool       `argumentsonly:"" help:"Replace the nar of an item that is already served."`

	importSigningOptions `embed:""`

	Names []string `arg:"" name:"file-or-directory" help:"Narinfo files, or directories to search for narinfo files."`
}

// importCache is the page cache of the writer, since imports touch the whole index of hashes.
const importCache = 128 << 20

func (c *importCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" && !c.NarinfosOnly {
		return usagef("import: no --storage is given, so no nar could be served: add --storage, or --narinfos-only if another server has the nars")
	}
	if c.Storage != "" && c.NarinfosOnly {
		return usagef("--narinfos-only and --storage=%s exclude each other: use one of them, or --storage= if the environment or a file sets the storage", c.Storage)
	}
	sign, err := c.signUnsigned()
	if err != nil {
		return err
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := open(ctx, c.Database, c.Storage, opening{Options: index.Options{WriterCache: importCache, Bulk: true}, policy: owner.Always}, log)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := store.close(); err == nil {
			err = closeErr
		}
	}()
	if store.claim != nil {
		if err := store.claim.Acquire(ctx); err != nil {
			return err
		}
	}
	progress := newProgress(s.err, "importing", "narinfos", 0)
	var summary importer.Summary
	err = importer.New(store.Storage).Import(ctx, c.Names, importer.Options{
		Keep: c.Keep, Replace: c.Replace, WithReferences: c.EnsureReferencesExist, Tags: tags(c.Tag), Sign: sign,
	}, func(imported importer.Imported) {
		summary.Count(imported.Result)
		progress.add(imported.Bytes)
		if imported.Outcome == importer.Failed {
			progress.clear()
			printf(s.err, "nar-herder: import %s: %v\n", imported.File, imported.Err)
		} else if imported.Outcome != importer.Added && imported.Outcome != importer.Known {
			progress.clear()
			printf(s.out, "%s: %s", imported.File, imported.Outcome)
			if imported.Note != "" {
				printf(s.out, ": %s", imported.Note)
			}
			fmt.Fprintln(s.out)
		}
	})
	progress.end()
	printf(s.out, "%s; %s of nars added to the storage\n", &summary, byteCount(summary.Bytes))
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if summary.Outcomes[importer.Failed] > 0 {
		return statusFailed
	}
	return nil
}
