package compression

import (
	"errors"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"

	"nar-herder/compression/lzip"
)

// HeadBytes is the length of the beginning of compressed data that Memory needs.
const HeadBytes = 64

// Memory of readers beside the dictionary or window, in bytes, including the input buffer. TestMemory measures it.
const (
	gzipMemory  = 192 << 10
	bzip2Memory = 256 << 10 // and four times the block
	xzMemory    = 192 << 10
	lzipMemory  = 256 << 10
	zstdMemory  = 1 << 20
)

// Memory returns how many bytes of memory a reader of compressed data uses at most, according to head: the first
// HeadBytes bytes of the data, or all of it if it is shorter. size is that of the decompressed data, -1 if unknown.
// Later streams in the same file may need more: see [NewReaderWithin]. A damaged head may give any result up
// to [MaxMemory]. The result for unknown compressions is 0.
func Memory(name string, head []byte, size int64) int64 {
	switch name {
	case Gzip:
		return gzipMemory
	case Bzip2:
		block := int64(900_000)
		if len(head) > 3 && '1' <= head[3] && head[3] <= '9' {
			block = 100_000 * int64(head[3]-'0')
		}
		return bzip2Memory + 4*block
	case Xz:
		return xzMemory + min(xzDict(head), maxDict)
	case Lzip:
		dict, err := lzip.DictSize(head)
		if err != nil {
			return lzipMemory
		}
		return lzipMemory + int64(lzip.WindowFor(min(dict, maxDict), size))
	case Zstd:
		return zstdMemory + min(zstdWindow(head), maxWindow)
	default:
		return 0
	}
}

// MaxMemory returns how much memory a reader uses at most. Readers refuse data that needs more.
func MaxMemory(name string) int64 {
	switch name {
	case Xz:
		return xzMemory + maxDict
	case Lzip:
		return lzipMemory + int64(lzip.WindowFor(maxDict, -1))
	case Zstd:
		return zstdMemory + maxWindow
	default:
		return Memory(name, nil, -1)
	}
}

// zstdWindow returns the window of the first frame, in bytes, or the largest if unknown, as behind a skippable frame.
func zstdWindow(head []byte) int64 {
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable {
		return maxWindow
	}
	return zstdWindowOf(&h)
}

// zstdWindowOf returns the window of a frame, which for a single segment is the size of the data.
func zstdWindowOf(h *zstd.Header) int64 {
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	return int64(min(max(window, zstd.MinWindowSize), math.MaxInt64))
}

// xzDict returns the dictionary size of the first block.
func xzDict(head []byte) int64 {
	const streamHeader = 12
	if len(head) <= streamHeader || head[streamHeader] == 0 {
		return minXzDict // no block follows
	}
	if size, ok := xzBlockDict(head[streamHeader+1:]); ok {
		return max(size, minXzDict)
	}
	return maxDict
}

// xzBlockDict parses a block header after its first byte, and returns the dictionary size in bytes. The decoder supports
// only a single LZMA2 filter; ok is false for others.
func xzBlockDict(header []byte) (size int64, ok bool) {
	if len(header) == 0 {
		return 0, false
	}
	flags, b := header[0], header[1:]
	for _, present := range []byte{flags & 0x40, flags & 0x80} {
		for i := 0; present != 0 && i < len(b); i++ {
			if b[i]&0x80 == 0 {
				b = b[i+1:]
				break
			}
		}
	}
	if flags&3 != 0 || len(b) < 3 || b[0] != 0x21 || b[1] != 1 {
		return 0, false
	}
	// Dictionary sizes are 2^n and 2^n + 2^(n-1), from 4 KiB.
	code := b[2]
	return int64(2|code&1) << (min(code, 40)/2 + 11), true
}

// tooLarge wraps errors of the decoders about a dictionary or window in ErrTooLarge.
func tooLarge(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, lzip.ErrWindow) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}
