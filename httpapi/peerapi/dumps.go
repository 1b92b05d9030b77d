package peerapi

import (
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/content"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/respond"
	"nar-herder/mirror/dump"
	"nar-herder/peer"
	"nar-herder/storage/bytestore"
)

// Dumps are copies of the index for new mirrors.
type Dumps interface {
	// Generations returns the available generations, the newest first.
	Generations() ([]dump.Generation, error)
	// Open opens a file of a generation. The error is [fs.ErrNotExist] if a newer
	// generation has replaced it. The caller must close the file.
	Open(file dump.File) (*os.File, error)
	// Name returns the name of the newest database, for the nginx in front.
	Name() string
}

const (
	// changeHeader is the number of the last change in a dump.
	changeHeader = "Nar-Herder-Change"
	// dumpRetry is the Retry-After header while the first dump is being made, in seconds.
	dumpRetry = "60"

	sqliteType = "application/vnd.sqlite3"
)

// ServeDump answers with the newest dump: the database in the original's schema, or the index
// in this program's.
func (s *API) ServeDump(ctx *fasthttp.RequestCtx, isIndex bool) {
	zstd := !isIndex && !s.options.AccelRedirect && headers.PrefersEncoded(ctx.Request.Header.PeekAll("Accept-Encoding"), "zstd")
	// A newer dump may replace one while it is being opened.
	if s.sendDump(ctx, isIndex, zstd) {
		ctx.Response.Reset()
		if s.sendDump(ctx, isIndex, zstd) {
			s.options.Faults.Answer(ctx, "open a dump", errors.New("files of two dumps disappeared, one after the other"))
		}
	}
	if !isIndex {
		ctx.Response.Header.Set("Vary", "Accept-Encoding")
	}
}

// sendDump answers with a dump. It returns true, without an answer, if a newer one has
// replaced it.
func (s *API) sendDump(ctx *fasthttp.RequestCtx, isIndex, zstd bool) (gone bool) {
	var generations []dump.Generation
	if s.options.Dumps != nil {
		var err error
		if generations, err = s.options.Dumps.Generations(); err != nil {
			s.options.Faults.Answer(ctx, "look for a dump", err)
			return false
		}
	}
	if len(generations) == 0 {
		if s.options.DumpsExpected {
			ctx.Response.Header.Set("Retry-After", dumpRetry)
			respond.Fail(ctx, fasthttp.StatusServiceUnavailable, "the first dump is still being made: retry in a minute")
		} else {
			respond.NotFound(ctx, "this server has no dump")
		}
		return false
	}
	fileOf := func(g dump.Generation) dump.File {
		switch {
		case isIndex:
			return g.Index
		case zstd:
			return g.Zstd
		}
		return g.Database
	}
	g := generations[0]
	// A client with a part of the previous dump gets the rest of that one.
	if ifRange := string(ctx.Request.Header.Peek("If-Range")); ifRange != "" && len(ctx.Request.Header.Peek("Range")) > 0 {
		for _, candidate := range generations {
			file := fileOf(candidate)
			if headers.RangeStillGood(ifRange, string(content.TimeTag(dumpTag(file), file.Size, candidate.CreatedAt)), candidate.CreatedAt) {
				g = candidate
				break
			}
		}
	}
	file := fileOf(g)
	open := func(offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
		opened, err := s.options.Dumps.Open(file)
		if err != nil {
			return nil, bytestore.Info{}, err
		}
		return &bytestore.FileReader{File: opened, Offset: offset}, bytestore.Info{Name: file.Name, Size: file.Size, ModTime: g.CreatedAt}, nil
	}
	if s.options.AccelRedirect && !isIndex {
		// Only the original's database has an internal path.
		reader, _, err := open(0, 0)
		if err != nil {
			return s.dumpUnopened(ctx, err)
		}
		reader.Close()
		ctx.Response.Header.SetContentType(sqliteType)
		ctx.Response.Header.Set("X-Accel-Redirect", headers.EscapePath("/internal/database/"+s.options.Dumps.Name()))
		return false
	}
	err := s.options.Sender.Send(ctx, content.File{Source: &content.Funcs{OpenFunc: open, TagFunc: content.ByTime(dumpTag(file))}, Type: sqliteType, Length: file.Size})
	if err != nil {
		return s.dumpUnopened(ctx, err)
	}
	header := &ctx.Response.Header
	switch ctx.Response.StatusCode() {
	case fasthttp.StatusOK, fasthttp.StatusPartialContent:
		if zstd {
			header.Set("Content-Encoding", "zstd")
		}
		// Of the whole file even for a range (RFC 9530).
		header.Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(file.SHA256[:])+":")
		fallthrough
	case fasthttp.StatusNotModified:
		header.Set("Cache-Control", "no-cache") // another dump replaces it
		header.Set(peer.InstanceHeader, g.Instance)
		header.Set(changeHeader, strconv.FormatInt(g.LastChange, 10))
	}
	return false
}

// dumpUnopened answers that a dump can't be opened. It returns true, without an answer, if a
// newer one has replaced it.
func (s *API) dumpUnopened(ctx *fasthttp.RequestCtx, err error) (gone bool) {
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	s.options.Faults.Answer(ctx, "open a dump", err)
	return false
}

// dumpTag returns the beginning of the entity tag of a file of a dump.
func dumpTag(file dump.File) string { return file.SHA256.String()[:32] }
