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
	From      string        `group:"storage" required:"" placeholder:"STORAGE" help:"Storage to copy from, in the form of --storage of run-server."`
	To        string        `group:"storage" required:"" placeholder:"STORAGE" help:"Storage to copy to. A directory must exist, since a missing one may not be mounted."`
	Database  string        `group:"storage" placeholder:"FILE" help:"SQLite index with the narinfos to verify nars against, or none to compare only sizes (default: /var/lib/nar-herder/nar_herder.db if it exists)."`
	AtOnce    positiveValue `group:"work" placeholder:"N" help:"Number of files to copy at a time (default: 4, more for remote storages)."`
	Bandwidth sizeValue     `group:"work" default:"none" placeholder:"BYTES" help:"Maximum bytes to read per second (default: ${default})."`
	Compare   bool          `group:"work" help:"Also compare the content of files that both storages have."`
	Replace   bool          `group:"work" argumentsonly:"" help:"Replace files of the target that differ from the source if no narinfo says which is right."`
	DryRun    bool          `group:"work" help:"Change nothing; show what would change."`
	JSON      bool          `group:"output" name:"json" help:"Print each file with a problem as a line of JSON, and the summary as the last line."`
}

// Help is shown below the options.
func (copyStorageCommand) Help() string {
	return `Copies the files that the target lacks. A server may use the source meanwhile. Files that the target has with the same size are skipped, so run the command again to resume after an interruption. Nothing is removed from either storage.

A nar that a narinfo of the database names is decompressed during the copy and compared with its NarHash; a wrong one is not copied. Of other files, only the size is compared. With --database=none that applies to all files, and the copy is as fast as the disks.

Temporary files, symbolic links, the directory "quarantine", and the files that identify a storage are not copied.

Exit status: 0, the target has everything that the source has; 1, files are missing in the target, or the copy was refused or interrupted; 2, a storage or the database failed, so the result is unknown.`
}

// defaultDatabase is the default of --database in other commands.
const defaultDatabase = "/var/lib/nar-herder/nar_herder.db"

func (c *copyStorageCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Bandwidth == 0 {
		return usagef("--bandwidth=0: no file could be read: give a number of bytes, or none")
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
	return c.copy(ctx, s, from, to)
}

// copy copies the files of a byte store to another.
func (c *copyStorageCommand) copy(ctx context.Context, s *streams, from, to bytestore.Store) (err error) {
	progress := newCopyProgress(s.err, c.Compare)
	report := &copyReport{out: s.out, err: s.err, json: c.JSON, progress: progress}
	job := &transfer.Copy{
		From: from, To: to, Concurrency: int(c.AtOnce), Rate: int64(c.Bandwidth),
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
		return errors.New("copy-storage: interrupted: run it again to resume")
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
		printf(s.err, "nar-herder: copy-storage: note: %s and %s have the same name, %s, in their file nar-herder-storage, so other instances take them for the same storage: if you keep using both, remove that file from the copy\n", c.From, c.To, shared)
	}
	if !summary.Complete() {
		return statusFailed
	}
	return nil
}

// isMarked reports whether an instance has used a byte store, even if it has no nars.
func isMarked(ctx context.Context, store bytestore.Store) bool {
	for _, name := range []string{bytestore.OwnerName, bytestore.IdentityName} {
		if _, err := bytestore.ReadNote(ctx, store, name); err == nil {
			return true
		}
	}
	return false
}

// openDatabase opens the index to verify nars with, or returns nil for none.
func (c *copyStorageCommand) openDatabase(ctx context.Context, s *streams) (*opened, error) {
	switch c.Database {
	case "none":
		return nil, nil
	case "":
		if _, err := os.Stat(defaultDatabase); errors.Is(err, fs.ErrNotExist) {
			printf(s.err, "nar-herder: copy-storage: note: %s does not exist: only the sizes of nars are compared; give a --database, or none\n", defaultDatabase)
			return nil, nil
		}
		known, err := openForReading(ctx, defaultDatabase, "", nil)
		if err != nil {
			return nil, fmt.Errorf("%w, or copy without verifying with --database=none", err)
		}
		return known, nil
	}
	return openForReading(ctx, c.Database, "", nil)
}

// mayWrite returns an error if an instance owns the target, unless the database belongs to it:
// only the owner writes to a storage.
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

// refuseOverlap returns an error if one storage is inside the other, as far as their names
// tell: files would be copied without end.
func refuseOverlap(from, to string) error {
	if location.IsBucket(from) != location.IsBucket(to) {
		return nil
	}
	if location.IsBucket(from) {
		// The names may contain secrets, so errors don't show them.
		a, err1 := url.Parse(from)
		b, err2 := url.Parse(to)
		if err1 != nil || err2 != nil || a.Host != b.Host || a.Query().Get("endpoint") != b.Query().Get("endpoint") {
			return nil // the copy itself notices if they are the same
		}
		ours, theirs := strings.Trim(a.Path, "/")+"/", strings.Trim(b.Path, "/")+"/"
		if ours == "/" || theirs == "/" || strings.HasPrefix(ours, theirs) || strings.HasPrefix(theirs, ours) {
			return usagef("--from and --to are the same in bucket %s, or one lies in the other: give prefixes that are apart", a.Host)
		}
		return nil
	}
	overlap, err := disk.Overlap(from, to)
	if err == nil && overlap {
		err = usagef("--from=%s and --to=%s are the same, or one lies in the other: give storages that are apart", from, to)
	}
	return err
}

// copied is a file with a problem, in JSON.
type copied struct {
	Name    string `json:"name"`
	Outcome string `json:"outcome"`
	Size    int64  `json:"size"`
	Error   string `json:"error"`
}

// copyTotals is the summary in JSON.
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
	// Complete means that the target has everything that the source has.
	Complete bool `json:"complete"`
}

func encodeLine(to *json.Encoder, value any) {
	// A closed pipe must not stop the copy.
	_ = to.Encode(value)
}
