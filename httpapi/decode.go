package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/valyala/fasthttp"

	"nar-herder/compression"
	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/respond"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// decode opens the nar in the item's Nth file. What it decompresses is compared with its
// hash, so other instances' bytes are not compared before.
func (s *Server) decode(ctx *fasthttp.RequestCtx, known *nars, n int) (*decoders.Decoder, error) {
	item := known.Item
	from := &narFile{s: s, ctx: ctx, live: peer.Uncompared(s.live), item: known, n: n}
	file := decoders.NewFile(from.Open)
	head, err := file.Head()
	if err != nil {
		file.Close()
		return nil, err
	}
	kind := item.Narinfo.Files[n].Compression
	memory := compression.Memory(kind, head, item.Narinfo.NarSize)
	ready, cancel := context.WithTimeout(s.streaming, s.decoderWait)
	defer cancel()
	decoder, err := s.decoders.Open(ready, s.live, kind, file, memory, s.options.Decompress)
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", item.Narinfo.Files[n].URL, err)
	}
	return decoder, nil
}

// verifier passes on bytes whose hash is known, and fails before the last of
// them when they are not what the hash says: a client then finds its
// connection cut, and not a complete answer of wrong bytes.
type verifier struct {
	io.ReadCloser
	sum  hash.Hash
	want [sha256.Size]byte
	// left is the number of bytes to come, -1 when it is not known; then the
	// failure comes in the place of the end.
	left       int64
	failed     func(error)
	passed     func() // nil for nothing to do once the hash is right
	processors sync.Locker
	err        error
}

// verify makes a verifier that tells operators what is wrong with the item.
func (s *Server) verify(r io.ReadCloser, size int64, want [sha256.Size]byte, item *storage.Item) *verifier {
	return &verifier{ReadCloser: r, sum: sha256.New(), want: want, left: size, processors: s.decoders.Processors, failed: func(err error) {
		if item.EasiestFile(item.HasStored) < 0 {
			s.cutElsewhere(item, err)
			return
		}
		if errors.Is(err, decoders.ErrNotRestarted) {
			if s.live.Err() == nil {
				s.log.Error("a slow client's nar could not be decompressed to its end, and the connection was cut",
					"item", item.Narinfo.StorePath.String(), "error", err)
			}
			return
		}
		if errors.As(err, new(readError)) {
			s.log.Error("a stored nar can't be read; the client got an error, or its connection was cut",
				"item", item.Narinfo.StorePath.String(), "error", err)
			return
		}
		s.metrics.corrupt.Inc()
		s.log.Error("a stored nar is damaged; the client got an error, or its connection was cut. Remove the item and import it again",
			"item", item.Narinfo.StorePath.String(), "error", err)
	}}
}

// checkedFirst is the longest body that is read and compared before the status line. A
// longer one is compared on its way, and cut before its last bytes when it is wrong.
const checkedFirst = decoders.Piece

// verified reads size bytes of the item, which are at most checkedFirst and have the hash.
// The error is errDamaged where they don't have it, or a readError: to a client, that is
// better than an answer that is cut, as it tries elsewhere then.
func (s *Server) verified(r io.Reader, size int64, want [sha256.Size]byte, item *storage.Item) ([]byte, error) {
	v := s.verify(io.NopCloser(r), size, want, item)
	body := make([]byte, size+1) // one more, to see the end
	n, _ := io.ReadFull(v, body)
	if errors.As(v.err, new(readError)) && item.EasiestFile(item.HasStored) >= 0 {
		return nil, v.err
	} else if v.err != io.EOF {
		return nil, errDamaged
	}
	return body[:n], nil
}

// readError is a failure of the storage to read bytes, which says nothing about them.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// stored is a reader of bytes as they are in the storage, whose failures are readErrors.
type stored struct{ io.Reader }

func (s stored) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, bytestore.ErrDamaged) {
		err = readError{err}
	}
	return n, err
}

// errDamaged says that bytes are not what they should be, which operators were told.
var errDamaged = errors.New("a nar is damaged")

// sendVerified answers with size bytes of the item that have the hash, or as many as
// come when size is negative. r reads from the decoder, which is closed.
func (s *Server) sendVerified(ctx *fasthttp.RequestCtx, r io.Reader, decoder *decoders.Decoder, size int64, want [sha256.Size]byte, item *storage.Item) error {
	body := content.NewPart(r, decoder)
	switch {
	case ctx.IsHead() && size >= 0:
		return content.Stream(ctx, body, size)
	case size < 0:
		ctx.Response.SetBodyStream(s.verify(body, -1, want, item), -1) // in chunks, the last only if all was well
		return nil
	case size > checkedFirst:
		return content.Stream(ctx, s.verify(body, size, want, item), size)
	}
	verified, err := s.verified(r, size, want, item)
	_ = decoder.CloseKeepingPiece() // it was only read from
	if err != nil {
		s.decoders.ReleasePiece()
		s.damaged(ctx, item)
		return nil
	}
	return content.Stream(ctx, s.decoders.NewBody(verified), size)
}

// damaged answers in the place of a nar that is damaged.
func (s *Server) damaged(ctx *fasthttp.RequestCtx, item *storage.Item) {
	ctx.Response.Header.Reset()
	if item.EasiestFile(item.HasStored) < 0 {
		respond.Fail(ctx, fasthttp.StatusBadGateway, "this nar is stored elsewhere, where it is damaged or can't be fetched now")
		return
	}
	respond.Fail(ctx, fasthttp.StatusInternalServerError, "this nar is damaged here")
}

var errWrongHash = errors.New("the bytes do not have the hash that the narinfo says")

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.left >= 0 && int64(len(p)) > v.left {
		p = p[:v.left]
	}
	var n int
	var err error
	if v.left != 0 {
		n, err = v.ReadCloser.Read(p)
		v.processors.Lock()
		v.sum.Write(p[:n])
		v.processors.Unlock()
	}
	if v.left > 0 {
		v.left -= int64(n)
	}
	switch {
	case err == io.EOF && v.left > 0:
		err = io.ErrUnexpectedEOF
	case v.left == 0 && (err == nil || err == io.EOF):
		if err = v.atEnd(); err == nil {
			err = v.check()
		}
	case err == io.EOF:
		err = v.check()
	}
	if err != nil {
		v.err = err
		if err != io.EOF {
			v.failed(err)
			n = 0
		}
	}
	return n, err
}

// atEnd makes sure that no more bytes come than were said.
func (v *verifier) atEnd() error {
	for range 100 {
		switch n, err := v.ReadCloser.Read(make([]byte, 1)); {
		case n > 0:
			return errors.New("the nar is longer than the narinfo says")
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// check returns io.EOF when the hash is right.
func (v *verifier) check() error {
	if [sha256.Size]byte(v.sum.Sum(nil)) != v.want {
		return errWrongHash
	}
	if v.passed != nil {
		v.passed()
	}
	return io.EOF
}
