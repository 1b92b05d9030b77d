package httpapi

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/headers"
	"nar-herder/storage/bytestore"

	"github.com/valyala/fasthttp"
)

// opener opens a part of a file.
type opener func(offset, length int64) (io.ReadCloser, bytestore.Info, error)

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
	open(offset, length int64) (io.ReadCloser, bytestore.Info, error)
	// tag makes the entity tag, as a tagger.
	tag(length int64, info bytestore.Info) (etag, former []byte)
}

// sourceFuncs is a source made of functions.
type sourceFuncs struct {
	openFunc opener
	tagFunc  tagger
}

func (f *sourceFuncs) open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	return f.openFunc(offset, length)
}
func (f *sourceFuncs) tag(length int64, info bytestore.Info) (etag, former []byte) {
	return f.tagFunc(length, info)
}

// sendPart answers with the content, or the part of it that was asked for. It returns the
// error when the source can't be opened.
func (s *Server) sendPart(ctx *fasthttp.RequestCtx, c content) error {
	header := &ctx.Request.Header
	length := c.length
	wanted := headers.Range{Length: length}
	partial := false
	var rangeErr error
	if field := header.Peek("Range"); len(field) > 0 {
		wanted, partial, rangeErr = headers.ParseRange(string(field), length)
	}
	response := &ctx.Response
	if headers.HasConditions(header) {
		// A client that has it already gets no byte of it.
		reader, v, err := s.openPart(ctx, &c, headers.Range{})
		if err != nil {
			return err
		}
		reader.Close()
		if headers.AnswerConditions(ctx, v.modified, string(v.etag), string(v.former)) {
			describe(response, v)
			return nil
		}
	}
	asked := wanted
	if ctx.IsHead() {
		asked.Length = 0 // To look is enough. Far away, all that was opened would be sent.
	}
	reader, v, err := s.openPart(ctx, &c, asked)
	if err != nil {
		return err
	}
	ifRange := header.Peek("If-Range")
	if v.former != nil && bytes.Equal(ifRange, v.former) {
		ifRange = v.etag
	}
	stale := !headers.RangeStillGood(string(ifRange), string(v.etag), v.modified)
	if rangeErr != nil && !stale {
		reader.Close()
		headers.AnswerUnsatisfiable(ctx, length)
		return nil
	}
	if partial && stale {
		// The client's part is of another file, so it gets this one whole.
		reader.Close()
		partial, wanted = false, headers.Range{Length: length}
		if !ctx.IsHead() {
			asked = wanted
		}
		if reader, v, err = s.openPart(ctx, &c, asked); err != nil {
			return err
		}
	}
	describe(response, v)
	response.Header.SetContentType(c.contentType)
	if partial {
		response.SetStatusCode(fasthttp.StatusPartialContent)
		response.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", wanted.Start, wanted.Start+wanted.Length-1, length))
	}
	return streamFile(ctx, reader, wanted.Length)
}

// openPart opens a part of the content.
func (s *Server) openPart(ctx *fasthttp.RequestCtx, c *content, r headers.Range) (io.ReadCloser, *validators, error) {
	offset := c.start + r.Start
	if reader, v := c.kept.reader(offset); reader != nil {
		return reader, v, nil
	}
	engine.LeaveLoop(ctx)
	reader, info, err := c.open(offset, r.Length)
	if err != nil {
		return nil, nil, err
	}
	etag, former := c.tag(c.length, info)
	v := &validators{etag, former, info.ModTime.UTC().AppendFormat(nil, headers.TimeFormat), info.ModTime}
	if whole := (headers.Range{Length: c.length}); c.kept != nil && r == whole {
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

// part is the part of a file that was asked for. A store's reader may give more.
type part struct {
	io.Reader
	file io.ReadCloser
}

func (p part) Close() error { return p.file.Close() }

// streamFile answers with the length bytes of a file that the reader gives, and closes
// it. A store's reader may give more.
func streamFile(ctx *fasthttp.RequestCtx, reader io.ReadCloser, length int64) error {
	if !ctx.IsHead() && engine.SendFile(ctx, reader, length) {
		return nil
	}
	if shared, ok := reader.(*sharedReader); !ok || !shared.IsCached() {
		engine.LeaveLoop(ctx) // to read from a disk takes long
	}
	return stream(ctx, part{io.LimitReader(reader, length), reader}, length)
}

// stream answers with the length bytes that the body gives, and closes it. It
// must give exactly that many: anything else cuts the connection.
func stream(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) error {
	if length > math.MaxInt || length < 0 {
		body.Close()
		return fmt.Errorf("a nar of %d bytes can't be sent", length)
	}
	if ctx.IsHead() {
		body.Close()
		ctx.Response.SkipBody = true
		ctx.Response.Header.SetContentLength(int(length))
		return nil
	}
	engine.SendCopy(ctx, body, length)
	return nil
}
