package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/peer"
)

// States of a mirror.
const (
	Syncing   = "syncing"   // it starts from what the source publishes
	Following = "following" // it does what the source does
	Failing   = "failing"   // it can't, and tries again
	Refusing  = "refusing"  // it could, and doesn't: see [RefusedError]
)

// Status is how a mirror does.
type Status struct {
	Source string `json:"source"`
	State  string `json:"state"`
	// LagSeconds is how long ago this instance was surely as the source is; -1
	// when it never was since the start.
	LagSeconds float64 `json:"lag_seconds"`
	// Backlog is how many changes are to be done, as far as that is known.
	Backlog int64 `json:"backlog"`
	// LastSuccess is when it was surely as the source is.
	LastSuccess time.Time `json:"last_success,omitzero"`
	// Failures are those in a row, and Error is the last of them.
	Failures int    `json:"failures"`
	Error    string `json:"error,omitempty"`
	// PassedOver counts changes that made no sense, since the start.
	PassedOver int64 `json:"passed_over"`
	// Doing says what takes its time.
	Doing string `json:"doing,omitempty"`
}

// status is that of a mirror, with what is counted for the metrics.
type status struct {
	mu      sync.Mutex
	now     func() time.Time
	started time.Time
	current Status
	asOf    time.Time

	instances     []string
	sums          FollowedSums
	totalFailures int64
	resyncs       int64
	logged        reminder
	downloads     string

	told func(Status) // of what is being done, if not nil
	// followed is called whenever it is known that the source is followed.
	followed func()
}

func (s *status) begin(m *Mirror) {
	s.current = Status{Source: m.Source.String(), State: Syncing, LagSeconds: -1}
	s.now, s.started = m.now, m.now()
	s.downloads, s.followed = m.Downloads, m.tidy
}

// Status is how the mirror does now.
func (m *Mirror) Status() Status { return m.status.get() }

func (s *status) get() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.current
	if !s.asOf.IsZero() {
		current.LastSuccess = s.asOf.UTC().Truncate(time.Millisecond)
		current.LagSeconds = max(0, s.now().Sub(s.asOf).Seconds())
	}
	return current
}

// worryAfter is the lag that a health check speaks of.
const worryAfter = 5 * time.Minute

// Warnings are for the health.
func (m *Mirror) Warnings() []string {
	status := m.Status()
	var warnings []string
	switch started := m.now().Sub(m.status.started); {
	case status.State == Refusing || status.State == Failing:
		warnings = append(warnings, "the mirrored instance "+status.Source+" is not followed: "+status.Error)
	case status.LagSeconds > worryAfter.Seconds():
		warnings = append(warnings, "this mirror is not up to date with "+status.Source)
	case status.LagSeconds < 0 && started > worryAfter:
		warnings = append(warnings, fmt.Sprintf("this mirror has not been up to date with %s since it was started %s ago: %s",
			status.Source, started.Round(time.Minute), cmp.Or(status.Doing, status.Error, "it is "+status.State)))
	}
	if status.PassedOver > 0 {
		warnings = append(warnings, fmt.Sprintf("%d changes of %s made no sense and were passed over, so that this mirror may differ from it: see the log", status.PassedOver, status.Source))
	}
	return warnings
}

// doing says what is being done now; "" for the usual.
func (s *status) doing(state, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.State, s.current.Doing = state, what
	if s.told != nil {
		s.told(s.current)
	}
}

// chain notes the instances that are mirrored, itself or through others.
func (s *status) chain(instances []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances = instances
}

// Chain are the instances that this one mirrors, itself or through others, as far as
// known.
func (m *Mirror) Chain() []string {
	m.status.mu.Lock()
	defer m.status.mu.Unlock()
	if m.status.current.State == Refusing {
		return nil
	}
	return m.status.instances
}

// heard notes the state of the source's log, which is followed up to a position.
func (s *status) heard(state peer.LogState, position int64) {
	s.followed()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.State, s.current.Doing = Following, ""
	s.current.Failures, s.current.Error = 0, ""
	s.current.Backlog = max(0, state.Last-position)
	if s.current.Backlog == 0 {
		s.asOf = s.now()
	}
}

// polled notes that all is done that the source had at a time.
func (s *status) polled(at time.Time) {
	s.followed()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.State, s.current.Doing = Following, ""
	s.current.Failures, s.current.Error = 0, ""
	s.current.Backlog = 0
	s.asOf = at
}

func (s *status) applied(sums FollowedSums) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sums.Add(sums)
}

func (s *status) passedOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.PassedOver++
}

func (s *status) resynced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resyncs++
}

// ended notes how an attempt to follow has ended.
func (s *status) ended(log *slog.Logger, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		return
	}
	var refused *RefusedError
	level := slog.LevelWarn
	switch {
	case errors.As(err, &refused):
		s.current.State, level = Refusing, slog.LevelError
	case errors.Is(err, peer.ErrNotReady):
		s.current.State, level = Syncing, slog.LevelInfo
	default:
		s.current.State = Failing
	}
	s.current.Doing = ""
	s.current.Failures++
	s.current.Error = publicError(err, s.downloads)
	s.totalFailures++
	if s.logged.due(s.now(), err.Error()) {
		log.Log(context.Background(), level, "the mirrored instance is not followed", "source", s.current.Source, "failures", s.current.Failures, "error", err)
	}
}

var (
	lagMetric     = prometheus.NewDesc("narherder_mirror_lag_seconds", "How long ago this mirror was surely as its source is; since the start, where it never was.", nil, nil)
	successMetric = prometheus.NewDesc("narherder_mirror_last_success_timestamp_seconds", "When this mirror was surely as its source is; 0 for never since the start.", nil, nil)
	backlogMetric = prometheus.NewDesc("narherder_mirror_backlog_changes", "Changes of the source that are to be done, as far as known.", nil, nil)
	failureMetric = prometheus.NewDesc("narherder_mirror_failures_total", "Attempts to follow the source that have failed.", nil, nil)
	stateMetric   = prometheus.NewDesc("narherder_mirror_state", "1 for the state that the mirror is in.", []string{"state"}, nil)
	changesMetric = prometheus.NewDesc("narherder_mirror_changes_total", "Changes of the source, by what became of them.", []string{"outcome"}, nil)
	resyncMetric  = prometheus.NewDesc("narherder_mirror_resyncs_total", "How often this mirror has started anew from the source's dump.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (m *Mirror) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, to) }

// Collect implements [prometheus.Collector].
func (m *Mirror) Collect(to chan<- prometheus.Metric) {
	current := m.Status()
	s := &m.status
	s.mu.Lock()
	sums, failures, resyncs := s.sums, s.totalFailures, s.resyncs
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
	gauge(successMetric, success)
	gauge(backlogMetric, float64(current.Backlog))
	counter(failureMetric, float64(failures))
	counter(resyncMetric, float64(resyncs))
	for _, state := range []string{Syncing, Following, Failing, Refusing} {
		value := 0.0
		if state == current.State {
			value = 1
		}
		gauge(stateMetric, value, state)
	}
	for outcome, n := range map[string]int{"added": sums.Added, "updated": sums.Updated, "withdrawn": sums.Withdrawn, "known": sums.Known, "kept": sums.Kept} {
		counter(changesMetric, float64(n), outcome)
	}
	counter(changesMetric, float64(current.PassedOver), "passed over")
}
