package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/valyala/fasthttp"

	"nar-herder/compression"
	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/httpapi/verify"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// decoded is the nar in a file, of which the decoder reads the answer that was opened last.
type decoded struct {
	*decoders.Decoder
	file io.Reader
}

// failed rejects the file of another instance after an error, unless the file may be right.
func (d *decoded) failed(err error) {
	mayBeRight := errors.Is(err, decoders.ErrTooMany) || errors.Is(err, decoders.ErrNotRestarted) || compression.Refused(err)
	if !mayBeRight {
		failover.Reject(d.file)
	}
}

// decode opens the nar in the item's Nth file for sendVerified, which compares it with its
// hash, so bytes of other instances are not verified before.
func (s *Server) decode(ctx *fasthttp.RequestCtx, known *nars, n int) (*decoded, error) {
	item, d := known.Item, new(decoded)
	from := &narFile{s: s, ctx: ctx, live: peer.Uncompared(s.live), item: known, n: n}
	file := decoders.NewFile(func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		reader, info, err := from.Open(offset, length)
		if d.file = nil; err == nil {
			d.file = reader
		}
		return reader, info, err
	})
	head, err := file.Head()
	if err != nil {
		file.Close()
		return nil, err
	}
	kind := item.Narinfo.Files[n].Compression
	memory := compression.Memory(kind, head, item.Narinfo.NarSize)
	ready, cancel := context.WithTimeout(s.streaming, s.checker.Options.Wait)
	defer cancel()
	d.Decoder, err = s.checker.Options.Decoders.Open(ready, s.live, kind, file, memory, s.options.Decompress)
	if err != nil {
		d.failed(err)
		return nil, fmt.Errorf("decompress %s: %w", item.Narinfo.Files[n].URL, err)
	}
	return d, nil
}

// sendVerified answers with size bytes of the item, or all bytes if size is negative, and
// compares them with the hash. r reads from the decoder. sendVerified closes the decoder.
func (s *Server) sendVerified(ctx *fasthttp.RequestCtx, r io.Reader, decoder *decoded, size int64, want [sha256.Size]byte, item *storage.Item) error {
	body := content.NewPart(r, decoder)
	switch {
	case ctx.IsHead() && size >= 0:
		return content.Stream(ctx, body, size)
	case size < 0:
		engine.SendChunks(ctx, s.checker.Verify(body, -1, want, item, decoder.failed)) // without the last chunk after an error
		return nil
	case size > verify.CheckedFirst:
		return content.Stream(ctx, s.checker.Verify(body, size, want, item, decoder.failed), size)
	}
	verified, err := s.checker.Verified(r, size, want, item, decoder.failed)
	_ = decoder.CloseKeepingPiece() // it was only read from
	if err != nil {
		s.checker.Options.Decoders.ReleasePiece()
		s.damaged(ctx, item)
		return nil
	}
	return content.Stream(ctx, s.checker.Options.Decoders.NewBody(verified), size)
}

// damaged answers that a nar is damaged.
func (s *Server) damaged(ctx *fasthttp.RequestCtx, item *storage.Item) {
	ctx.Response.Header.Reset()
	if item.EasiestFile(item.HasStored) < 0 {
		respond.Fail(ctx, fasthttp.StatusBadGateway, "this nar is stored at another instance, where it is damaged or can't be fetched now")
		return
	}
	respond.Fail(ctx, fasthttp.StatusInternalServerError, "this nar is damaged here")
}
