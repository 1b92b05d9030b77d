package httpapi

import (
	"context"
	"errors"
	"io"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/content"
	"nar-herder/httpapi/respond"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// errElsewhere says that instances which may have a nar can't be asked.
var errElsewhere = errors.New("a nar that is not stored here could not be fetched")

// remoteBody notes when an answer is cut, as its body fails.
type remoteBody struct {
	io.ReadCloser
	s    *Server
	item *storage.Item
}

func (b *remoteBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.s != nil {
		b.s.cutRemote(b.item, err)
		b.s = nil // once
	}
	return n, err
}

// passThrough notes that an answer comes from another instance: parts of it may not have
// been compared with the NarHash, so caches must not rely on them for long.
func (s *Server) passThrough(ctx *fasthttp.RequestCtx, err error) {
	if err == nil {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, respond.Revalidate)
	}
}

// via returns what a request has come through, and whether it may be passed on.
func (s *Server) via(ctx *fasthttp.RequestCtx) (via []string, ok bool) {
	for _, line := range ctx.Request.Header.PeekAll(peer.ViaHeader) {
		via = append(via, string(line))
	}
	if s.options.Identity == nil {
		return via, len(via) == 0
	}
	return via, peer.CanPass(via, s.options.Identity.Instance())
}

func elsewhereError(err error) error {
	if err == nil || errors.Is(err, storage.ErrNotStored) {
		return err
	}
	return errors.Join(errElsewhere, err)
}

// nothing is the body of an answer that has none.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }
func (nothing) Close() error             { return nil }

// sendRemote answers with the item's Nth file, which is not stored here, or returns why it
// can't be opened.
func (s *Server) sendRemote(ctx *fasthttp.RequestCtx, known *nars, n int) error {
	item := known.Item
	if s.options.RedirectElsewhere && s.options.Elsewhere != nil {
		location, err := s.locate(ctx, item, n)
		if err != nil {
			return err
		}
		if location != "" { // else it has a password, and the file is streamed
			// It may be at another URL tomorrow.
			redirectTo(ctx, location, "this nar is stored elsewhere")
			return nil
		}
	}
	file := &remoteFile{narFile{s: s, ctx: ctx, live: s.live, item: known, n: n}}
	if size := item.StoredSize(n); size >= 0 {
		return s.sender.Send(ctx, content.File{Source: file, Type: narType, Length: size})
	}
	// Only the other instance knows the size; no part of the file can be asked for.
	length := int64(-1)
	if ctx.IsHead() {
		length = 0
	}
	body, info, err := file.Open(0, length)
	if err != nil {
		return err
	}
	ctx.Response.Header.SetContentType(narType)
	switch {
	case ctx.IsHead():
		ctx.Response.SkipBody = true
	case info.Size >= 0:
		return content.StreamFile(ctx, body, info.Size)
	default:
		ctx.Response.SetBodyStream(body, -1)
	}
	return nil
}

// locate returns the URL of the item's Nth file at another instance, "" for one that clients
// must not see.
func (s *Server) locate(ctx *fasthttp.RequestCtx, item *storage.Item, n int) (string, error) {
	via, ok := s.via(ctx)
	if !ok {
		return "", storage.ErrNotStored
	}
	location, _, err := s.options.Elsewhere.Locate(s.live, item, n, via)
	return location, elsewhereError(err)
}

// redirectTo redirects a client to a URL that is good for a short time.
func redirectTo(ctx *fasthttp.RequestCtx, location, message string) {
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, respond.NoStore)
	ctx.Response.Header.Set("Location", location)
	respond.Fail(ctx, fasthttp.StatusFound, message)
}

// remoteFile is a narFile that is not stored here.
type remoteFile struct{ narFile }

func (f *remoteFile) Open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	f.noteVia()
	body, info, err := f.openRemote(offset, length)
	if _, local := body.(bytestore.LocalFile); err == nil && !local {
		body = &remoteBody{body, f.s, f.item.Item}
	}
	return body, info, err
}

func (f *remoteFile) Tag(length int64, info bytestore.Info) (etag, former []byte) {
	return content.ByTime(narTag(f.item.Item, f.item.Narinfo.Files[f.n].Compression))(length, info)
}

// easiest returns which of the item's files takes the least work to get the nar
// out of, of those that are here, or else of those that may be elsewhere.
func (s *Server) easiest(item *storage.Item) int {
	n := item.EasiestFile(item.HasStored)
	if n < 0 && s.options.Elsewhere != nil {
		n = item.EasiestFile(func(n int) bool { return item.FileName(n) != "" })
	}
	return n
}

// unreached answers when other instances could not be asked.
func (s *Server) unreached(ctx *fasthttp.RequestCtx, item *storage.Item, err error) {
	if !errors.Is(err, context.Canceled) {
		s.log.Warn("can't answer with a nar that is stored elsewhere", "item", item.Narinfo.StorePath.String(), "error", err)
	}
	s.metrics.unreached.Inc()
	respond.Fail(ctx, fasthttp.StatusBadGateway, "this nar is stored elsewhere, where it can't be fetched now")
}

// cutRemote notes that an answer was cut, since another instance has stopped
// to send a nar, or has sent something else.
func (s *Server) cutRemote(item *storage.Item, err error) {
	s.log.Warn("a nar that is stored elsewhere did not come whole, or is damaged there; the client's connection was cut",
		"item", item.Narinfo.StorePath.String(), "error", err)
	s.metrics.unreached.Inc()
}
