package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
	"nar-herder/mirror/apply"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage"
)

// status is the state of a mirror, with the counters of its metrics.
type status struct {
	now      func() time.Time
	started  time.Time
	database string
	// followed is called when the source is known to be followed.
	followed func()

	mu            sync.Mutex
	current       health.Status
	asOf          time.Time // when this instance was last known to have what the source has
	instances     []string  // the mirrored instances
	sums          apply.Sums
	totalFailures int64
	resyncs       int64
	refusals      cursor.Refused
	logged        logonce.Filter
}

func (s *status) begin(m *Mirror) {
	s.current = health.Status{Source: m.Source.String(), State: health.Syncing, LagSeconds: -1}
	s.now, s.started = m.Now, m.Now()
	s.database, s.followed = m.Storage.Index().Path(), m.tidy
}

// Status returns the current state.
func (m *Mirror) Status() health.Status { return m.status.get() }

func (s *status) get() health.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.current
	if !s.asOf.IsZero() {
		current.LastSuccess = s.asOf.UTC().Truncate(time.Millisecond)
		current.LagSeconds = max(0, s.now().Sub(s.asOf).Seconds())
	}
	return current
}

// worryAfter is the lag above which the health report warns.
const worryAfter = 5 * time.Minute

// Warnings returns the warnings for the health report.
func (m *Mirror) Warnings() []string {
	status := m.Status()
	var warnings []string
	switch started := m.Now().Sub(m.status.started); {
	case status.State == health.Refusing || status.State == health.Failing:
		warnings = append(warnings, "the mirrored instance "+status.Source+" is not followed: "+status.Error)
	case status.LagSeconds > worryAfter.Seconds():
		warnings = append(warnings, "this mirror is not up to date with "+status.Source)
	case status.LagSeconds < 0 && started > worryAfter:
		warnings = append(warnings, fmt.Sprintf("this mirror has not been up to date with %s since it was started %s ago: %s",
			status.Source, started.Round(time.Minute), cmp.Or(status.Doing, status.Error, "it is "+status.State)))
	}
	if status.PassedOver > 0 {
		warnings = append(warnings, fmt.Sprintf("%d changes of %s made no sense and were skipped, so this mirror may differ from it: see the log", status.PassedOver, status.Source))
	}
	if warning := m.status.refusalWarning(); warning != "" {
		warnings = append(warnings, warning)
	}
	return warnings
}

// refusalShown is how long the health report warns about refused narinfos.
const refusalShown = 24 * time.Hour

func (s *status) refusalWarning() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refusals.Counts) == 0 || s.now().Sub(s.refusals.At) > refusalShown {
		return ""
	}
	var reasons []string
	for _, reason := range storage.RefusalReasons {
		if count := s.refusals.Counts[reason]; count > 0 {
			reasons = append(reasons, fmt.Sprintf("%d %s", count, reason))
		}
	}
	return fmt.Sprintf("%d narinfos of %s were refused because of their signatures (%s), so this mirror lacks them: see the log; with other keys in --acl, --authorized-key or --mirror-key, it gets those that they sign",
		s.current.Refused, s.current.Source, strings.Join(reasons, ", "))
}

// syncing records the work that precedes following.
func (s *status) syncing(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.State, s.current.Doing = health.Syncing, what
}

// chain records the instances that are mirrored, directly or through others.
func (s *status) chain(instances []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances = instances
}

// Chain returns the instances that this one mirrors, directly or through others, as far as
// known.
func (m *Mirror) Chain() []string {
	m.status.mu.Lock()
	defer m.status.mu.Unlock()
	if m.status.current.State == health.Refusing {
		return nil
	}
	return m.status.instances
}

// heard records the state of the source's log, which is followed up to a position.
func (s *status) heard(state peer.LogState, position int64) {
	s.following(max(0, state.Last-position), s.now())
}

// polled records that everything was applied that the source had at a time.
func (s *status) polled(at time.Time) { s.following(0, at) }

// following records that the source is followed, and as of when, if there is no backlog.
func (s *status) following(backlog int64, asOf time.Time) {
	s.followed()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.State, s.current.Doing = health.Following, ""
	s.current.Failures, s.current.Error = 0, ""
	if s.current.Backlog = backlog; backlog == 0 {
		s.asOf = asOf
	}
}

func (s *status) applied(sums apply.Sums) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sums.Add(sums)
}

func (s *status) skipped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.PassedOver++
}

// refused records the narinfos that were refused.
func (s *status) refused(all cursor.Refused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals, s.current.Refused = all, 0
	for _, count := range all.Counts {
		s.current.Refused += count
	}
}

func (s *status) resynced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resyncs++
}

// ended records the end of an attempt to follow.
func (s *status) ended(log *slog.Logger, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		return
	}
	var refused *health.RefusedError
	level := slog.LevelWarn
	switch {
	case errors.As(err, &refused):
		s.current.State, level = health.Refusing, slog.LevelError
	case errors.Is(err, download.ErrNotReady):
		s.current.State, level = health.Syncing, slog.LevelInfo
	default:
		s.current.State = health.Failing
	}
	s.current.Doing = ""
	s.current.Failures++
	s.current.Error = health.Public(err, s.database)
	s.totalFailures++
	if s.logged.IsDue(err.Error(), s.now()) {
		log.Log(context.Background(), level, "the mirrored instance is not followed", "source", s.current.Source, "failures", s.current.Failures, "error", err)
	}
}

var (
	lagMetric     = prometheus.NewDesc("narherder_mirror_lag_seconds", "How long ago this mirror was known to have what its source has; since the start, if it never was.", nil, nil)
	successMetric = prometheus.NewDesc("narherder_mirror_last_success_timestamp_seconds", "When this mirror was last known to have what its source has; missing if it never was since the start.", nil, nil)
	backlogMetric = prometheus.NewDesc("narherder_mirror_backlog_changes", "Changes of the source that must still be applied, as far as known.", nil, nil)
	failureMetric = prometheus.NewDesc("narherder_mirror_failures_total", "Failed attempts to follow the source.", nil, nil)
	stateMetric   = prometheus.NewDesc("narherder_mirror_state", "1 for the state that the mirror is in.", []string{"state"}, nil)
	changesMetric = prometheus.NewDesc("narherder_mirror_changes_total", "Changes of the source, by outcome.", []string{"outcome"}, nil)
	refusedMetric = prometheus.NewDesc("narherder_mirror_refused_narinfos_total", "Narinfos of the source that were refused because of their signatures since this mirror has used a dump of the source, by reason.", []string{"reason"}, nil)
	resyncMetric  = prometheus.NewDesc("narherder_mirror_resyncs_total", "How often this mirror has started anew from the source's dump.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (m *Mirror) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, to) }

// Collect implements [prometheus.Collector].
func (m *Mirror) Collect(to chan<- prometheus.Metric) {
	current := m.Status()
	s := &m.status
	s.mu.Lock()
	sums, failures, resyncs, refusals := s.sums, s.totalFailures, s.resyncs, s.refusals
	lag, success := s.now().Sub(s.started).Seconds(), 0.0
	if !s.asOf.IsZero() {
		lag, success = current.LagSeconds, float64(s.asOf.UnixMilli())/1000
	}
	s.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	gauge(lagMetric, lag)
	if success != 0 {
		gauge(successMetric, success)
	}
	gauge(backlogMetric, float64(current.Backlog))
	counter(failureMetric, float64(failures))
	counter(resyncMetric, float64(resyncs))
	for _, state := range []string{health.Syncing, health.Following, health.Failing, health.Refusing} {
		value := 0.0
		if state == current.State {
			value = 1
		}
		gauge(stateMetric, value, state)
	}
	for outcome, n := range map[string]int{"added": sums.Added, "updated": sums.Updated, "withdrawn": sums.Withdrawn, "known": sums.Known, "kept": sums.Kept} {
		counter(changesMetric, float64(n), outcome)
	}
	counter(changesMetric, float64(current.PassedOver), "skipped")
	for _, reason := range storage.RefusalReasons {
		counter(refusedMetric, float64(refusals.Counts[reason]), string(reason))
	}
}
