package signing

import (
	"encoding/binary"
	"sync"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
)

// Numbers are split into digits of windowBits bits, from -windowSize to windowSize-1, so that
// a table of few multiples is enough.
const (
	windowBits = 7
	windowSize = 1 << (windowBits - 1)
	windows    = (253 + windowBits) / windowBits // one more bit for the sign
)

// multiples has the multiples of a point by all digits at all positions. Multiplying with it
// only adds 37 points, which takes less than a quarter of the time. It has 280 KB.
type multiples [windows][windowSize]affinePoint

// affinePoint is a point in the form that is added with the fewest multiplications: y+x, y-x,
// and 2dxy, where d is that of the curve.
type affinePoint struct{ sum, difference, product field.Element }

// sumPoint is a point in extended coordinates: x = X/Z, y = Y/Z, xy = T/Z.
type sumPoint struct{ x, y, z, t field.Element }

// twiceD is 2d. d is -121665/121666, as of RFC 8032.
var twiceD = sync.OnceValue(func() *field.Element {
	d := new(field.Element).Mult32(new(field.Element).One(), 121666)
	d.Mult32(d.Invert(d), 2*121665)
	return d.Negate(d)
})

// multiplesOf computes the table, in the time of some ten multiplications without it.
func multiplesOf(p *edwards25519.Point) *multiples {
	m := new(multiples)
	points := make([]sumPoint, 0, windows*windowSize)
	unit, multiple := new(edwards25519.Point).Set(p), new(edwards25519.Point)
	for range windows {
		multiple.Set(unit)
		for range windowSize {
			points = append(points, sumPointOf(multiple))
			multiple.Add(multiple, unit)
		}
		unit.MultByCofactor(unit)
		for range windowBits - 3 { // the cofactor is 1<<3
			unit.Add(unit, unit)
		}
	}
	// All are inverted at once: the inverse of the product of all Z is the product of the
	// inverses.
	before := make([]field.Element, len(points)) // the product of the Z before each
	inverse := new(field.Element).One()
	for i := range points {
		before[i].Set(inverse)
		inverse.Multiply(inverse, &points[i].z)
	}
	inverse.Invert(inverse)
	var x, y field.Element
	for i := len(points) - 1; i >= 0; i-- {
		from, to := &points[i], &m[i/windowSize][i%windowSize]
		y.Multiply(inverse, &before[i]) // 1/Z
		inverse.Multiply(inverse, &from.z)
		x.Multiply(&from.x, &y)
		y.Multiply(&from.y, &y)
		to.sum.Add(&y, &x)
		to.difference.Subtract(&y, &x)
		to.product.Multiply(x.Multiply(&x, &y), twiceD())
	}
	return m
}

// sumPointOf converts a point.
func sumPointOf(p *edwards25519.Point) (s sumPoint) {
	x, y, z, t := p.ExtendedCoordinates()
	return sumPoint{*x, *y, *z, *t}
}

// addTo adds the point times a public number to sum. The time depends on the number.
func (m *multiples) addTo(sum *sumPoint, number *edwards25519.Scalar) {
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
			sum.add(&m[i][d-1], false)
		case d < 0:
			sum.add(&m[i][-d-1], true)
		}
	}
}

// add adds q, or -q, with the formulas of section 3.1 of "Twisted Edwards Curves Revisited", by
// Hisil, Wong, Carter and Dawson, which hold for all points of this curve.
func (p *sumPoint) add(q *affinePoint, isNegative bool) {
	var a, b, c, d, e, f, g, h field.Element
	plus, minus := &q.sum, &q.difference
	if isNegative {
		plus, minus = minus, plus
	}
	a.Multiply(a.Subtract(&p.y, &p.x), minus)
	b.Multiply(b.Add(&p.y, &p.x), plus)
	c.Multiply(&p.t, &q.product)
	d.Add(&p.z, &p.z)
	e.Subtract(&b, &a)
	h.Add(&b, &a)
	if isNegative {
		f.Add(&d, &c)
		g.Subtract(&d, &c)
	} else {
		f.Subtract(&d, &c)
		g.Add(&d, &c)
	}
	p.x.Multiply(&e, &f)
	p.y.Multiply(&g, &h)
	p.z.Multiply(&f, &g)
	p.t.Multiply(&e, &h)
}

// baseMultiples is the table of the base point.
var baseMultiples = sync.OnceValue(func() *multiples { return multiplesOf(edwards25519.NewGeneratorPoint()) })
