package engine

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine/admission"
)

// fullConnection returns a connection with full buffers, of which the client has read a few
// bytes.
func fullConnection(t *testing.T) (*connection, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err == nil {
		err = client.(*net.TCPConn).SetReadBuffer(4 << 10)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(nil, nil, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler)).wrap(conn)
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
			client.Close() // with unread bytes: the connection is reset
			for reset := false; !reset; time.Sleep(time.Millisecond) {
				if err := c.raw.Control(func(fd uintptr) {
					n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 0)
					reset = n > 0
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		go func() { waited <- c.waitForRoom() }()
		if !before {
			client.Close()
		}
		select {
		case err := <-waited:
			if err == nil {
				t.Errorf("closed before: %v: reported room", before)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("closed before: %v: still waiting", before)
		}
	}
}

// TestRoomHalfClosed: a client that sends no more requests can still read.
func TestRoomHalfClosed(t *testing.T) {
	t.Parallel()
	c, client := fullConnection(t)
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
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
	case <-time.After(30 * time.Second):
		t.Fatal("waits for ever")
	}
}

// TestWriteAfterClose closes a connection between two answers: the second Write must not
// report the bytes of the first.
func TestWriteAfterClose(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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
	conn, err := New(nil, nil, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler)).wrap(accepted)
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
