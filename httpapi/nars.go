package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const narType = "application/octet-stream"

// serveNar answers for a nar by the path that narinfos name, whether the client
// has read one or not. base is the path's last segment.
func (s *Server) serveNar(ctx *fasthttp.RequestCtx, name, base string) {
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		s.notFound(ctx, "that is not the name of a nar")
		return
	}
	item, err := s.item(ctx, path.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		s.notFound(ctx, "there is no such nar")
		return
	}
	if err != nil {
		s.fault(ctx, "look up an item", err)
		return
	}
	if n := item.FileNamed(name); n >= 0 {
		if item.HasStored(n) {
			s.sendStored(ctx, item.Item, n)
		} else {
			s.sendElsewhere(ctx, item.Item, n)
		}
		s.used(ctx, item, "")
		return
	}
	if item.Narinfo.StorePath == path {
		// A nar without compression is there for every item that is stored.
		if name == "nar/"+base {
			s.sendNar(ctx, item.Item)
			s.used(ctx, item, "")
			return
		}
		for _, file := range item.cached {
			if name == "nar/"+file.Type+"/"+base {
				s.sendCached(ctx, item.Item, file)
				s.used(ctx, item, file.Type)
				return
			}
		}
	}
	s.notFound(ctx, "there is no such nar")
}

// used counts a request that was answered with a nar, from its beginning on.
func (s *Server) used(ctx *fasthttp.RequestCtx, item *nars, kind string) {
	if s.options.Uses == nil || !ctx.IsGet() {
		return
	}
	switch ctx.Response.StatusCode() {
	case fasthttp.StatusOK, fasthttp.StatusFound:
	case fasthttp.StatusPartialContent:
		if !bytes.HasPrefix(ctx.Response.Header.Peek("Content-Range"), []byte("bytes 0-")) {
			return // the rest of a download that was counted
		}
	default:
		return
	}
	s.options.Uses.Used(item.Hash, kind)
}

// nars are an item's: those that its narinfo names, and others that were made
// of them.
type nars struct {
	*storage.Item
	cached []index.CachedFile
}

// item returns the item, perhaps as it was a moment ago.
func (s *Server) item(ctx context.Context, hash narinfo.PathHash) (*nars, error) {
	found, ok, ticket := s.nars.get(hash)
	if ok {
		return found, nil
	}
	item, err := s.items.Item(ctx, hash)
	if err != nil {
		return nil, err
	}
	found = &nars{Item: item}
	if s.options.Cached != nil {
		if found.cached, err = s.options.Cached.Files(ctx, hash); err != nil {
			return nil, err
		}
	}
	s.nars.put(hash, found, ticket)
	return found, nil
}

// sendCached answers with a file that was made of the item's nar.
func (s *Server) sendCached(ctx *fasthttp.RequestCtx, item *storage.Item, file index.CachedFile) {
	open := func(offset, length int64) (io.ReadCloser, storage.Info, error) {
		reader, info, err := s.options.Cached.Open(ctx, item, file, offset, length)
		if errors.Is(err, storage.ErrNotStored) {
			s.nars.forget(item.Hash)
		}
		return reader, info, err
	}
	if s.options.AccelRedirect {
		s.redirect(ctx, open, s.unopenedItem(ctx, item), "/internal/cached-nar/"+file.Type+"/"+item.Narinfo.StorePath.BaseName())
		return
	}
	s.sendPart(ctx, s.unopenedItem(ctx, item), open, narTag(item, file.Type), narType, 0, file.Size)
}

// narTag begins the entity tag of an item's nar in a compression.
func narTag(item *storage.Item, compression string) string {
	return item.Narinfo.NarHash.String()[len("sha256:"):][:16] + "-" + compression
}

// opener opens a part of a file.
type opener func(offset, length int64) (io.ReadCloser, storage.Info, error)

// stored opens the item's Nth file.
func (s *Server) stored(ctx *fasthttp.RequestCtx, item *storage.Item, n int) opener {
	return func(offset, length int64) (io.ReadCloser, storage.Info, error) {
		return s.items.OpenFile(s.live, item, n, offset, length)
	}
}

// storedOrNot opens the item's Nth file, elsewhere if it turns out not to be here: a
// front end can't know before, and the owner of its storage may.
func (s *Server) storedOrNot(ctx *fasthttp.RequestCtx, item *storage.Item, n int) opener {
	open, elsewhere := s.stored(ctx, item, n), s.elsewhere(ctx, item, n)
	return func(offset, length int64) (io.ReadCloser, storage.Info, error) {
		reader, info, err := open(offset, length)
		if errors.Is(err, storage.ErrNotStored) {
			return elsewhere(offset, length)
		}
		return reader, info, err
	}
}

// sendStored answers with the item's Nth file as it lies in the storage.
func (s *Server) sendStored(ctx *fasthttp.RequestCtx, item *storage.Item, n int) {
	if s.options.AccelRedirect {
		s.redirect(ctx, s.stored(ctx, item, n), func(err error) {
			if errors.Is(err, storage.ErrNotStored) {
				s.sendElsewhere(ctx, item, n) // as storedOrNot
			} else {
				s.unopened(ctx, item, err)
			}
		}, "/internal/"+item.FileName(n))
		return
	}
	// The URL is good for GET alone.
	if s.options.Presigned != nil && ctx.IsGet() {
		s.sendToStore(ctx, item, n)
		return
	}
	s.sendPart(ctx, s.unopenedItem(ctx, item), s.storedOrNot(ctx, item, n), narTag(item, item.Narinfo.Files[n].Compression), narType, 0, item.StoredSize(n))
}

// presignedFor is how long a URL of the byte store is good: clients follow it at
// once, and a download that has begun goes on after it.
const presignedFor = 10 * time.Minute

// sendToStore redirects a client to the byte store for the item's Nth file, which
// must be there.
func (s *Server) sendToStore(ctx *fasthttp.RequestCtx, item *storage.Item, n int) {
	err := s.items.LookFor(ctx, item, n)
	if errors.Is(err, storage.ErrNotStored) {
		s.sendElsewhere(ctx, item, n)
		return
	}
	var location string
	if err == nil {
		location, err = s.options.Presigned.Presign(ctx, item.FileName(n), presignedFor)
	}
	if err != nil {
		s.unopened(ctx, item, err)
		return
	}
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("Location", location)
	s.fail(ctx, fasthttp.StatusFound, "this nar is in an object store")
}

// redirect has the web server in front send the file, by the header and paths
// of the original Nar Herder. The file must be there all the same.
func (s *Server) redirect(ctx *fasthttp.RequestCtx, open opener, unopened func(error), path string) {
	reader, _, err := open(0, 0)
	if err != nil {
		unopened(err)
		return
	}
	reader.Close()
	ctx.Response.Header.SetContentType(narType)
	ctx.Response.Header.Set("X-Accel-Redirect", escapePath(path))
}

// unopenedItem is unopened for errors that may come.
func (s *Server) unopenedItem(ctx *fasthttp.RequestCtx, item *storage.Item) func(error) {
	return func(err error) { s.unopened(ctx, item, err) }
}

// unopened answers when a file of the item could not be opened.
func (s *Server) unopened(ctx *fasthttp.RequestCtx, item *storage.Item, err error) {
	if errors.Is(err, storage.ErrNotStored) {
		s.notFound(ctx, "this nar is not stored here")
		return
	}
	if errors.Is(err, errElsewhere) {
		s.unreached(ctx, item, err)
		return
	}
	if !s.hasChanged(ctx, item, err) {
		s.fault(ctx, "open a nar", err)
		return
	}
	ctx.Response.Reset()
	s.dispatch(ctx)
}

// hasChanged says whether a file could not be opened because the item was
// removed or replaced after its row was read: then row and bytes only seem to
// disagree, and the request is to be answered anew. That ends, as the row is read
// again each time, and no request is for a row that changes all the time.
func (s *Server) hasChanged(ctx context.Context, item *storage.Item, err error) bool {
	if !errors.Is(err, storage.ErrDisagree) {
		return false
	}
	s.nars.forget(item.Hash)
	now, err := s.items.Item(ctx, item.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return true
	}
	return err == nil && (!bytes.Equal(now.Text, item.Text) || now.Stored != item.Stored || !slices.Equal(now.Sizes, item.Sizes))
}

// sendPart answers with length bytes of a file, which begin at start: all of
// it, or the content of a flat nar. It knows ranges and conditions. unopened
// answers in its place when the file can't be opened.
func (s *Server) sendPart(ctx *fasthttp.RequestCtx, unopened func(error), open opener, tag, contentType string, start, length int64) {
	header := &ctx.Request.Header
	wanted := byteRange{0, length}
	partial := false
	var rangeErr error
	if field := header.Peek("Range"); len(field) > 0 {
		wanted, partial, rangeErr = parseRange(string(field), length)
	}
	if ctx.IsHead() {
		// To look is enough. Far away, all that was opened would be sent.
		whole := open
		open = func(offset, _ int64) (io.ReadCloser, storage.Info, error) { return whole(offset, 0) }
	}
	response := &ctx.Response
	if len(header.Peek("If-None-Match")) > 0 || len(header.Peek("If-Modified-Since")) > 0 {
		// And who has it already gets no byte of it.
		reader, info, err := open(start, 0)
		if err != nil {
			unopened(err)
			return
		}
		reader.Close()
		if etag := entityTag(tag, length, info.ModTime); notModified(header, etag, info.ModTime) {
			describe(response, etag, info.ModTime)
			response.SetStatusCode(fasthttp.StatusNotModified)
			return
		}
	}
	reader, info, err := open(start+wanted.start, wanted.length)
	if err != nil {
		unopened(err)
		return
	}
	etag := entityTag(tag, length, info.ModTime)
	stale := !rangeStillGood(string(header.Peek("If-Range")), etag, info.ModTime)
	if rangeErr != nil && !stale {
		reader.Close()
		s.unsatisfiable(ctx, length)
		return
	}
	if partial && stale {
		// The client's part is of another file, so it gets this one whole.
		reader.Close()
		partial, wanted = false, byteRange{0, length}
		if reader, info, err = open(start, length); err != nil {
			unopened(err)
			return
		}
		etag = entityTag(tag, length, info.ModTime)
	}
	describe(response, etag, info.ModTime)
	response.Header.SetContentType(contentType)
	if partial {
		response.SetStatusCode(fasthttp.StatusPartialContent)
		response.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", wanted.start, wanted.start+wanted.length-1, length))
	}
	s.stream(ctx, part{io.LimitReader(reader, wanted.length), reader}, wanted.length)
}

// describe has an answer say of which file it is.
func describe(response *fasthttp.Response, etag string, modified time.Time) {
	response.Header.Set("ETag", etag)
	response.Header.Set("Last-Modified", modified.UTC().Format(httpTime))
	response.Header.Set("Accept-Ranges", "bytes")
}

// entityTag names the bytes of a file. The time tells two apart that have the
// same nar and length, such as one that was compressed again.
func entityTag(tag string, length int64, modified time.Time) string {
	etag := make([]byte, 0, 96)
	etag = append(append(etag, '"'), tag...)
	etag = strconv.AppendInt(append(etag, '-'), length, 16)
	etag = strconv.AppendInt(append(etag, '-'), modified.UnixNano(), 16)
	return string(append(etag, '"'))
}

// part is the part of a file that was asked for. A store's reader may give more.
type part struct {
	io.Reader
	file io.ReadCloser
}

func (p part) Close() error { return p.file.Close() }

// stream answers with the length bytes that the body gives, and closes it. It
// must give exactly that many: anything else cuts the connection.
func (s *Server) stream(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) {
	if length > math.MaxInt || length < 0 {
		body.Close()
		s.fault(ctx, "send a nar", fmt.Errorf("length %d", length))
		return
	}
	if ctx.IsHead() {
		body.Close()
		ctx.Response.SkipBody = true
		ctx.Response.Header.SetContentLength(int(length))
		return
	}
	if p, ok := body.(part); ok {
		if file := newFileBody(ctx, p.file, length); file != nil {
			ctx.Response.SetBodyStream(file, int(length))
			return
		}
	}
	ctx.Response.SetBodyStream(newCopiedBody(ctx, body, length), int(length))
}

// sendNar answers with the item's nar without compression: from a file that has
// none, or decompressed on the way.
func (s *Server) sendNar(ctx *fasthttp.RequestCtx, item *storage.Item) {
	n := s.easiest(item)
	if n < 0 {
		s.notFound(ctx, "this nar is not stored here")
		return
	}
	if item.Narinfo.Files[n].Compression == "none" {
		if item.HasStored(n) {
			s.sendStored(ctx, item, n)
		} else {
			s.sendElsewhere(ctx, item, n)
		}
		return
	}
	size := item.Narinfo.NarSize
	// The hash names the bytes, however they were made.
	etag := `"` + item.Narinfo.NarHash.String()[len("sha256:"):] + `"`
	ctx.Response.Header.Set("ETag", etag)
	ctx.Response.Header.Set("Accept-Ranges", "none")
	if notModified(&ctx.Request.Header, etag, time.Time{}) {
		ctx.Response.SetStatusCode(fasthttp.StatusNotModified)
		return
	}
	decoder, err := s.decode(ctx, item, n)
	if err != nil {
		ctx.Response.Header.Reset()
		s.undecoded(ctx, item, err)
		return
	}
	ctx.Response.Header.SetContentType(narType)
	verified := s.verify(decoder, size, item.Narinfo.NarHash, item)
	if size < 0 {
		ctx.Response.SetBodyStream(verified, -1) // in chunks, the last only if all was well
		return
	}
	s.stream(ctx, verified, size)
}
