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
	"nar-herder/removal"
	"nar-herder/storage"
	"nar-herder/storage/check"
)

type checkCommand struct {
	databaseOption `embed:""`

	Storage    string      `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Verify     bool        `help:"Also decompress each stored nar, and compare it with its NarHash. Goes on where the last one was interrupted."`
	VerifyRate sizeValue   `default:"none" placeholder:"BYTES" help:"How much of the stored nars is read per second at the most (default: ${default})."`
	Restart    bool        `help:"With --verify: begin anew."`
	Closures   bool        `default:"true" negatable:"" help:"Look for items whose references have no narinfo (default: on)."`
	Repair     bool        `argumentsonly:"" help:"Fetch again what is missing or wrong, set aside what is wrong, and make the index true."`
	From       []fromValue `sep:"none" placeholder:"URL" help:"With --repair: another instance to fetch nars from. May be repeated."`

	redirectsOption `embed:""`

	JSON bool `name:"json" help:"Each finding as a JSON object on a line, and the totals as the last one."`
}

// Help is shown below the options.
func (checkCommand) Help() string {
	return `Compares the index with the storage, both ways. Without --repair, nothing is changed, except that --verify records its progress in the index.

Findings, one on a line: "damaged" narinfos, whose text in the index is not the one that was written, so that requests for them fail; "missing" and "wrong size" files that the index has as stored; "corrupt" ones, with --verify; "unrecorded" ones that items name and the index does not have as stored; "unstored" items, no nar of which is in the storage, unless a mirrored instance or one of stored-on has it; "incomplete" items, that refer to others without a narinfo; "unknown", what could not be found out. Mere notices are "stranger" files, which nobody names, "temporary" ones, and what is "quarantined".

With --repair, damaged narinfos are written again, with what is left of them or with what --from has, if that is what was written; else import them again. Files are fetched again with --from, and compared with their NarHash before they are stored. Wrong files are moved to the directory "quarantine" of the storage. So are nars that items name and that are not in the storage. Files that no instance has are no longer recorded as stored; while an instance can't be asked, they are left as they are. Unrecorded files are recorded when they are the right ones. Temporary files go when they are older than a day; in a bucket, the server that owns it removes them as well. Strangers stay.

Exit status: 0, nothing is wrong, or all that was wrong has been repaired; 1, something is wrong and was not repaired; 2, the check could not be completed, or something could not be found out.`
}

func (c *checkCommand) validate() error {
	switch {
	case c.Storage == "" && (c.Verify || c.Repair):
		return errors.New("--verify and --repair are about stored nars: name their directory with --storage")
	case c.Restart && !c.Verify:
		return errors.New("--restart: it is --verify that it begins anew")
	case len(c.From) > 0 && !c.Repair:
		return errors.New("--from: nothing is fetched without --repair")
	case c.VerifyRate == 0:
		return errors.New("--verify-rate=0: nothing would ever be read: name a number of bytes, or none")
	}
	return nil
}

func (c *checkCommand) Run(ctx context.Context, s *streams) error {
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	if err := c.check(ctx, s); err != nil {
		return unknownError{err} // unless it has a status of its own
	}
	return nil
}

func (c *checkCommand) check(ctx context.Context, s *streams) (err error) {
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	openStore := openForReading
	if c.Repair || c.Verify { // which writes down how far it is
		openStore = openExisting
	}
	store, err := openStore(ctx, c.Database, c.Storage, log)
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
		return usagef("the index has %d nars in a storage: name it with --storage", totals.StoredNars)
	}
	report := newCheckReport(s.out, c.JSON)
	checker := check.New(store.Storage)
	relied, err := removal.ReliedOn(ctx, store.index)
	if err != nil {
		return err
	}
	filesOf := make(map[narinfo.PathHash]struct{}) // items with files that were found to be wrong
	var repairer *check.Repairer
	if c.Repair {
		repairer = checker.Repairer(c.repairOptions(store))
	}
	// pass prints what one part of the check finds.
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
					continue // all has been said, and tried
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
	shown := newProgress(s.err, "checking the index", "items", totals.Items)
	pass(shown, checker.CheckIndex(ctx, func() { shown.add(0) }))
	if c.Storage != "" && ctx.Err() == nil {
		shown := newProgress(s.err, "checking", "items and files", totals.Items+totals.StoredNars)
		pass(shown, checker.Compare(ctx, func() { shown.add(0); report.totals.Looked++ }))
	}
	if ctx.Err() == nil {
		shown := newProgress(s.err, "looking for items without nars", "items", totals.Items)
		options := check.UnstoredOptions{Elsewhere: len(relied) > 0, Partial: c.Repair && len(c.From) > 0}
		pass(shown, checker.CheckUnstored(ctx, options, func() { shown.add(0) }))
	}
	if c.Closures && ctx.Err() == nil {
		shown := newProgress(s.err, "checking closures", "items", totals.Items)
		pass(shown, checker.CheckClosures(ctx, func() { shown.add(0) }))
	}
	if c.Verify && ctx.Err() == nil {
		place, err := c.verifyPlace(ctx, s, store)
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
	report.totals.Complete = report.totals.Unknown == 0 && ctx.Err() == nil
	status := report.end()
	if ctx.Err() != nil {
		again := ""
		if c.Verify {
			again = ": the next --verify goes on from here"
		}
		return fmt.Errorf("check: interrupted%s", again)
	}
	if status != 0 {
		return status
	}
	return nil
}

// verifyPlace says where verifying begins, and tells the user.
func (c *checkCommand) verifyPlace(ctx context.Context, s *streams, store *opened) (check.VerifyPosition, error) {
	if c.Restart {
		return check.VerifyPosition{}, nil
	}
	place, err := check.New(store.Storage).VerifyPosition(ctx)
	if err != nil {
		return place, fmt.Errorf("%w with --restart", err)
	}
	if !place.Begun.IsZero() {
		printf(s.err, "verifying: goes on after %d files, %s, of what was begun at %s; --restart would begin anew\n",
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

// decodeNar is a [storage.Decoder].
func decodeNar(ctx context.Context, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	return decodeWithin(ctx, decoderBudget(), kind, compressed, size)
}

// decodeCopied is a [storage.Decoder] for files that are stored while they are decompressed. An upload to a bucket holds
// memory for its parts: if it waited for memory of the budget meanwhile, others that have some could wait for its parts.
func decodeCopied(ctx context.Context, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	return decodeWithin(ctx, nil, kind, compressed, size)
}

func decodeWithin(ctx context.Context, budget *compression.Budget, kind string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	reader, err := budget.NewReader(ctx, kind, compressed, size)
	return storage.MarkUnreadable(reader, err, compression.Refused)
}
