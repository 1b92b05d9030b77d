package engine

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/measured"
	"nar-herder/internal/selfsigned"
)

// testConfig returns the configuration of a server with a certificate of its own.
func testConfig(t testing.TB) *tls.Config {
	t.Helper()
	certificate, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{certificate.Certificate}}
}

// clientConfig accepts any certificate.
var clientConfig = &tls.Config{InsecureSkipVerify: true}

// start serves with TLS, and without it, and returns both addresses.
func start(t testing.TB, limits admission.Limits, handle fasthttp.RequestHandler, configure ...func(*Engine)) (e *Engine, encrypted, plain string) {
	t.Helper()
	e = New(handle, AnswerBadRequest, limits, clients.Proxies{}, slog.New(slog.DiscardHandler))
	for _, f := range configure {
		f(e)
	}
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, l.Addr().String())
		if len(addresses) == 1 {
			l = WithTLS(l, testConfig(t))
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := e.Serve(l); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() {
			l.Close()
			serving.Wait()
			e.open.Each(admission.Conn.Cut)
			e.wait(time.Now().Add(10 * time.Second))
			if n := e.open.Count(); n > 0 {
				t.Errorf("%d connections have not ended", n)
			}
		})
	}
	return e, addresses[0], addresses[1]
}

func dial(t testing.TB, address string, config *tls.Config) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	deadline(t, conn)
	return conn
}

func dialPlain(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	deadline(t, conn)
	return conn
}

func deadline(t testing.TB, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestTLSBurst writes a thousand requests before it reads an answer, with answers that don't fit
// into the buffers of the sockets.
func TestTLSBurst(t *testing.T) {
	t.Parallel()
	const requests = 1000
	e, address, _ := start(t, admission.Limits{}, func(ctx *fasthttp.RequestCtx) {
		if !IsTLS(ctx) {
			t.Error("a request without TLS")
		}
		ctx.Response.SetBodyString(strings.Repeat(string(ctx.Path())+"\n", 1000))
	})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conn := dial(t, address, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		var burst bytes.Buffer
		for i := range requests {
			fmt.Fprintf(&burst, "GET /%d HTTP/1.1\r\nHost: x\r\nX-Padding: %s\r\n\r\n", i, strings.Repeat("x", 100))
		}
		if _, err := conn.Write(burst.Bytes()); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		for i := range requests {
			answer, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
			body, err := io.ReadAll(answer.Body)
			if want := strings.Repeat("/"+strconv.Itoa(i)+"\n", 1000); err != nil || string(body) != want {
				t.Fatalf("answer %d has %d bytes of %d, %v", i, len(body), len(want), err)
			}
		}
		conn.Close()
	}
	for until := time.Now().Add(10 * time.Second); e.Usage().Unread > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d bytes are reserved after the end", e.Usage().Unread)
		}
	}
}

// TestTLSAhead: the requests of a burst are known when the first is answered.
func TestTLSAhead(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{true, false} {
		var lines []byte
		begun := make(chan struct{})
		_, address, plain := start(t, admission.Limits{}, func(ctx *fasthttp.RequestCtx) {
			if string(ctx.Path()) == "/0" {
				LeaveLoop(ctx)
				<-begun
			}
			lines = append(lines, Ahead(ctx)...)
		})
		conn := dialPlain(t, plain)
		if encrypted {
			conn = dial(t, address, clientConfig)
		}
		var burst bytes.Buffer
		const requests = 2000 // of which the buffer of fasthttp holds some 200
		for i := range requests {
			fmt.Fprintf(&burst, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", i)
		}
		if _, err := conn.Write(burst.Bytes()); err != nil {
			t.Fatal(err)
		}
		close(begun)
		reader := bufio.NewReader(conn)
		for i := range requests {
			answer, err := http.ReadResponse(reader, nil)
			if err != nil || answer.StatusCode != 200 {
				t.Fatalf("encrypted %v, answer %d: %v", encrypted, i, err)
			}
		}
		for i := 1; i < requests; i++ {
			if n := bytes.Count(lines, fmt.Appendf(nil, "GET /%d ", i)); n == 0 {
				t.Fatalf("encrypted %v: request %d was not seen", encrypted, i)
			}
		}
	}
}

// records keeps the types of the records that a client receives.
type records struct {
	net.Conn
	types   []byte
	pending []byte
}

func (r *records) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.pending = append(r.pending, p[:n]...)
	for len(r.pending) >= 5 {
		length := 5 + int(r.pending[3])<<8 + int(r.pending[4])
		if len(r.pending) < length {
			break
		}
		r.types = append(r.types, r.pending[0])
		r.pending = r.pending[length:]
	}
	return n, err
}

// TestTLSCut: an answer that is cut ends without the alert that ends a connection with TLS, and
// any other connection with it.
func TestTLSCut(t *testing.T) {
	t.Parallel()
	const alert = 21
	failing := errors.New("broken")
	for path, test := range map[string]struct {
		body    func() io.Reader
		length  int64
		isWhole bool
	}{
		"/small":   {func() io.Reader { return strings.NewReader("small") }, 5, true},
		"/large":   {func() io.Reader { return io.LimitReader(zeros{}, 1<<20) }, 1 << 20, true},
		"/chunks":  {func() io.Reader { return strings.NewReader("chunk") }, -1, true},
		"/chunked": {func() io.Reader { return io.MultiReader(strings.NewReader("chunk"), broken{failing}) }, -1, false},
		"/short":   {func() io.Reader { return io.LimitReader(zeros{}, 1<<19) }, 1 << 20, false},
		"/failing": {func() io.Reader { return io.MultiReader(io.LimitReader(zeros{}, 1<<19), broken{failing}) }, 1 << 20, false},
		"/old":     {func() io.Reader { return strings.NewReader("until it closes") }, -1, true},
		"/oldcut":  {func() io.Reader { return io.MultiReader(strings.NewReader("until it closes"), broken{failing}) }, -1, false},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			_, address, _ := start(t, admission.Limits{}, func(ctx *fasthttp.RequestCtx) {
				if test.length < 0 {
					LeaveLoop(ctx)
					SendChunks(ctx, io.NopCloser(test.body()))
				} else {
					SendCopy(ctx, io.NopCloser(test.body()), test.length)
				}
				if !ctx.Request.Header.IsHTTP11() {
					SendUntilClose(ctx)
				} else {
					ctx.SetConnectionClose()
				}
				Measure(ctx, ignore{}, 0, false, nil)
			})
			seen := &records{Conn: dialPlain(t, address)}
			conn := tls.Client(seen, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
			version := "1.1"
			if strings.HasPrefix(path, "/old") {
				version = "1.0"
			}
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/%s\r\nHost: x\r\n\r\n", path, version); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn) // it may be reset
			if len(seen.types) == 0 {
				t.Fatal("no records")
			}
			if ended := seen.types[len(seen.types)-1] == alert; ended != test.isWhole {
				t.Errorf("the connection ended with an alert: %v", ended)
			}
		})
	}
}

type ignore struct{}

func (ignore) Finished([]measured.Answer) {}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// TestTLSStrangers: clients that speak something else get an answer that says so, or nothing.
func TestTLSStrangers(t *testing.T) {
	t.Parallel()
	e, encrypted, plain := start(t, admission.Limits{}, func(ctx *fasthttp.RequestCtx) { ctx.Response.SetBodyString("fine") },
		func(e *Engine) { e.Server.ReadTimeout = 100 * time.Millisecond })
	read := func(address, text string) string {
		conn := dialPlain(t, address)
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		return string(got)
	}
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD /x HTTP/1.0\r\n\r\n", strings.Repeat("GET /hash.narinfo HTTP/1.1\r\nHost: x\r\n\r\n", 1000)} {
		answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(read(encrypted, request))), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if answer.StatusCode != 400 || err != nil || !strings.Contains(string(body), "https://") || !strings.HasSuffix(string(body), "\n") {
			t.Errorf("%.20q: %s %q, %v", request, answer.Status, body, err)
		}
	}
	for _, garbage := range []string{"\x00\x01\x02\x03\x04\x05", "hello, world\r\n", "\x16\x03\x01\xff\xff", "", "\x16\x03\x01\x00\x02\x01\x00"} {
		if got := read(encrypted, garbage); strings.Contains(got, "HTTP") {
			t.Errorf("%q: %q", garbage, got)
		}
	}
	if failures := e.handshakeFailures.Load(); failures != 8 {
		t.Errorf("%d failures", failures)
	}
	if _, err := tls.Dial("tcp", plain, clientConfig); err == nil || !strings.Contains(err.Error(), "tls") {
		t.Errorf("TLS without TLS: %v", err)
	}
	if got := read(plain, "\x16\x03\x01\x02\x00\x01\x00\x01"); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "http://") {
		t.Errorf("TLS without TLS: %q", got)
	}
}

// TestTLSLimits: clients of one address that never finish their handshakes don't keep others out.
func TestTLSLimits(t *testing.T) {
	t.Parallel()
	e, address, _ := start(t, admission.Limits{Connections: 8, PerAddress: 8}, func(ctx *fasthttp.RequestCtx) { ctx.Response.SetBodyString("fine") })
	for i := range 100 {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := dialer.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			if _, err := conn.Write([]byte("\x16\x03\x01")); err != nil {
				t.Log(err) // it was closed already
			}
		}
	}
	conn := dial(t, address, clientConfig)
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%v %+v, %d failures", err, e.Usage(), e.handshakeFailures.Load())
	}
	if open := e.Usage().Open; open > 8 {
		t.Errorf("%d connections", open)
	}
}
