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
)

// stopTimeout is how long a server takes to stop at the most. All that it does ends
// with its context, so it is usually much faster. What remains is what no context
// ends, such as a disk that hangs. Supervisors kill after about five seconds, and
// Guix's expects the end within three.
const stopTimeout = 2500 * time.Millisecond

// tasks is what a server does besides answering requests. Its methods may be called
// from several goroutines at once.
type tasks struct {
	group sync.WaitGroup

	mu      sync.Mutex
	running map[string]int // by name
}

func newTasks() *tasks { return &tasks{running: make(map[string]int)} }

// Go runs f in a goroutine. The name says in the log what it does.
func (t *tasks) Go(name string, f func()) {
	t.group.Go(func() { t.Do(name, f) })
}

// Do runs f.
func (t *tasks) Do(name string, f func()) {
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
	f()
}

// Wait waits for all that Go has started.
func (t *tasks) Wait() { t.group.Wait() }

// names are what is running, in order.
func (t *tasks) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.running))
}

// untilStopped runs a server, and returns its error. When the context has ended, it
// waits for stopTimeout at the most: then the log says what is still running, and the
// program ends without it, as it would be killed otherwise. What is on the disk is
// good for the next start whenever the program ends.
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
		log.Warn("stopped without waiting any longer for what is still running; the next start finishes it", "running", strings.Join(running.names(), ", "))
		return nil
	}
}
