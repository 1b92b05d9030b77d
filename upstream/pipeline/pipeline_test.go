package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/upstream/pipeline"
	"nar-herder/upstream/turns"
)

// call asks for a number. The answer is the number, or 404 for multiples of 5.
type call struct {
	ctx     context.Context
	n       int
	request *http.Request
	done    func(n int, response *pipeline.Response, err error)
}

func (c *call) Context() context.Context { return c.ctx }
func (c *call) Place() turns.Place       { return turns.Place{Number: uint64(c.n)} }
func (c *call) Request() *http.Request   { return c.request }

func (c *call) Relate(response *pipeline.Response) pipeline.Relation {
	switch {
	case response.Status != http.StatusOK:
		return pipeline.Unclear
	case string(response.Body) == strconv.Itoa(c.n):
		return pipeline.Own
	}
	return pipeline.Other
}

func (c *call) Done(response *pipeline.Response, err error) { c.done(c.n, response, err) }

// outcomes are the answers to calls.
type outcomes struct {
	mu    sync.Mutex
	count int
	wrong []string
	errs  []error
	left  sync.WaitGroup
}

func (o *outcomes) done(n int, response *pipeline.Response, err error) {
	defer o.left.Done()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.count++
	want := http.StatusOK
	if n%5 == 0 {
		want = http.StatusNotFound
	}
	switch {
	case err != nil:
		o.errs = append(o.errs, fmt.Errorf("%d: %w", n, err))
	case response.Status != want || want == http.StatusOK && string(response.Body) != strconv.Itoa(n):
		o.wrong = append(o.wrong, fmt.Sprintf("%d: %d %q", n, response.Status, response.Body))
	}
}

// calls makes calls for the numbers from 1 on.
func (o *outcomes) calls(t *testing.T, ctx context.Context, count int) (calls []pipeline.Call) {
	o.left.Add(count)
	for n := 1; n <= count; n++ {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://upstream.example/%d", n), nil)
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, &call{ctx, n, request, o.done})
	}
	return calls
}

// server is one end of connections to a client.
type server struct {
	// handle serves a connection until it returns.
	handle func(r *bufio.Reader, conn net.Conn)
	dials  atomic.Int64
	asked  atomic.Int64 // requests that were read
}

func (s *server) dial(context.Context) (net.Conn, error) {
	s.dials.Add(1)
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		s.handle(bufio.NewReader(far), far)
	}()
	return near, nil
}

// next reads a request; 0 at the end of the connection.
func (s *server) next(r *bufio.Reader) int {
	request, err := http.ReadRequest(r)
	if err != nil {
		return 0
	}
	s.asked.Add(1)
	n, err := strconv.Atoi(strings.TrimPrefix(request.URL.Path, "/"))
	if err != nil {
		panic(err)
	}
	return n
}

// answer is the right answer, with additional lines in its header.
func answer(n int, lines ...string) string {
	header := strings.Join(append(lines, ""), "\r\n")
	if n%5 == 0 {
		return "HTTP/1.1 404 Not Found\r\n" + header + "Content-Length: 5\r\n\r\nnone\n"
	}
	body := strconv.Itoa(n)
	return fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", header, len(body), body)
}

// reports are what a client reports about its server.
type reports struct {
	good, bad atomic.Int64
	slowest   atomic.Int64
}

func (s *server) client(r *reports) *pipeline.Client {
	return pipeline.New(pipeline.Options{
		Dial: s.dial, Connections: 4, Depth: 256, Timeout: 5 * time.Second, Idle: time.Minute, MaxBody: 1000,
		Report: func(err error, took time.Duration) {
			if err == nil {
				r.good.Add(1)
				return
			}
			r.bad.Add(1)
			r.slowest.Store(max(r.slowest.Load(), int64(took)))
		},
	})
}

// queued lets a server read on while it writes, as the network's buffers do.
func (s *server) queued(handle func(requests <-chan int, conn net.Conn)) {
	s.handle = func(r *bufio.Reader, conn net.Conn) {
		requests := make(chan int, 1000)
		go func() {
			defer close(requests)
			for n := s.next(r); n != 0; n = s.next(r) {
				requests <- n
			}
		}()
		handle(requests, conn)
		conn.Close()
		for range requests {
		}
	}
}

// TestServers: whatever a server does, all questions are answered, rightly, and with few
// connections and repeated requests.
func TestServers(t *testing.T) {
	t.Parallel()
	const count = 300
	for name, test := range map[string]struct {
		handle func(requests <-chan int, conn net.Conn)
		// The most connections, and requests in all.
		dials, asked int64
	}{
		"at once": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				io.WriteString(conn, answer(n))
			}
		}, 4, count},
		// All of a connection's share is there before the first answer.
		"late": {func(requests <-chan int, conn net.Conn) {
			time.Sleep(time.Second)
			for n := range requests {
				io.WriteString(conn, answer(n))
			}
		}, 4, count},
		"informational": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"+answer(n))
			}
		}, 4, count},
		"chunked": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				if text := answer(n); n%5 == 0 {
					io.WriteString(conn, text)
				} else {
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%d\r\n0\r\nTrailer: x\r\n\r\n", len(strconv.Itoa(n)), n)
				}
			}
		}, 4, count},
		"close after each": {func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, answer(<-requests, "Connection: close"))
		}, count + 10, 4 * count},
		"end after each": {func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, answer(<-requests))
		}, count + 10, 4 * count},
		"close after 20": {func(requests <-chan int, conn net.Conn) {
			for range 19 {
				io.WriteString(conn, answer(<-requests))
			}
			io.WriteString(conn, answer(<-requests, "Connection: close"))
		}, count/20 + 10, 4 * count},
		"end in the middle": {func(requests <-chan int, conn net.Conn) {
			for range 20 {
				io.WriteString(conn, answer(<-requests))
			}
			io.WriteString(conn, answer(<-requests)[:30])
		}, count/20 + 10, 4 * count},
		"HTTP/1.0": {func(requests <-chan int, conn net.Conn) {
			text := strings.Replace(answer(<-requests), "HTTP/1.1", "HTTP/1.0", 1)
			io.WriteString(conn, text)
		}, count + 10, 4 * count},
		"HTTP/1.0 without length": {func(requests <-chan int, conn net.Conn) {
			if n := <-requests; n%5 == 0 {
				io.WriteString(conn, "HTTP/1.0 404 Not Found\r\n\r\nnone\n")
			} else {
				fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\n\r\n%d", n)
			}
		}, count + 10, 4 * count},
		"HTTP/1.0, kept": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				io.WriteString(conn, strings.Replace(answer(n, "Connection: keep-alive"), "HTTP/1.1", "HTTP/1.0", 1))
			}
		}, 4, count},
		// It discards what it has read beyond the first request.
		"one at a time": {func(requests <-chan int, conn net.Conn) {
			n := <-requests
			time.Sleep(100 * time.Millisecond)
			io.WriteString(conn, answer(n))
		}, count + 10, 4 * count},
		// It gives up if it has more than one.
		"overrun": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				time.Sleep(10 * time.Millisecond)
				if len(requests) > 0 {
					return
				}
				io.WriteString(conn, answer(n))
			}
		}, 60, 4 * count},
		"in reverse": {func(requests <-chan int, conn net.Conn) {
			for first := range requests {
				time.Sleep(10 * time.Millisecond)
				queue := []int{first}
				for len(queue) < 4 && len(requests) > 0 {
					queue = append(queue, <-requests)
				}
				for i := len(queue) - 1; i >= 0; i-- {
					io.WriteString(conn, answer(queue[i]))
				}
			}
		}, 30, 4 * count},
		"garbage after each": {func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				io.WriteString(conn, answer(n)+"garbage\r\n\r\n")
			}
		}, count + 20, 4 * count},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var s server
				s.queued(test.handle)
				var r reports
				c := s.client(&r)
				defer c.Close()
				var o outcomes
				c.Send(o.calls(t, t.Context(), count)...)
				o.left.Wait()
				if len(o.wrong) > 0 || len(o.errs) > 0 || o.count != count || r.bad.Load() > 0 || r.good.Load() < count {
					t.Errorf("%d answers, wrong %q, errors %v, %d reports of success, %d of failures", o.count, o.wrong, o.errs[:min(len(o.errs), 3)], r.good.Load(), r.bad.Load())
				}
				if s.dials.Load() > test.dials || s.asked.Load() > test.asked {
					t.Errorf("%d connections, %d requests; want up to %d, %d", s.dials.Load(), s.asked.Load(), test.dials, test.asked)
				}
			})
		})
	}
}
