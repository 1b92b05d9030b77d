package storage

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// OwnerName is where a byte store keeps the name of the instance that owns it: the
// only one that writes to it and deletes from it. Others may read. What an instance
// knows of its own uses, promises and withdrawals is in its index and its memory, so
// two that delete from one storage would take nars from each other's clients.
const OwnerName = "nar-herder-owner"

// ErrNotOwner says that only another instance may change the byte store.
var ErrNotOwner = errors.New("the storage belongs to another instance")

// ErrUnsettled says that it is not known yet.
var ErrUnsettled = errors.New("whether the storage is that of the mirrored instance, as for a front end, is not known until that answers: nothing is stored or deleted before")

// ErrCopied says that the index is a copy, whose original another instance uses.
var ErrCopied = errors.New("the mirrored instance has the name of this one, so this database is a copy of that one's, or --mirror leads back here: nothing is stored or deleted. Start a mirror with a database of its own")

// frontEndSetting is where an index keeps the name of the storage that it is a front
// end of: that of the instance that it mirrors.
const frontEndSetting = "storage.front_end_of"

// ownerTrust is for how long bytes are added after a look at the owner's name. Before
// bytes are deleted, it is looked at each time.
const ownerTrust = 30 * time.Second

// ownership is what a process knows of who owns its byte store.
type ownership struct {
	frontEnd  atomic.Bool
	unsettled atomic.Bool
	copied    atomic.Bool

	mu   sync.Mutex
	seen time.Time // when it was this instance last; zero for never
	// claiming is held while it is made this instance, by one at a time.
	claiming *semaphore.Weighted
}

// Owner returns the name of the instance that owns the byte store; "" where none
// has claimed it, or nars are kept elsewhere.
func (s *Storage) Owner(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	owner, err := s.note(ctx, OwnerName)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return owner, err
}

// MayDelete is nil when this instance may delete from the byte store, or replace
// what is there. Where no instance has claimed it, this one does, unless there are
// nars that can't be its own. The error is [ErrNotOwner] when another has it,
// [ErrUnsettled] while that is not known, and any other says that it can't be found
// out.
func (s *Storage) MayDelete(ctx context.Context) error { return s.mayChange(ctx, true) }

// mayChange is MayDelete. With claim false, it is also nil where no instance has
// claimed the byte store, and this one has no nars there.
func (s *Storage) mayChange(ctx context.Context, claim bool) error {
	if s.bytes == nil {
		return nil
	}
	if s.owned.copied.Load() {
		return ErrCopied
	}
	if s.owned.unsettled.Load() {
		return ErrUnsettled
	}
	if s.IsFrontEnd() {
		return s.notOwner("the one that this one mirrors")
	}
	owner, err := s.Owner(ctx)
	if err == nil && owner == "" {
		var totals index.Totals
		if totals, err = s.index.Totals(ctx); err == nil {
			if totals.StoredNars == 0 && !claim {
				// The first nars may come beside others, which an import is just
				// about to find. Whose storage it is, is settled when it has some.
				return nil
			}
			owner, err = s.claimStorage(ctx, totals.StoredNars > 0)
		}
	}
	if err != nil {
		return fmt.Errorf("find out which instance storage %s belongs to: %w", s.bytes, err)
	}
	if owner != s.Instance() {
		return s.notOwner("instance " + owner)
	}
	s.owned.mu.Lock()
	s.owned.seen = s.now()
	s.owned.mu.Unlock()
	return nil
}

// claimStorage makes this instance the owner, and returns who it is then: another may
// just have done the same.
func (s *Storage) claimStorage(ctx context.Context, hasNars bool) (owner string, err error) {
	if err := s.owned.claiming.Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer s.owned.claiming.Release(1)
	if owner, err = s.Owner(ctx); err != nil || owner != "" {
		return owner, err
	}
	if hasNars {
		// Not where a storage should be mounted and isn't.
		err = s.isThere(ctx)
	} else {
		err = s.isEmpty(ctx)
	}
	if err == nil {
		err = s.writeFirstNote(ctx, OwnerName, s.Instance())
	}
	if err != nil {
		return "", err
	}
	return s.Owner(ctx)
}

// isEmpty makes sure that no nars are there.
func (s *Storage) isEmpty(ctx context.Context) error {
	for info, err := range s.bytes.List(ctx) {
		if err != nil {
			return err
		}
		if !info.Temporary && isNarName(info.Name) {
			return fmt.Errorf("%w: it has nars, such as %s, of which this index knows none: run 'nar-herder claim-storage' if they are nobody's", ErrNotOwner, info.Name)
		}
	}
	return nil
}

func (s *Storage) notOwner(whose string) error {
	return fmt.Errorf("%w: %s is that of %s, which alone writes to it and deletes from it: do this there, or, if that is gone for good, run 'nar-herder claim-storage' here", ErrNotOwner, s.bytes, whose)
}

// mayTake is MayDelete for what is imported, which can be before anybody owns the byte
// store. What replaces nothing needs no new look for a while.
func (s *Storage) mayTake(ctx context.Context, replaces bool) error {
	if !replaces && s.isTrusted() {
		return nil
	}
	return s.mayChange(ctx, false)
}

// mayAdd is MayDelete for what a mirror takes in by itself: also in a storage that is
// nobody's, and has nars.
func (s *Storage) mayAdd(ctx context.Context) error {
	if s.isTrusted() {
		return nil
	}
	return s.MayDelete(ctx)
}

// isTrusted says that the byte store was this instance's a moment ago.
func (s *Storage) isTrusted() bool {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	since := s.now().Sub(s.owned.seen)
	return since >= 0 && since < ownerTrust && !s.owned.frontEnd.Load() && !s.IsUnsettled()
}

// IsFrontEnd says that the byte store is that of the instance which this one
// mirrors. Then each file that a narinfo names counts as stored until it is looked
// for, and that it is not there is no fault: the owner has removed it, or has not
// fetched it yet.
func (s *Storage) IsFrontEnd() bool { return s.owned.frontEnd.Load() }

// IsUnsettled says that it is not known whose the byte store is: whether this instance is
// a front end, or which of two with one name the owner is.
func (s *Storage) IsUnsettled() bool { return s.owned.unsettled.Load() || s.owned.copied.Load() }

// SetCopied says whether another instance has the name of this one.
func (s *Storage) SetCopied(is bool) { s.owned.copied.Store(is) }

// Unsettle has nothing be written or deleted before [Storage.SetFrontEnd] is called.
func (s *Storage) Unsettle() { s.owned.unsettled.Store(true) }

// SetFrontEnd settles whether this instance is a front end, and notes it for the
// next process.
func (s *Storage) SetFrontEnd(ctx context.Context, is bool) error {
	name := ""
	if is {
		var err error
		if name, err = s.note(ctx, IdentityName); err != nil {
			return err
		}
	}
	s.owned.frontEnd.Store(is)
	s.owned.unsettled.Store(false)
	if now, err := s.index.Setting(ctx, frontEndSetting); err != nil || now == name {
		return err
	}
	return s.index.Update(ctx, func(tx *index.Tx) error { return tx.SetSetting(frontEndSetting, name) })
}

// Remember takes over what an earlier process has noted with [Storage.SetFrontEnd],
// if it was about this byte store.
func (s *Storage) Remember(ctx context.Context) error {
	if s.bytes == nil {
		return nil
	}
	noted, err := s.index.Setting(ctx, frontEndSetting)
	if err != nil || noted == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rememberWait)
	defer cancel()
	name, err := s.note(ctx, IdentityName)
	// Where it can't be read, nothing can be deleted either; where it is gone, the
	// storage may not be mounted.
	s.owned.frontEnd.Store(noted == name || err != nil)
	return nil
}

// rememberWait is how long a start waits for a byte store that does not answer.
const rememberWait = 3 * time.Second

// IsOurs says, without changing anything, whether the byte store is surely this
// instance's own, or nobody's.
func (s *Storage) IsOurs(ctx context.Context) bool {
	if s.bytes == nil || s.IsFrontEnd() || s.IsUnsettled() {
		return false
	}
	owner, err := s.Owner(ctx)
	return err == nil && (owner == "" || owner == s.Instance())
}

// owns says whether this instance has claimed the byte store.
func (s *Storage) owns(ctx context.Context) (bool, error) {
	if s.IsFrontEnd() || s.IsUnsettled() {
		return false, nil
	}
	owner, err := s.Owner(ctx)
	return owner != "" && owner == s.Instance(), err
}

// isAnothers says whether the byte store is surely another instance's, which may remove
// and replace what this one's rows have as stored.
func (s *Storage) isAnothers(ctx context.Context) bool {
	if s.IsFrontEnd() {
		return true
	}
	owner, err := s.Owner(ctx)
	return err == nil && owner != "" && owner != s.Instance()
}

// SharesWith says whether the byte store is the one of that name, of another
// instance. Of a front end's, which must have a name, it is an error when it has none.
func (s *Storage) SharesWith(ctx context.Context, name string) (bool, error) {
	if s.bytes == nil {
		return false, nil
	}
	own, err := s.note(ctx, IdentityName)
	if errors.Is(err, fs.ErrNotExist) {
		if s.IsFrontEnd() {
			return false, fmt.Errorf("storage %s has lost the name that it had when this became a front end: is it mounted? If it is meant to be another one, run 'nar-herder claim-storage'", s.bytes)
		}
		return false, nil
	}
	return err == nil && name != "" && own == name, err
}

// asFrontEnd has an item's files count as stored where this instance can only find
// out by looking for them. One whose length is not known can't be served from here.
func (s *Storage) asFrontEnd(item *Item) *Item {
	if !s.IsFrontEnd() {
		return item
	}
	row := *item.Item
	for n := range min(len(item.names), 64) {
		if item.names[n] != "" && item.StoredSize(n) >= 0 {
			row.Stored |= 1 << n
		}
	}
	return &Item{Item: &row, Narinfo: item.Narinfo, names: item.names}
}

// Taken is what [Storage.TakeOver] has found.
type Taken struct {
	// Before is who owned the byte store; "" for nobody.
	Before string
	// Recorded is how many files rows now have as stored that they had not before,
	// and Strangers how many no row names, or are of another size.
	Recorded, Strangers int64
	// Missing is how many files rows do not have as stored any more, as they are not
	// there.
	Missing int64
}

// TakeOver makes this instance the owner of the byte store, and has its rows claim
// the files that are there under their names and have the right size, as far as they
// do not yet. What they have in them is not looked at. The instance that owned it
// must be gone, or be read-only from now on: it notices before it deletes or replaces
// anything that it knows of, or half a minute after at the latest where it adds. It can
// be done again where it was interrupted. looked is called for each file.
//
// Claims of files that are not there, from a time when this instance owned it before,
// are taken off.
func (s *Storage) TakeOver(ctx context.Context, looked func()) (taken Taken, err error) {
	if s.bytes == nil {
		return taken, errors.New("there is no storage to take over")
	}
	if err := s.isThere(ctx); err != nil {
		return taken, err
	}
	if taken.Before, err = s.Owner(ctx); err != nil {
		return taken, err
	}
	if taken.Before != s.Instance() {
		if err := s.writeNote(ctx, OwnerName, s.Instance(), Staged.Commit); err != nil {
			return taken, err
		}
	}
	if err := s.SetFrontEnd(ctx, false); err != nil {
		return taken, err
	}
	if err := s.MayDelete(ctx); err != nil {
		return taken, err
	}
	var there []uint64 // sums of the names: a path for each of millions would not fit
	seed := maphash.MakeSeed()
	batch := make([]Info, 0, takeAtOnce)
	for info, err := range s.bytes.List(ctx) {
		if err != nil {
			return taken, err
		}
		if looked(); info.Temporary || hashInName(info.Name) == (narinfo.PathHash{}) {
			continue
		}
		there = append(there, maphash.String(seed, info.Name))
		if batch = append(batch, info); len(batch) == cap(batch) {
			if err := s.claim(ctx, batch, &taken); err != nil {
				return taken, err
			}
			batch = batch[:0]
		}
	}
	if err := s.claim(ctx, batch, &taken); err != nil {
		return taken, err
	}
	slices.Sort(there)
	return taken, s.unclaimMissing(ctx, &taken, func(name string) bool {
		_, ok := slices.BinarySearch(there, maphash.String(seed, name))
		return ok
	})
}

// unclaimMissing has rows no longer claim files that were not listed, and that are not
// there.
func (s *Storage) unclaimMissing(ctx context.Context, taken *Taken, listed func(name string) bool) error {
	for item, err := range s.Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			continue // its files can't be told, and check finds it
		}
		if err != nil {
			return err
		}
		for n, name := range item.names {
			if name == "" || !item.HasStored(n) || listed(name) {
				continue
			}
			err := s.unclaim(ctx, Finding{Kind: Missing, Name: name, Item: item})
			if errors.Is(err, errMeanwhile) {
				continue
			} else if err != nil {
				return err
			}
			taken.Missing++
			row := *item.Item // as it is now
			row.Stored &^= item.filesNamed(name)
			item = &Item{Item: &row, Narinfo: item.Narinfo, names: item.names}
		}
	}
	return nil
}

// takeAtOnce is how many files are claimed in one transaction.
const takeAtOnce = 1000

// claim has rows claim files that are there.
func (s *Storage) claim(ctx context.Context, files []Info, taken *Taken) error {
	var recorded, strangers int64
	err := s.index.Update(ctx, func(tx *index.Tx) error {
		recorded, strangers = 0, 0
		for _, info := range files {
			row, err := tx.Item(hashInName(info.Name))
			if errors.Is(err, ErrNotFound) {
				strangers++
				continue
			} else if err != nil {
				return err
			}
			item, err := NewItem(row)
			if err != nil {
				return err
			}
			n := item.FileNamed(info.Name)
			switch {
			case n < 0 || n >= 64:
				strangers++
			case item.HasStored(n):
			case item.StoredSize(n) >= 0 && item.StoredSize(n) != info.Size:
				strangers++
			default:
				recorded++
				if err := tx.SetStored(item.Hash, item.Stored|item.filesNamed(info.Name), item.sizesWith(n, info.Size)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	taken.Recorded += recorded
	taken.Strangers += strangers
	return err
}

// note reads one of the short texts that the byte store has beside the nars.
func (s *Storage) note(ctx context.Context, name string) (string, error) {
	return ReadNote(ctx, s.bytes.ByteStore, name)
}

// ReadNote reads what a byte store has under [IdentityName] or [OwnerName]. Where
// that is nothing, the error is [fs.ErrNotExist].
func ReadNote(ctx context.Context, store ByteStore, name string) (string, error) {
	const most = 100
	reader, _, err := store.Open(ctx, name, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	text, err := io.ReadAll(io.LimitReader(reader, most))
	if err != nil {
		return "", err
	}
	word := strings.TrimSpace(string(text))
	if word == "" || len(text) == most {
		return "", fmt.Errorf("%s in storage %s is not what this program writes there: remove it", name, store)
	}
	return word, nil
}

// writeFirstNote writes one of them where there is none. That there is one by now, of
// another instance, is no error.
func (s *Storage) writeFirstNote(ctx context.Context, name, word string) error {
	err := s.writeNote(ctx, name, word, Staged.CommitNew)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// writeNote writes one of them, shown by the given method.
func (s *Storage) writeNote(ctx context.Context, name, word string, commit func(Staged, context.Context) error) error {
	text := word + "\n"
	staged, err := s.bytes.ByteStore.Stage(ctx, name, strings.NewReader(text), int64(len(text)))
	if err == nil {
		defer staged.Abort()
		if err = commit(staged, ctx); err == nil {
			err = s.bytes.Sync(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("write %s in storage %s: %w", name, s.bytes, err)
	}
	return nil
}
