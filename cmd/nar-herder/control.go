package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"nar-herder/httpapi/health"
)

// controlOptions are the options of the listener for the administrator.
type controlOptions struct {
	ControlHost   string     `default:"127.0.0.1" placeholder:"HOST" help:"Name or address of the control listener, or unix:PATH (default: ${default})."`
	ControlPort   *portValue `placeholder:"PORT" help:"Port of the control listener, which serves /metrics, /health and /debug/pprof/ to the administrator. Without it, that listener is off."`
	PublicMetrics string     `default:"yes" enum:"yes,no" placeholder:"yes|no" help:"Whether /metrics and /health are served to everybody as well (default: ${default})."`

	// control serves the listener; nil where there is none.
	control *health.Control
}

// defaultControlHost is what Guix's service passes as well.
const defaultControlHost = "127.0.0.1"

func (c *controlOptions) onSocket() bool { return strings.HasPrefix(c.ControlHost, "unix:") }

func (c *controlOptions) validateControl() error {
	if c.ControlPort == nil && c.ControlHost != defaultControlHost && !c.onSocket() {
		return fmt.Errorf("--control-host=%s: there is no control listener without a port: add --control-port", c.ControlHost)
	}
	return nil
}

// listenControl opens the sockets of the control listener; none unless there is to
// be one.
func (c *controlOptions) listenControl(ctx context.Context) ([]net.Listener, error) {
	var port portValue
	if c.ControlPort != nil {
		port = *c.ControlPort
	} else if !c.onSocket() {
		return nil, nil
	}
	return listenOn(ctx, "control-", c.ControlHost, port, 0o660)
}

// serveControl answers the control listener, if there is one, until closeControl.
func (c *controlOptions) serveControl(listeners []net.Listener, log *slog.Logger) {
	if len(listeners) == 0 {
		if c.PublicMetrics == "no" {
			log.Warn("--public-metrics=no without --control-port: nobody can read the metrics and the health of this server")
		}
		return
	}
	c.control = health.ServeControl(c.ControlHost, log, listeners...)
	for _, listener := range listeners {
		log.Info("control listener", "address", listener.Addr().String())
	}
}

func (c *controlOptions) closeControl() {
	if c.control != nil {
		c.control.Close()
	}
}
