package s3

import (
	"context"
	"net"
	"net/http"
	"time"

	"nar-herder/internal/redact"
)

const (
	// dialTimeout is for a connection, and again for its TLS handshake.
	dialTimeout = 10 * time.Second
	// headTimeout is for the head of a response after the request was sent;
	// completeTimeout is for CompleteMultipartUpload, which takes minutes on some
	// servers.
	headTimeout     = 30 * time.Second
	completeTimeout = 10 * time.Minute
	// progressTimeout is how long a connection may transfer no byte in either
	// direction.
	progressTimeout = 60 * time.Second
	// idleConnections is how many idle connections each pool keeps, as requests for
	// nars come in bursts.
	idleConnections = 128
)

// client sends requests. It limits how long a transfer may stall, not how long it may
// take.
type client struct {
	quick, patient http.RoundTripper
	// pool is for fastGet; nil to use quick.
	pool    *pool
	metrics *metrics
}

func newClient() *client {
	return &client{
		quick: newTransport(headTimeout), patient: newTransport(completeTimeout),
		pool: &pool{dialer: net.Dialer{Timeout: dialTimeout}, head: headTimeout}, metrics: newMetrics(),
	}
}

// get sends a GET of fastGet.
func (c *client) get(request *http.Request) (*http.Response, error) {
	if c.pool != nil {
		if proxy, err := redact.Proxy(request); err == nil && proxy == nil {
			return c.metrics.measured(c.pool.RoundTrip, request)
		}
	}
	return c.metrics.measured(c.quick.RoundTrip, request)
}

// Do implements the SDK's HTTPClient. It follows no redirects, as a signature is for one
// host.
func (c *client) Do(request *http.Request) (*http.Response, error) {
	if request.Method == http.MethodPost {
		return c.metrics.measured(c.patient.RoundTrip, request)
	}
	return c.metrics.measured(c.quick.RoundTrip, request)
}

func (c *client) close() {
	for _, transport := range []http.RoundTripper{c.quick, c.patient} {
		if transport, ok := transport.(*http.Transport); ok {
			transport.CloseIdleConnections()
		}
	}
	if c.pool != nil {
		c.pool.close()
	}
}

func newTransport(head time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		Proxy: redact.Proxy,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return progressing{conn}, nil
		},
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: head,
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          2 * idleConnections,
		MaxIdleConnsPerHost:   idleConnections,
		IdleConnTimeout:       90 * time.Second,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        16 << 10,
		// Nars must arrive as they are stored.
		DisableCompression: true,
	}
}

// progressing is a connection with a timeout for each Write.
type progressing struct{ net.Conn }

func (p progressing) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(progressTimeout)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}
