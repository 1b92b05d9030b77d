// Package logonce keeps a log from repeating itself.
package logonce

import (
	"sync"
	"time"
)

const (
	// Every is how often a text that repeats is logged.
	Every = time.Hour
	// mostTexts bounds the texts that a filter remembers.
	mostTexts = 100
)

// Filter remembers the texts that were logged. The zero value is ready, and its methods
// may be called from several goroutines at once.
type Filter struct {
	mu     sync.Mutex
	logged map[string]time.Time
}

// IsDue reports whether a text was not logged within the last hour, and notes that it is
// logged now.
func (f *Filter) IsDue(text string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.logged[text]; ok && now.Sub(at) < Every {
		return false
	}
	if f.logged == nil || len(f.logged) >= mostTexts {
		f.logged = make(map[string]time.Time)
	}
	f.logged[text] = now
	return true
}

// Forget makes every text due.
func (f *Filter) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logged = nil
}
