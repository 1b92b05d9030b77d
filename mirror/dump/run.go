package dump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
)

const (
	// firstLook is the delay of the first dump after the start, when the server has more
	// important work.
	firstLook = 10 * time.Second
	// lookEvery is how often to check whether a dump is due, which is cheap.
	lookEvery = time.Minute
	// boundEvery is how often the length of the log of changes is checked.
	boundEvery = time.Hour
)

// backoff is the pause after failures in a row.
var backoff = pace.Backoff{First: time.Minute, Last: time.Hour}

// Run makes dumps until the context ends: one if there is none, and another if the newest is
// older than the interval and the index has changed. It logs the first of several failures in a row, and
// retries. Run also bounds the log of changes, even if no dumps are made.
func (m *Maker) Run(ctx context.Context) {
	var bounding sync.WaitGroup
	bounding.Go(func() { m.boundLog(ctx) })
	defer bounding.Wait()
	if err := m.Tidy(); err != nil && !errors.Is(err, ErrBusy) {
		m.log.Warn("can't remove files beside the dump that an earlier run has left: the next dump removes them", "error", err)
	}
	if m.options.Interval <= 0 {
		return
	}
	failures := 0 // in a row
	for wait := min(firstLook, m.options.Interval); pace.Sleep(ctx, wait) == nil; {
		var err error
		wait, err = m.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrBusy): // another process makes the dump
			wait = min(lookEvery, m.options.Interval)
		case err != nil:
			m.metrics.failures.Inc()
			m.failing.Store(true)
			if failures++; failures == 1 {
				m.log.Error("no dump can be made: the previous one is still served; retrying", "error", err)
			}
			wait = backoff.After(failures)
		default:
			if failures > 0 {
				m.log.Info("dumps are made again")
			}
			failures = 0
			m.failing.Store(false)
		}
	}
}

// Warnings returns the warnings for the health report.
func (m *Maker) Warnings() (warnings []string) {
	if m.failing.Load() {
		warnings = append(warnings, "no dump can be made for mirrors to start from: see the log")
	}
	if generations, err := m.published.Generations(); err == nil && len(generations) > 0 && generations[0].Damaged > 0 {
		warnings = append(warnings, fmt.Sprintf("the dump lacks damaged items (%d): run 'nar-herder check'", generations[0].Damaged))
	}
	return warnings
}

// boundLog bounds the log of changes until the context ends.
func (m *Maker) boundLog(ctx context.Context) {
	var failures logonce.Filter
	ticker := time.NewTicker(boundEvery)
	defer ticker.Stop()
	for {
		if err := m.bound(ctx); err == nil {
			failures.Over(m.log, "the log of changes is shortened again")
		} else if ctx.Err() == nil {
			failures.Log(m.log, slog.LevelWarn, m.now(), "can't shorten the log of changes: retrying", "error", err, "retry_in", boundEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// step makes a dump if one is due, and returns when to look again.
func (m *Maker) step(ctx context.Context) (time.Duration, error) {
	look := min(lookEvery, m.options.Interval)
	if m.options.Ready != nil && !m.options.Ready() {
		return look, nil
	}
	changed, made, err := m.changed(ctx)
	if err != nil || !changed {
		return look, err
	}
	// A dump from the future is due: the clock was wrong.
	if age := time.Since(made); !made.IsZero() && age >= 0 && age < m.options.Interval {
		return min(look, m.options.Interval-age), nil
	}
	_, err = m.make(ctx)
	return look, err
}
