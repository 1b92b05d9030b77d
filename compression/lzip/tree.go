package lzip

import "encoding/binary"

// The trees of run. They are separate functions, as they do enough work to be worth a call, and all their values then fit
// into registers. A tree reads at most a byte of input for each bit, so the caller passes the next 8 bytes in ahead, the
// first byte on top. The result has the number of used bytes.

// literal decodes a byte that follows a literal.
func literal(probs *[0x400]prob, rng, code uint32, ahead uint64) (_, _, _ uint32, used int) {
	sym := uint32(1)
	v := uint32(probs[1])
	for sym < 0x100 {
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(ahead>>56)
			ahead <<= 8
			used++
		}
		// Loading both possible next values hides the latency of the load.
		v0, v1 := uint32(probs[(2*sym)&0x3ff]), uint32(probs[(2*sym+1)&0x3ff])
		var mask uint32
		var w prob
		rng, code, w, mask = treeBit(rng, code, v)
		probs[sym&0x3ff] = w
		v = v1 + mask&(v0-v1)
		sym = sym<<1 + 1 + mask
	}
	return sym, rng, code, used
}

// matchedLiteral decodes a byte that follows a match, and differs from the byte at rep0. The bits of that choose
// between two more trees until one of them differs.
func matchedLiteral(probs *[0x400]prob, rng, code uint32, ahead uint64, like uint32) (_, _, _ uint32, used int) {
	sym := uint32(1)
	offset := uint32(0x100) // 0 once a bit differed
	for sym < 0x100 {
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(ahead>>56)
			ahead <<= 8
			used++
		}
		like <<= 1
		bit := like & offset
		p := &probs[(offset+bit+sym)&0x3ff]
		var mask uint32
		rng, code, *p, mask = treeBit(rng, code, uint32(*p))
		sym = sym<<1 + 1 + mask
		offset &= bit ^ mask
	}
	return sym, rng, code, used
}

// tree decodes a symbol of a tree with as many leaves as probs has entries, which must be a power of two up to 2^8.
func tree(probs []prob, rng, code uint32, ahead uint64) (_, _, _ uint32, used int) {
	size := uint32(len(probs))
	sym := uint32(1)
	for sym < size && int(sym) < len(probs) {
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(ahead>>56)
			ahead <<= 8
			used++
		}
		p := &probs[sym]
		var mask uint32
		rng, code, *p, mask = treeBit(rng, code, uint32(*p))
		sym = sym<<1 + 1 + mask
	}
	return sym - size, rng, code, used
}

// length decodes the length of a match. Its up to 10 bits take no more than 8 bytes, as a bit has at most 6.1 bits of
// information.
func length(m *lenModel, posState uint, rng, code uint32, ahead uint64) (n int, _, _ uint32, used int) {
	probs, n := m.high[:], minMatch+lowLens+midLens
	if rng < rangeTop {
		rng <<= 8
		code = code<<8 | uint32(ahead>>56)
		ahead <<= 8
		used++
	}
	if bound := (rng >> probBits) * uint32(m.choice); code < bound {
		rng = bound
		m.choice += (1<<probBits - m.choice) >> adaptShift
		probs, n = m.low[posState&posMask][:], minMatch
	} else {
		rng -= bound
		code -= bound
		m.choice -= m.choice >> adaptShift
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(ahead>>56)
			ahead <<= 8
			used++
		}
		if bound = (rng >> probBits) * uint32(m.choice2); code < bound {
			rng = bound
			m.choice2 += (1<<probBits - m.choice2) >> adaptShift
			probs, n = m.mid[posState&posMask][:], minMatch+lowLens
		} else {
			rng -= bound
			code -= bound
			m.choice2 -= m.choice2 >> adaptShift
		}
	}
	sym, rng, code, more := tree(probs, rng, code, ahead)
	return n + int(sym), rng, code, used + more
}

// distance decodes the distance, less one, of a match of n bytes.
func (m *model) distance(n int, rng, code uint32, in []byte, ip int) (_, _, _ uint32, _ int) {
	slots := &m.slot[min(n-minMatch, lenStates-1)&(lenStates-1)]
	slot, rng, code, used := tree(slots[:], rng, code, binary.BigEndian.Uint64(in[ip:ip+8]))
	ip += used
	if slot < firstSlotModel {
		return slot, rng, code, ip
	}
	low := slot>>1 - 1 // the number of bits below the slot
	dist := (2 | slot&1) << (low & 31)
	probs, sym := m.align[:], uint32(1)
	if slot < endSlotModel {
		probs = m.spec[(slot-firstSlotModel)&15][:]
	} else {
		direct := uint32(0)
		for range low - alignBits {
			rng, code, ip = normalize(rng, code, in, ip)
			rng >>= 1
			code -= rng
			mask := -(code >> 31)
			code += rng & mask
			direct = direct<<1 + 1 + mask
		}
		dist += direct << alignBits
		low = alignBits
	}
	for i := range low {
		rng, code, ip = normalize(rng, code, in, ip)
		p := &probs[sym]
		var mask uint32
		rng, code, *p, mask = treeBit(rng, code, uint32(*p))
		sym = sym<<1 + 1 + mask
		dist += (1 + mask) << (i & 31)
	}
	return dist, rng, code, ip
}
