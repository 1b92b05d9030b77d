package httpapi

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullConnection returns a connection whose client has taken a few of the bytes that the server has written, up to when
// no more fit.
func fullConnection(t *testing.T) (*connection, *client) {
	t.Helper()
	listener := smallSockets{listenTCP(t)}
	defer listener.Close()
	client := connectSmall(t, listener.Addr())
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewEngine(nil, nil, Limits{}, Proxies{}, slog.New(slog.DiscardHandler)).wrap(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Conn.Write(make([]byte, 1<<20)); err == nil {
		t.Fatal("1 MiB fits")
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c, client
}

// TestRoomClientGone: a connection that the client has closed has no room, before and during the wait.
func TestRoomClientGone(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		c, client := fullConnection(t)
		waited := make(chan error, 1)
		if before {
			client.Close() // with bytes that were not read: the connection is reset
			until(t, "the reset arrives", func() (reset bool) {
				err := c.raw.Control(func(fd uintptr) {
					poll := []unix.PollFd{{Fd: int32(fd)}}
					n, _ := unix.Poll(poll, 0)
					reset = n > 0
				})
				return err == nil && reset
			})
		}
		go func() { waited <- c.waitForRoom() }()
		if !before {
			client.Close()
		}
		select {
		case err := <-waited:
			if err == nil {
				t.Errorf("gone before: %v: there is room", before)
			}
		case <-time.After(patience):
			t.Fatalf("gone before: %v: waits for ever", before)
		}
	}
}

// TestRoomHalfClosed: a client that sends no more requests can still read.
func TestRoomHalfClosed(t *testing.T) {
	t.Parallel()
	c, client := fullConnection(t)
	if err := client.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- c.waitForRoom() }()
	go io.Copy(io.Discard, client)
	select {
	case err := <-waited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("waits for ever")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		given       Limits
		descriptors int
		want        Limits
	}{
		{Limits{}, 60, Limits{20, 5, defaultUnread}},
		{Limits{}, 1024, Limits{341, 85, defaultUnread}},
		{Limits{}, 524288, Limits{16384, 4096, defaultUnread}},
		{Limits{}, 2, Limits{1, 1, defaultUnread}},
		{Limits{Connections: 20000}, 524288, Limits{20000, 5000, defaultUnread}},
		{Limits{Connections: 20000, PerAddress: 20000, Unread: 1}, 1024, Limits{512, 512, 1}},
	} {
		if got := test.given.within(test.descriptors); got != test.want {
			t.Errorf("%+v with %d descriptors: %+v, want %+v", test.given, test.descriptors, got, test.want)
		}
	}
}

// TestWriteAfterClose has a connection cut between two answers: what was written
// before must not be told again.
func TestWriteAfterClose(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	defer l.Close()
	go func() {
		if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
			defer conn.Close()
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := NewEngine(nil, nil, Limits{}, Proxies{}, slog.New(slog.DiscardHandler)).wrap(accepted)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Write(make([]byte, 100)); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	conn.Close()
	if n, err := conn.Write(make([]byte, 10)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d bytes written to a closed connection, %v", n, err)
	}
	conn.Close()
}
