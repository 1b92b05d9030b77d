// Package lzip reads and writes the lzip format: LZMA with fixed parameters (lc=3, lp=0, pb=2) and an end marker,
// framed in members that each carry a checksum and their own sizes.
//
// A file is one or more members, one after the other; their contents are concatenated. A member is
//
//	4 bytes  "LZIP"
//	1 byte   version, 1
//	1 byte   coded dictionary size
//	n bytes  LZMA stream, ended by a match of length 2 at distance 2^32
//	4 bytes  CRC-32 (IEEE) of the data, little-endian like all that follows
//	8 bytes  size of the data
//	8 bytes  size of the member, from "LZIP" to the end of this field
//
// The format is described in the chapter "File format" of the lzip manual and in
// draft-diaz-lzip; the constants below are taken from there.
package lzip

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Dictionary sizes the format allows, in bytes.
const (
	MinDictSize = 1 << 12
	MaxDictSize = 1 << 29
)

const (
	headerSize  = 6
	trailerSize = 20
	// An empty member has a stream of 10 bytes: 5 that start the range coder, the marker and the coder's flush.
	minMemberSize = headerSize + 10 + trailerSize
	version       = 1
)

var magic = [4]byte{'L', 'Z', 'I', 'P'}

// Errors of damaged or foreign input. They come wrapped, with the offset; compare with errors.Is.
// Input that ends too early gives io.ErrUnexpectedEOF instead.
var (
	// ErrHeader is the error for a member header that is not lzip's, of another version, or with a dictionary size out of range.
	ErrHeader = errors.New("lzip: bad member header")
	// ErrData is an LZMA stream that cannot be decoded.
	ErrData = errors.New("lzip: corrupt LZMA stream")
	// ErrChecksum is the error for a trailer that doesn't match the decoded member: CRC, data size or member size.
	ErrChecksum = errors.New("lzip: member trailer does not match its data")
	// ErrWindow is data that needs a larger window than LimitWindow allows. The file may be a good one.
	ErrWindow = errors.New("lzip: the window would be larger than allowed here")
	// ErrTrailing is data after the last member. The lzip program tolerates some of it; a nar never has any.
	ErrTrailing = errors.New("lzip: trailing data after the last member")
)

// DictSize returns the dictionary size, in bytes, that the header at the beginning of a file announces, or an ErrHeader.
func DictSize(head []byte) (uint32, error) {
	if len(head) < headerSize {
		return 0, fmt.Errorf("%w: it is cut off", ErrHeader)
	}
	return parseHeader([headerSize]byte(head))
}

// parseHeader returns the dictionary size, in bytes, that a member header announces.
func parseHeader(h [headerSize]byte) (uint32, error) {
	if [4]byte(h[:4]) != magic {
		return 0, fmt.Errorf("%w: no magic number", ErrHeader)
	}
	if h[4] != version {
		return 0, fmt.Errorf("%w: version %d, only %d is known", ErrHeader, h[4], version)
	}
	size, ok := decodeDictSize(h[5])
	if !ok {
		return 0, fmt.Errorf("%w: dictionary size code %#02x is out of range", ErrHeader, h[5])
	}
	return size, nil
}

// decodeDictSize expands a coded dictionary size: bits 4-0 are the base 2 logarithm of a base size,
// bits 7-5 the number of sixteenths of it to take away.
func decodeDictSize(c byte) (uint32, bool) {
	log := c & 31
	if log < 12 || log > 29 {
		return 0, false
	}
	size := uint32(1) << log
	size -= size / 16 * uint32(c>>5)
	return size, size >= MinDictSize
}

// encodeDictSize returns the code of the smallest representable dictionary that is not smaller than size,
// and that dictionary's size. Size must be within the format's limits.
func encodeDictSize(size uint32) (byte, uint32) {
	log := byte(12)
	for uint32(1)<<log < size {
		log++
	}
	base := uint32(1) << log
	code, coded := log, base
	for n := uint32(1); n < 8; n++ {
		s := base - base/16*n
		if s < size || s < MinDictSize {
			break
		}
		code, coded = log|byte(n)<<5, s
	}
	return code, coded
}

// trailer is the end of a member.
type trailer struct {
	crc        uint32
	dataSize   uint64 // bytes of decompressed data
	memberSize uint64 // bytes of the member, header and trailer included
}

func parseTrailer(b [trailerSize]byte) trailer {
	return trailer{
		crc:        binary.LittleEndian.Uint32(b[0:]),
		dataSize:   binary.LittleEndian.Uint64(b[4:]),
		memberSize: binary.LittleEndian.Uint64(b[12:]),
	}
}

func (t trailer) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, t.crc)
	b = binary.LittleEndian.AppendUint64(b, t.dataSize)
	return binary.LittleEndian.AppendUint64(b, t.memberSize)
}
