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
	"nar-herder/storage/checksums"
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
		s.serveNamed(ctx, item, n)
		return
	}
	if item.Narinfo.StorePath == path {
		// A nar without compression is there for every item that is stored.
		if name == "nar/"+base {
			s.sendNar(ctx, item)
			s.used(ctx, item, "")
			return
		}
		for _, file := range item.cached {
			if name == "nar/"+file.Type+"/"+base {
				s.sendCached(ctx, item, file)
				s.used(ctx, item, file.Type)
				return
			}
		}
	}
	s.notFound(ctx, "there is no such nar")
}

// serveKnown answers for a nar of an item that was asked for lately, if the path is
// exactly as its narinfo has it, and reports whether it did. Popular nars cost no
// decoding of their paths.
func (s *Server) serveKnown(ctx *fasthttp.RequestCtx, path []byte) bool {
	if !bytes.HasPrefix(path, narPrefix) {
		return false
	}
	base := path[bytes.LastIndexByte(path, '/')+1:]
	if len(base) < narinfo.PathHashLen {
		return false
	}
	hash, err := narinfo.ParsePathHash(base[:narinfo.PathHashLen])
	if err != nil {
		return false
	}
	item, ok, _ := s.nars.get(hash)
	if !ok {
		return false
	}
	for n := range item.Narinfo.Files {
		if item.FileName(n) != "" && string(path[1:]) == item.Narinfo.Files[n].URL {
			s.serveNamed(ctx, item, n)
			return true
		}
	}
	return false
}

var narPrefix = []byte("/nar/")

// serveNamed answers with the item's Nth file.
func (s *Server) serveNamed(ctx *fasthttp.RequestCtx, item *nars, n int) {
	s.sendFile(ctx, item, n)
	s.used(ctx, item, "")
}

// sendFile answers with the item's Nth file, wherever it is stored.
func (s *Server) sendFile(ctx *fasthttp.RequestCtx, item *nars, n int) {
	if item.HasStored(n) {
		s.sendStored(ctx, item, n)
	} else {
		s.sendElsewhere(ctx, item.Item, n)
	}
}

// used counts a request that was answered with a nar, from its beginning on.
func (s *Server) used(ctx *fasthttp.RequestCtx, item *nars, kind string) {
	s.setNarCacheControl(ctx, item, kind)
	if s.options.Uses == nil || !ctx.IsGet() || ctx.UserValue(answeredAnew{}) != nil {
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
	files  []keptFile // of the Item; nil if this is for one answer alone
	sums   []index.Checksum
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
	found = &nars{Item: item, files: make([]keptFile, len(item.Narinfo.Files))}
	if s.options.Cached != nil {
		if found.cached, err = s.options.Cached.Files(ctx, hash); err != nil {
			return nil, err
		}
	}
	if s.options.Checksums != nil {
		if found.sums, err = s.options.Checksums.Checksums(ctx, hash); err != nil {
			return nil, err
		}
	}
	if !s.nars.put(hash, found, ticket) {
		found.files = nil
	}
	return found, nil
}

// sendCached answers with a file that was made of the item's nar.
func (s *Server) sendCached(ctx *fasthttp.RequestCtx, known *nars, file index.CachedFile) {
	item := known.Item
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
	s.sendPart(ctx, content{contentType: narType, length: file.Size, source: &sourceFuncs{
		open, s.unopenedItem(ctx, item),
		s.tagOf(known, "cached-nar/"+file.Type, file.Type, func(ctx context.Context) (io.ReadCloser, storage.Info, error) {
			return s.options.Cached.Open(ctx, item, file, 0, -1)
		}),
	}})
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

// sendStored answers with the item's Nth file as it is in the storage.
func (s *Server) sendStored(ctx *fasthttp.RequestCtx, known *nars, n int) {
	item := known.Item
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
	var kept *keptFile
	if known.files != nil {
		kept = &known.files[n]
	}
	s.sendPart(ctx, content{source: &storedFile{s, ctx, known, n}, kept: kept, contentType: narType, length: item.StoredSize(n)})
}

// storedFile is the item's Nth file in the storage, or elsewhere if it turns out not to
// be there.
type storedFile struct {
	s    *Server
	ctx  *fasthttp.RequestCtx
	item *nars
	n    int
}

func (f *storedFile) open(offset, length int64) (io.ReadCloser, storage.Info, error) {
	return f.s.storedOrNot(f.ctx, f.item.Item, f.n)(offset, length)
}

func (f *storedFile) unopened(err error) { f.s.unopened(f.ctx, f.item.Item, err) }

func (f *storedFile) tag(length int64, info storage.Info) (etag, former []byte) {
	s, item, n := f.s, f.item.Item, f.n
	return s.tagOf(f.item, item.FileName(n), item.Narinfo.Files[n].Compression, func(ctx context.Context) (io.ReadCloser, storage.Info, error) {
		return s.items.OpenFile(ctx, item, n, 0, -1)
	})(length, info)
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

// redirect leaves the sending of the file to the web server in front, by the header and
// paths of the original Nar Herder. The file must be there all the same.
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
	ctx.SetUserValue(answeredAnew{}, true)
}

// answeredAnew marks a request that was answered, and counted, by a second dispatch.
type answeredAnew struct{}

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

// content is what [Server.sendPart] sends: length bytes of a file, from start on. They
// are all of it, or what a flat nar contains.
type content struct {
	source
	kept          *keptFile // nil for a file that isn't kept open
	contentType   string
	start, length int64
}

// source is a file that can be sent.
type source interface {
	// open opens length bytes from offset on.
	open(offset, length int64) (io.ReadCloser, storage.Info, error)
	// unopened answers when the file can't be opened.
	unopened(error)
	// tag makes the entity tag, as a tagger.
	tag(length int64, info storage.Info) (etag, former []byte)
}

// sourceFuncs is a source made of functions.
type sourceFuncs struct {
	openFunc     opener
	unopenedFunc func(error)
	tagFunc      tagger
}

func (f *sourceFuncs) open(offset, length int64) (io.ReadCloser, storage.Info, error) {
	return f.openFunc(offset, length)
}
func (f *sourceFuncs) unopened(err error) { f.unopenedFunc(err) }
func (f *sourceFuncs) tag(length int64, info storage.Info) (etag, former []byte) {
	return f.tagFunc(length, info)
}

// sendPart answers with the content, or the part of it that was asked for.
func (s *Server) sendPart(ctx *fasthttp.RequestCtx, c content) {
	header := &ctx.Request.Header
	length := c.length
	wanted := byteRange{0, length}
	partial := false
	var rangeErr error
	if field := header.Peek("Range"); len(field) > 0 {
		wanted, partial, rangeErr = parseRange(string(field), length)
	}
	response := &ctx.Response
	if hasConditions(header) {
		// A client that has it already gets no byte of it.
		reader, v, err := s.openPart(&c, byteRange{})
		if err != nil {
			c.unopened(err)
			return
		}
		reader.Close()
		if s.sendUnlessConditions(ctx, string(v.etag), v.modified) {
			describe(response, v)
			return
		}
	}
	asked := wanted
	if ctx.IsHead() {
		asked.length = 0 // To look is enough. Far away, all that was opened would be sent.
	}
	reader, v, err := s.openPart(&c, asked)
	if err != nil {
		c.unopened(err)
		return
	}
	ifRange := header.Peek("If-Range")
	if v.former != nil && bytes.Equal(ifRange, v.former) {
		ifRange = v.etag
	}
	stale := !rangeStillGood(string(ifRange), string(v.etag), v.modified)
	if rangeErr != nil && !stale {
		reader.Close()
		s.unsatisfiable(ctx, length)
		return
	}
	if partial && stale {
		// The client's part is of another file, so it gets this one whole.
		reader.Close()
		partial, wanted = false, byteRange{0, length}
		if !ctx.IsHead() {
			asked = wanted
		}
		if reader, v, err = s.openPart(&c, asked); err != nil {
			c.unopened(err)
			return
		}
	}
	describe(response, v)
	response.Header.SetContentType(c.contentType)
	if partial {
		response.SetStatusCode(fasthttp.StatusPartialContent)
		response.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", wanted.start, wanted.start+wanted.length-1, length))
	}
	s.streamFile(ctx, reader, wanted.length)
}

// openPart opens a part of the content.
func (s *Server) openPart(c *content, r byteRange) (io.ReadCloser, *validators, error) {
	offset := c.start + r.start
	if reader, v := c.kept.reader(offset); reader != nil {
		return reader, v, nil
	}
	reader, info, err := c.open(offset, r.length)
	if err != nil {
		return nil, nil, err
	}
	etag, former := c.tag(c.length, info)
	v := &validators{etag, former, info.ModTime.UTC().AppendFormat(nil, httpTime), info.ModTime}
	if whole := (byteRange{0, c.length}); c.kept != nil && r == whole {
		reader = c.kept.keep(&s.keptFiles, reader, info, v, offset)
	}
	return reader, v, nil
}

// describe adds the validators of a file to an answer.
func describe(response *fasthttp.Response, v *validators) {
	response.Header.SetCanonical(etagField, v.etag)
	response.Header.SetCanonical(lastModifiedField, v.lastModified)
	response.Header.SetCanonical(acceptRangesField, bytesUnit)
}

var (
	etagField         = []byte("Etag")
	lastModifiedField = []byte("Last-Modified")
	acceptRangesField = []byte("Accept-Ranges")
	bytesUnit         = []byte("bytes")
)

// tagger makes the entity tag of length bytes of the file that the info describes. former
// is a tag that they had before; nil for none.
type tagger func(length int64, info storage.Info) (etag, former []byte)

// byTime makes entity tags that differ between instances, see [timeTag].
func byTime(name string) tagger {
	return func(length int64, info storage.Info) (etag, _ []byte) {
		return timeTag(name, length, info.ModTime), nil
	}
}

// timeTag is the entity tag of a file of which only its time is known. That tells two
// files apart that have the same nar and length, such as one that was compressed again.
func timeTag(name string, length int64, modified time.Time) []byte {
	etag := append(append(make([]byte, 0, 96), '"'), name...)
	etag = strconv.AppendInt(append(etag, '-'), length, 16)
	etag = strconv.AppendInt(append(etag, '-'), modified.UnixNano(), 16)
	return append(etag, '"')
}

// byContent makes the entity tag of bytes that have the name wherever they are.
func byContent(name string) tagger {
	return func(int64, storage.Info) (etag, _ []byte) { return contentTag(name), nil }
}

func contentTag(name string) []byte { return []byte(`"` + name + `"`) }

// tagOf makes the entity tag of a file of the item: by its checksum, which is the same on
// all instances that serve the same bytes, or by its time until that is known.
func (s *Server) tagOf(item *nars, file, compression string, open checksums.Opener) tagger {
	return func(length int64, info storage.Info) (etag, former []byte) {
		byTime := timeTag(narTag(item.Item, compression), length, info.ModTime)
		for _, sum := range item.sums {
			if sum.File == file && sum.Size == info.Size && sum.Changed.Equal(info.Changed) {
				return contentTag(narinfo.EncodeBase32(sum.Sum[:])), byTime
			}
		}
		if s.options.Checksums != nil && !info.Changed.IsZero() {
			s.options.Checksums.Want(item.Hash, file, open)
		}
		return byTime, nil
	}
}

// part is the part of a file that was asked for. A store's reader may give more.
type part struct {
	io.Reader
	file io.ReadCloser
}

func (p part) Close() error { return p.file.Close() }

// streamFile answers with the length bytes of a file that the reader gives, and closes
// it. A store's reader may give more.
func (s *Server) streamFile(ctx *fasthttp.RequestCtx, reader io.ReadCloser, length int64) {
	if !ctx.IsHead() && length <= math.MaxInt {
		if file := newFileBody(ctx, reader, length); file != nil {
			ctx.Response.SetBodyStream(file, int(length))
			return
		}
	}
	s.stream(ctx, part{io.LimitReader(reader, length), reader}, length)
}

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
	ctx.Response.SetBodyStream(newCopiedBody(ctx, body, length), int(length))
}

// sendNar answers with the item's nar without compression: from a file that has
// none, or decompressed on the way.
func (s *Server) sendNar(ctx *fasthttp.RequestCtx, known *nars) {
	item := known.Item
	n := s.easiest(item)
	if n < 0 {
		s.notFound(ctx, "this nar is not stored here")
		return
	}
	if item.Narinfo.Files[n].Compression == "none" {
		s.sendFile(ctx, known, n)
		return
	}
	size := item.Narinfo.NarSize
	// The hash names the bytes, however they were made.
	etag := `"` + item.Narinfo.NarHash.String()[len("sha256:"):] + `"`
	ctx.Response.Header.Set("ETag", etag)
	ctx.Response.Header.Set("Accept-Ranges", "none")
	if s.sendUnlessConditions(ctx, etag, time.Time{}) {
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
