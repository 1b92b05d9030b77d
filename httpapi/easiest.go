package httpapi

import (
	"errors"

	"github.com/valyala/fasthttp"

	"nar-herder/storage"
)

// sendNamed is sendFile for a request with the URL of the item's Nth file. In place of a file
// without compression, it may send another one, decompressed.
func (s *Server) sendNamed(ctx *fasthttp.RequestCtx, known *nars, n int) error {
	if known.HasStored(n) || known.Narinfo.Files[n].Compression != "none" {
		return s.sendFile(ctx, known, n)
	}
	return s.withEasiest(ctx, known.Item, n, func(n int) error { return s.sendPlainFrom(ctx, known, n) })
}

// withEasiest sends an answer from the item's Nth file. While other servers don't have the file,
// or can't be reached, and nothing was sent, it continues with the file that takes the least
// work to decompress. n is negative for no file. send returns an error if the file can't be
// opened.
func (s *Server) withEasiest(ctx *fasthttp.RequestCtx, item *storage.Item, n int, send func(n int) error) error {
	if n < 0 {
		return storage.ErrNotStored
	}
	failure := send(n)
	for tried := uint64(1) << n; isElsewhere(failure) && s.options.Remote != nil; tried |= 1 << n {
		n = item.EasiestFile(func(n int) bool { return n < 64 && tried&(1<<n) == 0 && item.FileName(n) != "" })
		if n < 0 {
			break
		}
		ctx.Response.Reset()
		err := send(n)
		if err == nil || !isElsewhere(err) || !errors.Is(failure, errRemote) {
			failure = err
		} // else keep the error that the first file may exist
	}
	return failure
}

// isElsewhere reports whether an error means that a file could not be had from other servers.
func isElsewhere(err error) bool {
	return errors.Is(err, storage.ErrNotStored) || errors.Is(err, errRemote)
}
