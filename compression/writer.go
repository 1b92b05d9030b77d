package compression

import (
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"nar-herder/compression/lzip"
)

// encoderCores is the most cores that one writer keeps busy. Several nars are compressed at a time, and a member of
// lzip takes memory for each core.
const encoderCores = 2

// NewWriter returns a writer that compresses to w. Name is one of none, zstd, gzip and lzip, otherwise the error is an
// ErrUnknown; a level out of range is an ErrLevel. What is written is complete after Close, which must be called, and
// which does not close w. It is one frame of zstd, one member of gzip, or one member of lzip for each two dictionaries
// of data, all with checksums.
//
// Levels are those of the codecs' programs:
//
//   - none: ignored.
//   - gzip, 1 to 9: the library has the same levels.
//   - lzip, 0 to 9: the same dictionaries and match lengths as the program; files are within 3 % of its size.
//   - zstd, 1 to 22: the library has four levels. 1 is its fastest, 2 to 5 its default, which is about the program's 3,
//     6 to 9 its better, which is about 7, 10 and more its best, which is about 11: it is not as small as the program
//     makes it from there on.
//
// Memory, and the cores a writer uses beside its caller's:
//
//   - none: nothing.
//   - gzip: 1 MiB, no other core.
//   - zstd: two windows, of 4 MiB at the fastest and 8 MiB above, and tables: about 10, 20, 25 and 55 MiB at the four
//     levels; up to two cores.
//   - lzip: see lzip.Writer, for two members at a time where the data have as many; two cores.
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
