package main

import (
	"context"
	"log/slog"
	"nar-herder/httpapi"
	"net"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
)

// whileStarting has the listeners answered with 503 until what takes its time is done.
func (c *serverCommand) whileStarting(ctx context.Context, listeners []net.Listener, state func() any, log *slog.Logger, f func(context.Context) error) error {
	for _, listener := range listeners {
		log.Info("starting; requests get 503 until then", "address", listener.Addr().String())
	}
	if c.control != nil {
		c.control.Starting(state)
		defer c.control.Starting(nil)
	}
	c.starting.SetState(state)
	defer c.starting.SetState(nil)
	notify(log, daemon.SdNotifyReady) // what waits for this would wait for too long
	if err := f(ctx); ctx.Err() == nil {
		return err
	}
	return nil // it was stopped, and the server ends at once
}

// serveStarting answers the listeners until the end is called, which may be repeated.
func (c *serverCommand) serveStarting(ctx context.Context, listeners []net.Listener, log *slog.Logger) (end func()) {
	c.starting = httpapi.NewStarting(c.PublicMetrics == "no", c.limits(), proxies(c.TrustedProxies), log)
	done, answered := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		c.starting.Serve(ctx, done, listeners...)
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-answered
	})
}
