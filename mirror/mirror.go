// Package mirror follows another instance: it starts from what that publishes of
// its index, and then does what that has done, change by change, so that the two
// have the same items. A source that would make this one lose much, or that has
// gone back in time, is refused until an administrator accepts it.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Options of [New].
type Options struct {
	Storage *storage.Storage
	// Source is the instance that is followed.
	Source *peer.Peer
	// Downloads is the name that files which are being downloaded begin with, on a
	// disk with room for a dump of the source, twice where it comes compressed.
	Downloads string
	// Pinned returns which items stay when the source removes them, and what is
	// to be asked in the transaction whether that is still so; nil for none.
	Pinned func(ctx context.Context) (keeps func(narinfo.PathHash) bool, guard func(*index.Tx) error, err error)
	// Wanted is told of items whose nars may be missing; nil for nobody.
	Wanted func(hashes []narinfo.PathHash)
	// Interval is the time between two questions to a source that has no stream
	// of changes; 0 means [DefaultInterval].
	Interval time.Duration
	// Log takes what operators should know; nil drops it.
	Log *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// DefaultInterval is that of the original.
const DefaultInterval = time.Minute

const (
	// firstPause and lastPause are how long it waits after a failure; the pause
	// doubles with each in a row.
	firstPause = time.Second
	lastPause  = 2 * time.Minute
	// refusedPause is how often it looks whether a source that was refused has
	// been accepted, or is as it should be again.
	refusedPause = 10 * time.Second
	// notReadyPause is for a source that will have a dump soon.
	notReadyPause = 5 * time.Second
	// healthyAfter is how long following has gone well when its end is no reason
	// to wait for longer than at first.
	healthyAfter = 10 * time.Second
	// resyncPause is how soon after a start from the dump another is a failure.
	resyncPause = time.Minute
	// negligible is a number of items that a source may lose at once, whatever the
	// share is that they have.
	negligible = 1000
	// noLogFor is for how long a source that had numbers for its changes may have
	// none, as during an upgrade of what is in front of it.
	noLogFor = time.Hour
)

// RefusedError says why a source is not followed: what it says may be a mistake
// that would cost much.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// Mirror follows a source. It is made by [New].
type Mirror struct {
	Options
	log    *slog.Logger
	now    func() time.Time
	status status
	dumps  dumps

	// negligible is the constant but in tests.
	negligible int
	// toldOnce are changes that a source without numbers has told once.
	toldOnce map[fingerprint]struct{}
	// unreadable counts how often in a row a change could not be made sense of.
	unreadable map[[8]byte]int
	// unreadableTold is how many were told of in the log.
	unreadableTold int
	// logFirst is the oldest change that the source's log had when it was found not
	// to have the next: a dump that ends before it is of no use.
	logFirst int64
	// resyncedAt is when this has started from the source's dump last.
	resyncedAt time.Time
	// owedLooked is when a dump was looked for last that names all damaged items.
	owedLooked time.Time
	// askedNumbers is when a source without numbers was asked for some last.
	askedNumbers time.Time
	// noLogSince is since when a source that had numbers has none.
	noLogSince time.Time
	// noStreamUntil is until when pages are asked for, as streams don't come
	// through.
	noStreamUntil time.Time
}

// New makes a mirror, which does nothing until it runs.
func New(options Options) *Mirror {
	m := &Mirror{Options: options, log: options.Log, now: options.Now, unreadable: make(map[[8]byte]int), negligible: negligible}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.now == nil {
		m.now = time.Now
	}
	if m.Interval <= 0 {
		m.Interval = DefaultInterval
	}
	m.status.begin(m)
	return m
}

// Run follows the source until the context ends.
func (m *Mirror) Run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		begun := m.now()
		wait, err := m.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if m.now().Sub(begun) > healthyAfter {
			failures = 0 // it went well until now
		}
		var refused *RefusedError
		switch {
		case err == nil:
			failures = 0
		case errors.As(err, &refused):
			wait, failures = refusedPause, 0
		case errors.Is(err, peer.ErrNotReady):
			wait, failures = notReadyPause, 0
		default:
			pause := min(lastPause, min(firstPause, m.Interval)<<min(failures, 10))
			wait = pause/2 + rand.N(pause)
			failures++
		}
		m.status.ended(m.log, err)
		if pace.Sleep(ctx, wait) != nil {
			return
		}
	}
}

// step follows the source for as long as that goes well, or asks it once, and
// returns after which time to go on.
func (m *Mirror) step(ctx context.Context) (time.Duration, error) {
	at, err := readPlace(ctx, m.Storage.Index())
	if err != nil {
		return 0, err
	}
	if at.isZero() {
		return 0, m.resync(ctx, at, "nothing of it is here yet")
	}
	if m.payOwed(ctx, at) {
		return 0, nil
	}
	if at.Instance == "" {
		return m.Interval, m.followPlain(ctx, at)
	}
	if m.now().Before(m.noStreamUntil) {
		return pageInterval, m.followPages(ctx, at)
	}
	err = m.followStream(ctx, at)
	var lost *peer.LostError
	switch {
	case errors.As(err, &lost):
		return 0, m.lost(ctx, at, lost)
	case errors.Is(err, peer.ErrNoLog):
		if m.noLogSince.IsZero() {
			m.noLogSince = m.now()
		}
		if m.now().Sub(m.noLogSince) < noLogFor {
			return 0, fmt.Errorf("%w, but did before", err)
		}
		m.noLogSince = time.Time{}
		return 0, m.resync(ctx, at, "it is another program now, which does not tell changes by numbers")
	}
	m.noLogSince = time.Time{}
	if errors.Is(err, peer.ErrBusy) {
		if pagesErr := m.followPages(ctx, at); pagesErr != nil {
			return 0, errors.Join(err, pagesErr) // it is perhaps just starting
		}
		m.noStreamUntil = m.now().Add(busyStreamFor)
		m.log.Info("the source has no room for a stream of its changes, so pages of them are asked for", "source", m.Source.String(), "interval", pageInterval, "for", busyStreamFor)
		return pageInterval, nil
	}
	return 0, err
}

// notSelf refuses to follow oneself, and who follows this instance: changes would go
// round for ever.
func (m *Mirror) notSelf(state peer.LogState) error {
	own := m.Storage.Index().Instance()
	if state.Instance == own {
		return &RefusedError{"it is this very instance: name another with --mirror, or, if this database is a copy of that instance's, stop this server and run 'nar-herder new-identity'"}
	}
	if slices.Contains(state.Chain, own) {
		return &RefusedError{"it mirrors this instance, itself or through others: name one with --mirror that does not"}
	}
	m.status.chain(append([]string{state.Instance}, state.Chain[:min(len(state.Chain), mostChain)]...))
	return nil
}

// mostChain bounds the instances that are told of as mirrored.
const mostChain = 32

// lost decides what to do when the changes behind the own place can't be had.
func (m *Mirror) lost(ctx context.Context, at place, lost *peer.LostError) error {
	if m.now().Sub(m.resyncedAt) < resyncPause {
		return fmt.Errorf("lost again right after starting from its dump: %w", lost)
	}
	why := ""
	switch {
	case lost.Instance != at.Instance:
		return m.startAnew(ctx, at, "its database is another than before")
	case lost.First > at.Position+1:
		m.logFirst = lost.First
		return m.startAnew(ctx, at, fmt.Sprintf("changes %d to %d have left its log", at.Position+1, lost.First-1))
	case lost.Last < at.Position:
		why = fmt.Sprintf("it has gone back in time: change %d was followed, and it has come to %d only, as after a backup was put back", at.Position, lost.Last)
	default:
		why = fmt.Sprintf("it has gone back in time: its change %d is another than the one that was followed, as after a backup was put back", at.Position)
	}
	if err := m.unlessAccepted(ctx, why); err != nil {
		return err
	}
	return m.startAnew(ctx, at, "it has gone back in time, which was accepted")
}

// startAnew is resync, and remembers when.
func (m *Mirror) startAnew(ctx context.Context, at place, why string) error {
	if err := m.resync(ctx, at, why); err != nil {
		return err
	}
	m.resyncedAt = m.now()
	return nil
}

// acceptSetting is where an administrator's word is kept: a time.
const acceptSetting = "mirror.accept"

// acceptedFor is for how long that counts.
const acceptedFor = time.Hour

// Accept has what a source would be refused for be followed for the next hour.
func Accept(ctx context.Context, x *index.Index, now time.Time) error {
	return x.Update(ctx, func(tx *index.Tx) error { return tx.SetSetting(acceptSetting, now.UTC().Format(time.RFC3339)) })
}

// unlessAccepted returns a [RefusedError], unless the source was accepted lately.
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
		if age := m.now().Sub(at); 0 <= age && age < acceptedFor {
			m.log.Warn("the source was accepted, so that it is followed", "source", m.Source.String(), "although", why)
			return nil
		}
	}
	return &RefusedError{why + "; if that is meant to be so, say 'nar-herder mirror-accept-loss', else put the source right"}
}
