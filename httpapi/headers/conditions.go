// Package headers parses header fields and paths of requests: conditions, ranges, codings and
// percent-encoding.
package headers

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
)

// TimeFormat is the format of dates in HTTP, which are always in GMT.
const TimeFormat = "Mon, 02 Jan 2006 15:04:05 GMT"

// Range is a part of a body, in bytes.
type Range struct{ Start, Length int64 }

// ErrUnsatisfiable is the error for a range outside of the body.
var ErrUnsatisfiable = errors.New("range outside of the body")

// ParseRange parses the header Range for a body of that size. It ignores malformed
// headers and several ranges, as RFC 9110, section 14.2, allows: partial is false then,
// and the range is the whole body.
func ParseRange(header string, size int64) (_ Range, partial bool, err error) {
	whole := Range{0, size}
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
			return whole, false, ErrUnsatisfiable
		}
		suffix = min(suffix, size)
		return Range{size - suffix, suffix}, true, nil
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
		return whole, false, ErrUnsatisfiable
	}
	return Range{start, end - start + 1}, true, nil
}

// parseLength parses a number without sign. One that is too large for an int64 becomes the
// largest.
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

// AnswerUnsatisfiable answers 416 for a range outside of a body of that size.
func AnswerUnsatisfiable(ctx *fasthttp.RequestCtx, size int64) {
	respond.Fail(ctx, fasthttp.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("the body has %d bytes", size))
	ctx.Response.Header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	ctx.Response.Header.Set("Accept-Ranges", "bytes")
}

// HasConditions reports whether a request is conditional.
func HasConditions(header *fasthttp.RequestHeader) bool {
	return len(header.Peek("If-None-Match")) > 0 || len(header.Peek("If-Modified-Since")) > 0 ||
		len(header.Peek("If-Match")) > 0 || len(header.Peek("If-Unmodified-Since")) > 0
}

// AnswerConditions answers with 412 or 304 if the conditions of the request require it, in
// the order of RFC 9110, section 13.2.2, and reports whether it did. A zero time means that
// the content has none. etags are the entity tag of the content and any previous one.
func AnswerConditions(ctx *fasthttp.RequestCtx, modified time.Time, etags ...string) (sent bool) {
	header := &ctx.Request.Header
	switch {
	case isAnother(header, modified, etags):
		respond.Fail(ctx, fasthttp.StatusPreconditionFailed, "the content has changed since you downloaded a part of it")
		return true
	case notModified(header, modified, etags):
		ctx.Response.SetStatusCode(fasthttp.StatusNotModified)
		return true
	}
	return false
}

// isAnother reports whether If-Match or If-Unmodified-Since fails.
func isAnother(header *fasthttp.RequestHeader, modified time.Time, etags []string) bool {
	if tags := header.PeekAll("If-Match"); len(tags) > 0 {
		// Strong comparison: a weak tag doesn't identify bytes.
		return !hasTag(tags, etags, false)
	}
	since := header.Peek("If-Unmodified-Since")
	if len(since) == 0 || modified.IsZero() {
		return false
	}
	t, err := fasthttp.ParseHTTPDate(since)
	return err == nil && modified.Truncate(time.Second).After(t)
}

// hasTag reports whether one of the entity tags, or "*", is in lists of tags. With weak, a
// weak tag of the same value counts.
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

// notModified reports whether the client has the content already, according to If-None-Match
// or If-Modified-Since.
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

// RangeStillGood reports whether If-Range is absent or matches the content, so that a range
// may be sent.
func RangeStillGood(ifRange, etag string, modified time.Time) bool {
	switch ifRange = strings.TrimSpace(ifRange); {
	case ifRange == "":
		return true
	case strings.HasPrefix(ifRange, `"`):
		return ifRange == etag
	case strings.HasPrefix(ifRange, "W/"):
		return false // a weak tag doesn't identify bytes
	}
	t, err := fasthttp.ParseHTTPDate([]byte(ifRange))
	return err == nil && modified.Truncate(time.Second).Equal(t)
}
