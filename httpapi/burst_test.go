package httpapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

// The client of Guix writes a thousand requests before it reads an answer.
const burst = 1000

// everySecond has every second hash of numbered, and answers with a body as long as narinfos.
func everySecond() *fakeItems {
	return &fakeItems{text: func(hash narinfo.PathHash) ([]byte, error) {
		if hash[0]%2 == 1 {
			return nil, storage.ErrNotFound
		}
		return []byte(hash.String() + strings.Repeat(" and so on", 140)), nil
	}}
}

// burstRequests requests the first hashes of numbered, in order, with the headers of the
// client of Guix.
func burstRequests(count int) string {
	var raw strings.Builder
	for n := range count {
		raw.WriteString(request("GET", "/"+numbered(n).String()+".narinfo",
			"User-Agent: GNU Guile", "Accept: application/x-nix-narinfo,*/*", "Connection: keep-alive", "X-Padding: "+strings.Repeat("x", 100)))
	}
	return raw.String()
}

// readBurst reads the answers, and returns what is wrong. It parses just enough of HTTP, as
// there are many answers.
func readBurst(c *client, count int) error {
	body := make([]byte, 4096)
	for n := range count {
		status, err := c.r.ReadString('\n')
		length := -1
		for line := ""; err == nil && line != "\r\n"; {
			line, err = c.r.ReadString('\n')
			if value, ok := strings.CutPrefix(line, "Content-Length: "); ok {
				length, err = strconv.Atoi(strings.TrimSpace(value))
			}
			if strings.HasPrefix(line, "Connection: ") {
				err = errors.New(line)
			}
		}
		if err == nil && (length < 0 || length > len(body)) {
			err = fmt.Errorf("Content-Length %d", length)
		}
		if err == nil {
			_, err = io.ReadFull(c.r, body[:length])
		}
		want := "HTTP/1.1 404 Not Found\r\n"
		if n%2 == 0 {
			want = "HTTP/1.1 200 OK\r\n"
		}
		if err != nil || status != want || n%2 == 0 && !strings.HasPrefix(string(body), numbered(n).String()) {
			return fmt.Errorf("answer %d: %q, %.40q, %w", n, status, body, err)
		}
	}
	return nil
}

// smallSockets is a listener with small send buffers.
type smallSockets struct{ net.Listener }

func (l smallSockets) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		_ = conn.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(4 << 10)
	}
	return conn, err
}

// connectSmall connects a client with a small receive buffer, and the segment size of a real
// network. The loopback interface has segments of 64 KiB, which depend on the kernel's timers
// with a smaller window.
func connectSmall(t testing.TB, address net.Addr) *client {
	t.Helper()
	dialer := net.Dialer{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		controlErr := raw.Control(func(fd uintptr) {
			if network != "unix" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
			}
			for _, buffer := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, buffer, 4<<10))
			}
		})
		return errors.Join(err, controlErr)
	}}
	conn, err := dialer.Dial(address.Network(), address.String())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// startOn serves on a listener of the test's.
func startOn(t testing.TB, items Items, options Options, listener net.Listener, change func(*Server)) *started {
	t.Helper()
	s := newStarted(items, options)
	if change != nil {
		change(s.Server)
	}
	s.serve(t, listener)
	return s
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func listenUnix(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func connect(t testing.TB, listener net.Listener) *client {
	t.Helper()
	conn, err := net.Dial(listener.Addr().Network(), listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// TestBurst writes all requests before it reads the first answer.
func TestBurst(t *testing.T) {
	t.Parallel()
	for name, listener := range map[string]net.Listener{
		"tcp": listenTCP(t), "small tcp": smallSockets{listenTCP(t)}, "unix": listenUnix(t), "small unix": smallSockets{listenUnix(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			startOn(t, everySecond(), options(), listener, nil)
			c := connect(t, listener)
			if strings.HasPrefix(name, "small") {
				c = connectSmall(t, listener.Addr())
			}
			for range 2 {
				c.send(burstRequests(burst))
				if err := readBurst(c, burst); err != nil {
					t.Fatal(err)
				}
			}
			c.stillOpen()
		})
	}
}

// TestBurstWithPauses sends the second half after the server has been blocked by the answers
// to the first for longer than HeaderTimeout.
func TestBurstWithPauses(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	listener := smallSockets{listenTCP(t)}
	startOn(t, everySecond(), options(), listener, func(s *Server) { s.engine.Server.ReadTimeout = timeout })
	c := connectSmall(t, listener.Addr())
	raw := burstRequests(burst)
	half := strings.Index(raw[len(raw)/2:], "GET ") + len(raw)/2 + 50 // within a request
	c.send(raw[:half])
	time.Sleep(timeout + timeout/10)
	c.send(raw[half:])
	if err := readBurst(c, burst); err != nil {
		t.Fatal(err)
	}
	c.stillOpen()
}

// TestBurstTooLarge: the memory for a client that never stops writing is bounded.
func TestBurstTooLarge(t *testing.T) {
	t.Parallel()
	s := startOn(t, everySecond(), options(), listenTCP(t), func(s *Server) { s.engine.ProgressTimeout = 300 * time.Millisecond })
	c := connectSmall(t, s.listener)
	raw := burstRequests(burst)
	var err error
	for n := 0; n < 1000 && err == nil; n++ { // 250 MB
		_, err = io.WriteString(c.Conn, raw)
	}
	if err == nil {
		t.Error("the server accepted all requests")
	}
	dial(t, s.address).stillOpen()
}

// TestManyBursts sends bursts of many clients at once.
func TestManyBursts(t *testing.T) {
	t.Parallel()
	clients := rounds.Of(50)
	if testing.Short() {
		clients = 20
	}
	s := start(t, everySecond(), options())
	raw := burstRequests(burst)
	errs := make(chan error, clients)
	for n := range clients {
		c := dial(t, s.address)
		if n%2 == 0 {
			c = connectSmall(t, s.listener)
		}
		_ = c.SetDeadline(time.Now().Add(10 * patience)) // very many answers, beside other tests
		go func() {
			_, err := io.WriteString(c.Conn, raw)
			if err == nil {
				err = readBurst(c, burst)
			}
			if err == nil {
				_, err = io.WriteString(c.Conn, request("GET", "/nix-cache-info"))
			}
			if err == nil {
				_, err = http.ReadResponse(c.r, nil)
			}
			errs <- err
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestBurstOfNars requests large and small files before it reads: more answers than any socket
// buffers.
func TestBurstOfNars(t *testing.T) {
	t.Parallel()
	for name, listener := range map[string]net.Listener{"tcp": smallSockets{listenTCP(t)}, "unix": smallSockets{listenUnix(t)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			startOn(t, corpus(), options(), listener, nil)
			large, small := contents(t, published, "nar/lzip", gofmt), contents(t, published, "nar/lzip", gtk)
			var raw strings.Builder
			const rounds = 5
			for range rounds {
				raw.WriteString(request("GET", "/nar/lzip/"+gofmt))
				for range 200 {
					raw.WriteString(request("GET", "/nar/lzip/"+gtk, "X-Padding: "+strings.Repeat("x", 100)))
				}
				raw.WriteString(request("GET", "/nar/"+gtk))
			}
			c := connectSmall(t, listener.Addr())
			c.send(raw.String())
			for range rounds {
				if got := c.receive("GET"); got.body != large {
					t.Fatalf("%s, %d bytes", got.Status, len(got.body))
				}
				for range 200 {
					if got := c.receive("GET"); got.body != small {
						t.Fatalf("%s, %d bytes", got.Status, len(got.body))
					}
				}
				if got := c.receive("GET"); got.StatusCode != 200 || len(got.body) != 168 {
					t.Fatalf("%s, %d bytes", got.Status, len(got.body))
				}
			}
			c.stillOpen()
		})
	}
}

// numbered returns a hash.
func numbered(n int) (hash narinfo.PathHash) {
	binary.LittleEndian.PutUint64(hash[:], uint64(n))
	return hash
}
