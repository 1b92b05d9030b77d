package headers

import (
	"errors"
	"fmt"
	"strings"
)

// ErrBadPath is the error of [DecodePath], for clients.
var ErrBadPath = errors.New("the path of the URL is malformed")

// DecodePath decodes the percent-encoding of a request's path. The result begins with a
// slash, and has no empty segment except perhaps the last, no "." or "..", and no control
// characters, which could be misinterpreted by a file system or proxy.
func DecodePath(path []byte) (string, error) {
	if len(path) == 0 || path[0] != '/' {
		return "", ErrBadPath
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) {
				return "", ErrBadPath
			}
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high < 0 || low < 0 {
				return "", ErrBadPath
			}
			c = byte(high<<4 | low)
			i += 2
			if c == '/' {
				return "", ErrBadPath
			}
		}
		if c < ' ' || c == 0x7f {
			return "", ErrBadPath
		}
		decoded = append(decoded, c)
	}
	rest := string(decoded[1:])
	for rest != "" {
		var segment string
		segment, rest, _ = strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." {
			return "", ErrBadPath
		}
	}
	return string(decoded), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// EscapePath percent-encodes a path, apart from its slashes.
func EscapePath(path string) string {
	const plain = "-._~/"
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
