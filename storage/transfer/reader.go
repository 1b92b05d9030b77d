package transfer

import (
	"context"
	"io"

	"nar-herder/internal/pace"
	"nar-herder/storage/bytestore"
)

// reader reads a file of the source at the pace, and ends with the context. It
// hides how a store might read it by itself, past all this.
type reader struct {
	ctx  context.Context
	run  *run
	from io.Reader
	err  error // that reading has failed with: the target would make it its own
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		r.err = err
		return 0, err
	}
	n, err := r.from.Read(r.run.pace.Bound(p))
	if r.run.Moved != nil && n > 0 {
		r.run.Moved(int64(n))
	}
	if pause := r.run.pace.Took(n); pause > 0 && (err == nil || err == io.EOF) {
		if waitErr := pace.Sleep(r.ctx, pause); waitErr != nil {
			err = waitErr
		}
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// readTwice makes a reader of the bytes of body one that the target may read ahead, if
// they are in a file of this machine: see [bytestore.Store]. That is not done at the
// pace, which is about the way from store to store.
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
