package signing

import (
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"slices"
	"testing"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/math/fp25519"
)

// bigPoint is a point in projective coordinates, with arithmetic that is slow and plain.
type bigPoint struct{ x, y, z *big.Int }

// bigD is the d of the curve, -x² + y² = 1 + dx²y².
var bigD = inField(inField(big.NewInt(-121665)), new(big.Int).ModInverse(big.NewInt(121666), fieldOrder))

// inField returns a product modulo p.
func inField(numbers ...*big.Int) *big.Int {
	product := big.NewInt(1)
	for _, number := range numbers {
		product.Mod(product.Mul(product, number), fieldOrder)
	}
	return product
}

func (p bigPoint) add(q bigPoint) bigPoint {
	sum := func(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }
	xx, yy, zz := inField(p.x, q.x), inField(p.y, q.y), inField(p.z, q.z)
	dxy, square := inField(bigD, xx, yy), inField(zz, zz)
	minus, plus := new(big.Int).Sub(square, dxy), sum(square, dxy)
	return bigPoint{
		inField(zz, minus, sum(inField(p.x, q.y), inField(p.y, q.x))),
		inField(zz, plus, sum(yy, xx)),
		inField(minus, plus),
	}
}

func (p bigPoint) times(number *big.Int) bigPoint {
	sum := bigPoint{new(big.Int), big.NewInt(1), big.NewInt(1)}
	for i := number.BitLen() - 1; i >= 0; i-- {
		sum = sum.add(sum)
		if number.Bit(i) == 1 {
			sum = sum.add(p)
		}
	}
	return sum
}

func (p bigPoint) affine() (x, y *big.Int) {
	inverse := new(big.Int).ModInverse(p.z, fieldOrder)
	return inField(p.x, inverse), inField(p.y, inverse)
}

// encode returns the compressed form.
func (p bigPoint) encode() []byte {
	x, y := p.affine()
	var b [32]byte
	y.FillBytes(b[:])
	slices.Reverse(b[:])
	b[31] |= byte(x.Bit(0)) << 7
	return b[:]
}

// bigPointOf decodes a compressed point.
func bigPointOf(t *testing.T, encoded []byte) bigPoint {
	t.Helper()
	p, err := new(edwards25519.Point).SetBytes(encoded)
	if err != nil {
		t.Fatal(err)
	}
	number := func(little []byte) *big.Int {
		slices.Reverse(little)
		return new(big.Int).SetBytes(little)
	}
	x, y, z, _ := p.ExtendedCoordinates()
	return bigPoint{number(x.Bytes()), number(y.Bytes()), number(z.Bytes())}
}

// bigPointWith returns a point with this x, if there is one: y² = (1+x²)/(1-dx²).
func bigPointWith(x *big.Int) (p bigPoint, ok bool) {
	one, xx := big.NewInt(1), inField(x, x)
	below := inField(new(big.Int).Sub(one, inField(bigD, xx)))
	yy := inField(new(big.Int).Add(one, xx), new(big.Int).ModInverse(below, fieldOrder))
	y := new(big.Int).ModSqrt(yy, fieldOrder)
	return bigPoint{x, y, one}, y != nil
}

// reference verifies signatures as FIPS 186 describes it, and with the tested code, with and without
// a table.
type reference struct {
	base, q bigPoint
	keys    [2]*ecdsaKey
}

func newReference(t *testing.T, q bigPoint) *reference {
	t.Helper()
	key, _, err := decodeECDSAKey(eccList(q.encode()))
	if err != nil {
		t.Fatal(err)
	}
	k := &reference{bigPointOf(t, edwards25519.NewGeneratorPoint().Bytes()), q, [2]*ecdsaKey{key, {q: key.q, multiples: key.multiples}}}
	k.keys[0].uses.Store(-1000)
	k.keys[1].uses.Store(usesForTable)
	return k
}

// verify checks that the tested code is right about a signature, and returns whether it is valid.
func (k *reference) verify(t *testing.T, r, s *big.Int, hash [sha256.Size]byte) bool {
	t.Helper()
	w := new(big.Int).ModInverse(s, curveOrder)
	u1, u2 := new(big.Int).Mul(hashNumber(hash), w), new(big.Int).Mul(r, w)
	x, _ := k.base.times(u1.Mod(u1, curveOrder)).add(k.q.times(u2.Mod(u2, curveOrder))).affine()
	want := x.Mod(x, curveOrder).Cmp(r) == 0
	var numbers [2]*edwards25519.Scalar
	for i, number := range []*big.Int{r, s} {
		var b [scalarSize]byte
		var err error
		if numbers[i], err = scalarOf(number.FillBytes(b[:])); err != nil {
			t.Fatal(err)
		}
	}
	for i, key := range k.keys {
		if err := key.verifyNumbers(numbers[0], numbers[1], hash); (err == nil) != want {
			t.Errorf("key %x, r %x, s %x, hash %x, with table %v: %v, valid is %v", k.q.encode(), r, s, hash, i > 0, err, want)
		}
	}
	return want
}

// forge returns a signature whose sum is u1·base + u2·q, with the x of that, and its hash, of which
// nobody knows a text.
func (k *reference) forge(u1, u2 *big.Int) (r, s, x *big.Int, hash [sha256.Size]byte) {
	x, _ = k.base.times(u1).add(k.q.times(u2)).affine()
	r = new(big.Int).Mod(x, curveOrder)
	s = new(big.Int).ModInverse(u2, curveOrder)
	s.Mod(s.Mul(s, r), curveOrder)
	z := new(big.Int).Mul(u1, s)
	z.Mod(z, curveOrder).Lsh(z, 3).FillBytes(hash[:])
	return r, s, x, hash
}

// checkAround checks a forged signature, and that it isn't valid with other numbers r that are near,
// or for x modulo p.
func (k *reference) checkAround(t *testing.T, u1, u2 *big.Int) {
	t.Helper()
	r, s, x, hash := k.forge(u1, u2)
	if r.Sign() == 0 {
		return
	}
	if !k.verify(t, r, s, hash) {
		t.Errorf("key %x: %x, %x is invalid", k.q.encode(), u1, u2)
	}
	// The multiples of n beyond p: r is one of 8n-p more.
	for _, other := range []*big.Int{
		new(big.Int).Sub(new(big.Int).Add(x, fieldOrder), new(big.Int).Mul(curveOrder, big.NewInt(7))),
		new(big.Int).Add(r, new(big.Int).Sub(new(big.Int).Lsh(curveOrder, 3), fieldOrder)),
		new(big.Int).Sub(r, new(big.Int).Sub(new(big.Int).Lsh(curveOrder, 3), fieldOrder)),
	} {
		if other.Sign() > 0 && other.Cmp(curveOrder) < 0 && other.Cmp(r) != 0 {
			// The same sum takes another s and hash.
			s2 := new(big.Int).ModInverse(u2, curveOrder)
			s2.Mod(s2.Mul(s2, other), curveOrder)
			z := new(big.Int).Mul(u1, s2)
			var hash2 [sha256.Size]byte
			z.Mod(z, curveOrder).Lsh(z, 3).FillBytes(hash2[:])
			if k.verify(t, other, s2, hash2) {
				t.Errorf("key %x: also %x is valid", k.q.encode(), other)
			}
		}
	}
}

// Signatures are valid if they are by definition, whether or not a table is used: for numbers with
// extreme digits, and by keys of all orders.
func TestReference(t *testing.T) {
	random := seeded(t)
	anyNumber := func() *big.Int {
		var b [scalarSize]byte
		random.Read(b[:])
		number := new(big.Int).SetBytes(b[:])
		return number.Add(number.Mod(number, new(big.Int).Sub(curveOrder, big.NewInt(1))), big.NewInt(1))
	}
	numbers := []*big.Int{big.NewInt(1), new(big.Int).Sub(curveOrder, big.NewInt(1)), big.NewInt(maxDigit), big.NewInt(2 * maxDigit)}
	for _, digit := range []byte{0x7F, 0x80, 0x81, 0xFF} {
		b := slices.Repeat([]byte{digit}, scalarSize)
		b[0] = 0x0F
		numbers = append(numbers, new(big.Int).SetBytes(b))
	}
	for i, encoded := range smallOrder {
		small, err := hex.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		// A key that isn't a multiple of the base point is valid.
		base := bigPointOf(t, edwards25519.NewGeneratorPoint().Bytes())
		k := newReference(t, base.times(anyNumber()).add(bigPointOf(t, small)))
		k.checkAround(t, numbers[i], anyNumber())
		k.checkAround(t, anyNumber(), numbers[i])
		if i == 0 {
			k.checkAround(t, new(big.Int), anyNumber())
		}
		var hash [sha256.Size]byte
		random.Read(hash[:])
		k.verify(t, anyNumber(), anyNumber(), hash)
	}
}

// A sum's x may be any number of the field: around the multiples of n, of which there are seven and
// sometimes eight, and at the ends.
func TestReferenceX(t *testing.T) {
	base := bigPointOf(t, edwards25519.NewGeneratorPoint().Bytes())
	one := big.NewInt(1)
	try := func(x *big.Int, step int64) {
		t.Helper()
		for found := 0; found < 2; x.Add(x, big.NewInt(step)) {
			sum, ok := bigPointWith(x)
			if !ok || x.Sign() == 0 {
				continue
			}
			found++
			// The key is sum - base, so that base + key is sum.
			bx, by := base.affine()
			q := sum.add(bigPoint{new(big.Int).Sub(fieldOrder, bx), by, one})
			newReference(t, q).checkAround(t, one, one)
		}
	}
	for multiple := range int64(8) {
		for _, step := range []int64{-1, 1} {
			if x := new(big.Int).Mul(curveOrder, big.NewInt(multiple)); multiple > 0 || step > 0 {
				try(x, step)
			}
		}
	}
	try(new(big.Int).Sub(fieldOrder, one), -1)
	last := new(big.Int).Sub(fieldOrder, new(big.Int).Mul(curveOrder, big.NewInt(7)))
	try(new(big.Int).Set(last), 1)
	try(last, -1)
}

// Numbers of the field that aren't reduced, up to 2^256-1, are the same for the tested code.
func TestUnreduced(t *testing.T) {
	random := seeded(t)
	element := func(number *big.Int) (e fp25519.Elt) {
		number.FillBytes(e[:])
		slices.Reverse(e[:])
		return e
	}
	unreduced := func(e fp25519.Elt) fp25519.Elt {
		fp25519.Modp(&e)
		b := slices.Clone(e[:])
		slices.Reverse(b)
		number := new(big.Int).SetBytes(b)
		for more := new(big.Int).Add(number, fieldOrder); more.BitLen() <= 256; more.Add(more, fieldOrder) {
			number.Set(more)
		}
		return element(number)
	}
	for _, number := range []*big.Int{new(big.Int), fieldOrder, new(big.Int).Lsh(fieldOrder, 1)} {
		if e := element(number); !fp25519.IsZero(&e) {
			t.Errorf("%x isn't 0", number)
		}
	}
	q := timesBase(big.NewInt(12345))
	table := multiplesOf(q)
	for i := range 300 {
		var b [scalarSize]byte
		random.Read(b[:])
		number := new(big.Int).SetBytes(b[:])
		number.Mod(number, curveOrder)
		sum := sumPointOf(timesBase(number))
		if i%3 == 0 { // small numbers have three forms, others two
			sum.z = unreduced(element(big.NewInt(1)))
		}
		plain := sum
		for _, c := range []*fp25519.Elt{&sum.x, &sum.y, &sum.z, &sum.t} {
			*c = unreduced(*c)
		}
		s, err := scalarOf(number.FillBytes(b[:]))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r := plain.affineX()
			if !sum.hasX(r) || sum.affineX().Equal(r) != 1 || sum.hasX(s) {
				t.Fatalf("%x: x is %x, want %x", number, bigEndian(sum.affineX()), bigEndian(r))
			}
			table.addTo(&sum, s)
			table.addTo(&plain, s)
		}
	}
}
