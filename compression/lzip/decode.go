package lzip

import (
	"encoding/binary"
	"math/bits"
)

const (
	// inMargin is how much input must be buffered to decode a symbol without checks: a match takes at most 22 modelled
	// bits, each of at most 6.1 bits of information, and 26 direct ones, so 20 bytes.
	inMargin = 32

	// The window is laid out as lead bytes, size bytes, slack bytes. The lead holds copies of the last bytes of the
	// window after a wrap, so that the byte before the first is there; 4 keeps pos&posMask equal to the position in
	// the data. The slack takes the part of a match that passes the end, and copies of 8 bytes at a time.
	windowLead  = 4
	windowSlack = maxMatch + 15
	// windowSpare keeps those copies, which write up to 7 bytes too many, off the oldest bytes still in reach.
	windowSpare = 16
	// firstWindow is what a member starts with; the window grows with the data, so that a header alone, which may ask
	// for 512 MiB, costs next to nothing.
	firstWindow = 1 << 16
	// runBytes is how much is decoded before it is handed out: it should still be in the cache then.
	runBytes = 1 << 16
)

// status is why decoder.run returned.
type status int

const (
	needInput  status = iota // fewer than inMargin bytes are left
	haveOutput               // stop was reached
	endMarker                // the member's stream is complete
	syncMarker               // five bytes that restart the range coder follow
	corrupt                  // a distance points before the data or beyond the dictionary, or a marker is unknown
)

// decoder holds the state of one LZMA stream between calls of run. The reader sets in, ip and limit, and
// consumes win up to pos.
type decoder struct {
	model

	in    []byte // input, with inMargin readable bytes after limit
	ip    int    // next byte of in
	limit int    // no symbol starts at or after it

	rng, code              uint32
	state                  uint8
	rep0, rep1, rep2, rep3 uint32 // distances less one

	win     []byte
	pos     int    // index in win of the next byte
	end     int    // windowLead + the window's size for now
	size    int    // the size that it may grow to
	dict    uint32 // the dictionary size, the farthest that a match may reach
	wrapped bool   // all of the window holds data
}

// reset prepares for a new member. The window is kept if there is one.
func (d *decoder) reset(dict uint32) {
	d.model.reset()
	d.state, d.rep0, d.rep1, d.rep2, d.rep3 = 0, 0, 0, 0, 0
	d.dict = dict
	d.size = int(dict) + windowSpare
	if d.win == nil {
		d.setWindow(min(firstWindow, d.size))
	}
	d.end = min(len(d.win)-windowSlack, windowLead+d.size)
	d.pos = windowLead
	d.wrapped = false
	d.win[windowLead-1] = 0
}

// setWindow makes a window of n bytes that begins with the contents of the old one.
func (d *decoder) setWindow(n int) {
	w := make([]byte, windowLead+n+windowSlack)
	copy(w, d.win)
	d.win = w
	d.end = windowLead + n
}

// makeRoom enlarges a full window, or continues at its beginning. All output must have been returned. The result is false
// if the window must grow and allow refuses its size in bytes; a nil allow sets no limit.
func (d *decoder) makeRoom(allow func(window int) bool) bool {
	if d.pos < d.end {
		return true
	}
	if n := d.end - windowLead; n < d.size {
		n = min(4*n, d.size)
		if allow != nil && !allow(windowLead+n+windowSlack) {
			return false
		}
		d.setWindow(n)
		if d.pos < d.end {
			return true
		}
	}
	over := d.pos - d.end
	copy(d.win[:windowLead+over], d.win[d.end-windowLead:d.pos])
	d.pos = windowLead + over
	d.wrapped = true
	return true
}

// start loads the range coder from the first 5 bytes of a stream. The first is always 0.
func (d *decoder) start(b [5]byte) bool {
	d.rng = 0xFFFFFFFF
	d.code = binary.BigEndian.Uint32(b[1:])
	return b[0] == 0
}

// Steps of the range decoder. They pass values rather than a struct so that the compiler inlines them and run keeps
// everything in registers.

// normalize reads a byte if the range has become small.
func normalize(rng, code uint32, in []byte, ip int) (uint32, uint32, int) {
	if rng < rangeTop {
		return rng << 8, code<<8 | uint32(in[ip]), ip + 1
	}
	return rng, code, ip
}

// treeBit decodes a bit without branching on it: in trees bits are as good as random, and a wrong guess costs more
// than the arithmetic. It returns the new probability, and ^0 for a 0 bit, 0 for a 1 bit.
func treeBit(rng, code, v uint32) (uint32, uint32, prob, uint32) {
	bound := (rng >> probBits) * v
	diff, borrow := bits.Sub64(uint64(code), uint64(bound), 0)
	mask := uint32(-borrow)
	// Towards 2^11 for a 0 bit, towards 0 for a 1 bit; the constant makes the former round as the latter does.
	w := prob(v - uint32(int32(v+(mask&^uint32(1<<probBits-1<<adaptShift)))>>adaptShift))
	rng -= bound
	return rng + mask&(bound-rng), uint32(diff) + mask&bound, w, mask
}
