package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/upstream/pipeline"
)

// endless writes a text again and again, until the connection ends, which must be soon.
func endless(conn net.Conn, text string) {
	text = strings.Repeat(text, 1000)
	for sent := 0; sent < 10<<20; sent += len(text) {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
	}
	panic("10 MB were read")
}

// TestFaults: questions to a server that can't answer end with an error, in bounded time and
// memory, and what it does answer counts.
func TestFaults(t *testing.T) {
	t.Parallel()
	const count = 300
	drip := func(requests <-chan int, conn net.Conn) {
		for n := range requests {
			for _, b := range []byte(answer(n)) {
				time.Sleep(time.Second)
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		}
	}
	for name, test := range map[string]struct {
		handle func(requests <-chan int, conn net.Conn)
		want   error // of all; nil for any
		within time.Duration
	}{
		"silent": {func(requests <-chan int, conn net.Conn) {
			for range requests {
			}
		}, pipeline.ErrSilent, 6 * time.Second},
		"reads nothing": {func(_ <-chan int, conn net.Conn) {
			time.Sleep(time.Minute)
		}, pipeline.ErrSilent, 6 * time.Second},
		"one byte a second": {drip, pipeline.ErrSilent, 6 * time.Second},
		"endless header": {func(_ <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			endless(conn, "A: b\r\n")
		}, nil, time.Second},
		"endless line": {func(_ <-chan int, conn net.Conn) {
			endless(conn, "HTTP/1.1 ")
		}, nil, time.Second},
		"endless informational": {func(_ <-chan int, conn net.Conn) {
			endless(conn, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}, nil, time.Second},
		"endless body": {func(_ <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
			endless(conn, "x")
		}, nil, time.Second},
		"endless body of an error": {func(_ <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 404 Not Found\r\n\r\n")
			endless(conn, "x")
		}, nil, time.Second},
		"endless chunks": {func(_ <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			endless(conn, "1\r\nx\r\n")
		}, nil, time.Second},
		"endless trailer": {func(_ <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
			endless(conn, "A: b\r\n")
		}, nil, time.Second},
		"long body": {func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
			for range requests {
			}
		}, nil, time.Second},
		"not HTTP": {func(requests <-chan int, conn net.Conn) {
			for range requests {
				io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
			}
		}, nil, time.Second},
		"not HTTP, unasked": {func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
			for range requests {
			}
		}, nil, time.Second},
		"another protocol": {func(requests <-chan int, conn net.Conn) {
			for range requests {
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
			}
		}, nil, time.Second},
		"ends at once": {func(<-chan int, net.Conn) {}, io.EOF, time.Second},
		"ends after each request": {func(requests <-chan int, conn net.Conn) {
			<-requests
		}, io.EOF, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var s server
				s.queued(test.handle)
				var r reports
				c := s.client(&r)
				var o outcomes
				begun := time.Now()
				c.Send(o.calls(t, t.Context(), count)...)
				o.left.Wait()
				took := time.Since(begun)
				c.Close()
				time.Sleep(time.Minute) // until the server has awoken
				if len(o.errs) != count {
					t.Fatalf("%d errors, wrong %q", len(o.errs), o.wrong)
				}
				for _, err := range o.errs {
					if test.want != nil && !errors.Is(err, test.want) {
						t.Fatal(err)
					}
				}
				if took > test.within || r.bad.Load() == 0 || s.dials.Load() > 20 {
					t.Errorf("after %s, %d failures reported, %d connections", took, r.bad.Load(), s.dials.Load())
				}
			})
		})
	}
}

// TestRefused: all questions fail at once if no connection can be made, with one report.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, refusal := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var r reports
			refused := errors.New("refused")
			c := pipeline.New(pipeline.Options{
				Dial: func(context.Context) (net.Conn, error) {
					time.Sleep(time.Second)
					if refusal {
						return nil, &pipeline.Refusal{Err: refused}
					}
					return nil, refused
				}, Connections: 4, Depth: 256, Timeout: 5 * time.Second, Idle: time.Minute, MaxBody: 1000,
				Report: func(err error, took time.Duration) {
					if !errors.Is(err, refused) || took != time.Second {
						t.Errorf("%v after %s", err, took)
					}
					r.bad.Add(1)
				},
			})
			defer c.Close()
			var o outcomes
			c.Send(o.calls(t, t.Context(), 300)...)
			o.left.Wait()
			if len(o.errs) != 300 || !errors.Is(o.errs[0], refused) || r.bad.Load() > 1 || (r.bad.Load() == 0) != refusal {
				t.Errorf("%d errors, %d reports", len(o.errs), r.bad.Load())
			}
		})
	}
}

// TestUnreachable: connecting takes no longer than the timeout.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := pipeline.New(pipeline.Options{
			Dial: func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}, Connections: 4, Depth: 256, Timeout: 5 * time.Second, Idle: time.Minute, MaxBody: 1000,
			Report: func(error, time.Duration) {},
		})
		defer c.Close()
		var o outcomes
		begun := time.Now()
		c.Send(o.calls(t, t.Context(), 300)...)
		o.left.Wait()
		if len(o.errs) != 300 || !errors.Is(o.errs[0], pipeline.ErrSilent) || time.Since(begun) != 5*time.Second {
			t.Errorf("%d errors after %s", len(o.errs), time.Since(begun))
		}
	})
}

// TestOneStalls: an answer that doesn't come fails alone; the others are asked again.
func TestOneStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.queued(func(requests <-chan int, conn net.Conn) {
			for n := range requests {
				if n == 17 {
					time.Sleep(time.Minute)
				}
				io.WriteString(conn, answer(n))
			}
		})
		var r reports
		c := s.client(&r)
		defer time.Sleep(time.Minute) // until the server has awoken
		defer c.Close()
		var o outcomes
		c.Send(o.calls(t, t.Context(), 300)...)
		o.left.Wait()
		if len(o.errs) != 1 || !errors.Is(o.errs[0], pipeline.ErrSilent) || len(o.wrong) > 0 || r.bad.Load() > 0 {
			t.Errorf("errors %v, wrong %q, %d reports", o.errs, o.wrong, r.bad.Load())
		}
	})
}

// TestStale: an idle connection that the server closes costs no answer.
func TestStale(t *testing.T) {
	t.Parallel()
	for name, stale := range map[string]func(requests <-chan int, conn net.Conn){
		"closed":                  func(<-chan int, net.Conn) {},
		"closed at next request":  func(requests <-chan int, conn net.Conn) { <-requests },
		"unsolicited answer":      func(_ <-chan int, conn net.Conn) { io.WriteString(conn, answer(5)) },
		"unsolicited, then stays": func(requests <-chan int, conn net.Conn) { io.WriteString(conn, answer(5)); <-requests },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var s server
				s.queued(func(requests <-chan int, conn net.Conn) {
					io.WriteString(conn, answer(<-requests))
					stale(requests, conn)
				})
				var r reports
				c := s.client(&r)
				defer c.Close()
				var o outcomes
				for range 5 {
					c.Send(o.calls(t, t.Context(), 1)...)
					o.left.Wait()
					time.Sleep(10 * time.Second)
				}
				if len(o.errs) > 0 || len(o.wrong) > 0 || o.count != 5 || r.bad.Load() > 0 {
					t.Errorf("errors %v, wrong %q, %d reports", o.errs, o.wrong, r.bad.Load())
				}
			})
		})
	}
}

// TestForgotten: an idle connection that the network has forgotten costs the answers of one
// burst.
func TestForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.queued(func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, answer(<-requests))
			for range requests {
				if s.dials.Load() > 1 {
					io.WriteString(conn, answer(1))
				}
			}
		})
		var r reports
		c := s.client(&r)
		defer c.Close()
		var o outcomes
		for range 5 {
			c.Send(o.calls(t, t.Context(), 1)...)
			o.left.Wait()
		}
		if len(o.errs) != 1 || !errors.Is(o.errs[0], pipeline.ErrSilent) || r.bad.Load() != 1 || time.Duration(r.slowest.Load()) != 5*time.Second {
			t.Errorf("errors %v, %d reports", o.errs, r.bad.Load())
		}
	})
}

// TestDepth: a server that shows a limit once is sent many requests at a time again.
func TestDepth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.queued(func(requests <-chan int, conn net.Conn) {
			if s.dials.Load() < 9 {
				io.WriteString(conn, answer(<-requests, "Connection: close"))
				return
			}
			for n := range requests {
				time.Sleep(10 * time.Millisecond)
				io.WriteString(conn, answer(n))
			}
		})
		var r reports
		c := s.client(&r)
		defer c.Close()
		var o outcomes
		for range 10 {
			c.Send(o.calls(t, t.Context(), 300)...)
			o.left.Wait()
		}
		before := s.dials.Load()
		c.Send(o.calls(t, t.Context(), 300)...)
		o.left.Wait()
		if len(o.errs) > 0 || len(o.wrong) > 0 || s.dials.Load() > before+4 {
			t.Errorf("errors %v, wrong %q, %d more connections", o.errs, o.wrong, s.dials.Load()-before)
		}
	})
}

// TestCanceled: questions that nobody waits for aren't sent, and keep no connection busy.
func TestCanceled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.queued(func(requests <-chan int, conn net.Conn) {
			time.Sleep(time.Second)
			for n := range requests {
				io.WriteString(conn, answer(n))
			}
		})
		var r reports
		c := s.client(&r)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var o outcomes
		c.Send(o.calls(t, ctx, 300)...)
		o.left.Wait()
		if len(o.errs) != 300 || !errors.Is(o.errs[0], context.Canceled) || s.asked.Load() > 0 {
			t.Errorf("%d errors, %d requests", len(o.errs), s.asked.Load())
		}
		// An idle connection is closed, and then no goroutine is left.
		time.Sleep(2 * time.Minute)
		c.Close()
		c.Send(o.calls(t, t.Context(), 1)...)
		o.left.Wait()
		if err := o.errs[len(o.errs)-1]; !errors.Is(err, pipeline.ErrClosed) {
			t.Error(err)
		}
	})
}

// TestClose: what is in flight fails.
func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.queued(func(requests <-chan int, conn net.Conn) {
			io.WriteString(conn, answer(<-requests))
			for range requests {
			}
		})
		var r reports
		c := s.client(&r)
		var o outcomes
		c.Send(o.calls(t, t.Context(), 2000)...)
		time.Sleep(time.Second)
		c.Close()
		o.left.Wait()
		if len(o.errs) < 1990 || r.bad.Load() > 0 {
			t.Errorf("%d errors, %d reports", len(o.errs), r.bad.Load())
		}
		for _, err := range o.errs {
			if !errors.Is(err, pipeline.ErrClosed) {
				t.Fatal(err)
			}
		}
	})
}

// FuzzAnswers: whatever bytes come, each question gets one answer or error, and a narinfo only
// its own.
func FuzzAnswers(f *testing.F) {
	for _, text := range []string{
		"", answer(1) + answer(2) + answer(3), answer(2) + answer(1), answer(5, "Connection: close"), "HTTP/1.1 101 x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n1", "HTTP/1.1 100 Continue\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 404 x\r\nContent-Length: -1\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		synctest.Test(t, func(t *testing.T) {
			var s server
			s.handle = func(r *bufio.Reader, conn net.Conn) {
				go io.Copy(io.Discard, r)
				io.Copy(conn, bytes.NewReader(text))
			}
			var r reports
			c := s.client(&r)
			defer c.Close()
			var o outcomes
			done := make(map[int]int)
			check := func(n int, response *pipeline.Response, err error) {
				o.mu.Lock()
				done[n]++
				o.mu.Unlock()
				o.left.Done()
				if (response == nil) == (err == nil) {
					t.Errorf("%d: %v, %v", n, response, err)
				}
			}
			calls := o.calls(t, t.Context(), 8)
			for _, asked := range calls {
				asked.(*call).done = check
			}
			c.Send(calls...)
			o.left.Wait()
			if len(done) != 8 {
				t.Error(fmt.Sprint(done))
			}
		})
	})
}
