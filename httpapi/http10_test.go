package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// unsizedRemote has nars of unknown size. The last Read returns end.
type unsizedRemote struct {
	content string
	end     error
}

func (e unsizedRemote) OpenFile(_ context.Context, _ *storage.Item, _ int, _, length int64, _ []string) (io.ReadCloser, int64, error) {
	if length == 0 {
		return nothing{}, -1, nil
	}
	return io.NopCloser(io.MultiReader(strings.NewReader(e.content), failingReader{e.end})), -1, nil
}

func (unsizedRemote) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "http://elsewhere.example/nar", [16]byte{}, nil
}

// startUnsized serves an item of another instance with a nar of unknown size. The end of the
// nar is an error, or io.EOF.
func startUnsized(t *testing.T, m *made, end error) *started {
	t.Helper()
	text := strings.Replace(string(m.text()), "FileSize: "+strconv.Itoa(len(m.file))+"\n", "", 1)
	item, err := storage.NewItem(&index.Item{Hash: m.path.Hash, Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	opts := options()
	opts.Remote = unsizedRemote{string(m.file), end}
	return start(t, &fakeItems{item: func(narinfo.PathHash) (*storage.Item, error) { return item, nil }}, opts)
}

// failingReader returns an error.
type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// rawHead is the raw head of an answer.
type rawHead struct {
	status int
	header http.Header
}

// readHead reads the head of an answer and leaves its body.
func readHead(t *testing.T, r *bufio.Reader) rawHead {
	t.Helper()
	var raw bytes.Buffer
	for !bytes.HasSuffix(raw.Bytes(), []byte("\r\n\r\n")) {
		line, err := r.ReadBytes('\n')
		if err != nil {
			t.Fatalf("read the head: %q, %v", raw.String(), err)
		}
		raw.Write(line)
	}
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw.Bytes())), &http.Request{Method: "HEAD"})
	if err != nil {
		t.Fatalf("%q: %v", raw.String(), err)
	}
	header := response.Header
	// net/http removes it from the header.
	if response.TransferEncoding != nil {
		header["Transfer-Encoding"] = response.TransferEncoding
	}
	if response.Close {
		header.Set("Connection", "close")
	}
	return rawHead{response.StatusCode, header}
}

// request10 is a request in HTTP/1.0.
func request10(method, target string, header ...string) string {
	return strings.Replace(request(method, target, header...), " HTTP/1.1\r\n", " HTTP/1.0\r\n", 1)
}

// TestHTTP10 sends each request by HTTP/1.0, which has no chunks: answers have a length, or
// end with the connection.
func TestHTTP10(t *testing.T) {
	t.Parallel()
	s := newStore(t, published)
	opts := options()
	opts.SigningKeys, opts.Pages = []string{"(public-key)"}, homePage()
	opts.Changes, opts.Identity = s.index, s
	dumps := newDumps(t)
	dumps.add(t, 1)
	opts.Dumps = dumps
	unsized := make1(t, "unsized", strings.Repeat("unsized ", 5000), "gzip")
	unsized.narSize = -1
	everything := start(t, s, opts).address
	decoded := start(t, unsized.items(t), options()).address
	remote := make1(t, "remote", strings.Repeat("remote ", 5000), "gzip")
	elsewhere := startUnsized(t, remote, io.EOF).address

	since := url.QueryEscape(time.Unix(0, 0).UTC().Format(time.DateTime))
	for _, test := range []struct {
		address, target string
		status          int
		header          string
	}{
		{everything, "/" + hashOf(greeting) + ".narinfo", 200, ""},
		{everything, "/" + nobody + ".narinfo", 404, ""},
		{everything, "/" + hashOf(greeting) + ".narinfo/info", 200, ""},
		{everything, peer.StoredPath + hashOf(greeting), 200, ""},
		{everything, "/nar/lzip/" + greeting, 200, ""},
		{everything, "/nar/lzip/" + gofmt, 200, ""},
		{everything, "/nar/lzip/" + gofmt, 206, "Range: bytes=5-5000"},
		{everything, "/nar/lzip/" + gofmt, 416, "Range: bytes=999999999-"},
		{everything, "/nar/" + greeting, 200, ""},
		{everything, "/nar/lzip/" + nobody + "-x", 404, ""},
		{everything, "/file/hello-2.10.tar.gz/sha256/" + helloHash, 200, ""},
		{everything, peer.DumpPath, 200, ""},
		{everything, peer.DumpPath, 200, "Accept-Encoding: zstd"},
		{everything, peer.IndexPath, 200, ""},
		{everything, peer.ChangesPath + "?since=" + since, 200, ""},
		{everything, peer.ChangesPath + "?after=0", 200, ""},
		{everything, peer.ChangesPath, 400, ""},
		{everything, peer.StreamPath, 400, ""},
		{everything, "/nix-cache-info", 200, ""},
		{everything, "/signing-key.pub", 200, ""},
		{everything, "/metrics", 200, ""},
		{everything, "/health", 200, ""},
		{everything, "/health/live", 200, ""},
		{everything, "/", 404, ""},
		{everything, "/", 200, "Accept: text/html"},
		{everything, "/%", 400, ""},
		{decoded, "/nar/" + unsized.path.BaseName(), 200, ""},
		{elsewhere, "/" + remote.url(), 200, ""},
		{elsewhere, "/nar/" + remote.path.BaseName(), 200, ""},
	} {
		t.Run(test.target+" "+test.header, func(t *testing.T) {
			t.Parallel()
			header := []string{"X: y"}
			if test.header != "" {
				header = append(header, test.header)
			}
			want := dial(t, test.address).ask("GET", test.target, header...)
			for _, persist := range []bool{false, true} {
				for _, method := range []string{"GET", "HEAD"} {
					header := header
					if persist {
						header = append(header, "Connection: keep-alive")
					}
					c := dial(t, test.address)
					c.send(request10(method, test.target, header...))
					got := readHead(t, c.r)
					if got.status != test.status {
						t.Errorf("%s: status %d, want %d", method, got.status, test.status)
					}
					if te := got.header.Get("Transfer-Encoding"); te != "" {
						t.Errorf("%s: Transfer-Encoding: %s", method, te)
					}
					closes := got.header.Get("Connection") == "close"
					length, sized := -1, got.header.Get("Content-Length") != ""
					if sized {
						length, _ = strconv.Atoi(got.header.Get("Content-Length"))
					}
					if want.ContentLength >= 0 && !sized && method == "GET" {
						t.Errorf("%s: no Content-Length", method)
					}
					if !closes && !(persist && sized) && method == "GET" {
						t.Errorf("%s: the connection stays, though keep-alive is %v and the length %d", method, persist, length)
					}
					var body []byte
					var err error
					switch {
					case method == "HEAD":
					case sized:
						body = make([]byte, length)
						_, err = io.ReadFull(c.r, body)
					default:
						body, err = io.ReadAll(c.r)
					}
					volatile := strings.HasPrefix(test.target, "/metrics")
					if err != nil || method == "GET" && !volatile && string(body) != want.body {
						t.Errorf("%s: %d bytes, want %d, %v", method, len(body), len(want.body), err)
					}
					if closes {
						c.closed()
					} else {
						c.stillOpen()
					}
				}
			}
		})
	}
}

// TestHTTP10Cut: the connection is reset after an incomplete answer without a length.
func TestHTTP10Cut(t *testing.T) {
	t.Parallel()
	m := make1(t, "remote", strings.Repeat("remote ", 5000), "gzip")
	c := dial(t, startUnsized(t, m, errBroken).address)
	c.send(request10("GET", "/"+m.url()))
	readHead(t, c.r)
	if n, err := io.Copy(io.Discard, c.r); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after %d bytes: %v", n, err)
	}
}

// TestHTTP10Stream follows the changes by HTTP/1.0 until the server stops.
func TestHTTP10Stream(t *testing.T) {
	t.Parallel()
	server, _ := startPublishing(t)
	c := dial(t, server.address)
	c.send(request10("GET", peer.StreamPath+"?after=0", "Connection: keep-alive"))
	head := readHead(t, c.r)
	if head.status != 200 || head.header.Get("Transfer-Encoding") != "" || head.header.Get("Content-Length") != "" || head.header.Get("Connection") != "close" {
		t.Fatalf("%+v", head)
	}
	line, err := c.r.ReadString('\n')
	if err != nil || line != "event: "+peer.StateEvent+"\n" {
		t.Fatalf("%q, %v", line, err)
	}
	server.stopped(t)
	if _, err := io.Copy(io.Discard, c.r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	until(t, "the stream to be counted as ended", func() bool { return server.peers.Streams() == 0 })
}
