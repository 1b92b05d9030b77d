package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// ViaHeader names the instances that a request for a nar has come through, as in
// RFC 9110, section 7.6.3.
const ViaHeader = "Via"

// ErrNoRange reports a peer that sends whole files only.
var ErrNoRange = errors.New("it sends the whole file instead of the requested part")

// mostHops bounds the instances that forward a request.
const mostHops = 8

// pseudonym returns the name of an instance in the header Via.
func pseudonym(instance string) string { return "nar-herder-" + instance }

// CanPass reports whether the instance may forward a request: it hasn't yet, and the request
// has not come through too many others.
func CanPass(via []string, instance string) bool {
	hops := 0
	for name := range instances(via) {
		if hops++; name == pseudonym(instance) || hops >= mostHops {
			return false
		}
	}
	return true
}

// AddVia adds the header Via to a request that the instance forwards; "" for no instance.
func AddVia(header http.Header, via []string, instance string) {
	for _, line := range via {
		header.Add(ViaHeader, line)
	}
	if instance != "" {
		header.Add(ViaHeader, "1.1 "+pseudonym(instance))
	}
}

// HasPassed reports whether a request has come through another instance.
func HasPassed(via []string) bool { return Hops(via) > 0 }

// Hops returns how many instances a request has come through.
func Hops(via []string) (count int) {
	for range instances(via) {
		count++
	}
	return count
}

// instances iterates over the pseudonyms of instances, not proxies, in the header Via.
func instances(via []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range via {
			for part := range strings.SplitSeq(line, ",") {
				fields := strings.Fields(part)
				if len(fields) >= 2 && strings.HasPrefix(fields[1], "nar-herder-") && !yield(fields[1]) {
					return
				}
			}
		}
	}
}

// OpenFile opens an item's Nth file at the peer: length bytes from offset on, or all that
// follow if length is negative. via is the header Via of the client's request, nil for a
// request of our own. The error is [storage.ErrNotStored] if the peer certainly doesn't
// have the file, and another if that is unknown. The caller closes the reader. Its bytes
// are not verified. size is that of the whole file, -1 if unknown.
func (p *Peer) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (_ io.ReadCloser, size int64, err error) {
	if item.FileName(n) == "" {
		return nil, 0, storage.ErrNotStored // its URL is not below the peer's
	}
	outer, begun := ctx, p.now()
	defer func() {
		p.record(outer, &p.nars, begun, err)
		if err != nil && !errors.Is(err, storage.ErrNotStored) {
			err = fmt.Errorf("fetch %s from %s: %w", item.FileName(n), p, err)
		}
	}()
	size = item.StoredSize(n)
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(nil)
		}
	}()
	request, err := p.narRequest(ctx, http.MethodGet, item, n, via)
	if err != nil {
		return nil, 0, err
	}
	partial := offset > 0 || length >= 0 && length < size
	if partial {
		value := "bytes=" + strconv.FormatInt(offset, 10) + "-"
		if length >= 0 {
			value += strconv.FormatInt(offset+length-1, 10)
		}
		request.Header.Set("Range", value)
	}
	response, err := p.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			response.Body.Close()
		}
	}()
	want := size - offset
	if length >= 0 && size >= 0 {
		want = min(want, length)
	}
	switch {
	case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone:
		return nil, 0, storage.ErrNotStored
	case partial && response.StatusCode == http.StatusPartialContent:
		if !IsRangeOf(response.Header.Get("Content-Range"), offset, size) {
			return nil, 0, fmt.Errorf("%w: Content-Range is %q", ErrAnswer, response.Header.Get("Content-Range"))
		}
	case response.StatusCode != http.StatusOK:
		return nil, 0, fmt.Errorf("it answers %s", response.Status)
	case partial && offset > 0:
		return nil, 0, fmt.Errorf("%w: bytes from %d on were asked for", ErrNoRange, offset)
	case partial:
		want = size // the caller reads a part of it
	}
	if size >= 0 && response.ContentLength >= 0 && response.ContentLength != want {
		return nil, 0, fmt.Errorf("%w: %d bytes are coming, want %d", ErrAnswer, response.ContentLength, want)
	}
	if size < 0 {
		want = response.ContentLength
	}
	body := p.Watch(response.Body, want, cancel)
	body.fileSum = parseSumTag(response.Header.Get("ETag"))
	body.failed = func(waited time.Duration, err error) { p.record(outer, &p.nars, p.now().Add(-waited), err) }
	if size < 0 && !partial {
		size = response.ContentLength
	}
	return body, size, nil
}

// Locate checks that an item's Nth file is at the peer and returns its URL, or "" if clients
// can't be redirected because the peer's URL has a user or password. sum is as of [SumOf].
// Errors are as in [Peer.OpenFile].
func (p *Peer) Locate(ctx context.Context, item *storage.Item, n int, via []string) (_ string, sum [16]byte, err error) {
	if item.FileName(n) == "" {
		return "", sum, storage.ErrNotStored // its URL is not below the peer's
	}
	outer, begun := ctx, p.now()
	// Record every failure, as in OpenFile: the next client should not wait for a slow 500
	// either.
	defer func() {
		p.record(outer, &p.nars, begun, err)
		if err != nil && !errors.Is(err, storage.ErrNotStored) {
			err = fmt.Errorf("look for %s at %s: %w", item.FileName(n), p, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, p.self.AnswerTimeout)
	defer cancel()
	request, err := p.narRequest(ctx, http.MethodHead, item, n, via)
	if err != nil {
		return "", sum, err
	}
	response, err := p.Do(request)
	if err != nil {
		return "", sum, err
	}
	response.Body.Close()
	switch {
	case response.StatusCode == http.StatusOK:
		if size := item.StoredSize(n); size >= 0 && response.ContentLength >= 0 && response.ContentLength != size {
			return "", sum, fmt.Errorf("%w: it has %d bytes there, and not %d", ErrAnswer, response.ContentLength, size)
		}
		sum = parseSumTag(response.Header.Get("ETag"))
		if p.isPrivate() {
			return "", sum, nil
		}
		return p.name + "/" + strings.TrimPrefix(item.Narinfo.Files[n].URL, "/"), sum, nil
	case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone:
		return "", sum, storage.ErrNotStored
	}
	return "", sum, fmt.Errorf("it answers %s", response.Status)
}

func (p *Peer) narRequest(ctx context.Context, method string, item *storage.Item, n int, via []string) (*http.Request, error) {
	request, err := p.NewRequest(ctx, method, "/"+strings.TrimPrefix(item.Narinfo.Files[n].URL, "/"))
	if err != nil {
		return nil, err
	}
	AddVia(request.Header, via, p.self.Instance)
	return request, nil
}

// IsRangeOf reports whether the header Content-Range describes a part that begins at the
// offset, of a file of the size, which is negative if unknown.
func IsRangeOf(header string, offset, size int64) bool {
	part, total, _ := strings.Cut(header, "/")
	if !strings.HasPrefix(part, "bytes "+strconv.FormatInt(offset, 10)+"-") {
		return false
	}
	n, err := strconv.ParseInt(total, 10, 64)
	return total == "*" || err == nil && (size < 0 || n == size)
}

// Narinfo returns the instance's narinfo, with the lines that it adds at the end, or
// [storage.ErrNotFound].
func (p *Peer) Narinfo(ctx context.Context, hash narinfo.PathHash) ([]byte, error) {
	text, _, err := p.get(ctx, "/"+hash.String()+".narinfo", narinfo.MaxSize)
	if errors.Is(err, errNotKnown) {
		return nil, storage.ErrNotFound
	}
	return text, err
}
