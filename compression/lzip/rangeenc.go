package lzip

// rangeEncoder is the counterpart of the decoder's range coder: it narrows [low, low+rng) with every bit and writes
// the bytes of low that only a carry can still change.
type rangeEncoder struct {
	low     uint64 // 33 bits: the highest is the carry
	rng     uint32
	cache   byte  // the last byte that a carry may still change
	pending int64 // cache and the 0xff bytes after it, which a carry would turn over
	out     []byte
}

func (rc *rangeEncoder) reset(out []byte) {
	rc.low, rc.rng = 0, 0xFFFFFFFF
	rc.cache, rc.pending = 0, 1 // so that the first byte is the 0 that decoders expect
	rc.out = out
}

func (rc *rangeEncoder) shiftLow() {
	if rc.low < 0xFF000000 || rc.low > 0xFFFFFFFF {
		carry := byte(rc.low >> 32)
		c := rc.cache
		for ; rc.pending > 0; rc.pending-- {
			rc.out = append(rc.out, c+carry)
			c = 0xFF
		}
		rc.cache = byte(rc.low >> 24)
	}
	rc.pending++
	rc.low = rc.low & 0x00FFFFFF << 8
}

// flush writes all of low. It ends the stream.
func (rc *rangeEncoder) flush() {
	for range 5 {
		rc.shiftLow()
	}
}

// bit encodes the lowest bit of b.
func (rc *rangeEncoder) bit(p *prob, b uint32) {
	v := *p
	bound := (rc.rng >> probBits) * uint32(v)
	if b&1 == 0 {
		rc.rng = bound
		*p = v + (1<<probBits-v)>>adaptShift
	} else {
		rc.low += uint64(bound)
		rc.rng -= bound
		*p = v - v>>adaptShift
	}
	if rc.rng < rangeTop {
		rc.rng <<= 8
		rc.shiftLow()
	}
}

// direct encodes the n lowest bits of v, which have no model, highest first.
func (rc *rangeEncoder) direct(v uint32, n uint) {
	for n > 0 {
		n--
		rc.rng >>= 1
		if v>>n&1 != 0 {
			rc.low += uint64(rc.rng)
		}
		if rc.rng < rangeTop {
			rc.rng <<= 8
			rc.shiftLow()
		}
	}
}

// tree encodes sym in a tree with len(probs) leaves, which is 1<<n.
func (rc *rangeEncoder) tree(probs []prob, sym uint32, n uint) {
	node := uint32(1)
	for n > 0 {
		n--
		b := sym >> n & 1
		rc.bit(&probs[node], b)
		node = node<<1 | b
	}
}

// reverse encodes the n lowest bits of sym, lowest first.
func (rc *rangeEncoder) reverse(probs []prob, sym uint32, n uint) {
	node := uint32(1)
	for range n {
		b := sym & 1
		sym >>= 1
		rc.bit(&probs[node], b)
		node = node<<1 | b
	}
}
