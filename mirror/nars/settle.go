package nars

import (
	"errors"
	"math/rand/v2"
	"time"

	"nar-herder/mirror/nars/spool"
	"nar-herder/storage"
)

// reason is the kind of a failure, a label of the metrics.
type reason int

const (
	reasonAbsent reason = iota // the source certainly does not have it
	reasonSource               // the source can't be asked, or stops to send
	reasonWrong                // what came is another nar
	reasonFull                 // no room
	reasonLocal                // this machine
)

var reasons = [...]string{"absent", "source", "wrong", "full", "local"}

func reasonOf(err error) reason {
	switch {
	case errors.Is(err, storage.ErrNotStored):
		return reasonAbsent
	case errors.Is(err, storage.ErrWrongNar):
		return reasonWrong
	case isFull(err):
		return reasonFull
	case errors.Is(err, errLocal):
		return reasonLocal
	}
	return reasonSource
}

// isOfItem says whether a failure of this machine is about one nar alone.
func isOfItem(err error) bool {
	return errors.Is(err, storage.ErrUnreadable) || errors.Is(err, errUnsized) || errors.Is(err, spool.ErrInUse) || errors.Is(err, errFault)
}

// settle notes how a flight has ended.
func (f *Fetcher) settle(fl *flight, err error) {
	switch {
	case err == nil:
		f.succeeded(fl)
	case errors.Is(err, errNoRoom):
		f.unfit(err)
	case errors.Is(err, errStored), errors.Is(err, storage.ErrNotWanted), errors.Is(err, errStopped):
		// Nobody's failure.
	default:
		f.failed(fl.item, fl.item.FileName(fl.n), err)
	}
}

func (f *Fetcher) succeeded(fl *flight) {
	f.metrics.fetched.Add(1)
	f.metrics.bytes.Add(fl.size)
	f.mu.Lock()
	f.sourceFailures, f.pausedUntil, f.unfits = 0, time.Time{}, 0
	f.status.LastSuccess = f.now()
	f.mu.Unlock()
	if fl.asked {
		f.want(fl.item.Hash) // for its other files
	}
	f.log.Debug("fetched a nar", "file", fl.item.FileName(fl.n), "bytes", fl.size)
}

// failed notes a failure, and when the item is tried again.
func (f *Fetcher) failed(item *storage.Item, name string, err error) {
	why := reasonOf(err)
	f.metrics.failures[why].Add(1)
	now := f.now()
	again := f.queue.Retry(item.Hash, now, func(failures int) time.Duration {
		first := f.timing.firstRetry
		switch why {
		case reasonAbsent:
			return jittered(f.timing.absentRetry)
		case reasonSource:
			first = f.timing.firstPause // the source may be back as soon as the pause ends
		}
		return jittered(min(f.timing.lastRetry, first<<min(failures, 16)))
	})
	f.mu.Lock()
	switch {
	case why == reasonSource, why == reasonLocal && !isOfItem(err):
		// Not the item's own failure, it seems: others would fail, too.
		pause := min(f.timing.lastPause, f.timing.firstPause<<min(f.sourceFailures, 16))
		if !now.Before(f.pausedUntil) { // and not one of several at once
			f.sourceFailures++
		}
		f.pausedUntil = later(f.pausedUntil, now.Add(jittered(pause)))
	case why == reasonFull:
		f.fullUntil = later(f.fullUntil, now.Add(f.timing.fullPause))
	case why == reasonAbsent:
		f.sourceFailures, f.pausedUntil = 0, time.Time{} // it answers
	}
	f.status.LastError, f.status.LastErrorAt = publicErrors[why], now
	f.mu.Unlock()
	text := map[reason]string{
		reasonAbsent: "a nar is not stored where it should come from; it is looked for again each hour",
		reasonSource: "can't fetch nars for now",
		reasonWrong:  "what came is not the nar that its narinfo describes; nothing of it is kept, and it is tried again",
		reasonFull:   "no nars are fetched for now, as there is no room for them",
		reasonLocal:  "can't fetch a nar into the storage",
	}[why]
	attributes := []any{"file", name, "error", err, "again", again.Format(time.RFC3339)}
	switch {
	case why == reasonWrong:
		f.log.Error(text, attributes...)
	case f.isNews(text):
		f.log.Warn(text, attributes...)
	default:
		f.log.Debug(text, attributes...)
	}
}

// publicErrors are failures as the health reports them, by their reasons. Errors
// themselves have text of the source, sizes of what it has sent, and names of files here.
var publicErrors = [...]string{
	reasonAbsent: "a nar is not stored at its source",
	reasonSource: "a source can't be asked, or stops to send",
	reasonWrong:  "what came is not the nar that its narinfo describes",
	reasonFull:   "there is no room on this machine",
	reasonLocal:  "a fault of this machine: see its log",
}

// isNews says whether the log has not told of a trouble for long.
func (f *Fetcher) isNews(text string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, told := f.told[text]
	if told && f.now().Sub(at) < f.timing.remindEvery {
		return false
	}
	f.told[text] = f.now()
	return true
}

// jittered is about the duration, so that not all come at the same moment.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) + 1 }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Status is for the health.
type Status struct {
	// Missing is about how many items lack nars.
	Missing int64 `json:"missing"`
	// InFlight is how many files are coming.
	InFlight int `json:"in_flight"`
	// LastError is what went wrong last, and LastErrorAt when; "" for nothing.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	// LastSuccess is when a nar came last; zero for never.
	LastSuccess time.Time `json:"last_success,omitzero"`
	// Paused says that nothing is fetched for now, as the source or this
	// machine has failed.
	Paused bool `json:"paused,omitempty"`
}

// Status returns how it goes.
func (f *Fetcher) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := f.status
	status.Missing = max(f.missing.Load(), 0)
	status.InFlight = len(f.flights)
	status.Paused = f.now().Before(later(f.pausedUntil, f.fullUntil))
	return status
}

// Warnings are what is not as it should be, for the health.
func (f *Fetcher) Warnings() []string {
	status := f.Status()
	if !status.Paused || status.LastError == "" {
		return nil
	}
	// Not the error, which may name files of this machine.
	return []string{"nars can't be fetched for now: see the log"}
}
