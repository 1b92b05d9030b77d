package dump

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// firstLook is how long after the start the first dump is made at the earliest:
	// a server that is stopped again at once, and one that others wait for, has
	// better things to do.
	firstLook = 10 * time.Second
	// lookEvery is how often it is looked whether a dump is due. It takes a few
	// look-ups.
	lookEvery = time.Minute
	// backOff is how long another try waits for after the first failure; it doubles
	// up to longestBackOff.
	backOff        = time.Minute
	longestBackOff = time.Hour
	// boundEvery is how often the length of the log of changes is looked at.
	boundEvery = time.Hour
)

// Run makes dumps until the context ends: when the newest is older than the
// interval, or is not there, and the index has changed. Errors are logged, once each
// time that it begins to fail, and it is tried again. Run also bounds the log of
// changes, whether dumps are made or not.
func (m *Maker) Run(ctx context.Context) {
	var bounding sync.WaitGroup
	bounding.Go(func() { m.boundLog(ctx) })
	defer bounding.Wait()
	if err := m.Tidy(); err != nil && !errors.Is(err, ErrBusy) {
		m.log.Warn("what an earlier run has left beside the dump stays until the next one is made", "error", err)
	}
	if m.options.Interval <= 0 {
		return
	}
	failing := false
	pause := backOff
	timer := time.NewTimer(min(firstLook, m.options.Interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait, err := m.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrBusy): // which makes what is due
			wait = min(lookEvery, m.options.Interval)
		case err != nil:
			m.metrics.failures.Inc()
			m.failing.Store(true)
			if !failing {
				m.log.Error("no dump can be made; the one before stays served, and it is tried again", "error", err)
			}
			failing = true
			wait, pause = pause, min(2*pause, longestBackOff)
		default:
			if failing {
				m.log.Info("dumps are made again")
			}
			failing, pause = false, backOff
			m.failing.Store(false)
		}
		timer.Reset(wait)
	}
}

// Warnings are for the health.
func (m *Maker) Warnings() (warnings []string) {
	if m.failing.Load() {
		warnings = append(warnings, "no dump can be made for others to start from: see the log")
	}
	if generations, err := m.published.Generations(); err == nil && len(generations) > 0 && generations[0].Damaged > 0 {
		warnings = append(warnings, fmt.Sprintf("the dump lacks damaged items (%d): run 'nar-herder check'", generations[0].Damaged))
	}
	return warnings
}

// boundLog bounds the log of changes until the context ends.
func (m *Maker) boundLog(ctx context.Context) {
	ticker := time.NewTicker(boundEvery)
	defer ticker.Stop()
	for {
		if err := m.bound(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("can't shorten the log of changes; it is tried again", "error", err, "again", boundEvery.String())
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
	// One from the future is as old as can be: the clock was wrong.
	if age := time.Since(made); !made.IsZero() && age >= 0 && age < m.options.Interval {
		return min(look, m.options.Interval-age), nil
	}
	_, err = m.make(ctx)
	return look, err
}
