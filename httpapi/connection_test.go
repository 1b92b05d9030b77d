package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/httpapi/engine/admission"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// slowAnswers are requests of a slow client, with answers that are sent by sendfile, copied,
// and decompressed.
func slowAnswers(t *testing.T) map[string]func() (listener net.Listener, items Items, target string, length int64) {
	t.Helper()
	content := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	plain := make1(t, "large", content, "none")
	packed := make1(t, "large", content, "gzip")
	file := t.TempDir() + "/nar"
	if err := os.WriteFile(file, plain.nar, 0o644); err != nil {
		t.Fatal(err)
	}
	asFile := plain.items(t)
	asFile.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
		opened, err := os.Open(file)
		return opened, bytestore.Info{Size: plain.fileSize}, err
	}
	type answer = func() (net.Listener, Items, string, int64)
	return map[string]answer{
		"file": func() (net.Listener, Items, string, int64) {
			return smallSockets{listenTCP(t)}, asFile, "/" + plain.url(), plain.fileSize
		},
		"file over a unix socket": func() (net.Listener, Items, string, int64) {
			return smallSockets{listenUnix(t)}, asFile, "/" + plain.url(), plain.fileSize
		},
		"no file": func() (net.Listener, Items, string, int64) {
			return smallSockets{listenTCP(t)}, plain.items(t), "/" + plain.url(), plain.fileSize
		},
		"decompressed": func() (net.Listener, Items, string, int64) {
			return smallSockets{listenTCP(t)}, packed.items(t), "/nar/" + packed.path.BaseName(), packed.narSize
		},
	}
}

// TestSlowReaderContinues: clients that read a little at a time may take much longer than the
// progress timeout.
func TestSlowReaderContinues(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	for name, answer := range slowAnswers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, items, target, length := answer()
			startOn(t, items, options(), listener, func(s *Server) { s.engine.ProgressTimeout = timeout })
			c := connectSmall(t, listener.Addr())
			c.send(request("GET", target))
			begin := time.Now()
			response, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			piece := make([]byte, 64<<10)
			total := int64(0)
			for time.Since(begin) < 3*timeout {
				n, err := io.ReadFull(response.Body, piece)
				if total += int64(n); err != nil {
					t.Fatalf("after %v: %v", time.Since(begin), err)
				}
				time.Sleep(timeout / 10)
			}
			n, err := io.Copy(io.Discard, response.Body)
			if total += n; err != nil || total != length {
				t.Errorf("%d bytes of %d, %v", total, length, err)
			}
			c.stillOpen()
		})
	}
}

// TestStalledReaderIsCut: connections of clients that read nothing any more are cut.
func TestStalledReaderIsCut(t *testing.T) {
	t.Parallel()
	const timeout = 100 * time.Millisecond
	for name, answer := range slowAnswers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, items, target, length := answer()
			s := startOn(t, items, options(), listener, func(s *Server) { s.engine.ProgressTimeout = timeout })
			c := connectSmall(t, listener.Addr())
			c.send(request("GET", target))
			begin := time.Now()
			if _, err := http.ReadResponse(c.r, nil); err != nil {
				t.Fatal(err)
			}
			until(t, "the connection is cut", func() bool { return s.engine.Server.GetCurrentConcurrency() == 0 })
			if took := time.Since(begin); took < timeout {
				t.Errorf("cut after %v", took)
			}
			if n, err := io.Copy(io.Discard, c.r); n >= length {
				t.Errorf("%d bytes of %d, %v", n, length, err)
			}
			until(t, "decoders are given back", func() bool { return s.checker.Options.Decoders.Memory() == 0 })
		})
	}
}

// TestHeaderTimeout: clients that never finish a request, or never send one, are disconnected.
func TestHeaderTimeout(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	s := startWith(t, corpus(), options(), func(s *Server) { s.engine.Server.ReadTimeout = timeout })
	drip := dial(t, s.address)
	begin := time.Now()
	for i := 0; ; i++ {
		if _, err := drip.Write([]byte(request("GET", "/"+strings.Repeat("x", 4000))[i : i+1])); err != nil {
			break
		}
		time.Sleep(timeout / 50)
	}
	if took := time.Since(begin); took < timeout/2 || took > patience/2 {
		t.Errorf("cut after %v", took)
	}
	silent := dial(t, s.address)
	silent.closed2(t)
	// After an answer, there is more time.
	kept := dial(t, s.address)
	kept.stillOpen()
	time.Sleep(timeout + timeout/2)
	kept.stillOpen()
}

// closed2 makes sure that the connection is closed, with a 408 or without.
func (c *client) closed2(t *testing.T) {
	t.Helper()
	raw, err := io.ReadAll(c.r)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) || len(raw) > 0 && !bytes.HasPrefix(raw, []byte("HTTP/1.1 408 ")) {
		t.Errorf("%q, %v", raw, err)
	}
}

// TestIdleTimeout closes an idle connection without an answer, which a client might take for
// that to its next request.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	s := startWith(t, corpus(), options(), func(s *Server) {
		s.engine.Server.ReadTimeout, s.engine.Server.IdleTimeout = 5*time.Second, 200*time.Millisecond
	})
	c := dial(t, s.address)
	c.stillOpen()
	c.closed()
}

// TestCrowd: 2000 connections without a request, and 50 clients that send theirs byte by byte,
// don't block others.
func TestCrowd(t *testing.T) {
	t.Parallel()
	idle, slow := 2000, 50
	if testing.Short() {
		idle = 200
	}
	opts := options()
	opts.Limits = admission.Limits{Connections: 3000, PerAddress: 3000}
	s := start(t, corpus(), opts)
	for n := range idle {
		c := dial(t, s.address)
		if n%2 == 0 { // the others never send a request
			c.send(request("GET", "/nix-cache-info"))
		}
	}
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for range slow {
		c := dial(t, s.address)
		senders.Go(func() {
			raw := request("GET", "/"+hashOf(gtk)+".narinfo", "X-Padding: "+strings.Repeat("x", 4000))
			for i := range raw {
				if _, err := io.WriteString(c.Conn, raw[i:i+1]); err != nil {
					t.Errorf("byte %d: %v", i, err)
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
	until(t, "all are connected", func() bool { return s.engine.Server.GetCurrentConcurrency() == uint32(idle+slow) })
	text, nar := contents(t, published, hashOf(gtk)+".narinfo"), contents(t, published, "nar/lzip", entropy)
	var longest time.Duration
	for range 100 {
		begin := time.Now()
		c := dial(t, s.address)
		if got := c.ask("GET", "/"+hashOf(gtk)+".narinfo"); got.body != text {
			t.Fatalf("%s", got.Status)
		}
		longest = max(longest, time.Since(begin))
		c.Close()
	}
	if got := dial(t, s.address).ask("GET", "/nar/lzip/"+entropy); got.body != nar {
		t.Errorf("%s, %d bytes", got.Status, len(got.body))
	}
	t.Logf("an answer took %v at the most", longest)
	close(stop)
	senders.Wait()
}

// lackingListener fails with EMFILE now and then.
type lackingListener struct {
	net.Listener
	mu     sync.Mutex
	errors []error
}

func (l *lackingListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.errors) > 0 {
		err := l.errors[0]
		l.errors = l.errors[1:]
		l.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	l.mu.Unlock()
	return l.Listener.Accept()
}

func TestAcceptFails(t *testing.T) {
	t.Parallel()
	l := &lackingListener{Listener: listenTCP(t), errors: []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EMFILE,
	}}
	s := startOn(t, corpus(), options(), l, nil)
	for range 3 {
		dial(t, s.address).stillOpen()
	}
	log := s.log.String() // it has each reason once
	if strings.Count(log, "raise the limit of open files") != 4 || strings.Count(log, "connections are accepted again") != 1 {
		t.Errorf("the log says: %s", log)
	}
}

// TestListenerFails: Serve returns the error of the failed listener, and closes the other.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	good, bad := listenTCP(t), &lackingListener{Listener: listenTCP(t), errors: []error{syscall.EINVAL}}
	err := New(corpus(), options()).Serve(t.Context(), good, bad)
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Serve: %v", err)
	}
	for _, l := range []net.Listener{good, bad} {
		if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
			conn.Close()
			t.Error("a listener is still open")
		}
	}
}

// TestSeveralListeners serves on several listeners.
func TestSeveralListeners(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(context.Background())
	listeners := []net.Listener{listenTCP(t), listenTCP(t), listenUnix(t)}
	ended := make(chan error, 1)
	go func() { ended <- New(corpus(), options()).Serve(ctx, listeners...) }()
	for _, l := range listeners {
		connect(t, l).stillOpen()
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, l := range listeners {
		if conn, err := net.Dial(l.Addr().Network(), l.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("%s is still open", l.Addr())
		}
	}
}
