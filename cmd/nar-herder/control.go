package main

import (
	"context"
	"fmt"
	"net"
	"strings"
)

// controlOptions are the options of the control listener, which is for the administrator.
type controlOptions struct {
	ControlHost   string     `group:"listening" default:"127.0.0.1" placeholder:"HOST" help:"Name or address of the control listener, or unix:PATH (default: ${default})."`
	ControlPort   *portValue `group:"listening" placeholder:"PORT" help:"Port of the control listener, which serves /metrics, /health, /debug/pprof/ and full pages (default: no control listener)."`
	PublicMetrics string     `group:"listening" default:"yes" enum:"yes,no" placeholder:"yes|no" help:"Whether to serve /metrics and /health to all clients too, and to show their figures on pages (default: ${default})."`
}

// defaultControlHost is what Guix's service passes as well.
const defaultControlHost = "127.0.0.1"

func (c *controlOptions) onSocket() bool { return strings.HasPrefix(c.ControlHost, "unix:") }

func (c *controlOptions) validateControl() error {
	if c.ControlPort == nil && c.ControlHost != defaultControlHost && !c.onSocket() {
		return fmt.Errorf("--control-host=%s: the control listener needs a port: add --control-port", c.ControlHost)
	}
	return nil
}

// listenControl opens the sockets of the control listener. There are none if it is off.
func (c *controlOptions) listenControl(ctx context.Context) ([]net.Listener, error) {
	var port portValue
	if c.ControlPort != nil {
		port = *c.ControlPort
	} else if !c.onSocket() {
		return nil, nil
	}
	return listenOn(ctx, "control-", c.ControlHost, port, 0o660)
}
