package transfer

import (
	"context"
	"io"

	"nar-herder/storage/bytestore"
)

// reader reads a file of the source below the rate limit, and ends with the context. It
// hides how a store might read it by itself, past all this.
type reader struct {
	ctx   context.Context
	from  io.Reader
	moved func(bytes int64) // may be nil
	err   error             // that reading has failed with: the target would make it its own
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

// readTwice makes a reader of the bytes of body one that the target may read ahead, if
// they are in a file of this machine: see [bytestore.Store]. That is not done at
// the limited rate, which is about the way from store to store.
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
