package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"strings"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/space"
)

// Addition is an item to be added.
type Addition struct {
	Narinfo *narinfo.Narinfo
	// Directories are searched for files that are not in the storage yet, each under the
	// path in its URL; the first that has one counts. Nothing outside of them is read,
	// wherever links lead.
	Directories []string
	// PublishCache is the cache of 'guix publish' that has the narinfo, "" for none. It is
	// searched last.
	PublishCache string
	// Nars says what becomes of the files that are found there. Keep is short for Copy.
	Nars Nars
	Keep bool
	// Replace adds the nar even if another nar of the item is being served. Clients that
	// hold the old narinfo will fail then.
	Replace bool
	// AllowMissing adds the item if it has at least one of the files that the narinfo names.
	// The others are recorded as dropped.
	AllowMissing bool
	// WithReferences adds the item only if each of its references has a narinfo.
	WithReferences bool
	Tags           []index.Tag
	// Decode decompresses each file that is added, to compare it with the NarHash; nil adds
	// files unverified.
	Decode narcheck.Decoder

	// verifying is called for the bytes of files that are verified; may be nil.
	verifying func(bytes int64)
	// planned says that the same import may add missing references.
	planned bool
}

var (
	// errLeaving is returned within a transaction.
	errLeaving = errors.New("another nar of this item is withdrawn, and is removed when no client can hold its narinfo: add this one then, or now with --replace")
	// errBatch says that another item of the batch may be the cause.
	errBatch = errors.New("written together with others")
)

// errMissingReferences is returned before anything is stored, or within a transaction.
type errMissingReferences []narinfo.StorePath

func (e errMissingReferences) Error() string {
	names := make([]string, 0, 3)
	for i, path := range e {
		if i == 3 {
			names = append(names, fmt.Sprintf("and %d more", len(e)-i))
			break
		}
		names = append(names, path.BaseName())
	}
	return "no narinfo for its references: " + strings.Join(names, ", ")
}

// Add adds one item: its bytes first, then its row.
func (im *Importer) Add(ctx context.Context, addition *Addition) Result {
	p := im.addAlone(ctx, nil, func() *prepared { return im.prepare(ctx, addition) })
	im.discardFresh(ctx, p)
	return p.result
}

// addAlone commits one addition. It is prepared again whenever another process adds or
// removes the same item in between. fresh is from an earlier attempt.
func (im *Importer) addAlone(ctx context.Context, fresh []string, prepare func() *prepared) *prepared {
	const tries = 10 // each may copy a nar for nothing
	var p *prepared
	for range tries {
		if p != nil {
			fresh = p.fresh
		}
		p = prepare()
		p.fresh = fresh
		if p.result.Err == nil {
			im.commit(ctx, []*prepared{p})
		}
		if !errors.Is(p.result.Err, storage.ErrChanged) {
			break
		}
	}
	return p
}

// commit commits the bytes of all additions and writes their rows in one transaction, so
// that no other process sees or changes anything in between. The transaction ends
// after the bytes are in place and flushed.
func (im *Importer) commit(ctx context.Context, batch []*prepared) {
	replaced := replacing.NewBatch(im.Now())
	if err := im.unclaim(ctx, batch, replaced); err != nil {
		if len(batch) > 1 {
			err = fmt.Errorf("%w: %w", errBatch, err)
		}
		failAll(batch, err)
		return
	}
	if im.showLarge(ctx, batch, replaced); allFailed(batch) {
		im.undo(ctx, replaced)
		return
	}
	err := errAgain
	for errors.Is(err, errAgain) {
		err = im.index.Update(ctx, func(tx *index.Tx) error { return im.commitAllIn(ctx, tx, batch, replaced) })
	}
	if err != nil {
		im.undo(ctx, replaced)
		if len(batch) > 1 {
			// One item may be the cause. The others can't just be committed again one
			// by one: their bytes may be visible by now, and an item can be in the batch
			// twice.
			err = fmt.Errorf("%w: %w", errBatch, err)
		}
		failAll(batch, err)
		return
	}
	var obsolete []string
	for _, p := range batch {
		p.abort() // drop unused bytes
		obsolete = append(obsolete, p.obsolete...)
		if p.result.Err != nil || p.result.Outcome == Kept {
			continue
		}
		for _, file := range p.moved {
			if err := file.Remove(); err != nil {
				im.log.Warn("a nar was imported, but its old name could not be removed", "file", file, "error", err)
			}
		}
	}
	if _, _, err := im.DeleteUnclaimed(ctx, obsolete, 0); err != nil {
		im.log.Warn("files that no narinfo names any more could not be removed from the storage", "error", err)
	}
}

// commitAllIn is the transaction of a batch, in which single items may fail. It returns
// errAgain, before any bytes are visible, if others depended on items that failed.
func (im *Importer) commitAllIn(ctx context.Context, tx *index.Tx, batch []*prepared, replaced *replacing.Batch) error {
	replaced.BeginAnew()
	var late []func(context.Context) error
	for _, p := range batch {
		if p.result.Err == nil {
			err := im.commitOne(ctx, tx, p, replaced, &late)
			if errors.Is(err, storage.ErrChanged) || errors.Is(err, errLeaving) || errors.Is(err, space.ErrLimit) || errors.Is(err, space.ErrFreeSpace) {
				p.fail(err)
			} else if err != nil {
				return fmt.Errorf("%s: %w", p.Narinfo.StorePath.BaseName(), err)
			}
		}
		if p.result.Err != nil {
			if err := replaced.Restore(tx, &p.Narinfo.StorePath.Hash); err != nil {
				return err
			}
		}
	}
	// Not earlier, because the items may refer to each other in any order.
	if err := checkReferences(tx, batch); err != nil {
		return err
	}
	if err := replaced.Finish(tx); err != nil {
		return err
	}
	if im.bytes == nil {
		return nil
	}
	// After the rows, which are invisible before the end of the transaction, so that many
	// files are committed concurrently.
	var size, locked int64
	for _, p := range batch {
		size += p.bytes
		locked += p.lockedBytes()
	}
	bounded, cancel := im.WithLockDeadline(ctx, locked)
	defer cancel()
	if size > 0 {
		// Another instance may have become the owner meanwhile.
		if err := im.MayAdd(bounded, replacesAny(batch)); err != nil {
			return err
		}
	}
	failures := im.Each(len(late), func(i int) error { return late[i](bounded) })
	if err := firstOf(failures); err != nil {
		return err
	}
	return im.bytes.Sync(ctx)
}

// checkReferences fails items that refer to items without rows. It returns errAgain then,
// as their own rows must not be written.
func checkReferences(tx *index.Tx, batch []*prepared) error {
	again := false
	for _, p := range batch {
		if p.result.Err != nil || !p.WithReferences {
			continue
		}
		missing, err := tx.Missing(p.Narinfo.OtherReferences())
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			p.fail(errMissingReferences(missing))
			again = true
		}
	}
	if again {
		return errAgain
	}
	return nil
}

func replacesAny(batch []*prepared) bool {
	return slices.ContainsFunc(batch, func(p *prepared) bool { return p.replaces })
}

func allFailed(batch []*prepared) bool {
	return !slices.ContainsFunc(batch, func(p *prepared) bool { return p.result.Err == nil })
}

// firstOf returns the first error: a store that fails repeats it for the other files.
func firstOf(failures []error) error {
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

func failAll(batch []*prepared, err error) {
	for _, p := range batch {
		if p.result.Err == nil {
			p.fail(err)
		}
	}
}

// unclaim unclaims files that are about to be replaced. It is a transaction of its own: if
// the next one fails halfway, no row claims bytes of another nar.
func (im *Importer) unclaim(ctx context.Context, batch []*prepared, replaced *replacing.Batch) error {
	var affected []*prepared
	for _, p := range batch {
		if p.result.Err == nil && p.old != nil && slices.ContainsFunc(p.staged, func(staged bytestore.Staged) bool { return staged != nil }) {
			affected = append(affected, p)
		}
	}
	if len(affected) == 0 {
		return nil
	}
	return im.index.Update(ctx, func(tx *index.Tx) error {
		for _, p := range affected {
			if err := p.unclaim(tx, replaced); err != nil {
				return err
			}
		}
		return nil
	})
}

// commitOne decides the outcome of an addition within the transaction. It appends the commits
// of bytes to late.
func (im *Importer) commitOne(ctx context.Context, tx *index.Tx, p *prepared, replaced *replacing.Batch, late *[]func(context.Context) error) error {
	n := p.Narinfo
	row, err := tx.Item(n.StorePath.Hash)
	var damage *index.Damage
	if errors.As(err, &damage) {
		p.result.Note = "its narinfo in the database was damaged"
		row, err = tx.Renew(damage, p.entry)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if row == nil && (p.passed || p.claimed != 0) {
		return storage.ErrChanged
	}
	if row == nil {
		p.result.Outcome = Added
		return im.put(ctx, tx, p, nil, replaced, late)
	}
	old, err := storage.NewItem(row)
	if err != nil {
		return err
	}
	if p.passed && old.Narinfo.NarHash == n.NarHash || !p.stillClaimed(old) || !p.stillMissing(old) {
		return storage.ErrChanged
	}
	withdrawn := !old.WithdrawnAt.IsZero()
	switch {
	case bytes.Equal(old.Text, n.Text) && withdrawn:
		p.result.Outcome = Completed
		p.result.Note = "it was about to be removed, and stays"
		return im.put(ctx, tx, p, old, replaced, late)
	case bytes.Equal(old.Text, n.Text):
		p.result.Outcome = Known
		// Entries have sizes only for files without FileSize.
		if p.entry.Stored&^old.Stored != 0 || p.entry.Stored != 0 && !slices.Equal(p.entry.Sizes, old.Sizes) || p.mends(old) {
			p.result.Outcome = Completed
			if err := im.show(ctx, tx, p, old, replaced, late); err != nil {
				return err
			}
			if err := p.setStored(tx, old); err != nil {
				return err
			}
		}
		if err := p.setDropped(tx, old); err != nil {
			return err
		}
		if old.Origin != 0 { // it is this instance's own now
			if err := tx.SetOrigin(old.Hash, 0, time.Time{}); err != nil {
				return err
			}
		}
		return tx.AddTags(old.Hash, p.Tags)
	case p.losesSignature(old) && !withdrawn:
		p.result.Outcome = Kept
		p.result.Note = "its narinfo is signed, and this one is not: sign it, or use --replace"
		return nil
	case old.Narinfo.NarHash == n.NarHash:
		p.result.Outcome = Updated
		p.result.Note = "the same nar was known with another narinfo, which this one replaces"
		return im.put(ctx, tx, p, old, replaced, late)
	case p.Replace:
		p.result.Outcome = Replaced
		p.result.Note = fmt.Sprintf("the nar %s was served before, now %s is", old.Narinfo.NarHash, n.NarHash)
		return im.put(ctx, tx, p, old, replaced, late)
	}
	if withdrawn {
		// The old nar can't be kept, since it is withdrawn, nor replaced, since clients may
		// hold its narinfo.
		return errLeaving
	}
	p.result.Outcome = Kept
	p.result.Note = fmt.Sprintf("the nar %s is being served; %s was not imported, use --replace to replace the old one", old.Narinfo.NarHash, n.NarHash)
	return nil
}

// put schedules the commits of an addition's bytes and writes its row.
func (im *Importer) put(ctx context.Context, tx *index.Tx, p *prepared, old *storage.Item, replaced *replacing.Batch, late *[]func(context.Context) error) error {
	if err := im.show(ctx, tx, p, old, replaced, late); err != nil {
		return err
	}
	var row *index.Item
	if old != nil {
		row = old.Item
		// Files that only the old narinfo names are obsolete.
		if im.bytes == nil {
			storage.CarryStored(p.entry, old)
		} else {
			p.obsolete = old.NarNames()
			if err := tx.AddPendingDeletes(p.obsolete); err != nil {
				return err
			}
		}
	}
	if im.bytes != nil {
		p.entry.VerifiedAt = p.verifiedAt(old)
	}
	if err := tx.Put(p.entry, row); err != nil {
		return err
	}
	p.result.Missing = bits.OnesCount64(p.entry.Dropped)
	return tx.AddTags(p.Narinfo.StorePath.Hash, p.Tags)
}

// show schedules the commit of an addition's staged bytes. It also schedules another look at
// files that were in the storage before: they may have been removed or replaced since.
//
// old is the item's row, nil for none. Bytes that it claims are never replaced: unclaim has
// unclaimed those that will be.
func (im *Importer) show(ctx context.Context, tx *index.Tx, p *prepared, old *storage.Item, replaced *replacing.Batch, late *[]func(context.Context) error) error {
	if p.bytes > 0 {
		if err := im.CheckIn(tx, p.bytes); err != nil {
			return err
		}
	}
	for n, staged := range p.staged {
		if staged == nil || old == nil {
			continue
		}
		name, err := p.Narinfo.Files[n].Path()
		if err != nil {
			return err
		}
		i := old.FileNamed(name)
		if i < 0 {
			continue
		}
		if may, err := p.mayReplace(tx, replaced, n, old, i, name); err != nil {
			return err
		} else if !may {
			return storage.ErrChanged
		}
	}
	for n, staged := range p.staged {
		if staged != nil {
			name, err := p.Narinfo.Files[n].Path()
			if err != nil {
				return err
			}
			replaced.Show(name)
			if early := p.early[n]; early != nil {
				*late = append(*late, func(ctx context.Context) error { return im.IsUnchanged(ctx, name, *early) })
				continue
			}
			*late = append(*late, func(ctx context.Context) error {
				replaced.Begin(name)
				return staged.Commit(ctx)
			})
			continue
		}
		if p.entry.Stored&(1<<n) == 0 || im.bytes == nil {
			continue
		}
		*late = append(*late, func(ctx context.Context) error { return im.isStill(ctx, p, n) })
	}
	p.result.Bytes, p.result.Unverified = p.bytes, p.unverified()
	return nil
}

// setStored records the files of an addition in the row of the same narinfo.
func (p *prepared) setStored(tx *index.Tx, row *storage.Item) error {
	stored := p.entry.Stored | row.Stored
	var added time.Time
	if p.unverified() == 0 {
		added = p.begun
	}
	if err := tx.SetStored(row.Hash, stored, p.entry.Sizes, added); err != nil || stored&^p.verified != 0 {
		return err
	}
	return tx.SetVerified(row.Hash, p.begun)
}

// isStill returns an error unless the Nth file of an addition, which was found in the
// storage, is still there.
func (im *Importer) isStill(ctx context.Context, p *prepared, n int) error {
	name, err := p.Narinfo.Files[n].Path()
	if err != nil {
		return err
	}
	if p.seen[n] != nil {
		return im.IsUnchanged(ctx, name, *p.seen[n])
	}
	info, err := im.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size != index.FileSize(p.Narinfo, n, p.entry.Sizes) {
		err = storage.ErrChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.Narinfo.StorePath.BaseName(), err)
	}
	return nil
}
