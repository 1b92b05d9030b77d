package signing

import (
	"sync"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
	"github.com/cloudflare/circl/math/fp25519"
)

// The digits of a number are its bytes, but from -maxDigit to maxDigit-1: a table of their
// multiples has half the size.
const maxDigit = 128

// multiples has the multiples of a point by 1 to maxDigit at all positions. Multiplying with it
// only adds 32 points, which takes less than a quarter of the time. It has 384 KB.
type multiples [scalarSize][maxDigit]affinePoint

// affinePoint is a point in the form that is added with the fewest multiplications: y+x, y-x,
// and 2dxy, where d is that of the curve.
type affinePoint struct{ sum, difference, product fp25519.Elt }

// sumPoint is a point in extended coordinates: x = X/Z, y = Y/Z, xy = T/Z. The numbers are
// fp25519's, which multiplies faster than edwards25519.
type sumPoint struct{ x, y, z, t fp25519.Elt }

// twiceD is 2d. d is -121665/121666, as of RFC 8032.
var twiceD = sync.OnceValue(func() *field.Element {
	d := new(field.Element).Mult32(new(field.Element).One(), 121666)
	d.Mult32(d.Invert(d), 2*121665)
	return d.Negate(d)
})

// multiplesOf computes the table, in the time of some ten multiplications without it.
func multiplesOf(p *edwards25519.Point) *multiples {
	m := new(multiples)
	type projective struct{ x, y, z *field.Element }
	points := make([]projective, 0, scalarSize*maxDigit)
	unit, multiple := new(edwards25519.Point).Set(p), new(edwards25519.Point)
	for range scalarSize {
		multiple.Set(unit)
		for range maxDigit {
			x, y, z, _ := multiple.ExtendedCoordinates()
			points = append(points, projective{x, y, z})
			multiple.Add(multiple, unit)
		}
		unit.MultByCofactor(unit) // by 8
		unit.MultByCofactor(unit)
		unit.Add(unit, unit).Add(unit, unit)
	}
	// All are inverted at once: the inverse of the product of all Z is the product of the
	// inverses.
	before := make([]field.Element, len(points)) // the product of the Z before each
	inverse := new(field.Element).One()
	for i := range points {
		before[i].Set(inverse)
		inverse.Multiply(inverse, points[i].z)
	}
	inverse.Invert(inverse)
	var x, y, z field.Element
	for i := len(points) - 1; i >= 0; i-- {
		from, to := &points[i], &m[i/maxDigit][i%maxDigit]
		z.Multiply(inverse, &before[i]) // 1/Z
		inverse.Multiply(inverse, from.z)
		x.Multiply(from.x, &z)
		y.Multiply(from.y, &z)
		to.sum = elementOf(z.Add(&y, &x))
		to.difference = elementOf(z.Subtract(&y, &x))
		to.product = elementOf(z.Multiply(z.Multiply(&x, &y), twiceD()))
	}
	return m
}

// elementOf converts a number of the field.
func elementOf(number *field.Element) fp25519.Elt { return fp25519.Elt(number.Bytes()) }

// sumPointOf converts a point.
func sumPointOf(p *edwards25519.Point) sumPoint {
	x, y, z, t := p.ExtendedCoordinates()
	return sumPoint{elementOf(x), elementOf(y), elementOf(z), elementOf(t)}
}

// addTo adds the point times a public number to sum. The time depends on the number.
func (m *multiples) addTo(sum *sumPoint, number *edwards25519.Scalar) {
	carry := 0
	for i, b := range number.Bytes() { // the last is at most 16
		d := int(b) + carry
		carry = 0
		if d >= maxDigit {
			d, carry = d-2*maxDigit, 1
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
	var a, b, c, d fp25519.Elt
	fp25519.Sub(&a, &p.y, &p.x)
	fp25519.Add(&b, &p.y, &p.x)
	plus, minus := &q.sum, &q.difference
	if isNegative {
		plus, minus = minus, plus
	}
	fp25519.Mul(&a, &a, minus)
	fp25519.Mul(&b, &b, plus)
	fp25519.Mul(&c, &p.t, &q.product)
	fp25519.Add(&d, &p.z, &p.z)
	fp25519.AddSub(&b, &a)
	fp25519.AddSub(&d, &c)
	e, f, g, h := &a, &c, &d, &b
	if isNegative {
		f, g = g, f
	}
	fp25519.Mul(&p.x, e, f)
	fp25519.Mul(&p.y, g, h)
	fp25519.Mul(&p.z, f, g)
	fp25519.Mul(&p.t, e, h)
}

// baseMultiples is the table of the base point.
var baseMultiples = sync.OnceValue(func() *multiples { return multiplesOf(edwards25519.NewGeneratorPoint()) })
