package narinfo

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxURLLen is the maximum length of a nar's URL in bytes. A store item's name with all
// characters escaped has some 700, and usual file systems limit each component to 255 anyway.
const MaxURLLen = 1024

// ErrScheme says that a URL leads to another server than the narinfo's.
var ErrScheme = errors.New("has a scheme, must be relative")

// File is one nar of an item, as a narinfo names it in a block of URL,
// Compression and FileSize.
type File struct {
	URL         string // as in the narinfo
	Compression string // "none", "gzip", "lzip", "zstd", … as in the narinfo
	Size        int64  // in bytes, of the file as it is sent; -1 if not given
}

// Path returns the name of the nar in a storage: the URL with its percent escapes decoded,
// relative, with slashes. It is clean: it has no empty segment, no "." and no "..", and it
// doesn't begin with a slash.
//
// The URL must be relative, as those of substitute servers are. One leading slash is dropped,
// because other programs' databases have it. Path refuses everything that another program
// could understand differently: a scheme or host, a query or fragment ('?' and '#' of names
// are written as escapes; a plus is a plus), an escaped slash, bytes that aren't printable
// ASCII, escapes that decode to control characters or invalid UTF-8, and more than
// [MaxURLLen] bytes.
func (f File) Path() (string, error) {
	path, err := decodePath(f.URL)
	if err != nil {
		return "", fmt.Errorf("URL %s: %w", quote(f.URL), err)
	}
	return path, nil
}

func decodePath(url string) (string, error) {
	if len(url) > MaxURLLen {
		return "", fmt.Errorf("%d bytes, at most %d are allowed", len(url), MaxURLLen)
	}
	url = strings.TrimPrefix(url, "/")
	first, _, _ := strings.Cut(url, "/")
	if strings.Contains(first, ":") {
		return "", ErrScheme
	}
	path, err := unescape(url)
	if err != nil {
		return "", err
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "":
			return "", errors.New("has an empty part, or a host")
		case ".", "..":
			return "", fmt.Errorf("has the part %q", segment)
		}
	}
	return path, nil
}

// unescape decodes percent escapes and refuses bytes that a path can't have, escaped or not.
func unescape(url string) (string, error) {
	if isPlain(url) {
		return strings.Clone(url), nil // a copy, because url is part of a longer text
	}
	decoded := make([]byte, 0, len(url))
	for i := 0; i < len(url); i++ {
		c := url[i]
		switch {
		case c == '?' || c == '#':
			return "", fmt.Errorf("has an unescaped %q", c)
		case c <= ' ' || c > '~':
			return "", fmt.Errorf("has the byte %#02x unescaped", c)
		case c == '%':
			if i+2 >= len(url) {
				return "", errors.New("ends within an escape")
			}
			v, err := strconv.ParseUint(url[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("has the escape %q, must be %% and two hexadecimal digits", url[i:i+3])
			}
			c = byte(v)
			if c == '/' || c < ' ' || c == 0x7f {
				return "", fmt.Errorf("has the escape %q, which isn't allowed in a file name", url[i:i+3])
			}
			i += 2
		}
		decoded = append(decoded, c)
	}
	if !utf8.Valid(decoded) {
		return "", errors.New("isn't UTF-8 after decoding")
	}
	return string(decoded), nil
}

// isPlain reports whether a URL has nothing to decode or refuse, as is usual.
func isPlain(url string) bool {
	for i := range len(url) {
		if !isUnescaped[url[i]] || url[i] == '%' {
			return false
		}
	}
	return true
}

// AppendFiles appends to dst the text of a narinfo, byte for byte, and a block of URL,
// Compression and FileSize for each of files. That changes no signed bytes, and is valid if
// [Narinfo.CanAppend] is true. A text that doesn't end in a newline gets one first.
//
// Bytes of a URL are escaped as guix publish escapes them, except '/' and '%', so a URL that
// is escaped already does not change. Compression is written as it is. For a negative size,
// FileSize is omitted, as in a narinfo that is not [Narinfo.Sized].
func AppendFiles(dst, text []byte, files []File) []byte {
	dst = append(dst, text...)
	if len(files) > 0 && len(text) > 0 && text[len(text)-1] != '\n' {
		dst = append(dst, '\n')
	}
	for _, f := range files {
		dst = append(dst, "URL: "...)
		dst = appendEscaped(dst, f.URL)
		dst = append(dst, "\nCompression: "...)
		dst = append(dst, f.Compression...)
		if f.Size >= 0 {
			dst = append(dst, "\nFileSize: "...)
			dst = strconv.AppendInt(dst, f.Size, 10)
		}
		dst = append(dst, '\n')
	}
	return dst
}

// isUnescaped has the bytes of a path that are not escaped: the unreserved characters of RFC
// 3986, as in Guile's uri-encode, and '/' and '%'.
var isUnescaped = func() (table [256]bool) {
	for c := range table {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			table[c] = true
		}
	}
	for _, c := range "-._~/%" {
		table[c] = true
	}
	return table
}()

func appendEscaped(dst []byte, path string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(path) {
		c := path[i]
		if isUnescaped[c] {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', digits[c>>4], digits[c&0xf])
		}
	}
	return dst
}
