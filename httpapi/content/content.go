// Package content answers with a file or a range of it, and keeps popular files open.
package content

import (
	"bytes"
	"fmt"
	"io"
	"math"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/headers"
	"nar-herder/storage/bytestore"
)

// Opener opens a part of a file.
type Opener func(offset, length int64) (io.ReadCloser, bytestore.Info, error)

// File is content that [Sender.Send] sends: Length bytes of a file from Start on, such as the
// whole file or the content of a flat nar.
type File struct {
	Source
	Kept          *Kept // nil disables keeping the file open
	Type          string
	Start, Length int64
}

// Source opens and tags a file.
type Source interface {
	// Open opens length bytes from offset on.
	Open(offset, length int64) (io.ReadCloser, bytestore.Info, error)
	// Tag makes the entity tag, as a Tagger.
	Tag(length int64, info bytestore.Info) (etag, former []byte)
}

// Funcs implements Source with functions.
type Funcs struct {
	OpenFunc Opener
	TagFunc  Tagger
}

func (f *Funcs) Open(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	return f.OpenFunc(offset, length)
}
func (f *Funcs) Tag(length int64, info bytestore.Info) (etag, former []byte) {
	return f.TagFunc(length, info)
}

// Send answers with the content or the requested range of it. It returns an error if the source
// can't be opened.
func (s *Sender) Send(ctx *fasthttp.RequestCtx, c File) error {
	header := &ctx.Request.Header
	length := c.Length
	wanted := headers.Range{Length: length}
	partial := false
	var rangeErr error
	if field := header.Peek("Range"); len(field) > 0 {
		wanted, partial, rangeErr = headers.ParseRange(string(field), length)
	}
	response := &ctx.Response
	if headers.HasConditions(header) {
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
		asked.Length = 0 // a remote source would send all that is opened
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
		// The client has a part of another version of the file.
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
	response.Header.SetContentType(c.Type)
	if partial {
		response.SetStatusCode(fasthttp.StatusPartialContent)
		response.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", wanted.Start, wanted.Start+wanted.Length-1, length))
	}
	return StreamFile(ctx, reader, wanted.Length)
}

// openPart opens a range of the content.
func (s *Sender) openPart(ctx *fasthttp.RequestCtx, c *File, r headers.Range) (io.ReadCloser, *validators, error) {
	offset := c.Start + r.Start
	if reader, v := c.Kept.reader(offset); reader != nil {
		return reader, v, nil
	}
	engine.LeaveLoop(ctx)
	reader, info, err := c.Open(offset, r.Length)
	if err != nil {
		return nil, nil, err
	}
	etag, former := c.Tag(c.Length, info)
	v := &validators{etag, former, info.ModTime.UTC().AppendFormat(nil, headers.TimeFormat), info.ModTime}
	if whole := (headers.Range{Length: c.Length}); c.Kept != nil && r == whole {
		reader = c.Kept.keep(s, reader, info, v, offset)
	}
	return reader, v, nil
}

// describe adds the validators of a file to the response.
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

// NewPart returns a reader that reads from r and closes file.
func NewPart(r io.Reader, file io.ReadCloser) io.ReadCloser { return part{r, file} }

type part struct {
	io.Reader
	file io.ReadCloser
}

func (p part) Close() error { return p.file.Close() }

// StreamFile answers with length bytes of the reader, and closes it. The reader may have more.
func StreamFile(ctx *fasthttp.RequestCtx, reader io.ReadCloser, length int64) error {
	if !ctx.IsHead() && engine.SendFile(ctx, reader, length) {
		return nil
	}
	if shared, ok := reader.(*sharedReader); !ok || !shared.IsCached() {
		engine.LeaveLoop(ctx) // reading from a disk may take long
	}
	return Stream(ctx, part{io.LimitReader(reader, length), reader}, length)
}

// Stream answers with the body, and closes it. If the body does not have exactly length bytes,
// the connection is cut.
func Stream(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) error {
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
