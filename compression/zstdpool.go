package compression

import (
	"slices"
	"sync"
	"weak"

	"github.com/klauspost/compress/zstd"
)

// idleZstd has the decoders of readers that were closed. They are costly to make: tables of some hundred KiB, and the window,
// for which the system clears a page at a time. The pointers are weak, so that idle decoders are garbage, which needs no
// bound of its own: the next reader uses one that was not collected yet.
var idleZstd struct {
	sync.Mutex
	list []idleDecoder // the oldest first
}

// idleDecoder is a decoder, and the largest window that it had, which it still holds.
type idleDecoder struct {
	decoder weak.Pointer[zstd.Decoder]
	window  int64
}

const (
	mostIdle = 64
	// smallWindow is what zstdMemory has room for beside the tables: decoders with such a window are used for any.
	smallWindow = 256 << 10
)

// takeIdleZstd returns the idle decoder with the largest window that a reader of this window may hold, and that window;
// nil where there is none.
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

// newZstdReader returns a reader of what the guard passes on.
func newZstdReader(in *zstdGuard) (*reader, error) {
	head, err := in.r.Peek(HeadBytes)
	if len(head) == 0 {
		return nil, unexpected(err)
	}
	var h zstd.Header
	var window int64 // none behind a skippable frame, of which only the next frame tells
	if h.Decode(head) == nil && !h.Skippable {
		window = zstdWindowOf(&h)
	}
	d, holds := takeIdleZstd(window)
	if d != nil {
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
			putIdleZstd(d, max(holds, in.largest))
		}
	}
	return z, nil
}
