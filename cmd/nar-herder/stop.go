package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// stopTimeout is how long a server may take to stop. Everything in it ends with its
// context, so it is usually much faster; only what no context can interrupt, such as a
// hanging disk, takes longer. Guix's supervisor expects the end within three seconds. Tests
// replace it.
var stopTimeout = 2500 * time.Millisecond

// tasks run the parts of a server and know which of them are still running. Its methods
// may be called concurrently.
type tasks struct {
	group *errgroup.Group

	mu      sync.Mutex
	running map[string]int // by name
}

// newTasks returns tasks and their context, which ends with ctx or when a task fails.
func newTasks(ctx context.Context) (*tasks, context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	return &tasks{group: group, running: make(map[string]int)}, ctx
}

// Go runs f in a goroutine. The log names it if it is still running after stopTimeout.
func (t *tasks) Go(name string, f func() error) {
	t.group.Go(func() error { return t.Do(name, f) })
}

// Do runs f, and names it like Go.
func (t *tasks) Do(name string, f func() error) error {
	t.mu.Lock()
	t.running[name]++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.running[name]--; t.running[name] == 0 {
			delete(t.running, name)
		}
	}()
	return f()
}

// Wait waits for everything that Go started, and returns the first error.
func (t *tasks) Wait() error { return t.group.Wait() }

// names returns the sorted names of what is running.
func (t *tasks) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.running))
}

// untilStopped calls serve and returns its error. When the context ends, it waits no
// longer than stopTimeout: then it logs what is still running and returns, since a
// supervisor would kill the program anyway. The files on disk are consistent at any time.
func untilStopped(ctx context.Context, log *slog.Logger, running *tasks, serve func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	overdue := make(chan time.Time, 1)
	stop := context.AfterFunc(ctx, func() { overdue <- <-time.After(stopTimeout) })
	defer stop()
	select {
	case err := <-ended:
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			log.Info("stopped while starting")
			return nil
		}
		return err
	case <-overdue:
		log.Warn("stopped without waiting for tasks that are still running; the next start resumes them", "running", strings.Join(running.names(), ", "))
		return nil
	}
}
