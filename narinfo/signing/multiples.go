package signing

import (
	"encoding/binary"
	"sync"

	"filippo.io/edwards25519"
)

// Numbers are split into digits of windowBits bits, from -windowSize to windowSize-1, so that
// a table of few multiples is enough.
const (
	windowBits = 6
	windowSize = 1 << (windowBits - 1)
	windows    = (253 + windowBits) / windowBits // one more bit for the sign
)

// multiples has the multiples of a point by all digits at all positions. Multiplying with it
// only adds 43 points, which takes a quarter of the time. It has 220 KB.
type multiples [windows][windowSize]edwards25519.Point

// multiplesOf computes the table, in the time of some four multiplications without it.
func multiplesOf(p *edwards25519.Point) *multiples {
	m := new(multiples)
	unit := new(edwards25519.Point).Set(p)
	for i := range m {
		m[i][0].Set(unit)
		for j := 1; j < windowSize; j++ {
			m[i][j].Add(&m[i][j-1], unit)
		}
		unit.Add(&m[i][windowSize-1], &m[i][windowSize-1])
	}
	return m
}

// addTo adds the point times a public number to sum. The time depends on the number.
func (m *multiples) addTo(sum *edwards25519.Point, number *edwards25519.Scalar) {
	var words [5]uint64
	b := number.Bytes()
	for i := range 4 {
		words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	carry := 0
	for i := range m {
		bit := i * windowBits
		digit := words[bit/64] >> (bit % 64)
		if bit%64 > 64-windowBits {
			digit |= words[bit/64+1] << (64 - bit%64)
		}
		d := int(digit&(2*windowSize-1)) + carry
		carry = 0
		if d >= windowSize {
			d, carry = d-2*windowSize, 1
		}
		switch {
		case d > 0:
			sum.Add(sum, &m[i][d-1])
		case d < 0:
			sum.Subtract(sum, &m[i][-d-1])
		}
	}
}

// baseMultiples is the table of the base point.
var baseMultiples = sync.OnceValue(func() *multiples { return multiplesOf(edwards25519.NewGeneratorPoint()) })
