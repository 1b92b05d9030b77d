package upstream

import (
	"context"
	"crypto/tls"
	"net"
)

// WithTLS returns options with the configuration of clients.
func (o Options) WithTLS(config *tls.Config) Options {
	o.tls = config
	return o
}

// WithDial returns options with another network.
func (o Options) WithDial(dial func(ctx context.Context, network, address string) (net.Conn, error)) Options {
	o.dial = dial
	return o
}

// MaxAge is [maxAge].
var MaxAge = maxAge
