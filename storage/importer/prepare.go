package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/importer/source"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// prepared is an addition with staged bytes, ready for its transaction.
type prepared struct {
	*Addition
	entry *index.Entry
	// old is the item's row as it was before the transaction, nil for none.
	old *storage.Item
	// passed says that the files were not looked for, because another nar is being served.
	passed bool
	// staged[N] holds the bytes of the Nth file if they will be added.
	staged []bytestore.Staged
	// early[N] describes the Nth file if it was committed before the transaction; see
	// showLarge.
	early []*bytestore.Info
	// fresh are names that were new when a file was committed before the transaction, by
	// this attempt or an earlier one; see discardFresh.
	fresh []string
	// verified has the bits of the files that were compared with the NarHash, not before
	// begun; claimed those that the old row claims and that were not read. seen[N] describes
	// the Nth file if it was in the storage and verified.
	verified, claimed uint64
	begun             time.Time
	seen              []*bytestore.Info
	// moved are files outside the storage that are removed after the commit.
	moved []source.Place
	// obsolete are names in the storage that may be deleted then.
	obsolete []string
	bytes    int64
	// replaces says that bytes replace others.
	replaces bool
	// releases release the room that is reserved for staged bytes.
	releases []func()
	result   Result
}

// prepare does the part of an addition that needs no transaction: it looks for the item's
// files and stages those that will be added. It sets p.result if that fails.
func (im *Importer) prepare(ctx context.Context, addition *Addition) *prepared {
	n := addition.Narinfo
	p := &prepared{
		Addition: addition, entry: im.index.Prepare(n), begun: im.Now(),
		staged: make([]bytestore.Staged, len(n.Files)), early: make([]*bytestore.Info, len(n.Files)), seen: make([]*bytestore.Info, len(n.Files)),
	}
	p.entry.AddedAt = p.begun
	err := storage.CheckNarinfo(n)
	if err == nil {
		err = im.authorize(p)
	}
	if err != nil {
		p.fail(err)
		return p
	}
	if addition.WithReferences && !addition.planned {
		// Check before staging nars for nothing. The transaction checks again.
		missing, err := im.missingReferences(ctx, n)
		if err == nil && len(missing) > 0 {
			err = errMissingReferences(missing)
		}
		if err != nil {
			p.fail(err)
			return p
		}
	}
	if im.bytes == nil {
		return p
	}
	// This is a hint that saves copying a nar that won't be added. The transaction reads the
	// row again.
	old, err := im.Item(ctx, n.StorePath.Hash)
	var damage *index.Damage
	if errors.As(err, &damage) {
		old, err = im.mended(ctx, damage, n)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		p.fail(err)
		return p
	}
	p.old = old
	if old != nil && old.Narinfo.NarHash != n.NarHash && !addition.Replace {
		p.passed = true
		return p
	}
	var lacks error
	for i, file := range n.Files {
		name := storage.NarName(file, n.StorePath.Hash)
		if name == "" {
			p.result.Note = fmt.Sprintf("URL %.200q has a scheme: nothing is stored for it", file.URL)
			continue
		}
		err := im.find(ctx, p, i, name)
		if missing := (*errNoNar)(nil); errors.As(err, &missing) && p.mayLack(name) {
			p.entry.Dropped |= 1 << i
			lacks = cmp.Or(lacks, err)
		} else if err != nil {
			p.fail(err)
			return p
		}
	}
	if lacks != nil && p.entry.Stored == 0 {
		p.fail(lacks)
	}
	return p
}

// authorize refuses a narinfo that no authorized key has signed. Without keys, it accepts one
// without a signature.
func (im *Importer) authorize(p *prepared) error {
	err := storage.Authorize(p.Narinfo, im.Keys())
	if im.Keys() == nil && storage.Reason(err) == storage.Unsigned {
		p.result.Unsigned = true
		return nil
	}
	return err
}

// mended repairs a damaged item with a narinfo and returns it, or nil without an error if
// that narinfo is another one.
func (im *Importer) mended(ctx context.Context, damage *index.Damage, n *narinfo.Narinfo) (*storage.Item, error) {
	mended := false
	err := im.index.Update(ctx, func(tx *index.Tx) (err error) {
		mended, err = tx.Mend(damage, n.Text)
		return err
	})
	if err != nil || !mended {
		return nil, err
	}
	return im.Item(ctx, n.StorePath.Hash)
}

// fail drops the staged bytes.
func (p *prepared) fail(err error) {
	p.abort()
	p.obsolete = nil
	p.result = Result{Outcome: Failed, Err: fmt.Errorf("%s: %w", p.Narinfo.StorePath.BaseName(), err)}
}

func (p *prepared) abort() {
	for _, staged := range p.staged {
		if staged != nil {
			staged.Abort()
		}
	}
	for _, release := range p.releases {
		release()
	}
	p.releases = nil
}

// find finds the Nth file in the storage, or stages it.
func (im *Importer) find(ctx context.Context, p *prepared, n int, name string) error {
	want := p.Narinfo.Files[n].Size
	info, err := im.bytes.Stat(ctx, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	inStorage := err == nil
	fits := inStorage && (want < 0 || info.Size == want)
	doubtful := false
	if p.old != nil && fits {
		if i := p.old.FileNamed(name); i >= 0 && !p.old.HasStored(i) {
			if doubtful, err = replacing.IsUnknown(ctx, im.index, name); err != nil {
				return err
			}
		}
	}
	// If the item will be replaced, a stored file is the old nar, even if it is as long as
	// the new one, unless no directory has another.
	replaces := p.old != nil && p.old.Narinfo.NarHash != p.Narinfo.NarHash
	var wrong error
	if fits && !replaces && !doubtful {
		err := im.take(ctx, p, n, name, info.Size)
		if !errors.Is(err, narcheck.ErrWrongNar) {
			return err
		}
		wrong = fmt.Errorf("%s in storage %s: %w: remove it, or replace it with the right file", name, im.bytes, err)
	}
	if inStorage && !fits {
		wrong = fmt.Errorf("%w: %s in storage %s has %d bytes, the narinfo says %d: remove it, or replace it with the complete file", bytestore.ErrWrongSize, name, im.bytes, info.Size, want)
	}
	places := p.places(name)
	for _, place := range places {
		if fits && im.isStored(ctx, place, name) {
			continue
		}
		p.replaces = p.replaces || inStorage
		size, err := im.stageFrom(ctx, p, n, name, place)
		if err == nil {
			storage.MarkStored(p.entry, n, size)
			p.bytes += size
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if doubtful {
		return fmt.Errorf("its nar %s: %w", name, replacing.ErrUnknown)
	}
	// Another import of the same directory may just have moved it.
	if now, err := im.bytes.Stat(ctx, name); err == nil && (want < 0 || now.Size == want) && (wrong == nil || !now.IsSame(info)) {
		return im.take(ctx, p, n, name, now.Size)
	}
	if wrong != nil {
		return wrong
	}
	return &errNoNar{name: name, storage: im.bytes.String(), places: places, others: len(p.Narinfo.Files) > 1 && !p.AllowMissing}
}

// take flushes and verifies the Nth file, which is in the storage, unless the row claims it.
func (im *Importer) take(ctx context.Context, p *prepared, n int, name string, size int64) error {
	storage.MarkStored(p.entry, n, size)
	if claims(p.old, p.Narinfo, n, name, size) {
		p.claimed |= 1 << n // it was flushed before its row was written
		return nil
	}
	flushing := ctx
	if p.nars() == Link {
		flushing = bytestore.TrustOwners(ctx) // it may have been linked before
	}
	// Flush before reading, so that the verified bytes are those on the disk.
	err := im.bytes.Flush(flushing, name)
	if err == nil && p.Decode != nil {
		err = im.verifyStored(ctx, p, n, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return storage.ErrChanged // it has just been removed
	}
	return err
}

// isStored reports whether a file is the very file in the storage, which must not be moved
// away.
func (im *Importer) isStored(ctx context.Context, place source.Place, name string) bool {
	there, err := os.Stat(place.String())
	if err != nil {
		return false
	}
	reader, _, err := im.bytes.Open(ctx, name, 0, 0)
	if err != nil {
		return false
	}
	defer reader.Close()
	local, ok := reader.(bytestore.LocalFile)
	if !ok {
		return false
	}
	file, _ := local.Local()
	here, err := file.Stat()
	return err == nil && os.SameFile(here, there)
}
