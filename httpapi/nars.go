package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/peerapi"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const narType = "application/octet-stream"

// serveNar answers for a nar by the path that narinfos name, whether the client
// has read one or not. base is the path's last segment.
func (s *Server) serveNar(ctx *fasthttp.RequestCtx, name, base string) {
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		respond.NotFound(ctx, "that is not the name of a nar")
		return
	}
	item, err := s.lookUp(ctx, path.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		respond.NotFound(ctx, "there is no such nar")
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
	respond.NotFound(ctx, "there is no such nar")
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
	item, ok, _ := s.nars.Get(hash)
	if !ok {
		return false
	}
	for n := range item.Narinfo.Files {
		if item.FileName(n) != "" && string(path[1:]) == item.Narinfo.Files[n].URL {
			if item.files == nil || item.files[n].Load() == nil {
				engine.LeaveLoop(ctx)
			}
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

// lookUp returns an item for an answer, outside the loop.
func (s *Server) lookUp(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) (*nars, error) {
	engine.Enter(ctx, s.pool)
	item, err := s.item(s.live, hash)
	if err == nil {
		engine.LeaveLoop(ctx)
	}
	return item, err
}

// item returns the item, perhaps as it was a moment ago.
func (s *Server) item(ctx context.Context, hash narinfo.PathHash) (*nars, error) {
	found, ok, generation := s.nars.Get(hash)
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
	if !s.nars.Put(hash, found, generation) {
		found.files = nil
	}
	return found, nil
}

// sendCached answers with a file that was made of the item's nar.
func (s *Server) sendCached(ctx *fasthttp.RequestCtx, known *nars, file index.CachedFile) {
	item := known.Item
	open := func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		reader, info, err := s.options.Cached.Open(s.live, item, file, offset, length)
		if errors.Is(err, storage.ErrNotStored) {
			s.nars.Forget(item.Hash)
		}
		return reader, info, err
	}
	if s.options.AccelRedirect {
		s.redirect(ctx, open, s.unopenedItem(ctx, item), "/internal/cached-nar/"+file.Type+"/"+item.Narinfo.StorePath.BaseName())
		return
	}
	s.sendPart(ctx, content{contentType: narType, length: file.Size, source: &sourceFuncs{
		open, s.unopenedItem(ctx, item),
		s.tagOf(known, "cached-nar/"+file.Type, file.Type, func(ctx context.Context) (io.ReadCloser, bytestore.Info, error) {
			return s.options.Cached.Open(ctx, item, file, 0, -1)
		}),
	}})
}

// stored opens the item's Nth file.
func (s *Server) stored(ctx *fasthttp.RequestCtx, item *storage.Item, n int) opener {
	return func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		return s.items.OpenFile(s.live, item, n, offset, length)
	}
}

// storedOrNot opens the item's Nth file, elsewhere if it turns out not to be here: a
// front end can't know before, and the owner of its storage may.
func (s *Server) storedOrNot(ctx *fasthttp.RequestCtx, live context.Context, item *storage.Item, n int) opener {
	open, elsewhere := s.stored(ctx, item, n), s.elsewhere(ctx, live, item, n)
	return func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
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

func (f *storedFile) open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	item := f.item.Item
	open := f.s.storedOrNot(f.ctx, f.s.live, item, f.n)
	if item.Narinfo.Files[f.n].Compression == "none" {
		open = f.s.compared(plainPart{item, 0, item.StoredSize(f.n), item.Narinfo.NarHash}, open)
	}
	return open(offset, length)
}

func (f *storedFile) unopened(err error) { f.s.unopened(f.ctx, f.item.Item, err) }

func (f *storedFile) tag(length int64, info bytestore.Info) (etag, former []byte) {
	s, item, n := f.s, f.item.Item, f.n
	return s.tagOf(f.item, item.FileName(n), item.Narinfo.Files[n].Compression, func(ctx context.Context) (io.ReadCloser, bytestore.Info, error) {
		return s.items.OpenFile(ctx, item, n, 0, -1)
	})(length, info)
}

// presignedFor is how long a URL of the byte store is good: clients follow it at
// once, and a download that has begun goes on after it.
const presignedFor = 10 * time.Minute

// sendToStore redirects a client to the byte store for the item's Nth file, which
// must be there.
func (s *Server) sendToStore(ctx *fasthttp.RequestCtx, item *storage.Item, n int) {
	err := s.items.LookFor(s.live, item, n)
	if errors.Is(err, storage.ErrNotStored) {
		s.sendElsewhere(ctx, item, n)
		return
	}
	var location string
	if err == nil {
		location, err = s.options.Presigned.Presign(s.live, item.FileName(n), presignedFor)
	}
	if err != nil {
		s.unopened(ctx, item, err)
		return
	}
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("Location", location)
	respond.Fail(ctx, fasthttp.StatusFound, "this nar is in an object store")
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
	ctx.Response.Header.Set("X-Accel-Redirect", headers.EscapePath(path))
}

// unopenedItem is unopened for errors that may come.
func (s *Server) unopenedItem(ctx *fasthttp.RequestCtx, item *storage.Item) func(error) {
	return func(err error) { s.unopened(ctx, item, err) }
}

// unopened answers when a file of the item could not be opened.
func (s *Server) unopened(ctx *fasthttp.RequestCtx, item *storage.Item, err error) {
	if errors.Is(err, storage.ErrNotStored) {
		respond.NotFound(ctx, "this nar is not stored here")
		return
	}
	if errors.Is(err, errElsewhere) {
		s.unreached(ctx, item, err)
		return
	}
	if errors.Is(err, errDamaged) {
		s.damaged(ctx, item)
		return
	}
	if errors.Is(err, errComparing) {
		ctx.Response.Header.Set("Retry-After", "30")
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, errComparing.Error()+", try again later")
		return
	}
	if errors.Is(err, storage.ErrDisagree) {
		s.nars.Forget(item.Hash)
	}
	if !peerapi.HasChanged(s.live, s.items, item, err) {
		s.fault(ctx, "open a nar", err)
		return
	}
	ctx.Response.Reset()
	s.dispatch(ctx)
	ctx.SetUserValue(answeredAnew{}, true)
}

// answeredAnew marks a request that was answered, and counted, by a second dispatch.
type answeredAnew struct{}

// sendNar answers with the item's nar without compression: from a file that has
// none, or decompressed on the way.
func (s *Server) sendNar(ctx *fasthttp.RequestCtx, known *nars) {
	item := known.Item
	n := s.easiest(item)
	if n < 0 {
		respond.NotFound(ctx, "this nar is not stored here")
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
	if headers.AnswerConditions(ctx, time.Time{}, etag) {
		return
	}
	decoder, err := s.decode(ctx, item, n)
	if err != nil {
		ctx.Response.Header.Reset()
		s.undecoded(ctx, item, err)
		return
	}
	ctx.Response.Header.SetContentType(narType)
	s.sendVerified(ctx, decoder, decoder, size, item.Narinfo.NarHash, item)
}
