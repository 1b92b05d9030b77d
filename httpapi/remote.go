package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// errRemote is the error if other instances may have a nar, but can't be reached.
var errRemote = errors.New("a nar that is not stored here could not be fetched")

// remoteBody logs the first failure of an answer's body.
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

// passThrough makes caches revalidate an answer from another instance, as parts of it may
// not have been verified by the NarHash. A decoder that opens the file again calls it after
// the header was sent, without effect.
func (s *Server) passThrough(ctx *fasthttp.RequestCtx, err error) {
	if err == nil {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, respond.Revalidate)
	}
}

// via returns the instances that have forwarded a request, and whether this one may too.
func (s *Server) via(ctx *fasthttp.RequestCtx) (via []string, ok bool) {
	for _, line := range ctx.Request.Header.PeekAll(peer.ViaHeader) {
		via = append(via, string(line))
	}
	if s.options.Identity == nil {
		return via, len(via) == 0
	}
	return via, peer.CanPass(via, s.options.Identity.Instance())
}

func remoteError(err error) error {
	if err == nil || errors.Is(err, storage.ErrNotStored) {
		return err
	}
	return errors.Join(errRemote, err)
}

// nothing is an empty body.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }
func (nothing) Close() error             { return nil }

// sendRemote answers with the item's Nth file, which is not stored here, or returns an error
// if it can't be opened.
func (s *Server) sendRemote(ctx *fasthttp.RequestCtx, known *nars, n int) error {
	item := known.Item
	if s.options.RedirectRemote && s.options.Remote != nil {
		location, err := s.locate(ctx, item, n)
		if err != nil {
			return err
		}
		if location != "" { // else the URL has a password
			redirectTo(ctx, location, "this nar is stored at another instance")
			return nil
		}
	}
	file := &remoteFile{narFile{s: s, ctx: ctx, live: s.live, item: known, n: n}}
	if size := item.StoredSize(n); size >= 0 {
		return s.sender.Send(ctx, content.File{Source: file, Type: narType, Length: size})
	}
	// Only the other instance knows the size, so ranges can't be sent.
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
		engine.SendChunks(ctx, body)
	}
	return nil
}

// locate returns the URL of the item's Nth file at another instance, or "" if clients must
// not see it.
func (s *Server) locate(ctx *fasthttp.RequestCtx, item *storage.Item, n int) (string, error) {
	via, ok := s.via(ctx)
	if !ok {
		return "", storage.ErrNotStored
	}
	location, _, err := s.options.Remote.Locate(s.live, item, n, via)
	return location, remoteError(err)
}

// redirectTo redirects a client to a URL that is valid for a short time.
func redirectTo(ctx *fasthttp.RequestCtx, location, message string) {
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, respond.NoStore)
	ctx.Response.Header.Set("Location", location)
	respond.Fail(ctx, fasthttp.StatusFound, message)
}

// remoteFile is a narFile that is not stored here.
type remoteFile struct{ narFile }

func (f *remoteFile) Open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	f.readVia()
	body, info, err := f.openRemote(offset, length)
	if _, local := body.(bytestore.LocalFile); err == nil && !local {
		body = &remoteBody{body, f.s, f.item.Item}
	}
	return body, info, err
}

func (f *remoteFile) Tag(length int64, info bytestore.Info) (etag, former []byte) {
	return content.ByTime(narTag(f.item.Item, f.item.Narinfo.Files[f.n].Compression))(length, info)
}

// easiest returns the item's file that takes the least work to decompress: one that is
// stored, or else one that another instance may have. It is -1 if there is none.
func (s *Server) easiest(item *storage.Item) int {
	n := item.EasiestFile(item.HasStored)
	if n < 0 && s.options.Remote != nil {
		n = item.EasiestFile(func(n int) bool { return item.FileName(n) != "" })
	}
	return n
}

// unreached answers if other instances could not be reached.
func (s *Server) unreached(ctx *fasthttp.RequestCtx, item *storage.Item, err error) {
	if !errors.Is(err, context.Canceled) && s.remoteLogged.IsDue(err.Error(), time.Now()) {
		s.log.Warn("can't fetch a nar from another instance for a client", "item", item.Narinfo.StorePath.String(), "error", err)
	}
	s.metrics.Unreached.Inc()
	respond.Fail(ctx, fasthttp.StatusBadGateway, "this nar is stored at another instance, which can't be reached now")
}

// cutRemote logs and counts an answer that was cut because another instance sent an
// incomplete or damaged nar.
func (s *Server) cutRemote(item *storage.Item, err error) {
	s.remoteLogged.Log(s.log, slog.LevelWarn, time.Now(), "another instance sent an incomplete or damaged nar; the client's connection was cut",
		"item", item.Narinfo.StorePath.String(), "error", err)
	s.metrics.Unreached.Inc()
}
