package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/health"
	"nar-herder/httpapi/keypair"
	"nar-herder/storage/owner"
)

// pidFileWait is how long the PID file waits for the sockets. Supervisors wait at least a
// second for it. Resolving the name in --host may take longer.
const pidFileWait = 500 * time.Millisecond

// sockets are the listeners of a server, and the handlers that answer on them during the
// start.
type sockets struct {
	log  *slog.Logger
	lock *owner.Lock // on the database

	public   []net.Listener
	starting *health.Starting
	// endStarting stops starting. It may be called again.
	endStarting func()

	private []net.Listener
	control *health.Control // nil without private listeners
}

// reserve opens the sockets, locks the database and writes the PID file. It comes before
// everything else, so that a second server changes nothing of the running one.
func (c *serverCommand) reserve(ctx context.Context, certificate *keypair.Keeper, log *slog.Logger) (_ *sockets, err error) {
	s := &sockets{log: log, endStarting: func() {}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var listenErr error
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		if s.public, listenErr = c.listen(ctx, certificate); listenErr == nil {
			s.private, listenErr = c.listenControl(ctx)
		}
	}()
	select {
	case <-listened:
		if listenErr != nil {
			return nil, listenErr
		}
	case <-time.After(pidFileWait):
	}
	s.lock, err = lockServer(c.Database, log)
	if err == nil && c.PidFile != "" {
		err = writePidFile(c.PidFile)
	}
	<-listened
	if err = cmp.Or(err, listenErr); err == nil && len(s.public) > 0 {
		err = s.lock.SetAddress(s.public[0].Addr().String())
	}
	return s, err
}

func (s *sockets) close() {
	s.endStarting()
	s.closeControl()
	closeAll(s.public)
	closeAll(s.private)
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// answer starts answering requests: private ones until closeControl, and public ones until
// endStarting.
func (s *sockets) answer(ctx context.Context, c *serverCommand) {
	if len(s.private) > 0 {
		s.control = health.ServeControl(c.ControlHost, s.log, s.private...)
		for _, listener := range s.private {
			s.log.Info("control listener", "address", listener.Addr().String())
		}
	} else if c.PublicMetrics == "no" {
		s.log.Warn("--public-metrics=no without --control-port: the metrics and the health of this server can't be read")
	}
	s.starting = health.NewStarting(c.PublicMetrics == "no", c.limits(), proxies(c.TrustedProxies), s.log)
	done, answered := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		s.starting.Serve(ctx, done, s.public...)
	}()
	s.endStarting = sync.OnceFunc(func() {
		close(done)
		<-answered
	})
}

// whileStarting runs f. Meanwhile requests get 503, and /health the state.
func (s *sockets) whileStarting(ctx context.Context, state func() any, f func(context.Context) error) error {
	for _, listener := range s.public {
		s.log.Info("starting; requests get 503 until the server is ready", "address", listener.Addr().String())
	}
	if s.control != nil {
		s.control.Starting(state)
		defer s.control.Starting(nil)
	}
	s.starting.SetState(state)
	defer s.starting.SetState(nil)
	notify(s.log, daemon.SdNotifyReady) // a unit that waits for this one would time out
	return f(ctx)
}

// serve hands the sockets to the server, which answers until the context ends.
func (s *sockets) serve(ctx context.Context, parts *subsystems, running *tasks) {
	if s.control != nil {
		s.control.Attach(parts.server.Health(), parts.server.Registry())
	}
	if s.endStarting(); ctx.Err() != nil {
		s.closeControl()
		return
	}
	for _, listener := range s.public {
		if engine.HasTLS(listener) {
			s.log.Info("listening", "address", listener.Addr().String(), "tls", true)
		} else {
			s.log.Info("listening", "address", listener.Addr().String())
		}
	}
	notify(s.log, daemon.SdNotifyReady)
	stopping := sync.OnceFunc(func() {
		s.log.Info("stopping")
		notify(s.log, daemon.SdNotifyStopping)
	})
	context.AfterFunc(ctx, stopping)
	running.Go("answering requests", func() error {
		err := parts.server.Serve(ctx, s.public...)
		if ctx.Err() != nil {
			stopping() // the process may end before AfterFunc's goroutine runs
		}
		s.closeControl() // before what it shows is closed
		parts.finish(running)
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	if parts.responder != nil {
		running.Go("advertising", func() error {
			parts.responder.Run(ctx)
			return nil
		})
	}
}

func (s *sockets) closeControl() {
	if s.control != nil {
		s.control.Close()
	}
}

// notify sends a state to systemd, if that started the program and waits for it.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("can't notify systemd", "state", state, "error", err)
	}
}
