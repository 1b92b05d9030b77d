package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"nar-herder/storage/index"
)

// IdentityName is where a byte store keeps its random name. Instances that share
// a storage find the same one there.
const IdentityName = "nar-herder-storage"

// ExportName is the file that marks the directory of an export.
const ExportName = "nar-herder-export"

// Identity returns the random name of the byte store, and gives it one when it
// has none. It is "" where nars are kept elsewhere.
func (s *Storage) Identity(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	name, err := s.note(ctx, IdentityName)
	if !errors.Is(err, fs.ErrNotExist) || s.readOnly {
		return name, err
	}
	// Not where a storage should be mounted and isn't.
	if err := s.IsMounted(ctx); err != nil {
		return "", err
	}
	err = WriteNote(ctx, s.bytes.ByteStore, IdentityName, rand.Text(), Staged.CommitNew)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// Read, as another instance may just have done the same.
	return s.note(ctx, IdentityName)
}

// StorageName returns the random name of the byte store, "" where nars are kept
// elsewhere. It writes nothing: the error is [fs.ErrNotExist] where there is none,
// be it that none was given yet or that the storage isn't mounted.
func (s *Storage) StorageName(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	return s.note(ctx, IdentityName)
}

// ErrAllMissing is in the error of [Storage.IsMounted] for a byte store that can be read.
var ErrAllMissing = errors.New("none of the stored nars are there")

// IsMounted makes sure that the byte store is the one that the index is about, by
// any of the files that it should have. A storage that isn't mounted looks like
// one whose files are all missing.
func (s *Storage) IsMounted(ctx context.Context) error {
	totals, err := s.index.Totals(ctx)
	if err != nil || totals.StoredNars == 0 {
		return err
	}
	there, err := s.hasAny(ctx)
	if err == nil && !there {
		err = fmt.Errorf("storage %s: %w: the index has %d: is it mounted? If the nars are lost, as with their disk, run 'nar-herder claim-storage --accept-loss'", s.bytes, ErrAllMissing, totals.StoredNars)
	}
	return err
}

// claimSamples is how many items [Storage.MayBeClaimed] looks at.
const claimSamples = 25

// MayBeClaimed is IsMounted for a byte store without an owner, which may be another than
// before: it also returns an error where more than a few of the nars are missing, as in
// an unfinished or an old copy. It looks at some of them.
func (s *Storage) MayBeClaimed(ctx context.Context) error {
	if err := s.IsMounted(ctx); err != nil {
		return err
	}
	last, err := s.index.LastPlace(ctx)
	if err != nil {
		return err
	}
	looked, missing := 0, 0
	for place, step := int64(0), max(1, last/claimSamples); place < last; place += step {
		for row, err := range s.index.ItemsAfter(ctx, place) {
			var item *Item
			if err == nil {
				item, err = NewItem(row)
			}
			if errors.Is(err, index.ErrDamaged) {
				continue
			} else if err != nil {
				return err
			}
			for n, name := range item.names {
				if name == "" || !item.HasStored(n) {
					continue
				}
				looked++
				if _, err := s.bytes.Stat(ctx, name); errors.Is(err, fs.ErrNotExist) {
					missing++
				} else if err != nil {
					return err
				}
			}
			break
		}
	}
	if missing > 1 && missing > looked/10 {
		return fmt.Errorf("storage %s lacks %d of %d nars that were looked for: is it the right one, and was it copied to its end? If it is all that there is, 'nar-herder claim-storage' makes it this instance's, and records which nars are there", s.bytes, missing, looked)
	}
	return nil
}

// note reads one of the short texts that the byte store has beside the nars.
func (s *Storage) note(ctx context.Context, name string) (string, error) {
	return ReadNote(ctx, s.bytes.ByteStore, name)
}

// ReadNote reads what a byte store has under [IdentityName] or [OwnerName]. Where
// that is nothing, the error is [fs.ErrNotExist].
func ReadNote(ctx context.Context, store ByteStore, name string) (string, error) {
	const most = 16 << 10
	reader, _, err := store.Open(ctx, name, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	text, err := io.ReadAll(io.LimitReader(reader, most))
	if err != nil {
		return "", err
	}
	note := strings.TrimSpace(string(text))
	if note == "" || len(text) == most {
		return "", fmt.Errorf("%s in storage %s is not what this program writes there: remove it", name, store)
	}
	return note, nil
}

// WriteNote writes one of them, shown by [Staged.Commit] or [Staged.CommitNew].
func WriteNote(ctx context.Context, store ByteStore, name, note string, commit func(Staged, context.Context) error) error {
	text := note + "\n"
	staged, err := store.Stage(ctx, name, strings.NewReader(text), int64(len(text)))
	if err == nil {
		defer staged.Abort()
		if err = commit(staged, ctx); err == nil {
			err = store.Sync(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("write %s in storage %s: %w", name, store, err)
	}
	return nil
}
