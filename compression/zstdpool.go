package compression

import (
	"bufio"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxPooledWindow is the largest window, in bytes, that an idle decoder may keep: that of zstd -19.
	maxPooledWindow = 8 << 20
	// headerBytes is the longest header of a zstd frame with its magic number (RFC 8878, 3.1.1.1).
	headerBytes = 18
)

// poolSize is how many idle zstd decoders are kept. One for each core serves all that can make progress at once.
var poolSize = min(runtime.GOMAXPROCS(0), 16)

// zstdPool holds idle decoders, which are costly to make: tables of some hundred KiB, and the window.
var zstdPool = make(chan *zstd.Decoder, poolSize)

// newZstdReader returns a reader that refuses windows above maxWindow bytes.
func newZstdReader(in *bufio.Reader, maxWindow int64) (*reader, error) {
	limit := zstd.WithDecoderMaxWindow(uint64(max(maxWindow, zstd.MinWindowSize)))
	// A frame that is a single segment has no window, but is held as a whole.
	limitFrame := zstd.WithDecoderMaxMemory(uint64(max(maxWindow, zstd.MinWindowSize)))
	// Only the first frame is looked at: programs write files of one.
	keep := true
	var h zstd.Header
	if b, _ := in.Peek(headerBytes); h.Decode(b) == nil {
		// A frame that is a single segment has no window size: the data are the window.
		keep = !h.SingleSegment && h.WindowSize <= maxPooledWindow ||
			h.SingleSegment && h.FrameContentSize <= maxPooledWindow
	}
	var d *zstd.Decoder
	select {
	case d = <-zstdPool:
		if err := d.ResetWithOptions(in, limit, limitFrame); err != nil {
			d.Close()
			return nil, err
		}
	default:
		var err error
		d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), limit, limitFrame)
		if err != nil {
			return nil, err
		}
	}
	z := &reader{src: d}
	z.release = func() {
		if keep && d.Reset(nil) == nil {
			select {
			case zstdPool <- d:
				return
			default:
			}
		}
		d.Close()
	}
	return z, nil
}
