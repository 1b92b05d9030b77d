package upstream

import (
	"sync"
	"time"
)

const (
	// maxFailures is how many failures in a row stop questions to an upstream.
	maxFailures = 3
	// slowFailure is how long a failure takes that stops them at once.
	slowFailure = time.Second
)

// Status is the state of an upstream.
type Status struct {
	// URL has no user and password. Label is the same for everybody: the URL, or for a directory
	// file:N, with the number of the upstream.
	URL, Label string
	// Up is as of [Upstream.IsUp], and Since when it became so.
	Up    bool
	Since time.Time
	// Err is the last failure while it is not up; nil otherwise.
	Err error
}

// breaker stops questions to an upstream that fails.
type breaker struct {
	now  func() time.Time
	fell chan struct{} // receives a value when the upstream is no longer up

	mu       sync.Mutex
	failures int // in a row
	falls    int // since the last answer to a question
	down     bool
	since    time.Time
	err      error
}

func (b *breaker) init(now func() time.Time) {
	b.now, b.fell, b.since = now, make(chan struct{}, 1), now()
}

// record records the outcome of a request, and reports whether it changes the state.
func (b *breaker) record(err error, took time.Duration) (fell, rose bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.failures, b.falls = 0, 0
		return false, b.up()
	}
	b.failures++
	b.err = err
	if b.down || took < slowFailure && b.failures < maxFailures {
		return false, false
	}
	b.down, b.since = true, b.now()
	b.falls++
	select {
	case b.fell <- struct{}{}:
	default:
	}
	return true, false
}

// up ends an outage. The caller holds b.mu.
func (b *breaker) up() (rose bool) {
	if !b.down {
		return false
	}
	b.down, b.since, b.err = false, b.now(), nil
	return true
}

// rise records a successful probe. The next failure stops questions again, for longer: an
// upstream may answer probes only.
func (b *breaker) rise() (rose bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = max(b.failures, maxFailures-1)
	return b.up()
}

// outage returns why the upstream is not up; nil if it is.
func (b *breaker) outage() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return b.err
	}
	return nil
}

// outages returns how often the upstream fell since its last answer to a question.
func (b *breaker) outages() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.falls
}

func (b *breaker) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	status := Status{Up: !b.down, Since: b.since}
	if b.down {
		status.Err = b.err
	}
	return status
}
