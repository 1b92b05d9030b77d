package transfer

import (
	"context"
	"fmt"
	"nar-herder/storage/bytestore"
)

// Outcome is what came of a file.
type Outcome int

const (
	// Failed: it could not be copied, or nothing could be found out about it.
	Failed Outcome = iota
	// Copied: it is in the target now, or would be after a dry run.
	Copied
	// There: the target had it already.
	There
	// Gone: it went from the source meanwhile.
	Gone
	// Wrong: what the source has is not what its item says, and was not copied.
	Wrong
	// Differs: the target has another, and no item says which one is right.
	Differs
)

func (o Outcome) String() string {
	return [...]string{"failed", "copied", "there", "gone", "wrong", "differs"}[o]
}

// Result is about one file.
type Result struct {
	Name    string
	Outcome Outcome
	// Size is its length in bytes in the source.
	Size int64
	// Verified says that all of it was compared with its item's NarHash.
	Verified bool
	// Replaced says that the target had another before.
	Replaced bool
	// Err says what is wrong, with the outcomes Failed, Wrong and Differs.
	Err error

	side side // who failed
	read bool // all of it went through both stores
	kept bool // a sync of the target has to follow
}

// side is who a failure is of.
type side int

const (
	nobody side = iota // of the file alone
	source
	target
	index
	sides
)

// Summary counts files and their bytes.
type Summary struct {
	Files, Bytes [Differs + 1]int64 // by their outcome
	// Verified and Replaced are how many of the copied ones were.
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

// Complete says that the target has all that the source had.
func (s *Summary) Complete() bool { return s.Files[Failed]+s.Files[Wrong]+s.Files[Differs] == 0 }

// hopeless finds out, after some failures in a row, whether going on is of any
// use. There are as many others as there are files, or more, who would fail the
// same way, each after its time.
func (r *run) hopeless(ctx context.Context, last Result, failures int) error {
	var err error
	switch last.side {
	case target:
		if err = r.To.Probe(ctx); err != nil || failures >= manyInRow {
			break
		}
		return nil
	case source:
		// Bad files are no reason; it need not be possible to write there, as for Probe.
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
	const text = "%w: the last %d files have failed: %w: what was copied stays: run it again when that is mended"
	return fmt.Errorf(text, ErrStore, failures, err)
}

// readable says whether a store as a whole can be read.
func readable(ctx context.Context, store bytestore.Store) error {
	for info, err := range store.List(ctx) {
		if err != nil && info.Name == "" {
			return err
		}
		break
	}
	return nil
}
