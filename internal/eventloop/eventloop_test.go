package eventloop

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

// patience is the timeout of waits.
const patience = 30 * time.Second

// pair returns both ends of a connection, the first one taken over by the loop.
func pair(t *testing.T, network string) (*Conn, net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "socket")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Take(accepted)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection that was taken over: %v", err)
	}
	if err := peer.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// TestConn runs the test suite for connections of package net.
func TestConn(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c, peer := pair(t, network)
				if err := peer.SetDeadline(time.Time{}); err != nil {
					return nil, nil, nil, err
				}
				return c, peer, func() { c.Close(); peer.Close() }, nil
			})
		})
	}
}

func TestTakeUnsupported(t *testing.T) {
	one, other := net.Pipe()
	defer one.Close()
	defer other.Close()
	if _, err := Take(one); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a pipe: %v", err)
	}
}

// echo echoes each line, and calls before with it first.
func echo(c *Conn, before func(line string)) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		before(line)
		if _, err := io.WriteString(c, line); err != nil {
			return
		}
	}
}

// ask sends a line and expects it back.
func ask(t *testing.T, peer net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(peer, line); err != nil {
		t.Error(err)
		return
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(peer, got); err != nil || string(got) != line {
		t.Errorf("%.20q came back as %.20q, %v", line, got, err)
	}
}

// TestServe sends requests on many connections at the same time.
func TestServe(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		var asking sync.WaitGroup
		for range 50 {
			c, peer := pair(t, network)
			c.Serve(func() { echo(c, func(string) {}) })
			asking.Go(func() {
				for n := range 60 {
					ask(t, peer, strings.Repeat("x", n*n*11)+"\n")
				}
			})
		}
		asking.Wait()
	}
}

// TestLeave: connections that wait for each other outside the loop don't block others, and are
// back on it for their next request.
func TestLeave(t *testing.T) {
	t.Parallel()
	const count = 10
	var open sync.WaitGroup
	open.Add(count)
	for range count {
		c, peer := pair(t, "tcp")
		first := true
		c.Serve(func() {
			echo(c, func(line string) {
				switch {
				case line == "leave\n" && first:
					first = false
					c.Leave()
					if c.onLoop {
						t.Error("still on the loop")
					}
					open.Done()
					open.Wait()
				case line == "leave\n":
					c.Leave()
				}
			})
		})
		if _, err := io.WriteString(peer, "leave\n"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if line, err := bufio.NewReader(peer).ReadString('\n'); line != "leave\n" || err != nil {
				t.Errorf("%q, %v", line, err)
			}
			ask(t, peer, "back\n")
			ask(t, peer, "leave\n")
		})
		// Others are served meanwhile.
		other, otherPeer := pair(t, "tcp")
		other.Serve(func() { echo(other, func(string) {}) })
		ask(t, otherPeer, "other\n")
	}
}

// TestFullOnLoop: a client that does not read its answer doesn't block others.
func TestFullOnLoop(t *testing.T) {
	t.Parallel()
	c, peer := pair(t, "tcp")
	const size = 32 << 20
	c.Serve(func() { echo(c, func(string) { _, _ = c.Write(make([]byte, size)) }) })
	if _, err := io.WriteString(peer, "much\n"); err != nil {
		t.Fatal(err)
	}
	other, otherPeer := pair(t, "tcp")
	other.Serve(func() { echo(other, func(string) {}) })
	ask(t, otherPeer, "other\n")
	if n, err := io.CopyN(io.Discard, peer, size+int64(len("much\n"))); err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestGreedy: a client that never stops sending doesn't block others.
func TestGreedy(t *testing.T) {
	t.Parallel()
	c, peer := pair(t, "tcp")
	c.Serve(func() {
		defer c.Close()
		for err := error(nil); err == nil; {
			_, err = c.Read(make([]byte, 16))
		}
	})
	go func() {
		for err := error(nil); err == nil; {
			_, err = peer.Write(make([]byte, 1<<20))
		}
	}()
	other, otherPeer := pair(t, "tcp")
	other.Serve(func() { echo(other, func(string) {}) })
	for range 100 {
		ask(t, otherPeer, "other\n")
	}
}

// TestPool: more connections enter a pool than it has room for. The others wait, the loop
// serves connections outside the pool, and a connection that leaves the pool releases its
// room.
func TestPool(t *testing.T) {
	t.Parallel()
	const width, count = 2, 10
	pool := NewPool(width)
	inside, entered, release := make(chan struct{}, width), make(chan struct{}, count), make(chan struct{})
	var peers []net.Conn
	for range count {
		c, peer := pair(t, "tcp")
		peers = append(peers, peer)
		c.Serve(func() {
			echo(c, func(line string) {
				c.Enter(pool)
				select {
				case inside <- struct{}{}:
				default:
					t.Error("there are more in the pool than it has places")
				}
				entered <- struct{}{}
				if line == "wait\n" {
					<-release
				}
				<-inside
				c.Leave()
				if line == "leave\n" {
					<-release
				}
			})
		})
	}
	for _, peer := range peers {
		if _, err := io.WriteString(peer, "wait\n"); err != nil {
			t.Fatal(err)
		}
	}
	for range width {
		<-entered
	}
	other, otherPeer := pair(t, "tcp")
	other.Serve(func() { echo(other, func(string) {}) })
	ask(t, otherPeer, "other\n")
	if n := len(entered); n != 0 {
		t.Errorf("%d more have entered", n)
	}
	close(release)
	for _, peer := range peers {
		if got, err := bufio.NewReader(peer).ReadString('\n'); got != "wait\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	for range count - width {
		<-entered
	}
	// Connections that wait after leaving don't take room.
	release = make(chan struct{})
	for _, peer := range peers {
		if _, err := io.WriteString(peer, "leave\n"); err != nil {
			t.Fatal(err)
		}
	}
	for range count {
		<-entered
	}
	close(release)
}

// TestServeEnds ends a waiting connection in each way.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end  func(c *Conn, peer net.Conn) error
		want error
	}{
		"closed":         {func(c *Conn, _ net.Conn) error { return c.Close() }, net.ErrClosed},
		"deadline":       {func(c *Conn, _ net.Conn) error { return c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		"past deadline":  {func(c *Conn, _ net.Conn) error { return c.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"closed by peer": {func(_ *Conn, peer net.Conn) error { return peer.Close() }, io.EOF},
		"half closed":    {func(_ *Conn, peer net.Conn) error { return peer.(*net.TCPConn).CloseWrite() }, io.EOF},
		"bytes, then end": {func(_ *Conn, peer net.Conn) error {
			_, err := io.WriteString(peer, "x")
			return errors.Join(err, peer.Close())
		}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, peer := pair(t, "tcp")
			ended := make(chan error, 1)
			c.Serve(func() {
				defer c.Close()
				var err error
				for err == nil {
					_, err = c.Read(make([]byte, 100))
				}
				ended <- err
			})
			if _, err := io.WriteString(peer, "begun"); err != nil {
				t.Fatal(err)
			}
			if err := test.end(c, peer); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, test.want) {
					t.Errorf("%v", err)
				}
			case <-time.After(patience):
				t.Fatal("waits for ever")
			}
		})
	}
}

// TestTakeLacking: a connection that can't be taken over for lack of descriptors stays usable,
// and can be taken over later.
func TestTakeLacking(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = Take(accepted)
	if restore := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); restore != nil {
		t.Fatal(restore)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("without descriptors: %v", err)
	}
	c, err := Take(accepted)
	if err != nil {
		t.Fatal(err)
	}
	c.Serve(func() { echo(c, func(string) {}) })
	ask(t, peer, "later\n")
}

// TestCloseWrite: the peer reads the end of the stream, and can still send.
func TestCloseWrite(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		c, peer := pair(t, network)
		if _, ok := c.Waiting(); ok {
			t.Error("it waits before it is served")
		}
		begun := time.Now()
		got := make(chan string, 1)
		c.Serve(func() {
			defer c.Close()
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			text, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			got <- string(text)
		})
		if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %d bytes, %v", network, n, err)
		}
		var since time.Time
		for ok := false; !ok; {
			since, ok = c.Waiting()
			if time.Since(begun) > patience {
				t.Fatal("it doesn't wait")
			}
		}
		// The loop's round may have begun earlier.
		if begun.Sub(since) > patience || since.After(time.Now()) {
			t.Errorf("%s: it waits since %v", network, since)
		}
		if _, err := io.WriteString(peer, "more"); err != nil {
			t.Error(err)
		}
		peer.Close()
		if text := <-got; text != "more" {
			t.Errorf("%s: %q", network, text)
		}
		if _, ok := c.Waiting(); ok {
			t.Error("it waits after the end")
		}
		c.Close()
		if err := c.CloseWrite(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: after the end: %v", network, err)
		}
	}
}
