package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"nar-herder/internal/disk"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
	"nar-herder/storage/transfer"
)

type copyStorageCommand struct {
	From      string        `required:"" placeholder:"STORAGE" help:"The storage to copy, as --storage of run-server names it."`
	To        string        `required:"" placeholder:"STORAGE" help:"The storage to copy to. A directory must be there: it could be one that is not mounted."`
	Database  string        `placeholder:"FILE" help:"The SQLite index by whose narinfos nars are verified; none to compare sizes alone (default: /var/lib/nar-herder/nar_herder.db where there is one)."`
	AtOnce    positiveValue `placeholder:"N" help:"How many files are copied at a time (default: 4, more for storages far away)."`
	Bandwidth sizeValue     `default:"none" placeholder:"BYTES" help:"How much is read per second at the most (default: ${default})."`
	Compare   bool          `help:"Also read what both storages have, and compare it."`
	Replace   bool          `argumentsonly:"" help:"Take the source's where the target has another file and no narinfo says which is right."`
	DryRun    bool          `help:"Change nothing, and tell what would be."`
	JSON      bool          `name:"json" help:"Each file that is not as it should be as a JSON object on a line, and the summary as the last one."`
}

// Help is shown below the options.
func (copyStorageCommand) Help() string {
	return `Copies what the target lacks, beside a running server if need be. What the target has already, by its size, is passed over: a run that was interrupted or killed is gone on with by running it again. Nothing is removed from either storage.

A nar that a narinfo of the database names is decompressed on its way and compared with its NarHash, and is not copied when it is another. Of others, the size is all that is compared. With --database=none that holds for all, and it goes as fast as the disks.

Not copied are temporary files, symbolic links, the folder "quarantine", and what tells one storage from another.

Exit status: 0, the target has all that the source has; 1, it lacks some of it, or the copy was refused or interrupted; 2, a storage or the database does not work, so that what the target lacks is not known.`
}

// usualDatabase is what --database is where it isn't given, in other commands.
const usualDatabase = "/var/lib/nar-herder/nar_herder.db"

func (c *copyStorageCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Bandwidth == 0 {
		return usagef("--bandwidth=0: nothing would ever be read: name a number of bytes, or none")
	}
	if err := errors.Join(validateStorage("--from", c.From), validateStorage("--to", c.To)); err != nil {
		return err
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	from, err := location.Open(ctx, c.From, log)
	if err != nil {
		return unknownError{fmt.Errorf("--from: %w", err)}
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := location.Open(ctx, c.To, log)
	if err != nil {
		return unknownError{fmt.Errorf("--to: %w", err)}
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := refuseOverlap(c.From, c.To); err != nil {
		return err
	}
	progress := newCopyProgress(s.err, c.Compare)
	report := &copyReport{out: s.out, err: s.err, json: c.JSON, progress: progress}
	job := &transfer.Copy{
		From: from, To: to, AtOnce: int(c.AtOnce), Rate: int64(c.Bandwidth),
		Compare: c.Compare, Replace: c.Replace, DryRun: c.DryRun,
		Report: report.file, Moved: progress.moved, Listed: progress.listed,
	}
	known, err := c.openDatabase(ctx, s)
	if err != nil {
		return unknownError{err}
	}
	if known != nil {
		defer func() { err = errors.Join(err, known.close()) }()
		totals, err := known.Totals(ctx)
		if err != nil {
			return err
		}
		progress.expect(totals.StoredNars, totals.StoredSize)
		job.Items, job.Decode = known, decodeCopied
	}
	if !c.DryRun {
		if err := c.mayWrite(ctx, to, known); err != nil {
			return err
		}
	}
	summary, err := job.Run(ctx)
	progress.end()
	if errors.Is(err, transfer.ErrSame) {
		return err
	}
	switch {
	case ctx.Err() != nil:
		report.summary(c, &summary, false)
		return errors.New("copy-storage: interrupted: another run goes on where this one stopped")
	case err != nil:
		report.summary(c, &summary, false)
		fmt.Fprintln(s.err, "nar-herder: copy-storage:", oneLine(err))
		return statusUnknown
	}
	if summary.Files == [len(summary.Files)]int64{} && !isMarked(ctx, from) {
		return unknownError{fmt.Errorf("--from: storage %s has no files to copy: is it mounted?", from)}
	}
	report.summary(c, &summary, summary.Complete())
	if shared, err := job.SharedIdentity(ctx); err == nil && shared != "" {
		printf(s.err, "nar-herder: copy-storage: note: %s and %s have the same name, %s, in their file nar-herder-storage, so that other instances take them for one: remove that file from the one that is the copy, if both go on\n", c.From, c.To, shared)
	}
	if !summary.Complete() {
		return statusFailed
	}
	return nil
}

// isMarked reports whether an instance has used a byte store, which may be empty then.
func isMarked(ctx context.Context, store bytestore.Store) bool {
	for _, name := range []string{bytestore.OwnerName, bytestore.IdentityName} {
		if _, err := bytestore.ReadNote(ctx, store, name); err == nil {
			return true
		}
	}
	return false
}

// openDatabase opens the index that nars are verified with; nil for none.
func (c *copyStorageCommand) openDatabase(ctx context.Context, s *streams) (*opened, error) {
	switch c.Database {
	case "none":
		return nil, nil
	case "":
		if _, err := os.Stat(usualDatabase); errors.Is(err, fs.ErrNotExist) {
			printf(s.err, "nar-herder: copy-storage: note: there is no %s: nars are not verified but for their sizes; --database names one, or none\n", usualDatabase)
			return nil, nil
		}
		known, err := openForReading(ctx, usualDatabase, "", nil)
		if err != nil {
			return nil, fmt.Errorf("%w, or copy without verifying with --database=none", err)
		}
		return known, nil
	}
	return openForReading(ctx, c.Database, "", nil)
}

// mayWrite refuses a target that another instance owns than the one whose index is
// used: it alone writes there, and would have strangers' files in it.
func (c *copyStorageCommand) mayWrite(ctx context.Context, to bytestore.Store, known *opened) error {
	found, err := owner.Read(ctx, to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("read the owner of storage %s: %w", to, err)
	case known == nil || known.Instance() != found.Instance:
		return fmt.Errorf("%w: %s belongs to %s: name its index with --database, or, if that instance is gone for good, see 'nar-herder help claim-storage'", storage.ErrNotOwner, to, found)
	}
	return nil
}

// refuseOverlap makes sure that neither of two storages lies in the other, as far
// as their names tell: a copy would be copied again, without end.
func refuseOverlap(from, to string) error {
	if location.IsBucket(from) != location.IsBucket(to) {
		return nil
	}
	if location.IsBucket(from) {
		// Both could be opened. The names may have more in them than should be shown.
		a, err1 := url.Parse(from)
		b, err2 := url.Parse(to)
		if err1 != nil || err2 != nil || a.Host != b.Host || a.Query().Get("endpoint") != b.Query().Get("endpoint") {
			return nil // and if they are one all the same, that is found out by writing
		}
		ours, theirs := strings.Trim(a.Path, "/")+"/", strings.Trim(b.Path, "/")+"/"
		if ours == "/" || theirs == "/" || strings.HasPrefix(ours, theirs) || strings.HasPrefix(theirs, ours) {
			return usagef("--from and --to are the same in bucket %s, or one lies in the other: name two prefixes that are apart", a.Host)
		}
		return nil
	}
	overlap, err := disk.Overlap(from, to)
	if err == nil && overlap {
		err = usagef("--from=%s and --to=%s are the same, or one lies in the other: name two that are apart", from, to)
	}
	return err
}

// copied is a file that is not as it should be, for programs.
type copied struct {
	Name    string `json:"name"`
	Outcome string `json:"outcome"`
	Size    int64  `json:"size"`
	Error   string `json:"error"`
}

// copyTotals is the summary for programs.
type copyTotals struct {
	Copied      int64 `json:"copied"`
	CopiedBytes int64 `json:"copied_bytes"`
	Verified    int64 `json:"verified"`
	Replaced    int64 `json:"replaced"`
	There       int64 `json:"there"`
	ThereBytes  int64 `json:"there_bytes"`
	Gone        int64 `json:"gone"`
	Wrong       int64 `json:"wrong"`
	Differ      int64 `json:"differ"`
	Failed      int64 `json:"failed"`
	// Complete says that the target has all that the source has.
	Complete bool `json:"complete"`
}

func encodeLine(to *json.Encoder, value any) {
	// Of a pipe that nobody reads any more: the copy is what counts.
	_ = to.Encode(value)
}
