// Package logonce suppresses repeated log lines.
package logonce

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// Every is how often a repeated text is logged.
	Every = time.Hour
	// mostTexts bounds the texts that a filter remembers.
	mostTexts = 100
)

// Filter remembers logged texts. The zero value is ready. Its methods may be called
// concurrently.
type Filter struct {
	mu     sync.Mutex
	logged map[string]time.Time
}

// IsDue reports whether a text was not logged within the last hour. If so, it records that it
// is logged now.
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

// Log logs a line if it is due. Its errors and strings belong to its text.
func (f *Filter) Log(log *slog.Logger, level slog.Level, now time.Time, text string, attributes ...any) {
	key := text
	for _, attribute := range attributes {
		if err, ok := attribute.(error); ok {
			key += err.Error()
		} else if word, ok := attribute.(string); ok {
			key += word
		}
	}
	if f.IsDue(key, now) {
		log.Log(context.Background(), level, text, attributes...)
	}
}

// Forget makes every text due.
func (f *Filter) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logged = nil
}

// Over logs that a trouble has ended, if a text was logged since the last call, and makes every
// text due.
func (f *Filter) Over(log *slog.Logger, text string, attributes ...any) {
	f.mu.Lock()
	wasLogged := f.logged != nil
	f.logged = nil
	f.mu.Unlock()
	if wasLogged {
		log.Info(text, attributes...)
	}
}
