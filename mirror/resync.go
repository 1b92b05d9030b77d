package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

const (
	// shrinkShare is the share of all mirrored items that a dump may lack, unless
	// what it lacks is negligible.
	shrinkShare = 10
	// badShare is the share of a dump's narinfos that may make no sense, before the
	// dump as a whole doesn't.
	badShare = 100
)

// resync starts anew from the dump of the source: what that has is merged in, and
// what came from the source and is not in it is withdrawn. Tags, pins, cached
// files, nars, and items that came from here alone stay.
func (m *Mirror) resync(ctx context.Context, at place, why string) error {
	if err := m.stillHeld(ctx); err != nil {
		return err
	}
	m.dumps.told.log(m.log, slog.LevelInfo, m.now(), "starting from the dump of the mirrored instance", "source", m.Source.String(), "why", why)
	m.dumps.tidied = false
	m.status.doing(Syncing, "downloading the dump: "+why)
	db, err := m.fetchDump(ctx)
	if err != nil {
		return err
	}
	m.status.doing(Syncing, "merging the dump: "+why)
	next, err := m.merge(ctx, at, db)
	if err != nil {
		err = fmt.Errorf("start from the dump of %s: %w", m.Source, err)
	} else {
		err = m.Storage.Index().Update(ctx, next.write)
	}
	if err = m.closeDump(ctx, db, err); err == nil {
		m.status.resynced()
	}
	return err
}

// bits is a set of items by their places.
type bits []uint64

func (b bits) set(place int64) {
	if i := place / 64; i < int64(len(b)) {
		b[i] |= 1 << (place % 64)
	}
}

func (b bits) has(place int64) bool {
	i := place / 64
	return i < int64(len(b)) && b[i]&(1<<(place%64)) != 0
}

// merge makes the items here those of the dump, and returns the place behind it.
func (m *Mirror) merge(ctx context.Context, at place, db *dump) (place, error) {
	next, newest, err := m.behind(ctx, db)
	if err != nil {
		return next, err
	}
	if err := m.notSelf(peer.LogState{Instance: next.Instance}); err != nil {
		return next, err
	}
	if next.Instance != "" && next.Instance == at.Instance && next.Position+1 < m.logFirst {
		return next, fmt.Errorf("%w: it ends at change %d, and the log begins at %d: run 'nar-herder dump' there, or have the server make dumps", errOldDump, next.Position, m.logFirst)
	}
	// A dump without changes may end with a removal, which leaves no time in it.
	if made := later(newest, db.modified); at.Instance == "" && !made.IsZero() && made.Before(at.Since) {
		why := fmt.Sprintf("its dump has gone back in time: it ends at %s, and changes up to %s were followed", made.Format(time.DateTime), at.Since.Format(time.DateTime))
		if err := m.unlessAccepted(ctx, why); err != nil {
			return next, err
		}
	}
	count, err := db.Count(ctx)
	if err != nil {
		return next, badDump(err)
	}
	mirrored, last, err := m.Storage.Index().MirroredCount(ctx)
	if err != nil {
		return next, err
	}
	negligible := int64(m.negligible)
	if next.Source != at.Source || next.Instance != at.Instance { // it may be the wrong source
		negligible = min(negligible, mirrored/2)
	}
	most := max(negligible, mirrored/shrinkShare)
	if lost := mirrored - count; lost > most {
		if err := m.unlessAccepted(ctx, fmt.Sprintf("it has shrunk from %d items to %d", mirrored, count)); err != nil {
			return next, err
		}
	}
	if err := db.checkSum(ctx); err != nil {
		return next, err
	}
	there := make(bits, last/64+1)
	if err := m.mergeItems(ctx, db, there, count); err != nil {
		return next, err
	}
	if keepAll, err := m.keepDamaged(ctx, db, there); keepAll || err != nil {
		next.Removals, next.Owed = at.Removals, cmp.Or(db.tag, "unknown")
		return next, err
	}
	next.Removals, err = m.withdrawOthers(ctx, at, there, last, mirrored, most, newest)
	return next, err
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// behind returns the place behind a dump, and the time of its newest content.
func (m *Mirror) behind(ctx context.Context, db *dump) (next place, newest time.Time, err error) {
	info, err := db.Info(ctx)
	if err != nil {
		return next, newest, badDump(err)
	}
	added, err := db.LastAdded(ctx)
	if err != nil {
		return next, newest, badDump(err)
	}
	changed, err := db.NewestChange(ctx)
	if err != nil {
		return next, newest, badDump(err)
	}
	newest = later(added, changed)
	if info["instance"] != "" {
		next.Source, next.Instance = m.Source.String(), info["instance"]
		if next.Position, err = strconv.ParseInt(info["last_change"], 10, 64); err != nil {
			return next, newest, fmt.Errorf("%w: the number of the last change: %w", errBadDump, err)
		}
		if ok, err := m.isSources(ctx, next); ok || err != nil {
			return next, newest, err
		}
	}
	since := newest
	if since.IsZero() {
		since = db.modified
	}
	newest = stamp.Past(newest, m.now())
	if next, err = placeBehind(ctx, db.Database, since, m.now()); err != nil {
		return next, newest, badDump(err)
	}
	if next.Since.IsZero() && !m.isAhead(db.modified) {
		next.Since = db.modified
	}
	switch {
	case !next.Since.IsZero():
	case since.IsZero():
		return next, newest, fmt.Errorf("%w: nothing in it says when it was made", errBadDump)
	default: // the dump may be good, so that it stays
		return next, newest, fmt.Errorf("its dump is of %s, which is ahead of this machine's clock: check the clocks of both", since.Format(time.DateTime))
	}
	next.Source, next.Dump = m.Source.String(), db.tag
	return next, newest, nil
}

// isSources asks the source whether the place that its dump names is in its own
// numbers: an original that began with a dump of this program has what that says of
// itself in its own dumps.
func (m *Mirror) isSources(ctx context.Context, at place) (bool, error) {
	reply, err := m.Source.ChangesAfter(ctx, at.known())
	if lost := peer.AsLost(err); lost != nil {
		return lost.Instance == at.Instance, nil
	}
	if errors.Is(err, peer.ErrNoLog) {
		return false, nil
	}
	return err == nil && reply.Instance == at.Instance, err
}

// placeBehind returns the place behind what a database of the original has, by the
// times of changes. since is that of the newest; what is ahead does not count.
func placeBehind(ctx context.Context, db *original.Database, since, now time.Time) (place, error) {
	each := func(f func(original.Change)) error {
		for change, err := range db.Changes(ctx) {
			var row *original.RowError
			if errors.As(err, &row) {
				continue
			} else if err != nil {
				return err
			}
			f(change)
		}
		return nil
	}
	next := place{Since: since}
	if stamp.IsAhead(since, now) {
		next.Since = time.Time{}
		err := each(func(change original.Change) {
			if !stamp.IsAhead(change.At, now) {
				next.Since = later(next.Since, change.At)
			}
		})
		if err != nil {
			return next, err
		}
	}
	changes := make(seen)
	err := each(func(change original.Change) {
		if change.At.Before(next.from()) || len(changes) > mostSeen {
			return
		}
		c := peer.Change{Datetime: change.At.Format(time.DateTime), Change: peer.Addition, Data: change.Data}
		if change.Removal {
			c.Change = peer.Removal
		}
		changes[fingerprintOf(c)] = change.At
	})
	if err == nil && len(changes) > mostSeen {
		err = errManySeen
	}
	return next.with(changes, now), err
}

// mergeItems adds the dump's items, and sets the bits of those that are there
// already.
func (m *Mirror) mergeItems(ctx context.Context, db *dump, there bits, count int64) error {
	var done, bad int64
	var fetched []Followed
	size := 0 // of their texts, in bytes
	flush := func() error {
		news, err := m.unknown(ctx, fetched, there)
		if err != nil {
			return err
		}
		done += int64(len(fetched))
		clear(fetched) // they are not to be kept
		fetched, size = fetched[:0], 0
		m.status.doing(Syncing, fmt.Sprintf("merging the dump: %d of %d items", done, count))
		if len(news) == 0 {
			return nil
		}
		sums, err := Apply(ctx, m.Storage, news, ApplyOptions{})
		if err != nil {
			return err
		}
		m.status.applied(sums)
		m.announce(news)
		return nil
	}
	for item, err := range db.Items(ctx, original.FromStart) {
		var row *original.RowError
		if err != nil && !errors.As(err, &row) {
			return badDump(err)
		}
		var change Followed
		if err == nil {
			change, err = m.itemOf(item, db)
		}
		if err != nil {
			bad++
			if bad <= 20 {
				m.log.Error("skipped a narinfo in the source's dump that makes no sense", "source", m.Source.String(), "error", err)
			}
			m.status.passedOver()
			if bad > max(20, count/badShare) {
				return fmt.Errorf("%w: over %d of its %d narinfos are wrong, the last: %w", errBadDump, bad-1, count, err)
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

// itemOf makes sense of an item of a dump.
func (m *Mirror) itemOf(item original.Item, db *dump) (change Followed, err error) {
	n, err := admitItem(item, db)
	if err != nil {
		return change, err
	}
	added := item.AddedAt
	if added.IsZero() || m.isAhead(added) {
		if added = db.modified; added.IsZero() || m.isAhead(added) {
			added = m.now()
		}
	}
	return Followed{At: added.UTC().Truncate(time.Second), Narinfo: n, Hash: n.StorePath.Hash}, nil
}

// unknown returns those items that are not here as they are there, and sets the
// bits of all that are here.
func (m *Mirror) unknown(ctx context.Context, items []Followed, there bits) (news []Followed, err error) {
	hashes := make([]narinfo.PathHash, len(items))
	for i, item := range items {
		hashes[i] = item.Hash
	}
	err = m.Storage.Index().EachAt(ctx, hashes, func(i int, row *index.Item, err error) error {
		setPlace(there, row, err)
		if row != nil {
			// A known item keeps its time. Those who follow this instance by time
			// have passed that, and are told now.
			items[i].At = m.now().UTC().Truncate(time.Second)
		}
		// A damaged one is written again.
		if row == nil || !row.Mirrored || !row.WithdrawnAt.IsZero() || !bytes.Equal(row.Text, items[i].Narinfo.Text) {
			news = append(news, items[i])
		}
		return nil
	})
	return news, err
}

// setPlace sets the bit of an item as [index.Index.EachAt] has it.
func setPlace(there bits, row *index.Item, err error) {
	var damage *index.Damage
	if row != nil {
		there.set(row.Place())
	} else if errors.As(err, &damage) && damage.Place() != 0 {
		there.set(damage.Place())
	}
}

// keepDamaged sets the bits of items that the dump lacks since they are damaged at the
// source. It returns true if those can't be told from removed ones.
func (m *Mirror) keepDamaged(ctx context.Context, db *dump, there bits) (keepAll bool, err error) {
	var hashes []narinfo.PathHash
	for name := range strings.FieldsSeq(db.damaged) {
		hash, err := narinfo.ParsePathHash(name)
		if err != nil {
			m.log.Warn("the dump of the mirrored instance lacks damaged items and doesn't name them all, so nothing is removed that it lacks", "source", m.Source.String())
			return true, nil
		}
		hashes = append(hashes, hash)
	}
	for some := range slices.Chunk(hashes, batchSize) {
		err := m.Storage.Index().EachAt(ctx, some, func(_ int, row *index.Item, err error) error {
			setPlace(there, row, err)
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// owedEvery is how often a mirror looks for a dump that names all items that are damaged.
const owedEvery = 24 * time.Hour

// payOwed starts anew from the dump of the source if the last one did not say what was
// removed, and there is another. It returns true if the place has changed. A failure keeps
// nobody from following.
func (m *Mirror) payOwed(ctx context.Context, at place) bool {
	if at.Owed == "" || m.now().Sub(m.owedLooked) < owedEvery {
		return false
	}
	m.owedLooked = m.now()
	tag, _, err := m.Source.Look(ctx, peer.DumpPath, true)
	if err == nil && tag == at.Owed {
		return false
	}
	if err == nil {
		err = m.resync(ctx, at, "the last dump lacked damaged items and did not name them all")
	}
	if err != nil && ctx.Err() == nil {
		m.log.Warn("can't look for what the mirrored instance has removed, which is tried again later", "source", m.Source.String(), "after", owedEvery, "error", err)
	}
	return err == nil
}

// withdrawOthers withdraws the items of the source, up to the last place, that have no
// bit set: the source does not have them any more. What is newer than the dump may be
// there all the same. A source that lacks more than most is refused. It returns the
// removals of the last hour, with these, and keeps them in the place as it removes:
// neither a restart nor another dump may hide them from [Mirror.allow].
func (m *Mirror) withdrawOthers(ctx context.Context, at place, there bits, last, mirrored, most int64, newest time.Time) (map[int64]int, error) {
	each := func(f func(hashes []narinfo.PathHash) error) error {
		for after := int64(0); after < last; {
			items, end, err := m.Storage.Index().MirroredAfter(ctx, after, last, 20*batchSize)
			if err != nil {
				return err
			}
			var hashes []narinfo.PathHash
			for _, item := range items {
				if !there.has(item.Place) && (newest.IsZero() || item.AddedAt.Before(newest)) {
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
	var gone int64
	err := each(func(hashes []narinfo.PathHash) error {
		gone += int64(len(hashes))
		return nil
	})
	if err != nil || gone == 0 {
		return at.Removals, err
	}
	var counted map[int64]int
	if gone > most {
		err = m.unlessAccepted(ctx, fmt.Sprintf("its dump lacks %d items of %d", gone, mirrored))
	} else {
		counted, err = m.allow(ctx, withRemovals(at.Removals, int(gone), m.now()))
	}
	if err != nil {
		return nil, err
	}
	accepted := counted == nil
	if accepted {
		at.Removals = nil
	}
	options := ApplyOptions{Within: func(tx *index.Tx) error { return at.write(tx) }}
	if m.Pinned != nil {
		keeps, guard, err := m.Pinned(ctx)
		if err != nil {
			return nil, err
		}
		options.Keeps = keeps
		options.Within = func(tx *index.Tx) error { return errors.Join(guard(tx), at.write(tx)) }
	}
	err = each(func(hashes []narinfo.PathHash) error {
		for some := range slices.Chunk(hashes, batchSize) {
			now := m.now().UTC().Truncate(time.Second)
			if !accepted {
				at.Removals = withRemovals(at.Removals, len(some), now)
			}
			changes := make([]Followed, len(some))
			for i, hash := range some {
				changes[i] = Followed{At: now, Hash: hash}
			}
			sums, err := Apply(ctx, m.Storage, changes, options)
			if err != nil {
				return err
			}
			m.status.applied(sums)
		}
		return nil
	})
	return at.Removals, err
}
