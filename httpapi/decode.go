package httpapi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime/debug"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/storage"
)

// decoderWait is how long a client waits for its turn when very many nars are
// being decompressed.
const decoderWait = 10 * time.Second

var errTooManyDecoders = errors.New("too many nars are being decompressed")

// decoder is an item's nar, decompressed while it is read.
type decoder struct {
	decompressor io.ReadCloser
	file         io.Closer
	release      func()
}

func (d *decoder) Read(p []byte) (n int, err error) {
	defer recovered(&err)
	return d.decompressor.Read(p)
}

func (d *decoder) Close() (err error) {
	defer d.release()
	defer d.file.Close()
	defer recovered(&err)
	return d.decompressor.Close()
}

// decompress begins to undo a compression.
func (s *Server) decompress(name string, r io.Reader) (_ io.ReadCloser, err error) {
	defer recovered(&err)
	return s.options.Decompress(name, r)
}

// recovered makes a panic of a decompressor an error. They are given what comes
// from elsewhere, and a turn or a file must not be lost by it.
func recovered(err *error) {
	if fault := recover(); fault != nil {
		*err = fmt.Errorf("a fault of the decompressor, please report it: %v\n%s", fault, debug.Stack())
	}
}

// decode opens the nar in the item's Nth file.
func (s *Server) decode(ctx *fasthttp.RequestCtx, item *storage.Item, n int) (*decoder, error) {
	select {
	case s.decoders <- struct{}{}:
	default:
		wait := time.NewTimer(s.decoderWait)
		defer wait.Stop()
		select {
		case s.decoders <- struct{}{}:
		case <-wait.C:
			return nil, errTooManyDecoders
		case <-ctx.Done():
			return nil, errTooManyDecoders
		}
	}
	release := func() { <-s.decoders }
	file, info, err := s.open(ctx, item, n)(0, -1)
	if err != nil {
		release()
		return nil, err
	}
	var compressed io.Reader = file
	if info.Size >= 0 {
		compressed = io.LimitReader(file, info.Size)
	}
	decompressor, err := s.decompress(item.Narinfo.Files[n].Compression, compressed)
	if err != nil {
		file.Close()
		release()
		return nil, fmt.Errorf("decompress %s: %w", item.Narinfo.Files[n].URL, err)
	}
	return &decoder{decompressor, file, release}, nil
}

// undecoded answers when decode has failed.
func (s *Server) undecoded(ctx *fasthttp.RequestCtx, item *storage.Item, err error) {
	if errors.Is(err, errTooManyDecoders) {
		ctx.Response.Header.Set("Retry-After", "30")
		s.fail(ctx, fasthttp.StatusServiceUnavailable, errTooManyDecoders.Error()+", try again later or ask for a compressed one")
		return
	}
	s.unopened(ctx, item, err)
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
	left   int64
	failed func(error)
	err    error
}

// verify makes a verifier that tells operators what is wrong with the item.
func (s *Server) verify(r io.ReadCloser, size int64, want [sha256.Size]byte, item *storage.Item) *verifier {
	return &verifier{ReadCloser: r, sum: sha256.New(), want: want, left: size, failed: func(err error) {
		if item.EasiestFile(item.HasStored) < 0 {
			s.cutElsewhere(item, err)
			return
		}
		s.metrics.corrupt.Inc()
		s.log.Error("a stored nar is damaged; the client's connection was cut. Remove the item and import it again",
			"item", item.Narinfo.StorePath.String(), "error", err)
	}}
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
		v.sum.Write(p[:n])
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
	return io.EOF
}
