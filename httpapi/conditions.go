package httpapi

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// httpTime is the form of dates in HTTP, which are always in GMT.
const httpTime = "Mon, 02 Jan 2006 15:04:05 GMT"

// byteRange is a part of a body, in bytes.
type byteRange struct{ start, length int64 }

// errUnsatisfiable says that a range lies outside of the body.
var errUnsatisfiable = errors.New("range outside of the body")

// parseRange reads the header Range for a body of that size. What it does not
// understand, and several ranges at once, are as if the header was not there,
// which RFC 9110, section 14.2, leaves to us: partial is false then, and the
// range is the whole body.
func parseRange(header string, size int64) (_ byteRange, partial bool, err error) {
	whole := byteRange{0, size}
	spec, ok := strings.CutPrefix(strings.TrimSpace(header), "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return whole, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return whole, false, nil
	}
	if first == "" {
		suffix, ok := parseLength(last)
		if !ok {
			return whole, false, nil
		}
		if suffix == 0 || size == 0 {
			return whole, false, errUnsatisfiable
		}
		suffix = min(suffix, size)
		return byteRange{size - suffix, suffix}, true, nil
	}
	start, ok := parseLength(first)
	if !ok {
		return whole, false, nil
	}
	end := size - 1
	if last != "" {
		if end, ok = parseLength(last); !ok || end < start {
			return whole, false, nil
		}
		end = min(end, size-1)
	}
	if start >= size {
		return whole, false, errUnsatisfiable
	}
	return byteRange{start, end - start + 1}, true, nil
}

// parseLength reads a number of digits alone; one too large for an int64 is as
// good as the largest.
func parseLength(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}

// unsatisfiable answers a range that lies outside of a body of that size.
func (s *Server) unsatisfiable(ctx *fasthttp.RequestCtx, size int64) {
	s.fail(ctx, fasthttp.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("the body has %d bytes", size))
	ctx.Response.Header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	ctx.Response.Header.Set("Accept-Ranges", "bytes")
}

// hasConditions reports whether an answer depends on what the client has already.
func hasConditions(header *fasthttp.RequestHeader) bool {
	return len(header.Peek("If-None-Match")) > 0 || len(header.Peek("If-Modified-Since")) > 0 ||
		len(header.Peek("If-Match")) > 0 || len(header.Peek("If-Unmodified-Since")) > 0
}

// sendUnlessConditions answers with 412 or 304 if the conditions of the request say so, in
// the order of RFC 9110, section 13.2.2, and reports whether it did. A zero time is for
// content without one. The entity tags are those that the content has, or had before.
func (s *Server) sendUnlessConditions(ctx *fasthttp.RequestCtx, modified time.Time, etags ...string) (sent bool) {
	header := &ctx.Request.Header
	switch {
	case isAnother(header, modified, etags):
		s.fail(ctx, fasthttp.StatusPreconditionFailed, "what you have a part of has changed since")
		return true
	case notModified(header, modified, etags):
		ctx.Response.SetStatusCode(fasthttp.StatusNotModified)
		return true
	}
	return false
}

// isAnother reports whether the client asks for content that is not the one here.
func isAnother(header *fasthttp.RequestHeader, modified time.Time, etags []string) bool {
	if tags := header.PeekAll("If-Match"); len(tags) > 0 {
		// Strong comparison: a weak tag says nothing about bytes.
		return !hasTag(tags, etags, false)
	}
	since := header.Peek("If-Unmodified-Since")
	if len(since) == 0 || modified.IsZero() {
		return false
	}
	t, err := fasthttp.ParseHTTPDate(since)
	return err == nil && modified.Truncate(time.Second).After(t)
}

// hasTag reports whether one of the entity tags is in lists of tags, or one of these is
// "*". With weak, a weak tag of the same name counts.
func hasTag(lists [][]byte, etags []string, weak bool) bool {
	for _, list := range lists {
		for tag := range strings.SplitSeq(string(list), ",") {
			tag = strings.TrimSpace(tag)
			if weak {
				tag = strings.TrimPrefix(tag, "W/")
			}
			if tag == "*" || tag != "" && slices.Contains(etags, tag) {
				return true
			}
		}
	}
	return false
}

// notModified says whether the client has what it asks for already. A zero time
// is for content without one.
func notModified(header *fasthttp.RequestHeader, modified time.Time, etags []string) bool {
	if tags := header.PeekAll("If-None-Match"); len(tags) > 0 {
		return hasTag(tags, etags, true)
	}
	since := header.Peek("If-Modified-Since")
	if len(since) == 0 || modified.IsZero() {
		return false
	}
	t, err := fasthttp.ParseHTTPDate(since)
	return err == nil && !modified.Truncate(time.Second).After(t)
}

// rangeStillGood says whether a part may be sent: the client's other parts are
// of this very content, or it did not ask.
func rangeStillGood(ifRange, etag string, modified time.Time) bool {
	switch ifRange = strings.TrimSpace(ifRange); {
	case ifRange == "":
		return true
	case strings.HasPrefix(ifRange, `"`):
		return ifRange == etag
	case strings.HasPrefix(ifRange, "W/"):
		return false // a weak tag says nothing about bytes
	}
	t, err := fasthttp.ParseHTTPDate([]byte(ifRange))
	return err == nil && modified.Truncate(time.Second).Equal(t)
}

// escapePath percent-encodes a path, apart from its slashes.
func escapePath(path string) string {
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
