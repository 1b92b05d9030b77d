package httpapi

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestRequests sends malformed and unusual requests.
func TestRequests(t *testing.T) {
	t.Parallel()
	address := startWith(t, corpus(), options(), func(s *Server) { s.engine.Server.ReadTimeout = 3 * time.Second }).address
	text := contents(t, published, hashOf(greeting)+".narinfo")
	target := "/" + hashOf(greeting) + ".narinfo"
	const host = "Host: x\r\n"
	type want struct {
		status int
		body   string // "*" for any
	}
	ok := want{200, text}
	bad := want{400, "*"}
	noHost := want{400, "the request has no Host header, or an empty one\n"}
	feeds := want{400, "the lines of a request end with a carriage return and a line feed\n"}
	version := want{505, "only HTTP/1.1 and HTTP/1.0 are answered here\n"}
	notAllowed := want{405, "only GET and HEAD are answered here\n"}
	noBody := want{413, "requests have no body here\n"}
	for _, test := range []struct {
		name   string
		raw    string
		want   []want
		closed bool // afterwards
	}{
		{"HTTP/1.1", "GET " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{ok}, false},
		{"HTTP/1.1 close", "GET " + target + " HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", []want{ok}, true},
		{"HTTP/1.1 Close", "GET " + target + " HTTP/1.1\r\n" + host + "connection: Close\r\n\r\n", []want{ok}, true},
		{"HTTP/1.0", "GET " + target + " HTTP/1.0\r\n\r\n", []want{ok}, true},
		{"HTTP/1.0 with host", "GET " + target + " HTTP/1.0\r\n" + host + "\r\n", []want{ok}, true},
		{"HTTP/1.0 keep-alive", "GET " + target + " HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", []want{ok}, false},
		{"HTTP/1.0 Keep-Alive", "GET " + target + " HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", []want{ok}, false},
		{"HTTP/1.0 unknown", "GET /" + nobody + ".narinfo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", []want{{404, "*"}}, false},
		// RFC 9112, section 3.3, lets servers refuse an empty host.
		{"empty host", "GET " + target + " HTTP/1.1\r\nHost:\r\n\r\n", []want{noHost}, true},
		{"host of spaces", "GET " + target + " HTTP/1.1\r\nX: y\r\nhOST:  \r\n\r\n", []want{noHost}, true},
		{"empty host after another request", "GET " + target + " HTTP/1.1\r\n" + host + "\r\nGET " + target + " HTTP/1.1\r\nHost:\r\n\r\n", []want{ok, noHost}, true},
		{"empty host in HTTP/1.0", "GET " + target + " HTTP/1.0\r\nHost:\r\n\r\n", []want{ok}, true},
		{"empty host twice", "GET " + target + " HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", []want{bad}, true},
		{"host with a user", "GET " + target + " HTTP/1.1\r\nHost: a@b\r\n\r\n", []want{bad}, true},
		{"host with a space", "GET " + target + " HTTP/1.1\r\nHost: a b\r\n\r\n", []want{bad}, true},
		{"host with a slash", "GET " + target + " HTTP/1.1\r\nHost: a/b\r\n\r\n", []want{bad}, true},
		{"host with a port of letters", "GET " + target + " HTTP/1.1\r\nHost: a:b\r\n\r\n", []want{bad}, true},
		{"host that is an IPv6 address", "GET " + target + " HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", []want{ok}, false},
		{"absolute target", "GET http://a" + target + " HTTP/1.1\r\n" + host + "\r\n", []want{ok}, false},
		{"absolute target without a host header", "GET http://a" + target + " HTTP/1.1\r\n\r\n", []want{bad}, true},
		{"absolute target without a host", "GET http://" + target + " HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"absolute target with a port alone", "GET http://:80" + target + " HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"no host", "GET " + target + " HTTP/1.1\r\n\r\n", []want{bad}, true},
		{"two hosts", "GET " + target + " HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", []want{bad}, true},
		// RFC 9112, section 2.2, lets servers accept a bare line feed as the end of a
		// line. It ends the head only if no other server can see another end.
		{"only line feeds", "GET " + target + " HTTP/1.1\nHost: x\n\n", []want{ok}, false},
		{"only line feeds, HTTP/1.0", "GET " + target + " HTTP/1.0\n\n", []want{ok}, true},
		{"only line feeds, with a body", "POST " + target + " HTTP/1.1\nHost: x\nContent-Length: 3\n\n", []want{feeds}, true},
		{"only line feeds, twice", strings.Repeat("GET "+target+" HTTP/1.1\nHost: x\n\n", 2), []want{feeds}, true},
		{"only line feeds, not first", "GET " + target + " HTTP/1.1\r\n" + host + "\r\n|GET " + target + " HTTP/1.1\nHost: x\n\n", []want{ok, feeds}, true},
		{"a line feed within the head", "GET " + target + " HTTP/1.1\r\nX: y\nHost: x\r\n\r\n", []want{ok}, false},
		{"a line feed before the end", "GET " + target + " HTTP/1.1\r\nHost: x\n\r\n", []want{feeds}, true},
		{"a line feed at the end", "GET " + target + " HTTP/1.1\r\nHost: x\r\n\n", []want{feeds}, true},
		{"a carriage return alone", "GET " + target + " HTTP/1.1\r\nX: a\rb\r\n" + host + "\r\n", []want{bad}, true},
		{"a carriage return in a target", "GET " + target + "\r HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"a carriage return too much", "GET " + target + " HTTP/1.1\r\n" + "Host: x\r\r\n\r\n", []want{bad}, true},
		{"an empty line of line feeds", "\n\n", nil, false},
		{"empty lines before", "\r\n\r\nGET " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{ok}, false},
		{"header names in any case", "GET " + target + " HTTP/1.1\r\nhOsT: x\r\nRANGE: bytes=0-3\r\n\r\n", []want{ok}, false},
		{"no header's colon", "GET " + target + " HTTP/1.1\r\n" + host + "nonsense\r\n\r\n", []want{bad}, true},
		{"space before a colon", "GET " + target + " HTTP/1.1\r\n" + host + "X : y\r\n\r\n", []want{bad}, true},
		{"NUL in a header", "GET " + target + " HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", []want{bad}, true},
		{"NUL in a target", "GET " + target + "\x00 HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"space in a target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"no target", "GET HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"no version", "GET " + target + "\r\n" + host + "\r\n", []want{bad}, true},
		{"HTTP/1.2", "GET " + target + " HTTP/1.2\r\n" + host + "\r\n", []want{ok}, true},
		{"HTTP/2.0", "GET " + target + " HTTP/2.0\r\n" + host + "\r\n", []want{version}, true},
		{"HTTP/2.0 keep-alive", "GET " + target + " HTTP/2.0\r\n" + host + "Connection: keep-alive\r\n\r\n", []want{version}, true},
		{"HTTP/0.9", "GET " + target + " HTTP/0.9\r\n" + host + "\r\n", []want{version}, true},
		{"HTTP/3.0", "POST " + target + " HTTP/3.0\r\n" + host + "\r\n", []want{version}, true},
		{"http/1.1", "GET " + target + " http/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []want{bad}, true},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []want{bad}, true},
		{"garbage", "\xff\xfe\x00\x01\r\n\r\n", []want{bad}, true},
		{"asterisk", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"GET of the asterisk", "GET * HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"relative target", "GET nar/x HTTP/1.1\r\n" + host + "\r\n", []want{bad}, true},
		{"two slashes", "GET //evil.example" + target + " HTTP/1.1\r\n" + host + "\r\n", []want{bad}, false},
		{"CONNECT", "CONNECT x:443 HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"POST", "POST " + target + " HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc", []want{notAllowed}, true},
		{"POST without a length", "POST " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"POST in chunks", "POST " + target + " HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", []want{notAllowed}, true},
		{"PUT", "PUT /x HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", []want{notAllowed}, false},
		{"DELETE", "DELETE " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"unknown method", "BREW " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"get", "get " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{notAllowed}, false},
		{"multipart", "POST / HTTP/1.1\r\n" + host + "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n\r\n--b", []want{notAllowed}, true},
		// The connection is closed, as the body could be read as the next request.
		{"GET with a body", "GET " + target + " HTTP/1.1\r\n" + host + "Content-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n", []want{noBody}, true},
		{"HEAD with a body", "HEAD " + target + " HTTP/1.1\r\n" + host + "Content-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n", []want{{413, ""}}, true},
		{"GET with chunks", "GET " + target + " HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n12\r\nGET / HTTP/1.1\r\n\r\n\r\n0\r\n\r\n", []want{noBody}, true},
		{"GET with an empty body", "GET " + target + " HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", []want{ok}, false},
		{"GET with a body in HTTP/1.0", "GET " + target + " HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", []want{noBody}, true},
		{"good ones before a body", strings.Repeat("GET "+target+" HTTP/1.1\r\n"+host+"\r\n", 3) + "POST / HTTP/1.1\r\n" + host + "Content-Length: 60000\r\n\r\n", []want{ok, ok, ok, notAllowed}, true},
		{"a good one behind a body", "GET " + target + " HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET " + target + " HTTP/1.1\r\n" + host + "\r\n", []want{noBody}, true},
		{"a body that doesn't come", "POST / HTTP/1.1\r\n" + host + "Content-Length: 60000\r\n\r\n", []want{notAllowed}, true},
		{"a body that doesn't come, of a GET", "GET " + target + " HTTP/1.1\r\n" + host + "Content-Length: 60000\r\n\r\n", []want{noBody}, true},
		{"chunks that don't come", "PUT / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", []want{notAllowed}, true},
		{"chunks that don't come, of a GET", "GET " + target + " HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", []want{noBody}, true},
		{"a body that is announced", "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n", []want{notAllowed}, true},
		{"a body that is announced, of a GET", "GET " + target + " HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", []want{noBody}, true},
		{"two lengths", "GET " + target + " HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", []want{bad}, true},
		{"length and chunks", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []want{notAllowed}, true},
		{"a negative length", "POST / HTTP/1.1\r\n" + host + "Content-Length: -3\r\n\r\n", []want{bad}, true},
		{"a large body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 100000000\r\n\r\n", []want{notAllowed}, true},
		{"a large chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffff\r\n", []want{notAllowed}, true},
		{"a broken chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n", []want{notAllowed}, true},
		{"a large head", "GET " + target + " HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 9000) + "\r\n\r\n", []want{{431, "the head of a request has at most 8192 bytes here\n"}}, true},
		{"a large target", "GET /" + strings.Repeat("x", 9000) + " HTTP/1.1\r\n" + host + "\r\n", []want{{431, "*"}}, true},
		{"a head just small enough", "GET " + target + " HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 8000) + "\r\n\r\n", []want{ok}, false},
		{"a head that does not end", "GET " + target + " HTTP/1.1\r\n" + host, []want{{408, "the request took too long to arrive\n"}}, true},
		{"good ones before a bad one", strings.Repeat("GET "+target+" HTTP/1.1\r\n"+host+"\r\n", 3) + "nonsense\r\n\r\n", []want{ok, ok, ok, bad}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, address)
			first, second, waits := strings.Cut(test.raw, "|")
			c.send(first)
			for i, want := range test.want {
				if waits && i == 1 { // for the answer to the first request
					c.send(second)
				}
				method, _, _ := strings.Cut(test.raw, " ")
				got := c.receive(method)
				if got.StatusCode != want.status || want.body != "*" && got.body != want.body || got.err != nil {
					t.Fatalf("answer %d: %s, %q, %v, want %v", i, got.Status, got.body, got.err, want)
				}
				if got.ContentLength != int64(len(got.body)) && method != "HEAD" {
					t.Errorf("answer %d: Content-Length %d, %d bytes", i, got.ContentLength, len(got.body))
				}
				if got.StatusCode == 405 && got.Header.Get("Allow") != "GET, HEAD" {
					t.Errorf("Allow: %q", got.Header.Get("Allow"))
				}
				last := i == len(test.want)-1
				if says := got.Close; says != (last && test.closed) {
					t.Errorf("answer %d says that the connection closes: %v", i, says)
				}
			}
			if test.closed {
				c.closed()
			} else {
				c.stillOpen()
			}
		})
	}
}

// TestExpect: clients wait for 100 Continue to send an empty body.
func TestExpect(t *testing.T) {
	t.Parallel()
	c := dial(t, start(t, corpus(), options()).address)
	if got := c.ask("GET", "/nix-cache-info", "Expect: a miracle"); got.StatusCode != 200 && got.StatusCode != 417 {
		t.Errorf("Expect: a miracle: %s", got.Status)
	}
	c.stillOpen()
}

// TestPipelineInPieces sends requests split at every offset.
func TestPipelineInPieces(t *testing.T) {
	t.Parallel()
	address := start(t, corpus(), options()).address
	raw := request("GET", "/"+hashOf(greeting)+".narinfo") + request("HEAD", "/nar/lzip/"+greeting) + request("GET", "/"+nobody+".narinfo")
	for cut := 0; cut <= len(raw); cut += 3 {
		c := dial(t, address)
		c.send(raw[:cut])
		time.Sleep(100 * time.Microsecond) // lets some of the first pieces arrive alone
		c.send(raw[cut:])
		for i, method := range []string{"GET", "HEAD", "GET"} {
			if got := c.receive(method); got.StatusCode != []int{200, 200, 404}[i] {
				t.Fatalf("cut at %d: answer %d: %s", cut, i, got.Status)
			}
		}
		c.stillOpen()
		c.Close()
	}
}

// TestHeadersAreStandard checks the bytes of answers, which net/http would accept more
// leniently: a client of Guix that can't parse one retries for ever.
func TestHeadersAreStandard(t *testing.T) {
	t.Parallel()
	address := start(t, corpus(), options()).address
	for _, target := range []string{"/" + hashOf(odd) + ".narinfo", "/" + nobody + ".narinfo", "/nar/lzip/" + oddURL, "/nar/" + oddURL, "/metrics", "/", "/health", "/%"} {
		c := dial(t, address)
		c.send(request("HEAD", target, "Connection: close"))
		raw, err := io.ReadAll(c.r)
		if err != nil {
			t.Fatal(err)
		}
		head := string(raw)
		if !strings.HasSuffix(head, "\r\n\r\n") || strings.Count(head, "\n") != strings.Count(head, "\r\n") {
			t.Errorf("%s: head %q", target, head)
		}
		seen := make(map[string]bool)
		scanner := bufio.NewScanner(strings.NewReader(strings.TrimSuffix(head, "\r\n")))
		scanner.Scan()
		if !strings.HasPrefix(scanner.Text(), "HTTP/1.1 ") {
			t.Errorf("%s: status line %q", target, scanner.Text())
		}
		for scanner.Scan() {
			name, value, ok := strings.Cut(scanner.Text(), ": ")
			if !ok || seen[name] || value != strings.TrimSpace(value) || value == "" || strings.ContainsFunc(name, func(r rune) bool {
				return r != '-' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
			}) {
				t.Errorf("%s: header line %q", target, scanner.Text())
			}
			seen[name] = true
		}
		if !seen["Content-Length"] || !seen["Date"] || !seen["Content-Type"] {
			t.Errorf("%s: head %q", target, head)
		}
	}
}

// TestHalfClosed: a client closes its side, as "nc -N" does, and then reads.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	c := dial(t, start(t, corpus(), options()).address)
	c.send(strings.Repeat(request("GET", "/nar/lzip/"+entropy), 2))
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	want := contents(t, published, "nar/lzip", entropy)
	for range 2 {
		if got := c.receive("GET"); got.body != want || got.err != nil {
			t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
		}
	}
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestConcurrentClients(t *testing.T) {
	t.Parallel()
	address := start(t, corpus(), options()).address
	want := contents(t, published, "nar/lzip", gofmt)
	errs := make(chan error, 20)
	for i := range cap(errs) {
		c := dial(t, address)
		go func() {
			target := "/nar/lzip/" + gofmt
			if i%2 == 1 {
				target = "/" + hashOf(gtk) + ".narinfo"
			}
			for range 5 {
				if _, err := io.WriteString(c.Conn, request("GET", target)); err != nil {
					errs <- err
					return
				}
				response, err := http.ReadResponse(c.r, nil)
				if err != nil {
					errs <- err
					return
				}
				body, err := io.ReadAll(response.Body)
				if err != nil || i%2 == 0 && string(body) != want {
					errs <- fmt.Errorf("%s: %d bytes, %v", target, len(body), err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
