// Package faultproxy is an HTTP proxy for tests that simulates faults of networks, proxies and
// disks: answers that are cut, stalled, short, changed, old, or not from the server at all.
package faultproxy

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Proxy forwards requests to a target, and its answers back.
type Proxy struct {
	// URL is its address, without a slash at the end.
	URL string

	target    *url.URL
	pick      func(*http.Request) Fault
	server    *http.Server
	transport *http.Transport
	serving   sync.WaitGroup
	memory    *memory

	mu       sync.Mutex
	counts   Counts
	changed  chan struct{} // closed when counts have changed
	released chan struct{} // closed by Release
	closed   chan struct{}
}

// Counts counts requests and faults.
type Counts struct {
	// Requests counts received requests.
	Requests int
	// Faults counts the faults by their kinds. None counts unchanged answers, including those
	// to which a fault did not apply, such as a bit of an empty body.
	Faults [kinds]int
	// Stalled is how many are stalled now.
	Stalled int
	// Unreachable counts requests that couldn't be forwarded, or were cut by the target.
	Unreachable int
}

// Faulty returns how many answers had a fault.
func (c Counts) Faulty() (total int) {
	for kind, count := range c.Faults {
		if Kind(kind) != None {
			total += count
		}
	}
	return total
}

// New listens on loopback for a target such as http://127.0.0.1:8734, or one below a path. pick
// returns the fault of each request; it may be called from several goroutines at once. Like
// [net/http/httptest.NewServer], New panics if it fails.
func New(target string, pick func(*http.Request) Fault) *Proxy {
	parsed, err := url.Parse(strings.TrimSuffix(target, "/"))
	if err != nil || parsed.Host == "" {
		panic(fmt.Sprintf("faultproxy: the target %q is not a URL: %v", target, err))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Sprintf("faultproxy: listen: %v", err))
	}
	p := &Proxy{
		URL: "http://" + listener.Addr().String(), target: parsed, pick: pick, memory: newMemory(),
		transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16},
		changed:   make(chan struct{}), released: make(chan struct{}), closed: make(chan struct{}),
	}
	p.server = &http.Server{Handler: http.HandlerFunc(p.serve), ErrorLog: log.New(io.Discard, "", 0)}
	p.serving.Go(func() { _ = p.server.Serve(listener) })
	return p
}

// Close ends all requests, also those that stall, by cutting their connections.
func (p *Proxy) Close() {
	close(p.closed)
	_ = p.server.Close() // an error of the listener doesn't matter
	p.serving.Wait()
	p.transport.CloseIdleConnections()
}

// Release resumes all stalled requests.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.released)
	p.released = make(chan struct{})
}

// Counts returns the counts so far. A client may receive the end of an answer before it is
// counted: use Await to wait for that.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Await waits until wanted returns true. The error is the context's.
func (p *Proxy) Await(ctx context.Context, wanted func(Counts) bool) error {
	for {
		p.mu.Lock()
		counts, changed := p.counts, p.changed
		p.mu.Unlock()
		if wanted(counts) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for counts, now %+v: %w", counts, ctx.Err())
		}
	}
}

// count changes the counts.
func (p *Proxy) count(change func(*Counts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.counts)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) happened(kind Kind) { p.count(func(c *Counts) { c.Faults[kind]++ }) }

// stall waits until it is released. It returns false if the client has left.
func (p *Proxy) stall(r *http.Request) bool {
	p.mu.Lock()
	released := p.released
	p.mu.Unlock()
	p.count(func(c *Counts) { c.Stalled++ })
	defer p.count(func(c *Counts) { c.Stalled-- })
	select {
	case <-released:
		return true
	case <-r.Context().Done():
	case <-p.closed:
	}
	return false
}

// cut closes the connection of the current request.
func cut() { panic(http.ErrAbortHandler) }
