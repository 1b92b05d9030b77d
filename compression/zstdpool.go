package compression

import (
	"runtime"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxPooledWindow is the largest window, in bytes, that an idle decoder may keep: that of zstd -19.
	maxPooledWindow = 8 << 20
)

// poolSize is how many idle zstd decoders are kept. One for each core serves all that can make progress at once.
var poolSize = min(runtime.GOMAXPROCS(0), 16)

// zstdPool holds idle decoders, which are costly to make: tables of some hundred KiB, and the window.
var zstdPool = make(chan *zstd.Decoder, poolSize)

// newZstdReader returns a reader of what the guard passes on.
func newZstdReader(in *zstdGuard) (*reader, error) {
	var d *zstd.Decoder
	select {
	case d = <-zstdPool:
		if err := d.Reset(in); err != nil {
			d.Close()
			return nil, in.because(err)
		}
	default:
		var err error
		// A frame that is a single segment has no window, but is held as a whole.
		d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, in.because(err)
		}
	}
	z := &reader{src: &zstdGuarded{d, in}}
	z.release = func() {
		if in.largest <= maxPooledWindow && d.Reset(nil) == nil {
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
