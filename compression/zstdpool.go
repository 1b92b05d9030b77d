package compression

import (
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdPools hold idle decoders, which are costly to make: tables of some hundred KiB, and the window, for which the system
// clears a page at a time. Windows of up to 8 MiB, that of zstd -19, are in the first, and each other is for windows of up
// to twice the size. What is in them for two garbage collections is freed.
var zstdPools [poolClasses]sync.Pool

const (
	firstPoolBits = 23
	poolClasses   = 5 // the last is for maxWindow
)

func zstdPool(window int64) *sync.Pool {
	return &zstdPools[max(0, bits.Len64(uint64(window-1))-firstPoolBits)]
}

// newZstdReader returns a reader of what the guard passes on.
func newZstdReader(in *zstdGuard) (*reader, error) {
	head, err := in.r.Peek(HeadBytes)
	if len(head) == 0 {
		return nil, unexpected(err)
	}
	d, ok := zstdPool(min(zstdWindow(head), maxWindow)).Get().(*zstd.Decoder)
	if ok {
		err = d.Reset(in)
	} else {
		// A frame that is a single segment has no window, but is held as a whole.
		d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	}
	if err != nil {
		return nil, in.because(err)
	}
	z := &reader{src: &zstdGuarded{d, in}}
	z.release = func() {
		if d.Reset(nil) == nil {
			zstdPool(max(in.largest, 1)).Put(d)
		}
	}
	return z, nil
}
