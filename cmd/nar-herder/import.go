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
	NarinfosOnly          bool       `argumentsonly:"" help:"Import narinfos without their nars, for an index whose nars are served from elsewhere, in the place of --storage."`
	Tag                   []tagValue `sep:"none" placeholder:"KEY=VALUE" help:"Tag for the items. May be repeated."`
	EnsureReferencesExist bool       `help:"Refuse items that refer to others without a narinfo."`
	Keep                  bool       `help:"Copy nars into the storage, where they are moved otherwise."`
	Replace               bool       `argumentsonly:"" help:"Take another nar of an item that is being served already."`

	Names []string `arg:"" name:"file-or-directory" help:"Narinfo files, or directories to search for them."`
}

// importCache is the writer's page cache for imports: they touch all of the
// index of hashes.
const importCache = 128 << 20

func (c *importCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" && !c.NarinfosOnly {
		return usagef("import: no --storage is given, so no nar could be served: name the storage, or use --narinfos-only if the nars are served from elsewhere")
	}
	if c.Storage != "" && c.NarinfosOnly {
		return usagef("--narinfos-only: with --storage=%s, nars are imported as well: use one of the two, or --storage= if the storage is named in the environment or a file", c.Storage)
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
		Keep: c.Keep, Replace: c.Replace, WithReferences: c.EnsureReferencesExist, Tags: tags(c.Tag),
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
	printf(s.out, "%s; %s of nars came into the storage\n", &summary, byteCount(summary.Bytes))
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if summary.Outcomes[importer.Failed] > 0 {
		return statusFailed
	}
	return nil
}
