package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"time"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/dependence"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/check/closures"
	"nar-herder/storage/index"
	"nar-herder/storage/indexmetrics"
	"nar-herder/storage/narcheck"
)

type checkCommand struct {
	databaseOption `embed:""`
	keyOptions     `embed:""`

	Storage    string          `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Verify     bool            `help:"Also decompress each stored nar and compare it with its NarHash. Resumes an interrupted run."`
	VerifyRate sizeValue       `default:"none" placeholder:"BYTES" help:"Maximum bytes of nars to read per second (default: ${default})."`
	Restart    bool            `help:"With --verify: start over instead of resuming."`
	Closures   bool            `default:"true" negatable:"" help:"Report items that refer to items without a narinfo (default: on)."`
	Repair     bool            `argumentsonly:"" help:"Fetch missing and wrong nars again, quarantine wrong files, and correct the index."`
	From       []instanceValue `sep:"none" placeholder:"URL" help:"With --repair: instance to fetch nars from. May be repeated."`
	ClosureOf  []string        `argumentsonly:"" sep:"none" placeholder:"STORE-PATH" help:"Only check that this item, and everything that it refers to, is in the index and the storage; - reads a text with store paths from standard input. May be repeated."`

	redirectsOption `embed:""`

	JSON bool `name:"json" help:"Print each finding as a line of JSON, and the totals as the last line."`
}

// Help is shown below the options.
func (checkCommand) Help() string {
	return `Compares the index with the storage in both directions. Without --repair, nothing changes, except that --verify records in the index which items it has verified.

Findings, one per line:

    damaged        a narinfo with a wrong checksum in the index; requests for it fail
    missing        a file that the index records as stored
    wrong size     likewise
    corrupt        a stored nar with a wrong hash (with --verify)
    unrecorded     a file that an item names and the index does not record as stored
    unstored       an item without a stored nar that no mirrored or stored-on instance or upstream has
    incomplete     an item without a narinfo, or one that refers to such items
    bad signature  a narinfo that its signature doesn't match
    unsigned       a narinfo without a signature (with keys)
    unauthorized   a narinfo that none of the keys has signed (with keys)
    unknown        something could not be checked
    stranger       only a notice: a file that no item names
    temporary      only a notice: an unfinished file
    quarantined    only a notice: a file in quarantine

With --closure-of, items without a stored nar are findings even if another instance or an upstream has it. 'fetch' reads the findings, and fetches what is missing.

With --repair, a damaged narinfo is restored from what is left of it or from --from, if the checksum confirms the text; otherwise import it again. Missing and unstored nars are fetched from --from and compared with their NarHash before they are stored. Wrong files are moved to the directory "quarantine" of the storage. Files that no instance has are no longer recorded as stored, but they stay recorded while an instance does not answer. Unrecorded files are recorded if they are correct. Signatures can't be repaired: import a narinfo with a good one, or remove the item. Temporary files older than a day are removed; in a bucket, the owner's server removes them too. Strangers stay.

Exit status: 0, nothing is wrong, or everything was repaired; 1, something is wrong and was not repaired; 2, the check is incomplete.`
}

func (c *checkCommand) validate() error {
	switch {
	case c.Storage == "" && (c.Verify || c.Repair):
		return errors.New("--verify and --repair need the stored nars: add --storage")
	case c.Restart && !c.Verify:
		return errors.New("--restart needs --verify")
	case len(c.ClosureOf) > 0 && (c.Verify || c.Repair || !c.Closures):
		return errors.New("--closure-of excludes --verify, --repair and --no-closures")
	case len(c.From) > 0 && !c.Repair:
		return errors.New("--from needs --repair")
	case c.VerifyRate == 0:
		return errors.New("--verify-rate=0: no nar could be read: give a number of bytes, or none")
	}
	return nil
}

func (c *checkCommand) Run(ctx context.Context, s *streams) error {
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	if err := c.check(ctx, s); err != nil {
		return unknownError{err} // a statusError keeps its own status
	}
	return nil
}

func (c *checkCommand) check(ctx context.Context, s *streams) (err error) {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	var roots []narinfo.StorePath
	if len(c.ClosureOf) > 0 {
		if roots, err = c.roots(ctx, s); err != nil {
			return err
		}
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	access := index.Read
	if c.Repair || c.Verify { // --verify records its progress
		access = index.Write
	}
	store, err := open(ctx, c.Database, c.Storage, opening{Options: index.Options{Access: access}, keys: keys}, log)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := store.close(); closeErr != nil {
			err = closeErr
		}
	}()
	if err := store.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) || err != nil && c.Repair {
		return err
	}
	totals, err := store.Totals(ctx)
	if err != nil {
		return err
	}
	if c.Storage == "" && totals.StoredNars > 0 {
		return usagef("the index has %d nars in a storage: add --storage", totals.StoredNars)
	}
	report := newCheckReport(s.out, c.JSON)
	checker := check.New(store.Storage)
	dependencies, err := dependence.Recorded(ctx, store.index)
	if err != nil {
		return err
	}
	filesOf := make(map[narinfo.PathHash]struct{}) // items with missing or wrong files
	var repairer *check.Repairer
	if c.Repair {
		options := c.repairOptions(store)
		options.Hide = func(item *storage.Item) bool { return len(dependencies) == 0 && !item.Mirrored }
		repairer = checker.Repairer(options)
	}
	// pass reports the findings of one part of the check.
	pass := func(shown *progress, findings iter.Seq2[check.Finding, error]) {
		for finding, err := range findings {
			if ctx.Err() != nil {
				break
			}
			if finding.Item != nil && (finding.Kind == check.Missing || finding.Kind == check.WrongSize) {
				filesOf[finding.Item.Hash] = struct{}{}
			}
			if finding.Kind == check.Unstored {
				if _, done := filesOf[finding.Item.Hash]; done {
					continue // its files are reported already
				}
			}
			shown.clear()
			var repair *check.Repair
			if repairer != nil && err == nil {
				done := repairer.Repair(ctx, finding)
				repair = &done
			}
			report.add(finding, err, repair)
		}
		shown.end()
	}
	if roots != nil {
		shown := newProgress(s.err, "checking", "items", 0)
		pass(shown, closures.Of(ctx, store.Storage, roots, func() { shown.add(0); report.totals.Looked++ }))
		return c.end(ctx, report)
	}
	shown := newProgress(s.err, "checking the index", "items", totals.Items)
	pass(shown, checker.CheckIndex(ctx, func() { shown.add(0) }))
	if c.Storage != "" && ctx.Err() == nil {
		shown := newProgress(s.err, "checking", "items and files", totals.Items+totals.StoredNars)
		pass(shown, checker.Compare(ctx, func() { shown.add(0); report.totals.Looked++ }))
	}
	if ctx.Err() == nil {
		shown := newProgress(s.err, "looking for items without nars", "items", totals.Items)
		options := check.UnstoredOptions{Elsewhere: len(dependencies) > 0, Partial: c.Repair && len(c.From) > 0}
		pass(shown, checker.CheckUnstored(ctx, options, func() { shown.add(0) }))
	}
	if c.Closures && ctx.Err() == nil {
		shown := newProgress(s.err, "checking closures", "items", totals.Items)
		pass(shown, closures.All(ctx, store.Storage, func() { shown.add(0) }))
	}
	if ctx.Err() == nil {
		shown := newProgress(s.err, "verifying signatures", "items", totals.Items)
		pass(shown, checker.CheckSignatures(ctx, func() { shown.add(0) }))
	}
	if c.Verify && ctx.Err() == nil {
		place, err := c.verifyPosition(ctx, s, store)
		if err != nil {
			return err
		}
		shown := newProgress(s.err, "verifying", "files", totals.StoredNars-place.Files)
		pass(shown, checker.Verify(ctx, check.VerifyOptions{
			Decode: decodeNar, Rate: int64(c.VerifyRate), From: place,
			Looked: func(bytes int64) {
				shown.add(bytes)
				report.totals.VerifiedFiles++
				report.totals.VerifiedBytes += bytes
			},
		}))
	}
	err = c.end(ctx, report)
	if access == index.Write && ctx.Err() == nil && report.totals.Complete {
		recordEnd(ctx, store, indexmetrics.Check, log)
	}
	return err
}

// end prints the totals, and returns the exit status as an error.
func (c *checkCommand) end(ctx context.Context, report *checkReport) error {
	report.totals.Complete = report.totals.Unknown == 0 && ctx.Err() == nil
	status := report.end()
	if ctx.Err() != nil {
		again := ""
		if c.Verify {
			again = ": the next --verify resumes here"
		}
		return fmt.Errorf("check: interrupted%s", again)
	}
	if status != 0 {
		return status
	}
	return nil
}

// roots returns the items of --closure-of.
func (c *checkCommand) roots(ctx context.Context, s *streams) ([]narinfo.StorePath, error) {
	list, err := readPaths(ctx, s, c.ClosureOf)
	if err != nil {
		return nil, err
	}
	if len(list.Invalid) > 0 {
		return nil, fmt.Errorf("check: %q on standard input is not a store item", list.Invalid[0])
	}
	if len(list.Paths) == 0 {
		return nil, errors.New("check: no store item is named, so there is nothing to check")
	}
	return list.Paths, nil
}

// verifyPosition returns where verification starts, and reports that it resumes.
func (c *checkCommand) verifyPosition(ctx context.Context, s *streams, store *opened) (check.VerifyPosition, error) {
	if c.Restart {
		return check.VerifyPosition{}, nil
	}
	place, err := check.New(store.Storage).VerifyPosition(ctx)
	if err != nil {
		return place, fmt.Errorf("%w with --restart", err)
	}
	if !place.Begun.IsZero() {
		printf(s.err, "verifying: resumes after %d files, %s, of the run begun at %s; --restart starts over\n",
			place.Files, byteCount(place.Bytes), place.Begun.Local().Format(time.DateTime))
	}
	return place, nil
}

func (c *checkCommand) repairOptions(store *opened) check.RepairOptions {
	options := check.RepairOptions{Decode: decodeNar, Rate: int64(c.VerifyRate)}
	for _, from := range c.From {
		options.Sources = append(options.Sources, peerSource{peer.New(from.url.URL, peer.Self{Instance: store.index.Instance(), AllowPrivateRedirects: c.AllowPrivateRedirects})})
	}
	return options
}

// peerSource fetches whole files from another instance.
type peerSource struct{ *peer.Peer }

// Fetch implements [check.Source].
func (p peerSource) Fetch(ctx context.Context, item *storage.Item, n int) (io.ReadCloser, error) {
	body, _, err := p.OpenFile(ctx, item, n, 0, -1, nil)
	return body, err
}

// decodeNar is a [narcheck.Decoder].
func decodeNar(ctx context.Context, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	return decodeWithin(ctx, decoderBudget(), kind, compressed, size)
}

// decodeCopied is a [narcheck.Decoder] without a budget, for files that are stored while they
// are decompressed. An upload to a bucket holds memory for its parts; waiting for memory of a
// budget at the same time could deadlock.
func decodeCopied(ctx context.Context, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	return decodeWithin(ctx, nil, kind, compressed, size)
}

func decodeWithin(ctx context.Context, budget *compression.Budget, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	reader, err := budget.NewReader(ctx, kind, compressed, size)
	return narcheck.MarkUnreadable(reader, err, compression.Refused)
}
