package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/apply"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/mirror/sourcedump"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// shrinkShare is the share of all mirrored items that a dump may lack, one of so many,
// unless what it lacks is negligible.
const shrinkShare = 10

// resync starts anew from the source's dump: it merges the dump's items, and withdraws
// items of the source that the dump lacks. Tags, pins, cached files, nars and local items
// stay.
func (m *Mirror) resync(ctx context.Context, at cursor.Cursor, why string) error {
	if err := m.rejected(ctx); err != nil {
		return err
	}
	m.resyncLogged.Log(m.Log, slog.LevelInfo, m.Now(), "starting from the dump of the mirrored instance", "source", m.Source.String(), "reason", why)
	m.isTidy = false
	m.status.syncing("downloading the dump: " + why)
	d, err := m.dumps.Fetch(ctx)
	if err != nil {
		return err
	}
	m.status.syncing("merging the dump: " + why)
	next, err := m.merge(ctx, at, d)
	if err != nil {
		err = fmt.Errorf("start from the dump of %s: %w", m.Source, err)
	} else {
		err = m.Storage.Index().Update(ctx, next.Write)
	}
	if err = m.dumps.Close(ctx, d, err); err == nil {
		m.status.resynced()
	}
	return err
}

// rejected returns the reason why the source's dump can't be used, if it is the one that
// was rejected before. A refused dump may have been accepted since.
func (m *Mirror) rejected(ctx context.Context) error {
	err := m.dumps.Rejected(ctx)
	var refused *health.RefusedError
	if !errors.As(err, &refused) {
		return err
	}
	if acceptErr := m.unlessAccepted(ctx, "its dump is the one that was refused"); !errors.As(acceptErr, &refused) {
		return acceptErr
	}
	return err
}

// bits is a set of items by their positions in the index.
type bits []uint64

func (b bits) set(position int64) {
	if i := position / 64; i < int64(len(b)) {
		b[i] |= 1 << (position % 64)
	}
}

func (b bits) has(position int64) bool {
	i := position / 64
	return i < int64(len(b)) && b[i]&(1<<(position%64)) != 0
}

// merge makes the mirrored items those of the dump, and returns the cursor after it.
func (m *Mirror) merge(ctx context.Context, at cursor.Cursor, d *sourcedump.Dump) (cursor.Cursor, error) {
	next, newest, err := m.dumps.Behind(ctx, d)
	if err != nil {
		return next, err
	}
	if err := m.notSelf(peer.LogState{Instance: next.Instance}); err != nil {
		return next, err
	}
	if next.Instance != "" && next.Instance == at.Instance && next.Position+1 < m.logFirst {
		return next, fmt.Errorf("%w: it ends at change %d, and the log begins at %d: run 'nar-herder dump' there, or enable dumps there", health.ErrOldDump, next.Position, m.logFirst)
	}
	// A dump without changes may end with a removal, which leaves no time in it.
	made := newest
	if d.Modified.After(made) {
		made = d.Modified
	}
	if at.Instance == "" && !made.IsZero() && made.Before(at.Since) {
		why := fmt.Sprintf("its dump has gone back in time: it ends at %s, and changes up to %s were followed", made.Format(time.DateTime), at.Since.Format(time.DateTime))
		if err := m.unlessAccepted(ctx, why); err != nil {
			return next, err
		}
	}
	count, err := d.Count(ctx)
	if err != nil {
		return next, err
	}
	mirrored, last, err := m.Storage.Index().MirroredCount(ctx)
	if err != nil {
		return next, err
	}
	negligible := int64(m.negligible)
	if next.Source != at.Source || next.Instance != at.Instance { // perhaps the wrong source
		negligible = min(negligible, mirrored/2)
	}
	limit := max(negligible, mirrored/shrinkShare)
	if lost := mirrored - count; lost > limit {
		if err := m.unlessAccepted(ctx, fmt.Sprintf("it has shrunk from %d items to %d", mirrored, count)); err != nil {
			return next, err
		}
	}
	if err := d.CheckSum(ctx); err != nil {
		return next, err
	}
	present := make(bits, last/64+1)
	if err := m.mergeItems(ctx, d, present, count, &next); err != nil {
		return next, err
	}
	if keepAll, err := m.keepDamaged(ctx, d, present); keepAll || err != nil {
		next.Removals, next.Owed = at.Removals, cmp.Or(d.Tag, "unknown")
		return next, err
	}
	next.Removals, err = m.withdrawAbsent(ctx, at, present, last, mirrored, limit, newest)
	return next, err
}

// mergeItems adds the dump's items, and sets the bits of those that are here already. It
// records in the cursor what it refuses: such an item stays here as it is.
func (m *Mirror) mergeItems(ctx context.Context, d *sourcedump.Dump, present bits, count int64, at *cursor.Cursor) error {
	var done, bad int64
	var fetched []apply.Change
	var refused []narinfo.PathHash
	size := 0 // of their texts, in bytes
	flush := func() error {
		if err := m.setBits(ctx, refused, present); err != nil {
			return err
		}
		refused = refused[:0]
		changed, err := m.changed(ctx, fetched, present)
		if err != nil {
			return err
		}
		done += int64(len(fetched))
		clear(fetched) // let their memory go
		fetched, size = fetched[:0], 0
		m.status.syncing(fmt.Sprintf("merging the dump: %d of %d items", done, count))
		changed = m.authorize(changed, at)
		if len(changed) == 0 {
			return nil
		}
		sums, err := apply.Changes(ctx, m.Storage, changed, apply.Options{})
		if err != nil {
			return err
		}
		m.status.applied(sums)
		m.announce(changed)
		return nil
	}
	for entry, err := range d.Entries(ctx) {
		if err != nil {
			return err
		}
		change, err := m.itemOf(entry, d)
		if storage.Reason(err) != "" {
			m.refuse(change.Narinfo.StorePath.String(), err, at)
			if refused = append(refused, change.Hash); len(refused) >= batchSize {
				if err := flush(); err != nil {
					return err
				}
			}
			if !d.IsDamage(err) {
				continue
			}
			bad++
		} else if err != nil {
			if bad++; bad <= sourcedump.MaxLoggedBad {
				m.Log.Warn("skipped a narinfo in the source's dump: it is invalid", "source", m.Source.String(), "error", err)
			}
			m.status.skipped()
		}
		if err != nil {
			if sourcedump.TooManyBad(bad, count) {
				return fmt.Errorf("%w: over %d of its %d narinfos are wrong, the last: %w", health.ErrBadDump, bad-1, count, err)
			}
			continue
		}
		fetched = append(fetched, change)
		if size += len(change.Narinfo.Text); len(fetched) >= batchSize || size >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// itemOf returns an item of a dump as a change.
func (m *Mirror) itemOf(entry sourcedump.Entry, d *sourcedump.Dump) (change apply.Change, err error) {
	n, err := d.Admit(entry, nil) // [Mirror.authorize] follows, for those that are new
	if storage.Reason(err) != "" {
		return apply.Change{Narinfo: n, Hash: n.StorePath.Hash}, err
	} else if err != nil {
		return change, err
	}
	now := m.Now()
	added := entry.AddedAt
	if added.IsZero() || stamp.IsAhead(added, now) {
		if added = d.Modified; added.IsZero() || stamp.IsAhead(added, now) {
			added = now
		}
	}
	return apply.Change{At: added.UTC().Truncate(time.Second), Narinfo: n, Hash: n.StorePath.Hash}, nil
}

// changed returns the items that are not here as they are in the dump, and sets the bits of
// all that are here.
func (m *Mirror) changed(ctx context.Context, items []apply.Change, present bits) (changed []apply.Change, err error) {
	hashes := make([]narinfo.PathHash, len(items))
	for i, item := range items {
		hashes[i] = item.Hash
	}
	err = m.Storage.Index().EachAt(ctx, hashes, func(i int, row *index.Item, err error) error {
		present.setRow(row, err)
		if row != nil {
			// Mirrors that follow this instance by time are past the item's own time.
			items[i].At = m.Now().UTC().Truncate(time.Second)
		}
		// A damaged item is written again.
		if row == nil || !row.Mirrored || !row.WithdrawnAt.IsZero() || !bytes.Equal(row.Text, items[i].Narinfo.Text) && !bytes.Equal(row.Announced(), items[i].Narinfo.Text) {
			changed = append(changed, items[i])
		}
		return nil
	})
	return changed, err
}

// setBits sets the bits of those items that are here.
func (m *Mirror) setBits(ctx context.Context, hashes []narinfo.PathHash, present bits) error {
	return m.Storage.Index().EachAt(ctx, hashes, func(_ int, row *index.Item, err error) error {
		present.setRow(row, err)
		return nil
	})
}

// setRow sets the bit of an item that [index.Index.EachAt] has returned.
func (b bits) setRow(row *index.Item, err error) {
	var damage *index.Damage
	if row != nil {
		b.set(row.Position())
	} else if errors.As(err, &damage) && damage.Position() != 0 {
		b.set(damage.Position())
	}
}

// keepDamaged sets the bits of items that the dump lacks because they are damaged at the
// source. It returns true if the dump doesn't name them all, so that they can't be told
// from removed items.
func (m *Mirror) keepDamaged(ctx context.Context, d *sourcedump.Dump, present bits) (keepAll bool, err error) {
	var hashes []narinfo.PathHash
	for name := range strings.FieldsSeq(d.Damaged) {
		hash, err := narinfo.ParsePathHash(name)
		if err != nil {
			m.Log.Warn("the dump of the mirrored instance lacks damaged items and doesn't name them all, so nothing is removed that it lacks", "source", m.Source.String())
			return true, nil
		}
		hashes = append(hashes, hash)
	}
	for some := range slices.Chunk(hashes, batchSize) {
		if err := m.setBits(ctx, some, present); err != nil {
			return false, err
		}
	}
	return false, nil
}

// owedEvery is how often the mirror looks for a dump that names all damaged items.
const owedEvery = 24 * time.Hour

// payOwed resyncs if the last dump did not show what was removed, and there is another. It
// returns true if the cursor has changed. After a failure, the mirror follows as before.
func (m *Mirror) payOwed(ctx context.Context, at cursor.Cursor) bool {
	if at.Owed == "" || m.Now().Sub(m.owedLooked) < owedEvery {
		return false
	}
	m.owedLooked = m.Now()
	tag, _, err := download.Look(ctx, m.Source, peer.DumpPath, true)
	if err == nil && tag == at.Owed {
		return false
	}
	if err == nil {
		err = m.resync(ctx, at, "the last dump lacked damaged items and did not name them all")
	}
	if err != nil && ctx.Err() == nil {
		m.Log.Warn("can't find out what the mirrored instance has removed: retrying later", "source", m.Source.String(), "retry_in", owedEvery, "error", err)
	}
	return err == nil
}

// withdrawAbsent withdraws the mirrored items, up to position last, that are not in present,
// unless they are newer than the dump's newest content. It refuses to withdraw more than limit
// items. It returns the removals of the last hour, including these, and writes
// them to the cursor while it removes: neither a restart nor another dump may hide them
// from [Mirror.allow].
func (m *Mirror) withdrawAbsent(ctx context.Context, at cursor.Cursor, present bits, last, mirrored, limit int64, newest time.Time) (map[int64]int, error) {
	each := func(f func(hashes []narinfo.PathHash) error) error {
		for after := int64(0); after < last; {
			items, end, err := m.Storage.Index().MirroredAfter(ctx, after, last, 20*batchSize)
			if err != nil {
				return err
			}
			var hashes []narinfo.PathHash
			for _, item := range items {
				if !present.has(item.Position) && (newest.IsZero() || item.AddedAt.Before(newest)) {
					hashes = append(hashes, item.Hash)
				}
			}
			if err := f(hashes); err != nil {
				return err
			}
			after = end
		}
		return nil
	}
	var absent int64
	err := each(func(hashes []narinfo.PathHash) error {
		absent += int64(len(hashes))
		return nil
	})
	if err != nil || absent == 0 {
		return at.Removals, err
	}
	var counted map[int64]int
	if absent > limit {
		err = m.unlessAccepted(ctx, fmt.Sprintf("its dump lacks %d items of %d", absent, mirrored))
	} else {
		counted, err = m.allow(ctx, withRemovals(at.Removals, int(absent), m.Now()))
	}
	if err != nil {
		return nil, err
	}
	accepted := counted == nil
	if accepted {
		at.Removals = nil
	}
	options, err := m.removing(ctx, &at)
	if err != nil {
		return nil, err
	}
	err = each(func(hashes []narinfo.PathHash) error {
		for some := range slices.Chunk(hashes, batchSize) {
			now := m.Now().UTC().Truncate(time.Second)
			if !accepted {
				at.Removals = withRemovals(at.Removals, len(some), now)
			}
			changes := make([]apply.Change, len(some))
			for i, hash := range some {
				changes[i] = apply.Change{At: now, Hash: hash}
			}
			sums, err := apply.Changes(ctx, m.Storage, changes, options)
			if err != nil {
				return err
			}
			m.status.applied(sums)
		}
		return nil
	})
	return at.Removals, err
}
