package compression

import (
	"slices"
	"sync"
	"weak"

	"github.com/klauspost/compress/zstd"
)

// idleZstd is a pool of the decoders of closed readers. They are expensive to make: tables of some hundred KiB, and the
// window, which the system clears page by page. The pointers are weak, so that idle decoders can be garbage-collected.
var idleZstd struct {
	sync.Mutex
	list []idleDecoder // the oldest first
}

// idleDecoder is a decoder with the largest window that it has allocated.
type idleDecoder struct {
	decoder weak.Pointer[zstd.Decoder]
	window  int64
}

const (
	mostIdle = 64
	// smallWindow is the window that zstdMemory has room for beside the tables: any reader may use a decoder with it.
	smallWindow = 256 << 10
)

// takeIdleZstd removes and returns the idle decoder with the largest window that a reader of this window may use, and that
// window; nil if there is none.
func takeIdleZstd(window int64) (*zstd.Decoder, int64) {
	idleZstd.Lock()
	defer idleZstd.Unlock()
	for {
		best := -1
		for n, d := range idleZstd.list {
			if d.window <= max(window, smallWindow) && (best < 0 || d.window >= idleZstd.list[best].window) {
				best = n
			}
		}
		if best < 0 {
			return nil, 0
		}
		found := idleZstd.list[best]
		idleZstd.list = slices.Delete(idleZstd.list, best, best+1)
		if d := found.decoder.Value(); d != nil {
			return d, found.window
		}
	}
}

func putIdleZstd(d *zstd.Decoder, window int64) {
	idleZstd.Lock()
	defer idleZstd.Unlock()
	if len(idleZstd.list) >= mostIdle {
		idleZstd.list = slices.Delete(idleZstd.list, 0, 1)
	}
	idleZstd.list = append(idleZstd.list, idleDecoder{weak.Make(d), window})
}

// newZstdReader returns a reader that decompresses the guard's bytes.
func newZstdReader(in *zstdGuard) (*reader, error) {
	head, err := in.r.Peek(HeadBytes)
	if len(head) == 0 {
		return nil, unexpected(err)
	}
	var h zstd.Header
	var window int64 // 0 for a skippable frame, as the next frame is unknown
	if h.Decode(head) == nil && !h.Skippable {
		window = zstdWindowOf(&h)
	}
	d, holds := takeIdleZstd(window)
	if d != nil {
		err = d.Reset(in)
	} else {
		// MaxMemory bounds frames that are a single segment.
		d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	}
	if err != nil {
		return nil, in.because(err)
	}
	z := &reader{src: &zstdGuarded{d, in}}
	z.release = func() {
		if d.Reset(nil) == nil {
			putIdleZstd(d, max(holds, in.largest))
		}
	}
	return z, nil
}
