package sourcedump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"nar-herder/internal/disk"
)

const (
	// maxWindow is the largest window that RFC 9659 allows in a Content-Encoding, and the
	// one that [nar-herder/mirror/dump] uses.
	maxWindow = 8 << 20
	// A dump may be decompressed to maxRatio times its size, several times the ratio of
	// any database of narinfos, and to minLimit in any case.
	maxRatio = 100
	minLimit = 64 << 20
)

// decompress decompresses a file with zstd, as long as there is room for it.
func decompress(ctx context.Context, from, to string, room disk.Look) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	reader, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer reader.Close()
	out, err := disk.OpenFile(to, os.O_RDWR|os.O_TRUNC, 0o664, disk.GroupWrites)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	limit := maxRatio*info.Size() + minLimit
	bounded := &disk.Writer{W: out, Directory: filepath.Dir(to), Look: room}
	n, err := io.CopyBuffer(struct{ io.Writer }{bounded}, io.LimitReader(&cancelled{ctx, reader}, limit+1), make([]byte, 1<<20))
	if err == nil && n > limit {
		err = fmt.Errorf("over %d bytes come out of %d, as of no database", limit, info.Size())
	}
	return err
}

// cancelled is a reader that fails once its context has ended.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
