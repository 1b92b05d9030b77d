package s3

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// answers are heads with the following bytes, and whether parseHead parses them.
var answers = []struct {
	text  string
	usual bool
}{
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\nLast-Modified: Thu, 26 Nov 2026 00:00:00 GMT\r\n\r\nbytes", true},
	{"HTTP/1.1 206 Partial Content\r\ncontent-length:5\r\nCONTENT-RANGE:  bytes 1-5/7 \r\nX-Amz-Meta-Nar-Herder-Token: a:b\r\n\r\nbytes", true},
	{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\nX-Other:\r\n\r\n", true},
	{"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx", true},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 5\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\r\n\r\nbytes", false},
	{"HTTP/1.1 200 OK\nContent-Length: 5\n\nbytes", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", false},
	{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nbytes", false},
	{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes", false},
	{"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nbytes", false},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false},
	{"HTTP/1.1 200 \r\nContent-length:0\r\r\n\r\n", false},
	{"HTTP/1.1 200 \n0\r\nContent-Length:0\r\n\r\n0", false},
	{"", false},
}

func TestUsualAnswer(t *testing.T) {
	t.Parallel()
	for _, test := range answers {
		if usual := sameAnswer(t, test.text); usual != test.usual {
			t.Errorf("%q: usual %v, want %v", test.text, usual, test.usual)
		}
	}
	// Heads longer than the buffer are not parsed.
	long := "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", headBuffer) + "\r\nContent-Length: 5\r\n\r\nbytes"
	if sameAnswer(t, long) {
		t.Error("a head longer than the buffer is parsed")
	}
}

// sameAnswer reports whether parseHead parses the text, then with the result of package http.
// Otherwise it must consume nothing.
func sameAnswer(t *testing.T, text string) (usual bool) {
	t.Helper()
	reader := bufio.NewReaderSize(strings.NewReader(text), headBuffer)
	got := parseHead(reader)
	rest, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if got == nil {
		if string(rest) != text {
			t.Fatalf("%q: not parsed, but only %q is left", text, rest)
		}
		return false
	}
	plain := bufio.NewReader(strings.NewReader(text))
	want, err := http.ReadResponse(plain, nil)
	if err != nil {
		t.Fatalf("%q: parsed, but package http returns: %v", text, err)
	}
	if got.StatusCode != want.StatusCode || got.ContentLength != want.ContentLength || got.Close != want.Close || len(want.TransferEncoding) > 0 {
		t.Fatalf("%q: %+v, want %+v", text, got, want)
	}
	for _, name := range readHeaders {
		if g, w := got.Header.Get(name), want.Header.Get(name); g != w {
			t.Fatalf("%q: %s is %q, want %q", text, name, g, w)
		}
	}
	body := rest[:min(int64(len(rest)), got.ContentLength)]
	if all, _ := io.ReadAll(want.Body); !bytes.Equal(body, all) {
		t.Fatalf("%q: the body is %q, want %q", text, body, all)
	}
	return true
}

// FuzzUsualAnswer: parseHead returns what package http does, or nil.
func FuzzUsualAnswer(f *testing.F) {
	for _, test := range answers {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) { sameAnswer(t, text) })
}
