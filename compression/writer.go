package compression

import (
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"nar-herder/compression/lzip"
)

// encoderCores bounds the cores of one writer. Several nars are compressed at a time, and lzip needs memory for a member
// for each core.
const encoderCores = 2

// NewWriter returns a writer that compresses to w. Name is none, zstd, gzip or lzip, otherwise the error is an ErrUnknown;
// for a level out of range it is an ErrLevel. Close must be called to complete the output; it does not close w. The output
// is one zstd frame, one gzip member, or one lzip member for each two dictionaries of data, all with checksums.
//
// Levels are those of the codecs' programs:
//
//   - none: ignored.
//   - gzip, 1 to 9: the library has the same levels.
//   - lzip, 0 to 9: the same dictionaries and match lengths as the program; files are within 3 % of its size.
//   - zstd, 1 to 22: the library has four levels. 1 selects its fastest; 2 to 5 its default, about the program's 3;
//     6 to 9 its better, about 7; 10 and more its best, about 11, so higher levels are not as small as the program's.
//
// Memory, and additional cores:
//
//   - none: nothing.
//   - gzip: 1 MiB, no other core.
//   - zstd: two windows, of 4 MiB at the fastest and 8 MiB above, and tables: about 10, 20, 25 and 55 MiB at the four
//     levels; up to two cores.
//   - lzip: see lzip.Writer, for up to two members at a time; two cores.
func NewWriter(name string, level int, w io.Writer) (io.WriteCloser, error) {
	if err := checkLevel(name, level); err != nil {
		return nil, err
	}
	cores := min(runtime.GOMAXPROCS(0), encoderCores)
	switch name {
	case Gzip:
		return gzip.NewWriterLevel(w, level)
	case Lzip:
		return lzip.NewWriter(w, level, cores)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstdLevel(level)), zstd.WithEncoderConcurrency(cores),
			zstd.WithEncoderCRC(true), zstd.WithZeroFrames(true))
	default:
		return nopCloser{w}, nil
	}
}

// zstdLevel maps a level of the zstd program to the library's.
func zstdLevel(level int) zstd.EncoderLevel {
	switch {
	case level < 2:
		return zstd.SpeedFastest
	case level < 6:
		return zstd.SpeedDefault
	case level < 10:
		return zstd.SpeedBetterCompression
	default:
		return zstd.SpeedBestCompression
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
