package rawio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// pair returns both ends of a connection.
func pair(t *testing.T, network string) (reads, writes net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "socket")
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if writes, err = net.Dial(network, listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if reads, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reads.Close(); writes.Close() })
	return reads, writes
}

func raw(t *testing.T, conn net.Conn) syscall.RawConn {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestReader reads pieces of all sizes, and has deadlines, EOF and Close.
func TestReader(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			reads, writes := pair(t, network)
			r := NewReader(raw(t, reads))
			if n, err := r.Read(nil); n != 0 || err != nil {
				t.Errorf("nothing: %d, %v", n, err)
			}
			// Before any byte, and after a deadline.
			if err := reads.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the deadline: %d, %v", n, err)
			}
			if err := reads.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			sent := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
			go func() {
				if _, err := writes.Write(sent); err != nil {
					t.Error(err)
				}
				writes.Close()
			}()
			got := make([]byte, 0, len(sent))
			buffer := make([]byte, 1<<20)
			for {
				n, err := r.Read(buffer)
				got = append(got, buffer[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d", len(got), len(sent))
			}
			reads.Close()
			if n, err := r.Read(buffer); n != 0 || !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed: %d, %v", n, err)
			}
		})
	}
}

// TestWrite fills the buffer of a socket, and then returns EAGAIN.
func TestWrite(t *testing.T) {
	t.Parallel()
	reads, writes := pair(t, "tcp")
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	written := 0
	err := raw(t, writes).Write(func(fd uintptr) bool {
		for written < len(sent) {
			n, err := Write(fd, sent[written:])
			if err != nil {
				if err != syscall.EAGAIN || n != 0 {
					t.Errorf("with a full buffer: %d, %v", n, err)
				}
				break
			}
			written += n
		}
		return true
	})
	if err != nil || written == 0 || written == len(sent) {
		t.Fatalf("%d bytes of %d, %v", written, len(sent), err)
	}
	writes.Close()
	got, err := io.ReadAll(reads)
	if err != nil || !bytes.Equal(got, sent[:written]) {
		t.Errorf("%d bytes of %d, %v", len(got), written, err)
	}
}

// TestWriter writes more than a socket's buffer holds, and has deadlines, a reader that stops,
// and Close.
func TestWriter(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			reads, writes := pair(t, network)
			w := NewWriter(raw(t, writes))
			if n, err := w.Write(nil); n != 0 || err != nil {
				t.Errorf("nothing: %d, %v", n, err)
			}
			sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
			got := make([]byte, len(sent))
			if err := reads.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				_, err := io.ReadFull(reads, got)
				read <- err
			}()
			if n, err := w.Write(sent); n != len(sent) || err != nil {
				t.Errorf("%d bytes of %d, %v", n, len(sent), err)
			}
			if err := <-read; err != nil || !bytes.Equal(got, sent) {
				t.Errorf("received other bytes, %v", err)
			}
			// Nobody reads any more.
			if err := writes.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := w.Write(sent); n == len(sent) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the deadline: %d, %v", n, err)
			}
			if err := writes.SetWriteDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			reads.Close()
			var err error
			for err == nil { // the first write may precede the reset
				_, err = w.Write(sent)
			}
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("to a closed end: %v", err)
			}
			writes.Close()
			if n, err := w.Write(sent); n != 0 || !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed: %d, %v", n, err)
			}
		})
	}
}
