package narinfo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// A nar is a sequence of strings: the length in bytes, as a little-endian number of 64 bits,
// the bytes, and zeros up to a multiple of 8. The nar of a single file that isn't executable
// has a head of fixed length.
const (
	// FlatHeaderSize is the number of bytes before the content in the nar of
	// a single file.
	FlatHeaderSize = 96

	// maxFlatSize bounds the length of the content, so that the size of the nar doesn't
	// overflow.
	maxFlatSize = math.MaxInt64 / 2

	narStart   = "\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00" + narOpen + narType
	narOpen    = "\x01\x00\x00\x00\x00\x00\x00\x00(\x00\x00\x00\x00\x00\x00\x00"
	narType    = "\x04\x00\x00\x00\x00\x00\x00\x00type\x00\x00\x00\x00"
	narRegular = "\x07\x00\x00\x00\x00\x00\x00\x00regular\x00"

	narContents   = "\x08\x00\x00\x00\x00\x00\x00\x00contents"
	narExecutable = "\x0a\x00\x00\x00\x00\x00\x00\x00executable"
	narSymlink    = "\x07\x00\x00\x00\x00\x00\x00\x00symlink\x00"
	narDirectory  = "\x09\x00\x00\x00\x00\x00\x00\x00directory"

	// narClose is the size of the closing parenthesis, which ends a nar.
	narClose = 16
)

var (
	// ErrNotFlat reports the nar of a directory, a symbolic link or an executable.
	ErrNotFlat = errors.New("not a single file that isn't executable")

	// ErrNotNar reports bytes that don't begin a nar.
	ErrNotNar = errors.New("not a nar")
)

// ParseFlatHeader reads the length of the content, which follows at [FlatHeaderSize], from the
// beginning of a decompressed nar: at least FlatHeaderSize bytes. The error wraps [ErrNotFlat]
// or, also for a length that no file can have, [ErrNotNar].
func ParseFlatHeader(b []byte) (fileSize int64, err error) {
	// The shortest nar, of an empty directory, has as many bytes.
	if len(b) < FlatHeaderSize {
		return 0, fmt.Errorf("%w: %d bytes, the head has %d", ErrNotNar, len(b), FlatHeaderSize)
	}
	head := string(b[:FlatHeaderSize])
	rest, ok := strings.CutPrefix(head, narStart)
	if !ok {
		return 0, fmt.Errorf("%w: begins with %q", ErrNotNar, head[:24])
	}
	length, ok := strings.CutPrefix(rest, narRegular+narContents)
	switch {
	case ok:
	case strings.HasPrefix(rest, narRegular+narExecutable):
		return 0, fmt.Errorf("%w: executable", ErrNotFlat)
	case strings.HasPrefix(rest, narSymlink):
		return 0, fmt.Errorf("%w: symbolic link", ErrNotFlat)
	case strings.HasPrefix(rest, narDirectory):
		return 0, fmt.Errorf("%w: directory", ErrNotFlat)
	default:
		return 0, fmt.Errorf("%w: unknown type of file %q", ErrNotNar, rest[:16])
	}
	size := binary.LittleEndian.Uint64([]byte(length))
	if size > maxFlatSize {
		return 0, fmt.Errorf("%w: content of %d bytes, at most %d are allowed", ErrNotNar, size, int64(maxFlatSize))
	}
	return int64(size), nil
}

// FlatNarSize returns the size of the nar of a single file of fileSize bytes, which
// [ParseFlatHeader] has returned.
func FlatNarSize(fileSize int64) int64 {
	return FlatHeaderSize + (fileSize+7)&^7 + narClose
}
