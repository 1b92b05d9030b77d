package httpapi

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// scriptedConn is a connection that returns the client's bytes and then io.EOF.
type scriptedConn struct {
	in  io.Reader
	out bytes.Buffer
}

func (c *scriptedConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scriptedConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptedConn) Close() error                     { return nil }
func (c *scriptedConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptedConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzRequest sends any bytes: the server must not panic, and its answers must be well-formed.
func FuzzRequest(f *testing.F) {
	packed, plain := make1(f, "packed", strings.Repeat("packed", 100), "gzip"), make1(f, "plain", strings.Repeat("plain", 100), "none")
	items := packed.items(f)
	plainItem, packedItem := plain.item(f), packed.item(f)
	items.text = func(hash narinfo.PathHash) ([]byte, error) {
		switch hash {
		case packed.path.Hash:
			return packedItem.Text, nil
		case plain.path.Hash:
			return plainItem.Text, nil
		}
		return nil, storage.ErrNotFound
	}
	items.item = func(hash narinfo.PathHash) (*storage.Item, error) {
		switch hash {
		case packed.path.Hash:
			return packedItem, nil
		case plain.path.Hash:
			return plainItem, nil
		}
		return nil, storage.ErrNotFound
	}
	items.open = func(item *storage.Item, _ int, offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
		file := plain.file
		if item == packedItem {
			file = packed.file
		}
		return io.NopCloser(bytes.NewReader(file[offset:])), bytestore.Info{Size: int64(len(file)), ModTime: time.Unix(1e9, 0)}, nil
	}
	opts := options()
	opts.TTL, opts.NegativeTTL, opts.SigningKeys = seconds(1), seconds(1), []string{"(public-key)"}
	s := New(items, opts)
	go s.health.Run(f.Context()) // as Serve does

	for _, m := range []*made{packed, plain} {
		for _, target := range []string{
			"/" + m.path.Hash.String() + ".narinfo", "/" + m.path.Hash.String() + ".narinfo/info", "/" + m.url(),
			"/nar/" + m.path.BaseName(), "/file/" + m.path.Name + "/sha256/" + m.digest,
		} {
			for _, method := range []string{"GET", "HEAD"} {
				f.Add([]byte(request(method, target)))
				f.Add([]byte(request(method, target, "Range: bytes=3-7", `If-Range: "x"`, "If-None-Match: *", "If-Modified-Since: Fri, 02 Jan 2026 03:04:05 GMT")))
			}
		}
	}
	for _, raw := range []string{
		"", "\r\n", "GET / HTTP/1.1\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "\x16\x03\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		request("POST", "/", "Content-Length: 60000"), request("GET", "/", "Expect: 100-continue", "Transfer-Encoding: chunked"), request("GET", "/stored-nars/"+nobody+","+packed.path.Hash.String()),
		request("GET", "/", "X-Forwarded-For: 192.0.2.1, [::1]:80"), request("GET", "/", "Accept: text/html"), request("GET", "/metrics"), request("GET", "/health"), request("GET", "http://x/../%2e"),
		request("POST", "/", "Expect: 100-continue", "Content-Length: 3") + "abc", request("PUT", "*", "Transfer-Encoding: chunked") + "3\r\nabc\r\n0\r\n\r\n",
		request("GET", "/nix-cache-info", "Content-Length: 5") + "hello" + request("GET", "/%zz"), request("HEAD", "/nar/x", "Content-Length: x"),
		strings.Repeat(request("GET", "/"+nobody+".narinfo"), 20), request("GET", "/"+strings.Repeat("a", 9000)), request("CONNECT", "x:1"),
		request("GET", "/nar/"+oddURL, "Connection: close", "Connection: upgrade", "Upgrade: h2c"), "GET / HTTP/1.1\nHost: x\n\n",
		"GET / HTTP/0.0\r\n\r\n",
	} {
		f.Add([]byte(raw))
	}

	handler, badRequest := s.engine.Server.Handler, s.engine.Server.ErrorHandler
	f.Fuzz(func(t *testing.T, raw []byte) {
		var methods []string
		s.engine.Server.Handler = func(ctx *fasthttp.RequestCtx) {
			methods = append(methods, string(ctx.Method()))
			handler(ctx)
		}
		s.engine.Server.ErrorHandler = func(ctx *fasthttp.RequestCtx, err error) {
			methods = append(methods, "GET")
			badRequest(ctx, err)
		}
		conn := &scriptedConn{in: bytes.NewReader(raw)}
		if err := s.engine.ServeConn(conn); errors.Is(err, errors.ErrUnsupported) {
			t.Fatal(err)
		}

		out := bufio.NewReader(&conn.out)
		for i, method := range methods {
			response, err := http.ReadResponse(out, &http.Request{Method: method})
			for err == nil && response.StatusCode == http.StatusContinue {
				response, err = http.ReadResponse(out, &http.Request{Method: method})
			}
			if err != nil {
				t.Fatalf("answer %d to %s: %v", i, method, err)
			}
			_, err = io.ReadAll(response.Body)
			if err != nil {
				t.Fatalf("answer %d to %s: body: %v", i, method, err)
			}
			if response.StatusCode < 200 || response.StatusCode >= 500 && response.StatusCode != 501 && response.StatusCode != 505 {
				t.Fatalf("answer %d to %s: %s", i, method, response.Status)
			}
			if response.StatusCode != http.StatusNotModified && response.Header.Get("Content-Length") == "" {
				t.Fatalf("answer %d to %s: no length: %v", i, method, response.Header)
			}
		}
		rest, err := io.ReadAll(out)
		if interim := bytes.TrimPrefix(rest, []byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil || len(interim) > 0 {
			t.Fatalf("after %d answers: %q, %v", len(methods), rest, err)
		}
		if got := s.checker.Options.Decoders.Memory(); got != 0 {
			t.Fatalf("%d decoders are in use", got)
		}
	})
}
