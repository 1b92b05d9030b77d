package lzip

import "math/bits"

// symbolEncoder turns literals and matches into the stream, keeping the state that says how.
type symbolEncoder struct {
	model
	rc    rangeEncoder
	data  []byte
	pos   int // of the next symbol in data
	state uint8
	reps  [4]uint32 // distances less one
}

func (e *symbolEncoder) reset(data, out []byte) {
	e.model.reset()
	e.rc.reset(out)
	e.data, e.pos = data, 0
	e.state, e.reps = 0, [4]uint32{}
}

// before returns the byte before position pos, which chooses the tree of the literal there.
func before(data []byte, pos int) byte {
	if pos == 0 {
		return 0
	}
	return data[pos-1]
}

func (e *symbolEncoder) literal() {
	e.rc.bit(&e.isMatch[e.state&15][e.pos&posMask], 0)
	c := uint32(e.data[e.pos])
	probs := &e.lit[before(e.data, e.pos)>>5]
	if e.state < firstMatched {
		e.rc.tree(probs[:], c, 8)
	} else {
		like := uint32(e.data[e.pos-1-int(e.reps[0])])
		offset, node := uint32(0x100), uint32(1)
		for n := 7; n >= 0; n-- {
			b := c >> n & 1
			l := like >> n & 1
			e.rc.bit(&probs[(offset+offset*l+node)&0x3ff], b)
			node = node<<1 | b
			if l != b {
				offset = 0
			}
		}
	}
	e.state = nextLiteral[e.state&15]
	e.pos++
}

func (e *symbolEncoder) length(m *lenModel, n int) {
	ps := e.pos & posMask
	n -= minMatch
	switch {
	case n < lowLens:
		e.rc.bit(&m.choice, 0)
		e.rc.tree(m.low[ps][:], uint32(n), 3)
	case n < lowLens+midLens:
		e.rc.bit(&m.choice, 1)
		e.rc.bit(&m.choice2, 0)
		e.rc.tree(m.mid[ps][:], uint32(n-lowLens), 3)
	default:
		e.rc.bit(&m.choice, 1)
		e.rc.bit(&m.choice2, 1)
		e.rc.tree(m.high[:], uint32(n-lowLens-midLens), 8)
	}
}

// rep encodes a match of n bytes at the i-th of the last distances; 1 byte only at the first.
func (e *symbolEncoder) rep(i, n int) {
	s, ps := e.state&15, e.pos&posMask
	e.rc.bit(&e.isMatch[s][ps], 1)
	e.rc.bit(&e.isRep[s], 1)
	if i == 0 {
		e.rc.bit(&e.isRep0[s], 0)
		if n == 1 {
			e.rc.bit(&e.isRep0Long[s][ps], 0)
			e.state = nextShortRep[s]
			e.pos++
			return
		}
		e.rc.bit(&e.isRep0Long[s][ps], 1)
	} else {
		e.rc.bit(&e.isRep0[s], 1)
		if i == 1 {
			e.rc.bit(&e.isRep1[s], 0)
		} else {
			e.rc.bit(&e.isRep1[s], 1)
			e.rc.bit(&e.isRep2[s], uint32(i-2))
		}
		e.reps = withRep(e.reps, i)
	}
	e.length(&e.repLen, n)
	e.state = nextRep[s]
	e.pos += n
}

// withRep returns the last distances after the use of the i-th of them.
func withRep(reps [4]uint32, i int) [4]uint32 {
	switch i {
	case 1:
		return [4]uint32{reps[1], reps[0], reps[2], reps[3]}
	case 2:
		return [4]uint32{reps[2], reps[0], reps[1], reps[3]}
	case 3:
		return [4]uint32{reps[3], reps[0], reps[1], reps[2]}
	}
	return reps
}

// slotOf returns the slot of a distance less one: its two highest bits and how many follow.
func slotOf(dist uint32) uint32 {
	if dist < firstSlotModel {
		return dist
	}
	n := uint32(bits.Len32(dist)) - 1
	return 2*n + dist>>((n-1)&31)&1
}

// lenStateOf returns which of the models of slots a match of n bytes uses.
func lenStateOf(n int) int { return min(n-minMatch, lenStates-1) }

// match encodes a match of n bytes at a new distance, given less one.
func (e *symbolEncoder) match(dist uint32, n int) {
	s := e.state & 15
	e.rc.bit(&e.isMatch[s][e.pos&posMask], 1)
	e.rc.bit(&e.isRep[s], 0)
	e.length(&e.matchLen, n)
	slot := slotOf(dist)
	e.rc.tree(e.slot[lenStateOf(n)][:], slot, 6)
	if slot >= firstSlotModel {
		low := uint(slot>>1 - 1)
		if slot < endSlotModel {
			e.rc.reverse(e.spec[slot-firstSlotModel][:], dist, low)
		} else {
			e.rc.direct(dist>>alignBits&(1<<(low-alignBits)-1), low-alignBits)
			e.rc.reverse(e.align[:], dist, alignBits)
		}
	}
	e.reps = [4]uint32{dist, e.reps[0], e.reps[1], e.reps[2]}
	e.state = nextMatch[s]
	e.pos += n
}

// finish ends the stream and returns it.
func (e *symbolEncoder) finish() []byte {
	e.match(markerDist, minMatch)
	e.rc.flush()
	return e.rc.out
}
