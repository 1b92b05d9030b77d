package main

import (
	"context"
	"fmt"
	"log/slog"

	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/indexmetrics"
	"nar-herder/storage/owner"
)

type importCommand struct {
	databaseOption `embed:""`
	keyOptions     `embed:""`

	Storage               string     `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	NarinfosOnly          bool       `argumentsonly:"" help:"Import narinfos without nars, if another server has the nars. Excludes --storage."`
	Tag                   []tagValue `sep:"none" placeholder:"KEY=VALUE" help:"Tag to add to the items. May be repeated."`
	EnsureReferencesExist bool       `help:"Refuse items that refer to items without a narinfo."`
	Nars                  string     `enum:"auto,move,copy,link" default:"auto" placeholder:"auto|move|copy|link" help:"How to add nars to the storage: move, copy or hard-link them (default: ${default}). auto links those of a cache of 'guix publish', which may be in use, and moves others. Nars that can't be moved or linked are copied."`
	Keep                  bool       `help:"The same as --nars=copy."`
	AllowMissingFiles     bool       `argumentsonly:"" help:"Import items that have at least one of the nars that their narinfo names. The others are recorded as dropped."`
	Replace               bool       `argumentsonly:"" help:"Replace the nar of an item that is already served."`
	NoVerify              bool       `argumentsonly:"" help:"Don't decompress nars to compare them with their NarHash. For moving terabytes; 'check --verify' reads them later."`

	importSigningOptions `embed:""`

	Names []string `arg:"" name:"file-or-directory" help:"Narinfo files, or directories to search for narinfo files."`
}

// narsOptions are the values of --nars.
var narsOptions = map[string]importer.Nars{"auto": importer.ByLayout, "move": importer.Move, "copy": importer.Copy, "link": importer.Link}

// importCache is the page cache of the writer, since imports touch the whole index of hashes.
const importCache = 128 << 20

func (c *importCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" && !c.NarinfosOnly {
		return usagef("import: no --storage is given, so no nar could be served: add --storage, or --narinfos-only if another server has the nars")
	}
	if c.Storage != "" && c.NarinfosOnly {
		return usagef("--narinfos-only and --storage=%s exclude each other: use one of them, or --storage= if the environment or a file sets the storage", c.Storage)
	}
	if c.Keep && c.Nars != "auto" && c.Nars != "copy" {
		return usagef("--keep copies nars, --nars=%s doesn't: use one of them", c.Nars)
	}
	keys, err := c.keys()
	if err != nil {
		return err
	}
	sign, err := c.signUnsigned()
	if err != nil {
		return err
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := open(ctx, c.Database, c.Storage, opening{Options: index.Options{WriterCache: importCache, Bulk: true}, policy: owner.Always, keys: keys}, log)
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
	options := importer.Options{
		Nars: narsOptions[c.Nars], Keep: c.Keep, Replace: c.Replace, AllowMissing: c.AllowMissingFiles,
		WithReferences: c.EnsureReferencesExist, Tags: tags(c.Tag), Sign: sign,
	}
	if !c.NoVerify {
		options.Decode, options.Verifying = decodeNar, progress.moved
	}
	var summary importer.Summary
	err = importer.New(store.Storage).Import(ctx, c.Names, options, func(imported importer.Imported) {
		summary.Count(imported.Result)
		if c.NoVerify {
			progress.add(imported.Bytes)
		} else {
			progress.add(0) // its bytes were counted as they were verified
		}
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
	if summary.Unsigned > 0 {
		printf(s.err, "nar-herder: warning: %s imported without a signature: clients refuse narinfos that no key has signed; --acl or --authorized-key would refuse them here\n", countOf(summary.Unsigned, "narinfo"))
	}
	if summary.Unverified > 0 {
		printf(s.out, "%s not verified; next: nar-herder check --verify\n", countOf(summary.Unverified, "nar"))
	}
	if summary.Missing > 0 {
		printf(s.out, "%s missing, and recorded as dropped: the items are served without them\n", countOf(summary.Missing, "nar"))
	}
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	recordEnd(ctx, store, indexmetrics.Import, log)
	if summary.Outcomes[importer.Failed] > 0 {
		return statusFailed
	}
	return nil
}
