// Package health checks the parts of the server, answers requests for its health, also while it
// starts, and serves the administrator's control listener.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
	"nar-herder/internal/pace"
	"nar-herder/internal/redact"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// Interval is how often each part is checked.
	Interval = 2 * time.Second
	// Deadline is how long a check may take.
	Deadline = 3 * time.Second
)

// Paths of requests. Path answers whether the server is ready, with its problems, ReadyPath only
// whether it is ready, and LivePath whether the program runs.
const (
	Path      = "/health"
	ReadyPath = "/health/ready"
	LivePath  = "/health/live"
)

// LiveBody is the answer at LivePath.
const LiveBody = `{"status": "ok"}` + "\n"

// Part is a part of the server that is checked.
type Part struct {
	// Name is the part's name in the answer and in the metric.
	Name string
	// Needed says that requests fail without the part: the server is not ready after two
	// failed checks in a row, or a failed first one. Problems of other parts are warnings.
	Needed bool
	// Look checks the part, without writing anything, and returns a problem or nil. Errors
	// are logged, and clients don't get their texts, except for [Warnings].
	Look func(ctx context.Context) error
	// Interval is the minimum time between checks, unless the last one failed.
	Interval time.Duration
}

// Warnings is an error that is not logged, as the part itself logs its problems. Clients
// get its texts. Needed parts don't fail because of it.
type Warnings []string

// Error implements error.
func (w Warnings) Error() string { return strings.Join(w, "; ") }

var (
	errNoAnswer  = errors.New("no answer within " + Deadline.String())
	errNotLooked = errors.New("the server is starting")
)

// Health is the state of the parts. Use [New] to make one. It is a [prometheus.Collector].
type Health struct {
	log    *slog.Logger
	mirror func() any
	parts  []*checkedPart
	looked chan struct{} // closed once each part was checked
}

// checkedPart is a part with the result of its last check.
type checkedPart struct {
	Part
	looking chan error // receives the result of a check in progress; nil for none
	last    error      // the result of the last check
	lookAt  time.Time  // when the next check is due
	mu      sync.Mutex
	err     error // the published result: of the last check, or of the one before
}

// New makes the health of the parts. mirror returns the state of mirroring for JSON; nil if
// this instance is not a mirror.
func New(parts []Part, mirror func() any, log *slog.Logger) *Health {
	h := &Health{log: log, mirror: mirror, looked: make(chan struct{})}
	for _, p := range parts {
		h.parts = append(h.parts, &checkedPart{Part: p, err: errNotLooked})
	}
	return h
}

// Run checks the parts until the context ends, and returns when no check is in progress.
func (h *Health) Run(ctx context.Context) {
	h.look(ctx)
	close(h.looked)
	for pace.Sleep(ctx, Interval) == nil {
		h.look(ctx)
	}
	for _, p := range h.parts {
		if p.looking != nil {
			<-p.looking
		}
	}
}

// look checks all parts concurrently, for at most Deadline.
func (h *Health) look(ctx context.Context) {
	deadline, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	var looking sync.WaitGroup
	now := time.Now()
	for _, p := range h.parts {
		if !isFailure(p.last) && now.Before(p.lookAt) {
			continue
		}
		p.lookAt = now.Add(p.Interval)
		looking.Go(func() {
			err := p.look(deadline)
			if ctx.Err() == nil { // else the server stops
				p.note(err, h.log)
			}
		})
	}
	looking.Wait()
}

// look checks the part. If the last check hangs, it waits for that one's result.
func (p *checkedPart) look(ctx context.Context) error {
	if p.looking == nil {
		looking := make(chan error, 1)
		p.looking = looking
		go func() { looking <- p.Look(ctx) }()
	}
	select {
	case err := <-p.looking:
		p.looking = nil
		return err
	case <-ctx.Done():
		return errNoAnswer
	}
}

// note records the result of a check, and logs a change. It ignores the first failed check of a
// needed part, as a bucket may be slow for a moment.
func (p *checkedPart) note(err error, log *slog.Logger) {
	last := p.last
	p.last = err
	before := p.err // only written here
	if p.Needed && isFailure(err) && !isFailure(last) && before != errNotLooked {
		return
	}
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	was, is := isFailure(before) && before != errNotLooked, isFailure(err)
	switch {
	case is && !was && p.Needed:
		log.Error("requests fail: the server is not ready", "part", p.Name, "error", err)
	case is && !was:
		log.Warn("a part of the server has a problem; requests are still answered", "part", p.Name, "error", err)
	case was && !is:
		log.Info("works again", "part", p.Name)
	}
}

// isFailure reports whether an error is logged, and makes a needed part fail.
func isFailure(err error) bool {
	var warnings Warnings
	return err != nil && !errors.As(err, &warnings)
}

// wrong returns the part's problems for clients, nil for none, and whether requests fail.
func (p *checkedPart) wrong() (texts []string, fails bool) {
	p.mu.Lock()
	err := p.err
	p.mu.Unlock()
	return textsOf(err), p.Needed && isFailure(err)
}

// textsOf returns the texts of an error that clients may see.
func textsOf(err error) []string {
	var warnings Warnings
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &warnings):
		return warnings
	case err == errNotLooked:
		return []string{err.Error()}
	case errors.Is(err, errNoAnswer), errors.Is(err, context.DeadlineExceeded):
		return []string{errNoAnswer.Error()}
	case errors.Is(err, storage.ErrAllMissing):
		return []string{storage.ErrAllMissing.Error() + ": is it mounted?"}
	case errors.Is(err, bytestore.ErrNotInPlace):
		return []string{"the storage " + bytestore.ErrNotInPlace.Error() + ": is it mounted?"}
	case errors.As(err, &errno):
		return []string{errno.Error() + ": see the log"}
	}
	return []string{"see the log"}
}

// status is the answer at /health.
type status struct {
	Status   string              `json:"status"`
	Failing  map[string][]string `json:"failing,omitempty"`
	Warnings map[string][]string `json:"warnings,omitempty"`
	Mirror   any                 `json:"mirror,omitempty"`
}

// State is that of a part for pages.
type State struct {
	Part string
	// Problems are the texts for clients; nil for none. Fails says that requests fail.
	Problems []string
	Fails    bool
	// Detail is the error with its names of files, for the administrator; "" for none.
	Detail string
}

// States returns the states of all parts. Like [Health.Answer], it waits for the first check.
func (h *Health) States(ctx context.Context) []State {
	h.wait(ctx)
	states := make([]State, len(h.parts))
	for i, p := range h.parts {
		states[i].Part = p.Name
		states[i].Problems, states[i].Fails = p.wrong()
		p.mu.Lock()
		if isFailure(p.err) && p.err != errNotLooked {
			states[i].Detail = redact.Text(p.err.Error())
		}
		p.mu.Unlock()
	}
	return states
}

// wait waits for the first check of all parts, while the context lasts.
func (h *Health) wait(ctx context.Context) {
	select {
	case <-h.looked:
	case <-ctx.Done():
	}
}

// state returns the problems of all parts.
func (h *Health) state(ctx context.Context) status {
	h.wait(ctx)
	state := status{"ok", make(map[string][]string), make(map[string][]string), nil}
	for _, p := range h.parts {
		switch texts, fails := p.wrong(); {
		case fails:
			state.Status, state.Failing[p.Name] = "failing", texts
		case texts != nil:
			state.Warnings[p.Name] = texts
		}
	}
	return state
}

// Answer returns the status and the JSON body of the answer at Path or ReadyPath. It takes at
// most Deadline while Run runs.
func (h *Health) Answer(ctx context.Context, ready bool) (code int, body []byte, err error) {
	state := h.state(ctx)
	code = http.StatusOK
	if len(state.Failing) > 0 {
		code = http.StatusServiceUnavailable
	}
	if ready {
		state = status{Status: state.Status}
	} else if h.mirror != nil {
		state.Mirror = h.mirror()
	}
	if body, err = json.Marshal(state); err != nil {
		return 0, nil, err
	}
	return code, append(body, '\n'), nil
}

// Serve answers a request of the public listener at one of the paths.
func (h *Health) Serve(live context.Context, ctx *fasthttp.RequestCtx, path string) error {
	ctx.Response.Header.Set("Cache-Control", respond.NoStore)
	if path == LivePath {
		respond.Text(ctx, "application/json", LiveBody)
		return nil
	}
	status, body, err := h.Answer(live, path == ReadyPath)
	if err != nil {
		return err
	}
	respond.Text(ctx, "application/json", string(body))
	ctx.Response.SetStatusCode(status)
	return nil
}

var (
	healthyDesc = prometheus.NewDesc("narherder_healthy", "1 for a part of the server without a fault or warning at the last check.", []string{"part"}, nil)
	readyDesc   = prometheus.NewDesc("narherder_ready", "1 if narinfos and nars can be read, as /health/ready reports.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (h *Health) Describe(descs chan<- *prometheus.Desc) {
	descs <- healthyDesc
	descs <- readyDesc
}

// Collect implements [prometheus.Collector].
func (h *Health) Collect(values chan<- prometheus.Metric) {
	select {
	case <-h.looked:
	default:
		return
	}
	ready := 1.0
	for _, p := range h.parts {
		value := 1.0
		texts, fails := p.wrong()
		if texts != nil {
			value = 0
		}
		if fails {
			ready = 0
		}
		values <- prometheus.MustNewConstMetric(healthyDesc, prometheus.GaugeValue, value, p.Name)
	}
	values <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready)
}
