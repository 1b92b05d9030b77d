package pipeline

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// TestPlainHead: what the short cut reads, http.ReadResponse reads the same way. Heads that need
// more care are left to that.
func TestPlainHead(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, test := range []struct {
		head    string
		isPlain bool
	}{
		{ok + "Server: nginx\r\nContent-Length: 3\r\nConnection: keep-alive\r\nETag: \"a:b\"\r\n\r\n", true},
		{ok + "content-length:3\r\nCache-Control: max-age=5\r\ncache-control: no-cache \r\nAGE:  7\r\n\r\n", true},
		{ok + "Content-Length: 3\r\nConnection: close\r\n\r\n", false},
		{ok + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{ok + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", false},
		{ok + "Content-Length: +3\r\n\r\n", false},
		{ok + "Content-Length: 70000\r\n\r\n", false},
		{ok + "Content-Length : 3\r\n\r\n", false},
		{ok + "Content-Length: 3\r\n folded\r\n\r\n", false},
		{ok + "X: a\nContent-Length: 3\r\n\r\n", false},
		{ok + "Server: nginx\r\n\r\n", false},
		{ok + "\r\n", false},
		{ok + "Content-Length: 3\r\n", false},
		{"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", false},
		{"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n", false},
	} {
		text := test.head + "abc"
		r := bufio.NewReader(strings.NewReader(text))
		_, _ = r.Peek(1)
		header, length, isPlain := readPlainHead(r)
		if isPlain != test.isPlain {
			t.Errorf("%q: read: %v", test.head, isPlain)
		}
		left := r.Buffered()
		if !isPlain {
			if left != len(text) {
				t.Errorf("%q: it leaves %d bytes", test.head, left)
			}
			continue
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader([]byte(text))), nil)
		if err != nil || int64(length) != want.ContentLength || left != len("abc") ||
			strings.Join(header["Cache-Control"], "|") != strings.Join(want.Header["Cache-Control"], "|") || header.Get("Age") != want.Header.Get("Age") {
			t.Errorf("%q: %v, %d bytes; want %v, %v", test.head, header, length, want, err)
		}
	}
}
