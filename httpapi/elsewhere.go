package httpapi

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// errElsewhere says that instances which may have a nar can't be asked.
var errElsewhere = errors.New("a nar that is not stored here could not be fetched")

// elsewhere opens the item's Nth file at another instance. What is read ends with live.
func (s *Server) elsewhere(ctx *fasthttp.RequestCtx, live context.Context, item *storage.Item, n int) opener {
	via, ok := s.via(ctx) // now, as a decoder may open the file again later
	return func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		if s.options.Elsewhere == nil || !ok || item.FileName(n) == "" {
			return nil, bytestore.Info{}, storage.ErrNotStored
		}
		// When it was changed there is not ours to say; nor did it, for clients.
		info := bytestore.Info{Name: item.FileName(n), Size: item.StoredSize(n), ModTime: item.AddedAt.Truncate(time.Second)}
		if length == 0 {
			_, sum, err := s.options.Elsewhere.Locate(live, item, n, via)
			info.Sum = sum
			s.passThrough(ctx, err)
			return nothing{}, info, elsewhereError(err)
		}
		body, size, err := s.options.Elsewhere.OpenFile(live, item, n, offset, length, via)
		info.Size, info.Sum = size, peer.SumOf(body)
		s.passThrough(ctx, err)
		return body, info, elsewhereError(err)
	}
}

// remoteBody notes when an answer is cut, as its body fails.
type remoteBody struct {
	io.ReadCloser
	s    *Server
	item *storage.Item
}

func (b *remoteBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.s != nil {
		b.s.cutElsewhere(b.item, err)
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

// sendElsewhere answers with the item's Nth file, which is not stored here.
func (s *Server) sendElsewhere(ctx *fasthttp.RequestCtx, item *storage.Item, n int) {
	remote := s.elsewhere(ctx, s.live, item, n)
	open := func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		body, info, err := remote(offset, length)
		if _, local := body.(bytestore.LocalFile); err == nil && !local {
			body = &remoteBody{body, s, item}
		}
		return body, info, err
	}
	if s.options.RedirectElsewhere && s.options.Elsewhere != nil && s.redirectElsewhere(ctx, item, n) {
		return
	}
	tag, size := narTag(item, item.Narinfo.Files[n].Compression), item.StoredSize(n)
	if size >= 0 {
		s.sendPart(ctx, content{source: &sourceFuncs{open, func(err error) { s.unopened(ctx, item, err) }, byTime(tag)}, contentType: narType, length: size})
		return
	}
	// Only who has it knows its size; no part of it can be asked for.
	length := int64(-1)
	if ctx.IsHead() {
		length = 0
	}
	body, info, err := open(0, length)
	if err != nil {
		s.unopened(ctx, item, err)
		return
	}
	ctx.Response.Header.SetContentType(narType)
	switch {
	case ctx.IsHead():
		ctx.Response.SkipBody = true
	case info.Size >= 0:
		s.streamFile(ctx, body, info.Size)
	default:
		ctx.Response.SetBodyStream(body, -1)
	}
}

// redirectElsewhere redirects a client to the item's Nth file, or answers why not. It
// returns false where the file has to be streamed, as its URL has a password.
func (s *Server) redirectElsewhere(ctx *fasthttp.RequestCtx, item *storage.Item, n int) bool {
	via, ok := s.via(ctx)
	if !ok {
		s.unopened(ctx, item, storage.ErrNotStored)
		return true
	}
	location, _, err := s.options.Elsewhere.Locate(s.live, item, n, via)
	if err != nil {
		s.unopened(ctx, item, elsewhereError(err))
		return true
	}
	if location == "" {
		return false
	}
	// Where it is may be another place tomorrow.
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("Location", location)
	respond.Fail(ctx, fasthttp.StatusFound, "this nar is stored elsewhere")
	return true
}

// open returns the opener of the item's Nth file, where it is. The caller compares what it
// decompresses with its hash, so other instances' bytes are not compared before.
func (s *Server) open(ctx *fasthttp.RequestCtx, item *storage.Item, n int) opener {
	live := peer.Uncompared(s.live)
	if item.HasStored(n) {
		return s.storedOrNot(ctx, live, item, n)
	}
	return s.elsewhere(ctx, live, item, n)
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

// cutElsewhere notes that an answer was cut, since another instance has stopped
// to send a nar, or has sent something else.
func (s *Server) cutElsewhere(item *storage.Item, err error) {
	s.log.Warn("a nar that is stored elsewhere did not come whole, or is damaged there; the client's connection was cut",
		"item", item.Narinfo.StorePath.String(), "error", err)
	s.metrics.unreached.Inc()
}
