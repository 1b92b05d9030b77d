package transfer

import (
	"context"
	"io"

	"nar-herder/storage/bytestore"
)

// reader reads a file of the source within the rate limit, until the context ends. It
// hides other methods of the source, with which a store could bypass the limit.
type reader struct {
	ctx   context.Context
	from  io.Reader
	moved func(bytes int64) // may be nil
	err   error             // of reading, to tell it from an error of the target
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		r.err = err
		return 0, err
	}
	n, err := r.from.Read(p)
	if r.moved != nil && n > 0 {
		r.moved(int64(n))
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (r *run) reader(ctx context.Context, from io.Reader) *reader {
	return &reader{ctx: ctx, from: r.limiter.Reader(ctx, from), moved: r.Moved}
}

// readTwice adds ReadAt to a reader of body if that is a local file, so that the target can
// read it ahead: see [bytestore.Store]. The rate limit doesn't apply to ReadAt, as it is
// about the transfer between the stores.
func readTwice(coming, body io.Reader) io.Reader {
	local, isLocal := body.(bytestore.LocalFile)
	if _, isGrowing := body.(bytestore.GrowingFile); !isLocal || isGrowing {
		return coming
	}
	file, _ := local.Local()
	return struct {
		io.Reader
		io.ReaderAt
	}{coming, file}
}
