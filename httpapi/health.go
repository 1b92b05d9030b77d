package httpapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"nar-herder/storage/index"
)

const (
	// healthEvery bounds how often the storage is written to for health's sake,
	// however often it is asked for.
	healthEvery = time.Second
	// healthDeadline is how long database and storage may take for it, and the totals
	// of the metrics.
	healthDeadline = 3 * time.Second
	// healthStale is the age from which a result is too old to be given without a look
	// at the present, which may take healthDeadline.
	healthStale = 10 * time.Second
)

var errNoAnswer = errors.New("no answer within " + healthDeadline.String())

// health is the last result of a probe.
type health struct {
	mu      sync.Mutex
	running *probe // nil when none is under way
	result  healthResult
}

// healthResult is what a probe has found.
type healthResult struct {
	at time.Time // zero for none
	// database and storage are words for an administrator: ok, failing, or unknown.
	database, storage string
}

const (
	healthy   = "ok"
	failing   = "failing"
	notProbed = "unknown"
)

// probe is a look at database and storage. There is one at a time, even if it hangs.
type probe struct {
	done chan struct{} // closed when there is a result
}

// probeHealth returns the last result, and how old it is. It waits for a new one only if
// there is none of the last healthStale, and for healthDeadline at the most.
func (s *Server) probeHealth(ctx context.Context) (result healthResult, age time.Duration) {
	h := &s.health
	h.mu.Lock()
	if h.running == nil && time.Since(h.result.at) > healthEvery {
		h.running = &probe{make(chan struct{})}
		go s.probe(h.running)
	}
	running, result := h.running, h.result
	h.mu.Unlock()
	if running != nil && time.Since(result.at) > healthStale {
		select {
		case <-running.done:
		case <-ctx.Done():
		}
		h.mu.Lock()
		result = h.result
		h.mu.Unlock()
	}
	if result.at.IsZero() { // the server ends
		return healthResult{database: notProbed, storage: notProbed}, 0
	}
	return result, time.Since(result.at)
}

// probe looks at database and storage, and notes what it finds when its time is over, or
// earlier. It returns when both have answered.
func (s *Server) probe(p *probe) {
	ctx, cancel := context.WithTimeout(s.live, healthDeadline)
	defer cancel()
	type errs struct{ database, storage error }
	looked, totalled := make(chan errs, 1), make(chan error, 1)
	go func() {
		database, storage := s.items.Healthy(ctx)
		looked <- errs{database, storage}
	}()
	// Healthy looks at the database first: this tells which of the two hangs.
	go func() {
		_, err := s.items.Totals(ctx)
		totalled <- err
	}()
	var ended sync.WaitGroup
	defer func() {
		ended.Wait()
		s.health.mu.Lock()
		s.health.running = nil
		s.health.mu.Unlock()
	}()
	defer close(p.done)
	// Without an answer, the database's is that of Totals.
	both, answered := within(ctx, looked, errs{nil, errNoAnswer})
	if !answered {
		ended.Go(func() { <-looked })
	}
	totalsErr, answered := within(ctx, totalled, errNoAnswer)
	if !answered {
		ended.Go(func() { <-totalled })
	}
	if s.live.Err() != nil {
		return
	}
	result := healthResult{time.Now(), healthy, healthy}
	if err := errors.Join(both.database, totalsErr); err != nil {
		s.log.Error("the database is not usable", "error", err)
		result.database = failing
	}
	switch {
	case both.storage == errNoAnswer && result.database == failing:
		result.storage = notProbed
	case both.storage != nil:
		s.log.Error("the storage is not usable", "error", both.storage)
		result.storage = failing
	}
	s.health.mu.Lock()
	s.health.result = result
	s.health.mu.Unlock()
}

// within returns what comes from a channel before the context ends, or else otherwise.
func within[T any](ctx context.Context, from <-chan T, otherwise T) (_ T, came bool) {
	select {
	case value := <-from:
		return value, true
	case <-ctx.Done():
	}
	select {
	case value := <-from:
		return value, true
	default:
		return otherwise, false
	}
}

// totals reads the sums of the index, in bounded time.
func (s *Server) totals() (index.Totals, error) {
	ctx, cancel := context.WithTimeout(s.live, healthDeadline)
	defer cancel()
	return s.items.Totals(ctx)
}
