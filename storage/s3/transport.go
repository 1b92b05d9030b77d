package s3

import (
	"context"
	"net"
	"net/http"
	"time"

	"nar-herder/internal/redact"
)

const (
	// dialTimeout is for a connection, and again for its TLS.
	dialTimeout = 10 * time.Second
	// headTimeout is how long the head of an answer may take, once the request is
	// sent; completeTimeout is that of one that puts together many parts, which
	// takes minutes on some servers.
	headTimeout     = 30 * time.Second
	completeTimeout = 10 * time.Minute
	// progressTimeout is how long bytes may stop to flow, either way.
	progressTimeout = 60 * time.Second
	// idleConnections are kept for each of the two kinds of requests. Nars come
	// in bursts of requests.
	idleConnections = 128
)

// client sends requests. There is no limit to how long bytes may flow, only to how
// long they may not.
type client struct {
	quick, patient http.RoundTripper
	// pool is for the requests of fastGet; nil if they use quick as well.
	pool *pool
}

func newClient() *client {
	return &client{
		quick: newTransport(headTimeout), patient: newTransport(completeTimeout),
		pool: &pool{dialer: net.Dialer{Timeout: dialTimeout}, head: headTimeout},
	}
}

// get sends a GET.
func (c *client) get(request *http.Request) (*http.Response, error) {
	if c.pool != nil {
		if proxy, err := redact.Proxy(request); err == nil && proxy == nil {
			return c.pool.RoundTrip(request)
		}
	}
	return c.quick.RoundTrip(request)
}

// Do implements the SDK's HTTPClient. It follows no redirects: signatures are for
// one host.
func (c *client) Do(request *http.Request) (*http.Response, error) {
	if request.Method == http.MethodPost {
		return c.patient.RoundTrip(request)
	}
	return c.quick.RoundTrip(request)
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
		// Bytes are to come as they lie there.
		DisableCompression: true,
	}
}

// progressing is a connection that fails when nobody takes what is written to it.
type progressing struct{ net.Conn }

func (p progressing) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(progressTimeout)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}
