package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"nar-herder/internal/linger"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// lockedBytes is how much a byte store that is far away may be asked to show while the
// index is locked: less than other processes wait for, at the slowest rate. Batches
// end with so much, and a larger file is shown before.
const lockedBytes = 1 << 30

// isMuch says whether so many bytes are enough for one transaction.
func (s *Storage) isMuch(size int64) bool { return size >= lockedBytes && s.IsRemote() }

// lockedBytes is how much of an addition is shown within the transaction.
func (p *prepared) lockedBytes() (size int64) {
	for n := range p.staged {
		size += p.stagedSize(n)
	}
	return size
}

// stagedSize is the length of the Nth file, if that is still to be shown.
func (p *prepared) stagedSize(n int) int64 {
	if p.staged[n] == nil || p.early[n] != nil {
		return 0
	}
	return index.FileSize(p.Narinfo, n, p.entry.Sizes)
}

// showLarge shows the large files of a batch before its transaction, as a server may
// take minutes to put the parts of one together. That is safe where nothing has the name yet,
// and where the batch has taken the claim off: the transaction looks whether what was
// shown is still there. Other files that no row claims may just be claimed by another
// process, and are replaced with the index locked.
func (s *Storage) showLarge(ctx context.Context, batch []*prepared, replaced *replacements) {
	if s.bytes == nil || !s.IsRemote() {
		return
	}
	for _, p := range batch {
		for n := range p.staged {
			if p.result.Err != nil || p.stagedSize(n) < lockedBytes {
				continue
			}
			if err := s.showOne(ctx, p, n, replaced); err != nil {
				p.fail(err)
			}
		}
	}
}

func (s *Storage) showOne(ctx context.Context, p *prepared, n int, replaced *replacements) error {
	name, err := p.Narinfo.Files[n].Path()
	if err != nil {
		return err
	}
	if err := s.mayAdd(ctx, p.replaces); err != nil {
		return err
	}
	if replaced.files[name] == nil {
		p.early[n], err = s.showNew(ctx, name, p.staged[n])
		if p.early[n] != nil {
			p.fresh = append(p.fresh, name)
		}
		return err
	}
	replaced.begin(name)
	if err := p.staged[n].Commit(ctx); err != nil {
		return err
	}
	info, err := s.bytes.Stat(ctx, name)
	p.early[n] = &info
	return err
}

// showNew shows a file without the index locked, and returns what is there then; nil
// where something has its name.
func (s *Storage) showNew(ctx context.Context, name string, staged bytestore.Staged) (*bytestore.Info, error) {
	if err := staged.CommitNew(ctx); errors.Is(err, fs.ErrExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	info, err := s.bytes.Stat(ctx, name)
	return &info, err
}

// discard deletes files that were shown without the index locked, and that nobody wants,
// but those that a row claims by now.
func (s *Storage) discard(ctx context.Context, names []string) {
	if len(names) == 0 {
		return
	}
	ctx, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	err := s.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.AddLeftovers(names) })
	if err == nil || errors.Is(err, index.ErrFull) { // to delete them takes no room
		var dropErr error
		if _, _, dropErr = s.DeleteUnclaimed(ctx, names, 0); dropErr == nil {
			return
		}
		err = errors.Join(err, dropErr)
	}
	s.log.Warn("large nars were stored that are not wanted, and could not be deleted: 'nar-herder check' lists those that the server does not delete later", "files", names, "error", err)
}

// discardFresh deletes what was shown of an addition that has failed for good, or whose
// nar was not taken. Before another try it is kept, so that it need not come again.
func (s *Storage) discardFresh(ctx context.Context, p *prepared) {
	if p.result.Outcome == Failed || p.result.Outcome == Kept {
		s.discard(ctx, p.fresh)
	}
}

// isSame looks whether a file that was shown is still there.
func (s *Storage) isSame(ctx context.Context, name string, shown bytestore.Info) error {
	info, err := s.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsSame(shown) {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
