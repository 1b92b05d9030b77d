package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/peerapi"
	"nar-herder/httpapi/respond"
	"nar-herder/httpapi/verify"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const narType = "application/octet-stream"

// serveNar answers for a nar. name is its path in narinfos, and base the path's last segment.
func (s *Server) serveNar(ctx *fasthttp.RequestCtx, name, base string) {
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		respond.NotFound(ctx, "that is not the name of a nar")
		return
	}
	for s.answerNar(ctx, path, name, base) {
		ctx.Response.Reset()
	}
}

// answerNar looks up the item, chooses the file and sends it. It returns true if the item was
// removed or replaced meanwhile, and the request must be answered again. This terminates: the
// row is read again each time, and no row changes all the time.
func (s *Server) answerNar(ctx *fasthttp.RequestCtx, path narinfo.StorePath, name, base string) (again bool) {
	item, err := s.lookUp(ctx, path.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		respond.NotFound(ctx, "there is no such nar")
		return false
	}
	if err != nil {
		s.fault(ctx, "look up an item", err)
		return false
	}
	if n := item.FileNamed(name); n >= 0 {
		return s.finish(ctx, item, "", s.sendNamed(ctx, item, n))
	}
	if item.Narinfo.StorePath == path {
		// Every stored item has a nar without compression, decompressed if necessary.
		if name == "nar/"+base {
			return s.finish(ctx, item, "", s.sendPlain(ctx, item))
		}
		for _, file := range item.cached {
			if name == "nar/"+file.Type+"/"+base {
				return s.finish(ctx, item, file.Type, s.sendCached(ctx, item, file))
			}
		}
	}
	respond.NotFound(ctx, "there is no such nar")
	return false
}

// finish answers with an error if the nar could not be opened, and counts the request. It
// returns true without an answer if the item has changed.
func (s *Server) finish(ctx *fasthttp.RequestCtx, item *nars, kind string, err error) (again bool) {
	if err != nil && s.unopened(ctx, item.Item, err) {
		return true
	}
	s.used(ctx, item, kind)
	return false
}

// serveKnown is a fast path for nars of items in memory. It doesn't decode the path, which
// must be exactly that of the narinfo. It reports whether it answered.
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
			if s.finish(ctx, item, "", s.sendNamed(ctx, item, n)) {
				ctx.Response.Reset()
				return false // serveNar looks it up again
			}
			return true
		}
	}
	return false
}

var narPrefix = []byte("/nar/")

// sendFile answers with the item's Nth file, or returns an error if it can't be opened.
func (s *Server) sendFile(ctx *fasthttp.RequestCtx, known *nars, n int) error {
	item := known.Item
	if !item.HasStored(n) {
		return s.sendRemote(ctx, known, n)
	}
	switch {
	case s.options.AccelRedirect:
		file := &narFile{s: s, ctx: ctx, live: s.live, item: known, n: n}
		err := leaveToProxy(ctx, file.openStored, "/internal/"+item.FileName(n))
		if !errors.Is(err, storage.ErrNotStored) {
			return err
		}
	case s.options.Presigned != nil && ctx.IsGet(): // the signature covers the method
		err := s.sendToStore(ctx, item, n)
		if !errors.Is(err, storage.ErrNotStored) {
			return err
		}
	default:
		var kept *content.Kept
		if known.files != nil {
			kept = &known.files[n]
		}
		return s.sender.Send(ctx, content.File{Source: &storedFile{narFile{s: s, ctx: ctx, live: s.live, item: known, n: n}}, Kept: kept, Type: narType, Length: item.StoredSize(n)})
	}
	return s.sendRemote(ctx, known, n)
}

// used sets Cache-Control, and counts the request if it was answered with the beginning of a nar.
func (s *Server) used(ctx *fasthttp.RequestCtx, item *nars, kind string) {
	s.setNarCacheControl(ctx, item, kind)
	if s.options.Uses == nil || !ctx.IsGet() {
		return
	}
	switch ctx.Response.StatusCode() {
	case fasthttp.StatusOK, fasthttp.StatusFound:
	case fasthttp.StatusPartialContent:
		if !bytes.HasPrefix(ctx.Response.Header.Peek("Content-Range"), []byte("bytes 0-")) {
			return // a resumed download, which was counted
		}
	default:
		return
	}
	s.options.Uses.Used(item.Hash, kind)
}

// nars is an item with its cached nars and known checksums.
type nars struct {
	*storage.Item
	cached []index.CachedFile
	files  []content.Kept // by number in the narinfo; nil if this value is not in s.nars
	sums   []index.Checksum
}

// lookUp returns an item, and continues the request outside the event loop.
func (s *Server) lookUp(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) (*nars, error) {
	engine.Enter(ctx, s.pool)
	item, err := s.item(s.live, hash)
	if s.options.Upstreams != nil && isUnknown(err) {
		item, err = s.addItem(ctx, hash)
	}
	if err == nil {
		engine.LeaveLoop(ctx)
	}
	return item, err
}

// item returns the item, from memory if possible.
func (s *Server) item(ctx context.Context, hash narinfo.PathHash) (*nars, error) {
	found, ok, generation := s.nars.Get(hash)
	if ok {
		return found, nil
	}
	item, err := s.items.Item(ctx, hash)
	if err != nil {
		return nil, err
	}
	found = &nars{Item: item, files: make([]content.Kept, len(item.Narinfo.Files))}
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

// sendCached answers with a cached nar, or returns an error if it can't be opened.
func (s *Server) sendCached(ctx *fasthttp.RequestCtx, known *nars, file index.CachedFile) error {
	item := known.Item
	open := func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		reader, info, err := s.options.Cached.Open(s.live, item, file, offset, length)
		if errors.Is(err, storage.ErrNotStored) {
			s.nars.Forget(item.Hash)
		}
		return reader, info, err
	}
	if s.options.AccelRedirect {
		return leaveToProxy(ctx, open, "/internal/cached-nar/"+file.Type+"/"+item.Narinfo.StorePath.BaseName())
	}
	tag := s.tagOf(known, "cached-nar/"+file.Type, file.Type, func(ctx context.Context) (io.ReadCloser, bytestore.Info, error) {
		return s.options.Cached.Open(ctx, item, file, 0, -1)
	})
	return s.sender.Send(ctx, content.File{Source: &content.Funcs{OpenFunc: open, TagFunc: tag}, Type: narType, Length: file.Size})
}

// narFile is the item's Nth file, in the storage or at another instance.
type narFile struct {
	s    *Server
	ctx  *fasthttp.RequestCtx
	live context.Context // of reads
	item *nars
	n    int

	viaRead bool
	via     []string // the instances that have forwarded the request
	canPass bool
}

// readVia reads the Via headers when the file is opened first. A decoder may open it again.
func (f *narFile) readVia() {
	if !f.viaRead {
		f.via, f.canPass = f.s.via(f.ctx)
		f.viaRead = true
	}
}

// Open opens the file. If it is missing from the storage, as a front end can't know before,
// another instance may have it.
func (f *narFile) Open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	f.readVia()
	if f.item.HasStored(f.n) {
		reader, info, err := f.openStored(offset, length)
		if !errors.Is(err, storage.ErrNotStored) {
			return reader, info, err
		}
	}
	return f.openRemote(offset, length)
}

func (f *narFile) openStored(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	return f.s.items.OpenFile(f.s.live, f.item.Item, f.n, offset, length)
}

// openRemote opens the file at another instance.
func (f *narFile) openRemote(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	item, remote := f.item.Item, f.s.options.Remote
	if remote == nil || !f.canPass || item.FileName(f.n) == "" {
		return nil, bytestore.Info{}, storage.ErrNotStored
	}
	// The time of the file's last change there is unknown, so use one that doesn't change.
	info := bytestore.Info{Name: item.FileName(f.n), Size: item.StoredSize(f.n), ModTime: item.AddedAt.Truncate(time.Second)}
	if length == 0 {
		_, sum, err := remote.Locate(f.live, item, f.n, f.via)
		info.Sum = sum
		f.s.passThrough(f.ctx, err)
		return nothing{}, info, remoteError(err)
	}
	body, size, err := remote.OpenFile(f.live, item, f.n, offset, length, f.via)
	info.Size, info.Sum = size, peer.SumOf(body)
	f.s.passThrough(f.ctx, err)
	return body, info, remoteError(err)
}

// storedFile is a narFile that is verified by the NarHash if it has no compression.
type storedFile struct{ narFile }

func (f *storedFile) Open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	item := f.item.Item
	if item.Narinfo.Files[f.n].Compression == "none" {
		return f.s.checker.Compared(verify.Part{Item: item, Start: 0, Length: item.StoredSize(f.n), Want: item.Narinfo.NarHash}, f.narFile.Open)(offset, length)
	}
	return f.narFile.Open(offset, length)
}

func (f *storedFile) Tag(length int64, info bytestore.Info) (etag, former []byte) {
	s, item, n := f.s, f.item.Item, f.n
	return s.tagOf(f.item, item.FileName(n), item.Narinfo.Files[n].Compression, func(ctx context.Context) (io.ReadCloser, bytestore.Info, error) {
		return s.items.OpenFile(ctx, item, n, 0, -1)
	})(length, info)
}

// presignedFor is the lifetime of a presigned URL. Clients follow it at once, and a download
// that has begun continues after it.
const presignedFor = 10 * time.Minute

// sendToStore redirects a client to the byte store for the item's Nth file, which must be
// there.
func (s *Server) sendToStore(ctx *fasthttp.RequestCtx, item *storage.Item, n int) error {
	if err := s.items.LookFor(s.live, item, n); err != nil {
		return err
	}
	location, err := s.options.Presigned.Presign(s.live, item.FileName(n), presignedFor)
	if err == nil {
		redirectTo(ctx, location, "this nar is in an object store")
	}
	return err
}

// leaveToProxy makes the web server in front send the file, with the header and paths of the
// original Nar Herder, if the file can be opened here.
func leaveToProxy(ctx *fasthttp.RequestCtx, open content.Opener, path string) error {
	reader, _, err := open(0, 0)
	if err != nil {
		return err
	}
	reader.Close()
	ctx.Response.Header.SetContentType(narType)
	ctx.Response.Header.Set("X-Accel-Redirect", headers.EscapePath(path))
	return nil
}

// unopened answers with the error of opening a file of the item. It returns true without an
// answer if the item has changed since it was looked up.
func (s *Server) unopened(ctx *fasthttp.RequestCtx, item *storage.Item, err error) (changed bool) {
	if errors.Is(err, storage.ErrMismatch) {
		s.nars.Forget(item.Hash)
	}
	switch {
	case errors.Is(err, storage.ErrNotStored):
		respond.NotFound(ctx, "this nar is not stored here")
		if item.Origin != 0 && s.cacheControls.Lost != "" {
			ctx.Response.Header.Set(fasthttp.HeaderCacheControl, s.cacheControls.Lost)
		}
	case errors.Is(err, errRemote):
		s.unreached(ctx, item, err)
	case errors.Is(err, verify.ErrDamaged):
		s.damaged(ctx, item)
	case errors.Is(err, verify.ErrComparing):
		s.busy(ctx, verify.ErrComparing.Error()+", try again later")
	case errors.Is(err, decoders.ErrTooMany):
		s.busy(ctx, decoders.ErrTooMany.Error()+", try again later or ask for a compressed one")
	case peerapi.HasChanged(s.live, s.items, item, err):
		return true
	default:
		s.fault(ctx, "open a nar", err)
	}
	return false
}

// busy answers that a nar is not available at the moment.
func (s *Server) busy(ctx *fasthttp.RequestCtx, message string) {
	ctx.Response.Header.Set("Retry-After", "30")
	respond.Fail(ctx, fasthttp.StatusServiceUnavailable, message)
}

// sendPlain answers with the item's nar without compression, and decompresses it if
// necessary, or returns an error if it can't be opened.
func (s *Server) sendPlain(ctx *fasthttp.RequestCtx, known *nars) error {
	return s.withEasiest(ctx, known.Item, s.easiest(known.Item), func(n int) error { return s.sendPlainFrom(ctx, known, n) })
}

// sendPlainFrom is sendPlain with the item's Nth file.
func (s *Server) sendPlainFrom(ctx *fasthttp.RequestCtx, known *nars, n int) error {
	item := known.Item
	if item.Narinfo.Files[n].Compression == "none" {
		return s.sendFile(ctx, known, n)
	}
	// The NarHash identifies the bytes, whatever file they are decompressed from.
	etag := `"` + item.Narinfo.NarHash.String()[len("sha256:"):] + `"`
	if headers.AnswerConditions(ctx, time.Time{}, etag) {
		describeWhole(ctx, etag)
		return nil
	}
	decoder, err := s.decode(ctx, known, n)
	if err != nil {
		return err
	}
	ctx.Response.Header.SetContentType(narType)
	describeWhole(ctx, etag)
	return s.sendVerified(ctx, decoder, decoder, item.Narinfo.NarSize, item.Narinfo.NarHash, item)
}

// describeWhole sets the entity tag of content that can't be sent in ranges.
func describeWhole(ctx *fasthttp.RequestCtx, etag string) {
	ctx.Response.Header.Set("ETag", etag)
	ctx.Response.Header.Set("Accept-Ranges", "none")
}
