package lzip

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// inBytes is how much input a Reader reads at a time.
const inBytes = 1 << 16

// Reader decompresses an lzip file of one or more members. It checks every member's CRC, data size and member size,
// refuses trailing data, and returns io.EOF only after that. Read returns data before its member has been checked: only
// io.EOF means that all of it is good.
//
// Memory: 64 KiB of input, 20 KB of model, and a window that grows with the data, to no more than four times their size
// and to the dictionary size in the member's header, in the worst case 512 MiB; lzip's own levels use at most 32 MiB.
type Reader struct {
	src    io.Reader
	srcErr error // the last error of src, including io.EOF
	in     []byte
	inEnd  int   // in[:inEnd] is input
	inBase int64 // offset in the file of in[0]

	dec         decoder
	taken       int // dec.win[taken:dec.pos] has not been returned
	inMember    bool
	memberStart int64
	members     int64
	crc         uint32
	dataSize    uint64
	maxDict     uint32
	allow       func(window int) bool // nil if only maxDict limits the window
	err         error                 // for Read after the remaining output
}

// NewReader returns a Reader of the lzip file that r holds. It reads r to its end, and does not close it.
func NewReader(r io.Reader) *Reader {
	z := new(Reader)
	z.Reset(r)
	return z
}

// Reset makes z read another file, with the memory it has.
func (z *Reader) Reset(r io.Reader) {
	in, dec, maxDict := z.in, z.dec.win, z.maxDict
	if in == nil {
		in = make([]byte, inBytes+inMargin)
	}
	if maxDict == 0 {
		maxDict = MaxDictSize
	}
	z.src, z.srcErr = r, nil
	z.in, z.inEnd, z.inBase = in, 0, 0
	z.dec.win, z.dec.pos = dec, 0
	z.dec.ip = 0
	z.taken = 0
	z.inMember, z.memberStart, z.members = false, 0, 0
	z.err = nil
	z.maxDict = maxDict
}

// LimitDict makes z refuse, with ErrHeader, members with a dictionary larger than n bytes. It bounds z's memory and
// holds after Reset as well.
func (z *Reader) LimitDict(n uint32) { z.maxDict = n }

// LimitWindow makes z call allow before its window, which grows with the data, grows to a number of bytes, and fail with
// ErrWindow if the result is false. It holds after Reset as well.
func (z *Reader) LimitWindow(allow func(window int) bool) { z.allow = allow }

// WindowFor returns the size in bytes of the window, at the most, for size bytes of data in members with dictionaries of
// dict bytes at the most; a negative size is not known.
func WindowFor(dict uint32, size int64) int {
	window := int64(dict) + windowSpare
	if size < 0 {
		return windowLead + int(window) + windowSlack
	}
	n := min(int64(firstWindow), window)
	// Data is decoded in runs, so slightly more than size may be decoded.
	for n < window && n < size+runBytes+maxMatch {
		n = min(4*n, window)
	}
	return windowLead + int(n) + windowSlack
}

// WindowSize returns the size in bytes of the window that z keeps for its next file.
func (z *Reader) WindowSize() int { return len(z.dec.win) }

// Read implements io.Reader. Errors are io.ErrUnexpectedEOF, one of this package, wrapped, or one of the underlying
// reader. After any error but io.EOF, the data must not be used.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if z.taken < z.dec.pos {
			n := copy(p, z.dec.win[z.taken:z.dec.pos])
			z.taken += n
			return n, nil
		}
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.advance()
	}
}

// WriteTo implements io.WriterTo: it saves io.Copy a buffer and a copy.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if z.taken < z.dec.pos {
			n, err := w.Write(z.dec.win[z.taken:z.dec.pos])
			z.taken += n
			total += int64(n)
			if err == nil && z.taken < z.dec.pos {
				err = io.ErrShortWrite
			}
			if err != nil {
				return total, err
			}
		}
		if z.err == io.EOF {
			return total, nil
		}
		if z.err != nil {
			return total, z.err
		}
		z.err = z.advance()
	}
}

// advance decodes the next piece. All output must have been returned.
func (z *Reader) advance() error {
	if !z.inMember {
		if err := z.openMember(); err != nil {
			return err
		}
	}
	d := &z.dec
	if !d.makeRoom(z.allow) {
		return z.fail(ErrWindow)
	}
	z.taken = d.pos

	d.in = z.in
	d.limit = z.inEnd - inMargin
	if z.srcErr == io.EOF {
		// Pad the input with zeros, so that the last symbols need no special case; ip shows whether they were used.
		// That never happens in a complete file, as its trailer follows.
		clear(z.in[z.inEnd : z.inEnd+inMargin])
		d.limit = z.inEnd
	}
	st := d.run(min(d.pos+runBytes, d.end))
	if d.ip > z.inEnd {
		d.pos = z.taken // made of those zeros
		return z.fail(io.ErrUnexpectedEOF)
	}
	out := d.win[z.taken:d.pos]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, out)
	z.dataSize += uint64(len(out))

	switch st {
	case haveOutput:
		return nil
	case needInput:
		if z.srcErr != nil {
			return z.fail(z.srcErr)
		}
		z.fill(inMargin + 1)
		return nil
	case syncMarker:
		return z.startStream()
	case endMarker:
		return z.closeMember()
	default:
		return z.fail(ErrData)
	}
}

// fill reads until n bytes of input are in the buffer, or to the end or an error, which it leaves in srcErr.
func (z *Reader) fill(n int) {
	z.inEnd = copy(z.in, z.in[z.dec.ip:z.inEnd])
	z.inBase += int64(z.dec.ip)
	z.dec.ip = 0
	for idle := 0; z.inEnd < n && z.srcErr == nil; {
		var k int
		k, z.srcErr = z.src.Read(z.in[z.inEnd:inBytes])
		z.inEnd += k
		if k > 0 {
			idle = 0
		} else if idle++; idle == 100 && z.srcErr == nil {
			z.srcErr = io.ErrNoProgress
		}
	}
}

// take returns the next n bytes of input, or fewer at the end of it. They are valid until the next call.
func (z *Reader) take(n int) []byte {
	if z.inEnd-z.dec.ip < n {
		z.fill(n)
	}
	b := z.in[z.dec.ip:min(z.dec.ip+n, z.inEnd)]
	z.dec.ip += len(b)
	return b
}

// openMember reads the header of the next member. It returns io.EOF at the end of the file.
func (z *Reader) openMember() error {
	z.memberStart = z.offset()
	b := z.take(headerSize)
	if len(b) < headerSize && z.srcErr != io.EOF {
		return z.fail(z.srcErr)
	}
	if z.members > 0 {
		if len(b) == 0 {
			return io.EOF
		}
		// Anything else than the beginning of a header is trailing data.
		if n := min(len(b), len(magic)); string(b[:n]) != string(magic[:n]) {
			return z.fail(ErrTrailing)
		}
	}
	if len(b) < headerSize {
		return z.fail(io.ErrUnexpectedEOF)
	}
	dict, err := parseHeader([headerSize]byte(b))
	if err != nil {
		return z.fail(err)
	}
	if dict > z.maxDict {
		return z.fail(fmt.Errorf("%w: a dictionary of %d bytes, more than the %d allowed here", ErrHeader, dict, z.maxDict))
	}
	z.dec.reset(dict)
	z.taken = z.dec.pos
	z.crc, z.dataSize = 0, 0
	z.inMember = true
	z.members++
	return z.startStream()
}

// startStream loads the range coder, at the start of a member or after a sync marker.
func (z *Reader) startStream() error {
	b := z.take(5)
	if len(b) < 5 {
		return z.fail(z.srcErr)
	}
	if !z.dec.start([5]byte(b)) {
		return z.fail(ErrData)
	}
	if z.inEnd-z.dec.ip <= inMargin && z.srcErr == nil {
		z.fill(inMargin + 1)
	}
	return nil
}

// closeMember compares the trailer with the decoded data.
func (z *Reader) closeMember() error {
	// The encoder's flush makes the range coder's value the lower end of its range.
	if z.dec.code != 0 {
		return z.fail(ErrData)
	}
	b := z.take(trailerSize)
	if len(b) < trailerSize {
		return z.fail(z.srcErr)
	}
	got := trailer{z.crc, z.dataSize, uint64(z.offset() - z.memberStart)}
	if want := parseTrailer([trailerSize]byte(b)); got != want {
		return z.fail(fmt.Errorf("%w: CRC %08x, data %d, member %d bytes; the trailer says %08x, %d, %d",
			ErrChecksum, got.crc, got.dataSize, got.memberSize, want.crc, want.dataSize, want.memberSize))
	}
	z.inMember = false
	return nil
}

func (z *Reader) offset() int64 { return z.inBase + int64(z.dec.ip) }

// fail adds the position in the file to an error. io.EOF becomes io.ErrUnexpectedEOF.
func (z *Reader) fail(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("lzip: input ends within member %d: %w", z.members, err)
	}
	return fmt.Errorf("%w (member %d, offset %d)", err, z.members, z.offset())
}
