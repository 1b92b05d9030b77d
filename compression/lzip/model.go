package lzip

// This file has what encoder and decoder share: LZMA's adaptive model, as in the LZMA specification, with lzip's fixed
// parameters. Arrays that are indexed by a state or a slot are rounded up to a power of two so that a mask
// proves the index in range.

// prob is the probability of a 0 bit, in units of 2^-probBits.
type prob = uint16

const (
	probBits   = 11
	probInit   = 1 << (probBits - 1)
	adaptShift = 5       // a bit moves its probability by 1/32 of what is left
	rangeTop   = 1 << 24 // below this the coder reads or writes a byte

	numStates    = 12
	firstMatched = 7 // states from here on follow a match, and code literals against the byte at rep0
	posStates    = 4 // pb=2
	posMask      = posStates - 1

	minMatch = 2
	maxMatch = 273

	lowLens = 8 // lengths 2..9 and 10..17 have trees of their own for each posState
	midLens = 8

	lenStates      = 4 // lengths 2, 3, 4 and more have distance slots of their own
	firstSlotModel = 4 // slots from here on have bits below the slot
	endSlotModel   = 14
	alignBits      = 4
	alignSize      = 1 << alignBits

	// markerDist is the distance, less one, of a marker, which is coded like a match: with length 2 it ends a member.
	markerDist = 0xFFFFFFFF
)

type lenModel struct {
	choice  prob
	choice2 prob
	low     [posStates][lowLens]prob
	mid     [posStates][midLens]prob
	high    [256]prob
}

type model struct {
	isMatch    [16][posStates]prob
	isRep      [16]prob
	isRep0     [16]prob // 0 bit: the distance is rep0
	isRep1     [16]prob
	isRep2     [16]prob
	isRep0Long [16][posStates]prob // 0 bit: a single byte at rep0
	slot       [lenStates][64]prob
	spec       [16][32]prob // by slot - firstSlotModel; a reverse tree of up to 5 bits
	align      [alignSize]prob
	matchLen   lenModel
	repLen     lenModel
	lit        [8][0x400]prob // lc=3, lp=0; 0x300 used: plain, then matched with a 0 bit, then with a 1 bit
}

func fill[T ~[]prob](p T) {
	for i := range p {
		p[i] = probInit
	}
}

func (m *lenModel) reset() {
	m.choice, m.choice2 = probInit, probInit
	for i := range m.low {
		fill(m.low[i][:])
		fill(m.mid[i][:])
	}
	fill(m.high[:])
}

func (m *model) reset() {
	for i := range m.isMatch {
		fill(m.isMatch[i][:])
		fill(m.isRep0Long[i][:])
		fill(m.spec[i][:])
	}
	fill(m.isRep[:])
	fill(m.isRep0[:])
	fill(m.isRep1[:])
	fill(m.isRep2[:])
	for i := range m.slot {
		fill(m.slot[i][:])
	}
	fill(m.align[:])
	m.matchLen.reset()
	m.repLen.reset()
	for i := range m.lit {
		fill(m.lit[i][:])
	}
}

// How the state moves with each kind of symbol.
var (
	nextLiteral  = [16]uint8{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}
	nextMatch    = [16]uint8{7, 7, 7, 7, 7, 7, 7, 10, 10, 10, 10, 10}
	nextRep      = [16]uint8{8, 8, 8, 8, 8, 8, 8, 11, 11, 11, 11, 11}
	nextShortRep = [16]uint8{9, 9, 9, 9, 9, 9, 9, 11, 11, 11, 11, 11}
)
