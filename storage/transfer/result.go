package transfer

import (
	"context"
	"fmt"
	"nar-herder/storage/bytestore"
)

// Outcome is the outcome for one file.
type Outcome int

const (
	// Failed: it could not be copied or looked up.
	Failed Outcome = iota
	// Copied: it was copied, or would be without DryRun.
	Copied
	// There: the target had it already.
	There
	// Gone: it was removed from the source during the run.
	Gone
	// Wrong: the source's file doesn't match its item, and was not copied.
	Wrong
	// Differs: the target's file differs, and no item says which one is right.
	Differs
)

func (o Outcome) String() string {
	return [...]string{"failed", "copied", "there", "gone", "wrong", "differs"}[o]
}

// Result describes the outcome for one file.
type Result struct {
	Name    string
	Outcome Outcome
	// Size is its length in bytes in the source.
	Size int64
	// Verified means that the file matches its item's NarHash.
	Verified bool
	// Replaced means that it has replaced a different file in the target.
	Replaced bool
	// Err is set for the outcomes Failed, Wrong and Differs.
	Err error

	side side // that failed
	read bool // it was read completely from both stores, or copied
	kept bool // the target needs a Sync
}

// side is the cause of a failure.
type side int

const (
	nobody side = iota // the file alone
	source
	target
	index
	sides
)

// Summary counts files and their bytes.
type Summary struct {
	Files, Bytes [Differs + 1]int64 // by their outcome
	// Verified and Replaced count copied files.
	Verified, Replaced int64
}

func (s *Summary) count(r Result) {
	s.Files[r.Outcome]++
	s.Bytes[r.Outcome] += r.Size
	if r.Outcome == Copied && r.Verified {
		s.Verified++
	}
	if r.Outcome == Copied && r.Replaced {
		s.Replaced++
	}
}

// Complete reports whether the target has all files of the source.
func (s *Summary) Complete() bool { return s.Files[Failed]+s.Files[Wrong]+s.Files[Differs] == 0 }

// hopeless checks, after some failures in a row, whether the store or the index still
// works, and returns an error that ends the run if not. Otherwise each of the remaining
// files might fail after a timeout of its own.
func (r *run) hopeless(ctx context.Context, last Result, failures int) error {
	var err error
	switch last.side {
	case target:
		if err = r.To.Probe(ctx); err != nil || failures >= manyInRow {
			break
		}
		return nil
	case source:
		// Bad files are not a reason to stop. Not Probe: the source may be read-only.
		if err = readable(ctx, r.From); err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = last.Err
	}
	const text = "%w: the last %d files have failed: %w: run it again when that is fixed, and it resumes"
	return fmt.Errorf(text, ErrStore, failures, err)
}

// readable returns an error if the store can't be listed.
func readable(ctx context.Context, store bytestore.Store) error {
	for info, err := range store.List(ctx) {
		if err != nil && info.Name == "" {
			return err
		}
		break
	}
	return nil
}
