package nars

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/mirror/nars/room"
	"nar-herder/mirror/nars/spool"
	"nar-herder/storage"
	"nar-herder/storage/narcheck"
)

// reason is the kind of a failure, a label of the metrics.
type reason int

const (
	reasonAbsent reason = iota // the source certainly doesn't have it
	reasonSource               // the source fails
	reasonWrong                // the bytes are not the nar
	reasonFull                 // no room
	reasonLocal                // this machine fails
)

var reasons = [...]string{"absent", "source", "wrong", "full", "local"}

func reasonOf(err error) reason {
	switch {
	case errors.Is(err, storage.ErrNotStored):
		return reasonAbsent
	case errors.Is(err, narcheck.ErrWrongNar):
		return reasonWrong
	case room.IsFull(err):
		return reasonFull
	case errors.Is(err, errLocal):
		return reasonLocal
	}
	return reasonSource
}

// isOfItem reports whether a failure of this machine concerns one nar alone.
func isOfItem(err error) bool {
	return errors.Is(err, narcheck.ErrUnreadable) || errors.Is(err, errUnsized) || errors.Is(err, spool.ErrInUse) || errors.Is(err, errFault)
}

// finish records the outcome of a download.
func (f *Fetcher) finish(d *download, err error) {
	switch {
	case err == nil:
		f.succeeded(d)
	case errors.Is(err, room.ErrNone):
		f.unfit(err)
	case errors.Is(err, errStored), errors.Is(err, storage.ErrNotWanted), errors.Is(err, errStopped):
		// Not a failure.
	case errors.Is(err, storage.ErrNotStored) && !d.onDemand:
		// The other files of the item decide whether it is one: see fetchItem.
	default:
		f.failed(d.item, d.item.FileName(d.n), err)
	}
}

// unfit records a file for which there is no room.
func (f *Fetcher) unfit(err error) {
	f.room.Unfit(f.ctx)
	const text = "the storage has no room: nars that don't fit wait until others are removed"
	if f.troubles.IsDue(text, f.now()) {
		f.log.Info(text, "error", err)
	}
}

func (f *Fetcher) succeeded(d *download) {
	f.metrics.fetched.Add(1)
	f.metrics.bytes.Add(d.size)
	f.troubles.Over(f.log, "nars are fetched again", "file", d.item.FileName(d.n))
	f.room.Fit()
	ofUpstream := d.item.Origin != 0
	f.mu.Lock()
	if !ofUpstream {
		f.sourceFailures, f.pausedUntil = 0, time.Time{}
	}
	f.status.LastSuccess = f.now()
	f.mu.Unlock()
	if d.onDemand && !ofUpstream {
		f.want(d.item.Hash) // for its other files
	}
	f.log.Debug("fetched a nar", "file", d.item.FileName(d.n), "bytes", d.size)
}

// failed records a failure and schedules a retry of the item. A nar of an upstream is fetched
// again only when a client requests it.
func (f *Fetcher) failed(item *storage.Item, name string, err error) {
	why := reasonOf(err)
	f.metrics.failures[why].Add(1)
	now := f.now()
	if item.Origin != 0 {
		f.failedOnDemand(name, why, now, err)
		return
	}
	again := f.queue.Retry(item.Hash, now, func(failures int) time.Duration {
		backoff := f.timing.retry
		switch why {
		case reasonAbsent:
			return pace.Jitter(f.timing.absentRetry)
		case reasonSource:
			backoff.First = f.timing.pause.First // the source may be back as soon as the pause ends
		}
		return backoff.Jittered(failures + 1)
	})
	f.mu.Lock()
	switch {
	case why == reasonSource, why == reasonLocal && !isOfItem(err):
		// Other items would fail as well.
		pause := f.timing.pause.Jittered(f.sourceFailures + 1)
		if !now.Before(f.pausedUntil) { // count several at once as one
			f.sourceFailures++
		}
		f.pausedUntil = later(f.pausedUntil, now.Add(pause))
	case why == reasonFull:
		f.fullUntil = later(f.fullUntil, now.Add(f.timing.fullPause))
	case why == reasonAbsent:
		f.sourceFailures, f.pausedUntil = 0, time.Time{} // the source answers
	}
	f.status.LastError, f.status.LastErrorAt = publicErrors[why], now
	f.mu.Unlock()
	text := map[reason]string{
		reasonAbsent: "the source does not have a nar: looking for it again each hour",
		reasonSource: "can't fetch nars for now",
		reasonWrong:  "the source sent something else than the nar that the narinfo describes: discarded it, and retrying",
		reasonFull:   "the disk or storage is full: fetching no nars for now",
		reasonLocal:  "can't fetch a nar into the storage",
	}[why]
	attributes := []any{"file", name, "error", err, "retry_in", again.Sub(now).Round(time.Second)}
	due := &f.troubles
	if why == reasonAbsent || isOfItem(err) {
		due = &f.logged // other nars can be fetched
	}
	key := text
	if why == reasonWrong {
		key += name // the source may send many
	}
	switch {
	case due.IsDue(key, now):
		f.log.Warn(text, attributes...)
	default:
		f.log.Debug(text, attributes...)
	}
}

// failedOnDemand records a failure that only concerns the clients that wait for a nar.
func (f *Fetcher) failedOnDemand(name string, why reason, now time.Time, err error) {
	f.mu.Lock()
	if why == reasonFull {
		f.fullUntil = later(f.fullUntil, now.Add(f.timing.fullPause))
	}
	f.status.LastError, f.status.LastErrorAt = publicErrors[why], now
	f.mu.Unlock()
	const text = "can't fetch a nar that a client requested"
	level := slog.LevelDebug
	if why == reasonWrong || why != reasonAbsent && f.logged.IsDue(text+reasons[why], now) {
		level = slog.LevelWarn
	}
	f.log.Log(context.Background(), level, text, "file", name, "error", err)
}

// publicErrors are the texts of failures in the health report. Errors themselves quote the
// source, and name files of this machine.
var publicErrors = [...]string{
	reasonAbsent: "a nar is not stored at its source",
	reasonSource: "a source can't be reached, or stops sending",
	reasonWrong:  "the source sent something else than the nar that the narinfo describes",
	reasonFull:   "there is no room on this machine",
	reasonLocal:  "a fault of this machine: see its log",
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Status is the state of a fetcher for the health report.
type Status struct {
	// Missing is about how many items lack nars.
	Missing int64 `json:"missing"`
	// InFlight is how many files are being downloaded.
	InFlight int `json:"in_flight"`
	// LastError is the last failure, and LastErrorAt its time; "" for none.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	// LastSuccess is when a nar was last stored; zero for never.
	LastSuccess time.Time `json:"last_success,omitzero"`
	// Paused says that fetching pauses because the source or this machine has failed.
	Paused bool `json:"paused,omitempty"`
}

// Status returns the current state.
func (f *Fetcher) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := f.status
	status.Missing = max(f.missing.Load(), 0)
	status.InFlight = len(f.downloads)
	status.Paused = f.now().Before(later(f.pausedUntil, f.fullUntil))
	return status
}

// Warnings returns the warnings for the health report.
func (f *Fetcher) Warnings() []string {
	status := f.Status()
	if !status.Paused || status.LastError == "" {
		return nil
	}
	// The error may name files of this machine.
	return []string{"nars can't be fetched for now: see the log"}
}
