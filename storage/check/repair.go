package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/unfinished"
)

// Source provides files again, such as another instance.
type Source interface {
	// Fetch opens an item's Nth file. The bytes may be wrong: they are checked before they
	// are stored. The error is [storage.ErrNotStored] if the source certainly doesn't have
	// the file.
	Fetch(ctx context.Context, item *storage.Item, n int) (io.ReadCloser, error)
	// Narinfo returns the item's narinfo, which may have further lines at its end, or
	// [storage.ErrNotFound].
	Narinfo(ctx context.Context, hash narinfo.PathHash) ([]byte, error)
	// String names the source to operators.
	String() string
}

// RepairOptions are for [Checker.Repairer].
type RepairOptions struct {
	Decode narcheck.Decoder
	// Sources are tried in this order.
	Sources []Source
	// Rate is as in [VerifyOptions], for files of the storage that are read.
	Rate int64
	// Hide reports whether to hide the narinfo of an item without stored files from clients,
	// which would get 404 for its nars: no source and no other instance has them. Nil never
	// hides any.
	Hide func(item *storage.Item) bool
	// Withhold moves wrong files to the quarantine while it is unknown whether a source has
	// the right ones. The index still has them as stored, so that requests for them fail.
	Withhold bool
}

// Repair is the result of repairing a finding.
type Repair struct {
	Outcome RepairOutcome
	// Mended says that the finding is resolved.
	Mended bool
	// Note has details.
	Note string
	// Err says why more could not be done.
	Err error
	// Bytes is the number of bytes that were fetched.
	Bytes int64
	// Quarantined is the name of the file in quarantine that was written; "" for none.
	Quarantined string

	// unsure says that a source which did not answer may have the file.
	unsure bool
}

// RepairOutcome says what was done.
type RepairOutcome int

const (
	// Untouched: nothing has changed.
	Untouched RepairOutcome = iota
	// Fetched: the right file came from a source. A wrong one is in quarantine.
	Fetched
	// Recorded: the file is the right one, and the index has it as stored.
	Recorded
	// SetAside: the file is in quarantine, and the index no longer has it as stored.
	SetAside
	// Unclaimed: the index no longer has the file as stored.
	Unclaimed
	// Deleted: the file was deleted.
	Deleted
	// Rewritten: the damaged part of the index was rewritten.
	Rewritten
	// Withheld: the file is in quarantine, and the index has it as stored; see
	// [RepairOptions.Withhold].
	Withheld
)

func (o RepairOutcome) String() string {
	return [...]string{"untouched", "fetched", "recorded", "set aside", "unclaimed", "deleted", "rewritten", "withheld"}[o]
}

// Repairer repairs findings. It is used by one goroutine at a time.
//
// It changes nothing that is unknown, stores nothing that is not the nar of its narinfo,
// and deletes only temporary files: wrong files are moved to the folder "quarantine" of
// the storage.
type Repairer struct {
	c       *Checker
	options RepairOptions
	reading *pace.Limiter
}

// Repairer makes a Repairer.
func (c *Checker) Repairer(options RepairOptions) *Repairer {
	return &Repairer{c: c, options: options, reading: &pace.Limiter{Rate: options.Rate}}
}

// Repair repairs a finding as far as possible. If row or file have changed since, it does
// nothing.
func (r *Repairer) Repair(ctx context.Context, finding Finding) (repair Repair) {
	if finding.Kind == Damaged { // not about files
		return r.damaged(ctx, finding.Damage)
	}
	if finding.Kind.IsAboutSignature() {
		return repair // only another narinfo would help
	}
	if err := r.c.MayDelete(ctx); err != nil {
		return Repair{Err: err}
	}
	switch finding.Kind {
	case Missing:
		repair = r.missing(ctx, finding)
	case WrongSize, Corrupt:
		repair = r.wrong(ctx, finding)
	case Unrecorded:
		repair = r.unrecorded(ctx, finding)
	case Unstored:
		repair = r.unstored(ctx, finding)
	case Temporary:
		switch removed, err := unfinished.Remove(ctx, r.c.Storage, finding.info); {
		case err != nil:
			repair = Repair{Err: err}
		case !removed:
			repair = Repair{Note: "may still be being written"}
		default:
			repair = Repair{Outcome: Deleted, Mended: true}
		}
	}
	return repair
}

// damaged rewrites damaged texts of the index, from their remains or from a source.
func (r *Repairer) damaged(ctx context.Context, damage *index.Damage) (repair Repair) {
	mend := func(text []byte) {
		repair.Err = errors.Join(repair.Err, r.c.index.Update(ctx, func(tx *index.Tx) (err error) {
			repair.Mended, err = tx.Mend(damage, text)
			return err
		}))
		if repair.Mended {
			repair.Outcome = Rewritten
		}
	}
	if mend(nil); repair.Mended || damage.Dictionary != 0 || damage.Change != 0 || damage.Cached != "" {
		return repair
	}
	for _, source := range r.options.Sources {
		text, err := source.Narinfo(ctx, damage.Hash)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err == nil {
			err = r.c.admit(text, damage.Hash)
		}
		if err != nil {
			repair.Err = errors.Join(repair.Err, fmt.Errorf("%s: %w", source, err))
			continue
		}
		if mend(text); repair.Mended {
			repair.Note, repair.Err = "from "+source.String(), nil
			return repair
		}
	}
	repair.Note = "no source has the text that was written: import it again"
	return repair
}

// admit returns an error unless a narinfo of a source may be written: a checksum detects damage,
// but a source could make another text match it.
func (c *Checker) admit(text []byte, hash narinfo.PathHash) error {
	n, err := storage.Admit(text)
	if err != nil {
		return err
	}
	if n.StorePath.Hash != hash {
		return fmt.Errorf("it answers with the narinfo of %s", n.StorePath)
	}
	return c.authorized(n)
}

// errUnsure says that a source which did not answer may have the file.
var errUnsure = errors.New("unchanged until all sources have answered: try again then, or without the sources that no longer exist")

// missing fetches a file, or unclaims it.
func (r *Repairer) missing(ctx context.Context, finding Finding) Repair {
	fetched, repair := r.fetch(ctx, finding)
	if repair.Err != nil {
		return repair
	}
	if fetched != nil {
		return r.restore(ctx, finding, fetched, repair)
	}
	if repair.unsure {
		repair.Err = errUnsure
		return repair
	}
	// If the storage isn't mounted, all files seem to be missing.
	if there, err := r.c.HasAny(ctx); err != nil {
		repair.Err = err
		return repair
	} else if !there {
		repair.Err = fmt.Errorf("storage %s has none of the files that the index has there: is it mounted? The index was not changed; if the nars are lost, as with their disk, run 'nar-herder claim-storage --accept-loss'", r.c.bytes)
		return repair
	}
	if err := r.unclaim(ctx, finding); err != nil {
		repair.Err = err
		return repair
	}
	repair.Outcome = Unclaimed
	return repair
}

// wrong replaces a wrong file, or moves it to the quarantine.
func (r *Repairer) wrong(ctx context.Context, finding Finding) Repair {
	fetched, repair := r.fetch(ctx, finding)
	if repair.Err != nil {
		return repair
	}
	if fetched == nil && finding.Kind == Corrupt {
		// Without another copy, don't depend on a single reading.
		err := r.verify(ctx, finding)
		if err == nil {
			return Repair{Mended: true, Note: "it is right when it is read again: inspect the memory and the disk"}
		}
		if !errors.Is(err, narcheck.ErrWrongNar) && !errors.Is(err, bytestore.ErrDamaged) {
			repair.Err = err
			return repair
		}
	}
	if fetched == nil && repair.unsure {
		if repair.Err = errUnsure; !r.options.Withhold {
			return repair
		}
		if err := r.c.withhold(ctx, finding); err != nil {
			repair.Err = errors.Join(errUnsure, err)
			return repair
		}
		repair.Outcome, repair.Quarantined = Withheld, bytestore.QuarantineFolder+finding.Name
		return repair
	}
	if fetched == nil {
		// Unclaim it first: from then on, no client gets the wrong bytes.
		if repair.Err = r.unclaim(ctx, finding); repair.Err != nil {
			return repair
		}
		repair.Outcome = Unclaimed
		if repair.Err = r.c.setAside(ctx, finding); repair.Err == nil {
			repair.Outcome, repair.Quarantined = SetAside, bytestore.QuarantineFolder+finding.Name
		}
		return repair
	}
	// The right file replaces the wrong one atomically, so the row can keep its claim.
	switch err := r.c.copyToQuarantine(ctx, finding); {
	case err == nil:
		repair.Quarantined = bytestore.QuarantineFolder + finding.Name
	case !errors.Is(err, bytestore.ErrDamaged): // else the store itself can't read it
		fetched.Abort()
		repair.Err = err
		return repair
	}
	return r.restore(ctx, finding, fetched, repair)
}

// unrecorded records a file in the index if it is the right one.
func (r *Repairer) unrecorded(ctx context.Context, finding Finding) Repair {
	c, item := r.c, finding.Item
	n := item.FileNamed(finding.Name)
	err := r.verify(ctx, finding)
	if errors.Is(err, narcheck.ErrWrongNar) || errors.Is(err, bytestore.ErrWrongSize) {
		if c.Now().Sub(finding.info.ModTime) < unfinished.AbandonedAfter {
			return Repair{Err: fmt.Errorf("%w; it may still be being written", err)}
		}
		if mayErr := c.MayDelete(ctx); mayErr != nil {
			return Repair{Err: mayErr, Note: err.Error()}
		}
		if setErr := c.setAside(ctx, finding); setErr != nil {
			return Repair{Err: setErr}
		}
		return Repair{Outcome: SetAside, Mended: true, Note: err.Error(), Quarantined: bytestore.QuarantineFolder + finding.Name}
	}
	if err == nil {
		err = c.record(ctx, finding, n)
	}
	if err != nil {
		return Repair{Err: err}
	}
	return Repair{Outcome: Recorded, Mended: true}
}

// verify compares the stored file of a finding with the NarHash.
func (r *Repairer) verify(ctx context.Context, finding Finding) error {
	n := finding.Item.FileNamed(finding.Name)
	if want := finding.Item.Narinfo.Files[n].Size; want >= 0 && finding.info.Size != want {
		return fmt.Errorf("%w: %d bytes, should be %d", bytestore.ErrWrongSize, finding.info.Size, want)
	}
	reader, info, err := r.c.bytes.Open(ctx, finding.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return errMeanwhile
	} else if err != nil {
		return err
	}
	defer reader.Close()
	if !info.IsSame(finding.info) {
		return errMeanwhile
	}
	return narcheck.Check(ctx, finding.Item.Narinfo, n, r.reading.Reader(ctx, io.LimitReader(reader, info.Size)), r.options.Decode)
}

// restore commits a fetched file.
func (r *Repairer) restore(ctx context.Context, finding Finding, fetched bytestore.Staged, repair Repair) Repair {
	defer fetched.Abort()
	if err := r.c.restore(ctx, finding, fetched, repair.Bytes); err != nil {
		repair.Err = err
		return repair
	}
	repair.Outcome, repair.Mended = Fetched, true
	return repair
}
