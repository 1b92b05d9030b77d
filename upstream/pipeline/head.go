package pipeline

import (
	"bufio"
	"bytes"
	"net/http"
	"strconv"
)

var (
	okLine  = []byte("HTTP/1.1 200 OK\r\n")
	headEnd = []byte("\r\n\r\n")
)

// readPlainHead reads the head of a usual answer, if it is in the buffer. http.ReadResponse takes
// most of the time of an answer. It returns false, and reads nothing, if anything in the head
// needs more care. Of the header, only Cache-Control and Age are returned.
func readPlainHead(r *bufio.Reader) (header http.Header, length int, ok bool) {
	head, _ := r.Peek(r.Buffered())
	end := bytes.Index(head, headEnd)
	if end < 0 || !bytes.HasPrefix(head, okLine) || end < len(okLine) {
		return nil, 0, false
	}
	header, length = make(http.Header, 2), -1
	for lines := head[len(okLine) : end+2]; len(lines) > 0; {
		var line []byte
		line, lines, _ = bytes.Cut(lines, headEnd[:2])
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || !isName(name) || bytes.ContainsAny(value, "\r\n\x00") {
			return nil, 0, false
		}
		value = bytes.Trim(value, " \t")
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			n, err := strconv.ParseUint(string(value), 10, 31)
			if err != nil || length >= 0 || n > smallBody {
				return nil, 0, false
			}
			length = int(n)
		case bytes.EqualFold(name, []byte("Connection")):
			if !bytes.EqualFold(value, []byte("keep-alive")) {
				return nil, 0, false
			}
		case bytes.EqualFold(name, []byte("Cache-Control")):
			header.Add("Cache-Control", string(value))
		case bytes.EqualFold(name, []byte("Age")):
			header.Add("Age", string(value))
		case bytes.EqualFold(name, []byte("Transfer-Encoding")), bytes.EqualFold(name, []byte("Trailer")):
			return nil, 0, false
		}
	}
	if length < 0 {
		return nil, 0, false
	}
	_, _ = r.Discard(end + len(headEnd)) // which is buffered
	return header, length, true
}

// isName reports whether the name of a field has only letters, digits and dashes.
func isName(name []byte) bool {
	for _, c := range name {
		if (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (c < '0' || '9' < c) && c != '-' {
			return false
		}
	}
	return len(name) > 0
}
