package httpapi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/content"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/respond"
	"nar-herder/httpapi/verify"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

// serveFile answers with the content of a flat fixed-output item, such as a source
// archive, extracted from its nar. Guix requests it by the name and hash of the content.
func (s *Server) serveFile(ctx *fasthttp.RequestCtx, name, algorithm, digest string) {
	var want [sha256.Size]byte
	if algorithm != "sha256" || narinfo.DecodeBase32(want[:], digest) != nil {
		respond.NotFound(ctx, noSuchFile)
		return
	}
	path, err := narinfo.FixedOutputPath(name, want)
	if err != nil {
		respond.NotFound(ctx, noSuchFile)
		return
	}
	for s.answerFile(ctx, path.Hash, want, digest) {
		ctx.Response.Reset()
	}
}

const noSuchFile = "there is no file of that name and hash"

// answerFile looks up the item and sends the content of its nar. It returns true if the item
// has changed meanwhile, as answerNar does.
func (s *Server) answerFile(ctx *fasthttp.RequestCtx, hash narinfo.PathHash, want [sha256.Size]byte, digest string) (again bool) {
	known, err := s.lookUp(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		respond.NotFound(ctx, noSuchFile)
		return false
	}
	if err != nil {
		s.fault(ctx, "look up an item", err)
		return false
	}
	if err = s.sendFlat(ctx, known, want, digest); err != nil && s.unopened(ctx, known.Item, err) {
		return true
	}
	s.setNarCacheControl(ctx, known, "")
	return false
}

// sendFlat answers with the content of the item's nar, or returns an error if the nar can't
// be opened.
func (s *Server) sendFlat(ctx *fasthttp.RequestCtx, known *nars, want [sha256.Size]byte, digest string) error {
	return s.withEasiest(ctx, known.Item, s.easiest(known.Item), func(n int) error { return s.sendFlatFrom(ctx, known, n, want, digest) })
}

// sendFlatFrom is sendFlat with the item's Nth file.
func (s *Server) sendFlatFrom(ctx *fasthttp.RequestCtx, known *nars, n int, want [sha256.Size]byte, digest string) error {
	item := known.Item
	etag := `"sha256-` + digest + `"`
	// A stored nar without compression can be sent in ranges, with another entity tag.
	isPlain := item.Narinfo.Files[n].Compression == "none" && item.HasStored(n)
	if !isPlain && headers.AnswerConditions(ctx, time.Time{}, etag) {
		ctx.Response.Header.Set("ETag", etag)
		return nil
	}
	decoder, err := s.decode(ctx, known, n)
	if err != nil {
		return err
	}
	length, err := flatLength(decoder, item)
	if err != nil {
		decoder.failed(err)
		decoder.Close()
		if errors.Is(err, narinfo.ErrNotFlat) {
			respond.NotFound(ctx, noSuchFile)
		} else {
			s.fault(ctx, "read the head of a nar", fmt.Errorf("%s: %w", item.Narinfo.StorePath, err))
		}
		return nil
	}
	if isPlain {
		decoder.Close()
		file := &narFile{s: s, ctx: ctx, live: s.live, item: known, n: n}
		open := s.checker.Compared(verify.Part{Item: item, Start: narinfo.FlatHeaderSize, Length: length, Want: want}, file.Open)
		return s.sender.Send(ctx, content.File{
			Source: &content.Funcs{OpenFunc: open, TagFunc: content.ByContent("sha256-" + digest)},
			Type:   narType, Start: narinfo.FlatHeaderSize, Length: length,
		})
	}
	ctx.Response.Header.SetContentType(narType)
	describeWhole(ctx, etag)
	return s.sendVerified(ctx, io.LimitReader(decoder, length), decoder, length, want, item)
}

// flatLength reads the head of a flat nar, and returns the length of the content after it.
func flatLength(nar io.Reader, item *storage.Item) (int64, error) {
	head := make([]byte, narinfo.FlatHeaderSize)
	n, err := io.ReadFull(nar, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	length, err := narinfo.ParseFlatHeader(head[:n])
	if err != nil {
		return 0, err
	}
	if size := item.Narinfo.NarSize; size >= 0 && narinfo.FlatNarSize(length) != size {
		return 0, fmt.Errorf("a file of %d bytes doesn't match a nar of %d", length, size)
	}
	return length, nil
}
