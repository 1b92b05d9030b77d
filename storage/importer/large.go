package importer

import (
	"context"

	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/index"
)

// lockedBytes is how many bytes of an addition are committed within the transaction.
func (p *prepared) lockedBytes() (size int64) {
	for n := range p.staged {
		size += p.stagedSize(n)
	}
	return size
}

// stagedSize is the length of the Nth file if it must still be committed.
func (p *prepared) stagedSize(n int) int64 {
	if p.staged[n] == nil || p.early[n] != nil {
		return 0
	}
	return index.FileSize(p.Narinfo, n, p.entry.Sizes)
}

// showLarge commits the large files of a batch before its transaction, because a server may
// take minutes to join the parts of one. That is safe for new names and for files
// that the batch has unclaimed: the transaction checks that they are unchanged. Another
// process may be claiming other files that no row claims yet, so these are replaced while
// the index is locked.
func (im *Importer) showLarge(ctx context.Context, batch []*prepared, replaced *replacing.Batch) {
	if im.bytes == nil || !im.IsRemote() {
		return
	}
	for _, p := range batch {
		for n := range p.staged {
			if p.result.Err != nil || !im.IsMuch(p.stagedSize(n)) {
				continue
			}
			if err := im.showOne(ctx, p, n, replaced); err != nil {
				p.fail(err)
			}
		}
	}
}

func (im *Importer) showOne(ctx context.Context, p *prepared, n int, replaced *replacing.Batch) error {
	name, err := p.Narinfo.Files[n].Path()
	if err != nil {
		return err
	}
	if err := im.MayAdd(ctx, p.replaces); err != nil {
		return err
	}
	if !replaced.Has(name) {
		p.early[n], err = im.CommitNew(ctx, name, p.staged[n])
		if p.early[n] != nil {
			p.fresh = append(p.fresh, name)
		}
		return err
	}
	replaced.Begin(name)
	if err := p.staged[n].Commit(ctx); err != nil {
		return err
	}
	info, err := im.bytes.Stat(ctx, name)
	p.early[n] = &info
	return err
}

// discardFresh deletes committed files of an addition that has failed for good, or with the
// outcome Kept. Before another attempt they stay, so that they need not be stored again.
func (im *Importer) discardFresh(ctx context.Context, p *prepared) {
	if p.result.Outcome == Failed || p.result.Outcome == Kept {
		im.Discard(ctx, p.fresh)
	}
}
