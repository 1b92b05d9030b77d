// Package mirror follows another instance, its source: it applies the source's changes one
// by one, or merges the source's dump, so that both have the same items. It refuses a
// source that would make it lose much, or that has gone back in time, until an
// administrator accepts that.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/mirror/bootstrap"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/mirror/sourcedump"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Options of [New].
type Options struct {
	Storage *storage.Storage
	// Source is the instance to follow.
	Source *peer.Peer
	// Keys are authorized to sign the source's narinfos; nil for any key.
	Keys *signing.Keys
	// Downloads is the prefix of the names of downloaded files. The disk must have room
	// for a dump of the source, twice if it is compressed.
	Downloads string
	// Pinned returns which items to keep when the source removes them, and a guard that
	// re-validates that within the transaction; nil if there are none.
	Pinned func(ctx context.Context) (keeps func(narinfo.PathHash) bool, guard func(*index.Tx) error, err error)
	// Wanted receives items whose nars may be missing; may be nil.
	Wanted func(hashes []narinfo.PathHash)
	// Interval is the time between two requests to a source that has no stream of
	// changes; 0 for [DefaultInterval].
	Interval time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil for the system's.
	Now func() time.Time
}

// DefaultInterval is that of the original.
const DefaultInterval = time.Minute

const (
	// firstPause is the pause after a failure, which doubles with each in a row up to
	// lastPause.
	firstPause = time.Second
	lastPause  = 2 * time.Minute
	// refusedPause is how often a refused source is looked at again.
	refusedPause = 10 * time.Second
	// notReadyPause is for a source that will have a dump soon.
	notReadyPause = 5 * time.Second
	// healthyAfter is how long following must succeed to reset the pause.
	healthyAfter = 10 * time.Second
	// resyncPause is the shortest time between two resyncs because of lost changes.
	resyncPause = time.Minute
	// negligible is the number of items that a source may lose at once, whatever their
	// share.
	negligible = 1000
	// noLogFor is how long a source that had numbered changes may have none, as during an
	// upgrade of a proxy.
	noLogFor = time.Hour
)

// Mirror follows a source. It is made by [New].
type Mirror struct {
	Options
	status status
	dumps  sourcedump.Loader

	// negligible is the constant, except in tests.
	negligible int
	// seenOnce are changes that a source without numbers has sent once.
	seenOnce map[cursor.Fingerprint]struct{}
	// unreadable counts how often in a row a change could not be read.
	unreadable map[cursor.Fingerprint]int
	// unreadableLogged counts the unreadable changes that were logged.
	unreadableLogged int
	// logFirst is the oldest change in the source's log when the next change was found
	// missing there: a dump that ends before it is useless.
	logFirst int64
	// resyncLogged suppresses repeated log lines about a resync.
	resyncLogged logonce.Filter
	// refusedLogged is the same for refused narinfos.
	refusedLogged logonce.Filter
	// isTidy reports that no files of an earlier run are left.
	isTidy bool

	resyncedAt    time.Time // the last resync because of lost changes
	owedLooked    time.Time // the last look for a dump that names all damaged items
	refusedLooked time.Time // the last attempt to get what was refused with other keys
	askedNumbers  time.Time // the last request for numbers to a source without them
	noLogSince    time.Time // since when a source that had numbers has none
	noStreamUntil time.Time // until when to request pages, because streams fail
}

// New makes a mirror, which does nothing until it runs.
func New(options Options) *Mirror {
	m := &Mirror{Options: options, unreadable: make(map[cursor.Fingerprint]int), negligible: negligible}
	if m.Log == nil {
		m.Log = slog.New(slog.DiscardHandler)
	}
	if m.Now == nil {
		m.Now = time.Now
	}
	if m.Interval <= 0 {
		m.Interval = DefaultInterval
	}
	m.dumps = sourcedump.Loader{Source: m.Source, Downloads: m.Downloads, Log: m.Log, Now: m.Now, Progress: m.status.syncing}
	m.status.begin(m)
	return m
}

// Run follows the source until the context ends.
func (m *Mirror) Run(ctx context.Context) {
	backoff := pace.Backoff{First: min(firstPause, m.Interval), Last: lastPause}
	for failures := 0; ctx.Err() == nil; {
		begun := m.Now()
		wait, err := m.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if m.Now().Sub(begun) > healthyAfter {
			failures = 0
		}
		var refused *health.RefusedError
		switch {
		case err == nil:
			failures = 0
		case errors.As(err, &refused):
			wait, failures = min(refusedPause, m.Interval), 0
		case errors.Is(err, download.ErrNotReady):
			wait, failures = notReadyPause, 0
		default:
			failures++
			wait = backoff.Jittered(failures)
		}
		m.status.ended(m.Log, err)
		if pace.Sleep(ctx, wait) != nil {
			return
		}
	}
}

// step follows the source's stream until it fails, or polls the source once. It returns the
// pause before the next step.
func (m *Mirror) step(ctx context.Context) (time.Duration, error) {
	at, err := cursor.Read(ctx, m.Storage.Index())
	if err != nil {
		return 0, err
	}
	if at.IsZero() {
		return 0, m.resync(ctx, at, "nothing of it is here yet")
	}
	m.status.refused(at.Refused)
	if m.payOwed(ctx, at) || m.payRefused(ctx, at) {
		return 0, nil
	}
	if at.Instance == "" {
		return m.Interval, m.followPlain(ctx, at)
	}
	if m.Now().Before(m.noStreamUntil) {
		return pageInterval, m.followPages(ctx, at)
	}
	err = m.followStream(ctx, at)
	var lost *peer.LostError
	switch {
	case errors.As(err, &lost):
		return 0, m.lost(ctx, at, lost)
	case errors.Is(err, peer.ErrNoLog):
		if m.noLogSince.IsZero() {
			m.noLogSince = m.Now()
		}
		if m.Now().Sub(m.noLogSince) < noLogFor {
			return 0, fmt.Errorf("%w, but did before", err)
		}
		m.noLogSince = time.Time{}
		return 0, m.resync(ctx, at, "it is another program now, which does not number its changes")
	}
	m.noLogSince = time.Time{}
	if errors.Is(err, peer.ErrBusy) {
		if pagesErr := m.followPages(ctx, at); pagesErr != nil {
			return 0, errors.Join(err, pagesErr) // it is perhaps just starting
		}
		m.noStreamUntil = m.Now().Add(busyStreamFor)
		m.Log.Info("the source allows no more streams of its changes: requesting pages", "source", m.Source.String(), "interval", pageInterval, "retry_in", busyStreamFor)
		return pageInterval, nil
	}
	return 0, err
}

// notSelf refuses to follow this instance, and instances that follow it: changes would
// circulate for ever.
func (m *Mirror) notSelf(state peer.LogState) error {
	own := m.Storage.Index().Instance()
	if state.Instance == own {
		return &health.RefusedError{Why: "it is this very instance: name another with --mirror, or, if this database is a copy of that instance's, stop this server and run 'nar-herder new-identity'"}
	}
	if slices.Contains(state.Chain, own) {
		return &health.RefusedError{Why: "it mirrors this instance, itself or through others: name one with --mirror that does not"}
	}
	m.status.chain(append([]string{state.Instance}, state.Chain[:min(len(state.Chain), maxChain)]...))
	return nil
}

// maxChain bounds the mirrored instances that are reported to others.
const maxChain = 32

// lost decides what to do when the changes after the cursor are not available.
func (m *Mirror) lost(ctx context.Context, at cursor.Cursor, lost *peer.LostError) error {
	if m.Now().Sub(m.resyncedAt) < resyncPause {
		return fmt.Errorf("lost again right after starting from its dump: %w", lost)
	}
	if lost.Instance != at.Instance {
		return m.resyncLost(ctx, at, "its database was replaced")
	}
	if lost.First > at.Position+1 {
		m.logFirst = lost.First
		return m.resyncLost(ctx, at, fmt.Sprintf("changes %d to %d have left its log", at.Position+1, lost.First-1))
	}
	why := fmt.Sprintf("it has gone back in time: its change %d differs from the one that was followed, as after a backup was restored", at.Position)
	if lost.Last < at.Position {
		why = fmt.Sprintf("it has gone back in time: change %d was followed, and its newest is %d, as after a backup was restored", at.Position, lost.Last)
	}
	if err := m.unlessAccepted(ctx, why); err != nil {
		return err
	}
	return m.resyncLost(ctx, at, "it has gone back in time, which was accepted")
}

// resyncLost is resync, and records the time.
func (m *Mirror) resyncLost(ctx context.Context, at cursor.Cursor, why string) error {
	if err := m.resync(ctx, at, why); err != nil {
		return err
	}
	m.resyncedAt = m.Now()
	return nil
}

// acceptSetting is the key of the time at which an administrator accepted losses.
const acceptSetting = "mirror.accept"

// acceptedFor is how long that is valid.
const acceptedFor = time.Hour

// Accept accepts a mass removal at the source for the next hour, and whatever else the
// source would be refused for.
func Accept(ctx context.Context, x *index.Index, now time.Time) error {
	return x.Update(ctx, func(tx *index.Tx) error { return tx.SetSetting(acceptSetting, now.UTC().Format(time.RFC3339)) })
}

// unlessAccepted returns a [health.RefusedError], unless [Accept] was called within the last
// hour.
func (m *Mirror) unlessAccepted(ctx context.Context, why string) error {
	text, err := m.Storage.Index().Setting(ctx, acceptSetting)
	if err != nil {
		return err
	}
	if text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return fmt.Errorf("the setting %s in the database: %w", acceptSetting, err)
		}
		if age := m.Now().Sub(at); 0 <= age && age < acceptedFor {
			m.Log.Warn("the source was accepted, so that it is followed", "source", m.Source.String(), "reason", why)
			return nil
		}
	}
	return &health.RefusedError{Why: why + "; if that is intended, run 'nar-herder mirror-accept-loss', else repair the source"}
}

// tidy removes what an earlier run has left of its downloads, once the source is followed.
func (m *Mirror) tidy() {
	if m.isTidy {
		return
	}
	m.isTidy = true
	if err := errors.Join(m.dumps.Discard(), bootstrap.RemoveFiles(m.Downloads)); err != nil {
		m.Log.Warn("can't remove the downloads of an earlier run", "error", err)
	}
}
