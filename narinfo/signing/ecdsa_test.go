package signing

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/math/fp25519"
)

// curveOrder is n of RFC 8032, section 5.1 (L there).
var curveOrder, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

// fieldOrder is p there.
var fieldOrder = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))

// testSigner signs like Guix. It uses big.Int modulo n, so that it shares no mistakes with
// the tested code.
type testSigner struct{ d *big.Int }

func newTestSigner(seed byte) testSigner {
	sum := sha256.Sum256([]byte{seed})
	return testSigner{new(big.Int).Mod(new(big.Int).SetBytes(sum[:]), curveOrder)}
}

// sign returns the s-expression for a text.
func (k testSigner) sign(text string) string {
	hash := sha256.Sum256([]byte(text))
	nonce := sha256.Sum256(append(k.d.Bytes(), hash[:]...))
	number := new(big.Int).Mod(new(big.Int).SetBytes(nonce[:]), curveOrder)
	r := xOf(timesBase(number))
	s := new(big.Int).Mul(r, k.d)
	s.Add(s, hashNumber(hash))
	s.Mul(s, new(big.Int).ModInverse(number, curveOrder))
	s.Mod(s, curveOrder)
	return ecdsaSexp(text, timesBase(k.d).Bytes(), r, s)
}

func ecdsaSexp(text string, q []byte, r, s *big.Int) string {
	return fmt.Sprintf("(signature (data (flags rfc6979) %s) (sig-val (ecdsa (r #%064X#) (s #%064X#))) (public-key (ecc (curve Ed25519) (q #%X#))))",
		hashOf(text), r, s, q)
}

func hashNumber(hash [sha256.Size]byte) *big.Int {
	return new(big.Int).Rsh(new(big.Int).SetBytes(hash[:]), 3)
}

// timesBase multiplies the base point by a number below n.
func timesBase(number *big.Int) *edwards25519.Point {
	var b [32]byte
	number.FillBytes(b[:])
	slices.Reverse(b[:])
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(b[:])
	if err != nil {
		panic(err)
	}
	return new(edwards25519.Point).ScalarBaseMult(s)
}

// xOf returns a point's x modulo n, computed from the compressed y alone: the curve is -x²
// + y² = 1 + dx²y², so x² = (y²-1)/(dy²+1).
func xOf(p *edwards25519.Point) *big.Int {
	b := p.Bytes()
	slices.Reverse(b)
	odd := uint(b[0] >> 7)
	b[0] &= 0x7F
	y := new(big.Int).SetBytes(b)
	d := new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), fieldOrder))
	yy := new(big.Int).Mul(y, y)
	denominator := new(big.Int).Add(new(big.Int).Mul(d, yy), big.NewInt(1))
	denominator.Mod(denominator, fieldOrder)
	xx := new(big.Int).Sub(yy, big.NewInt(1))
	xx.Mul(xx, denominator.ModInverse(denominator, fieldOrder))
	xx.Mod(xx, fieldOrder)
	x := new(big.Int).ModSqrt(xx, fieldOrder)
	if x.Bit(0) != odd {
		x.Sub(fieldOrder, x)
	}
	return x.Mod(x, curveOrder)
}

// hasX finds x modulo n, also of the numbers that n divides a seventh time, and those next to them.
func TestHasX(t *testing.T) {
	random := seeded(t)
	xs := []*big.Int{big.NewInt(1), new(big.Int).Sub(fieldOrder, big.NewInt(1))}
	for multiple := range int64(8) {
		for _, offset := range []int64{-1, 1, 2} {
			xs = append(xs, new(big.Int).Add(new(big.Int).Mul(curveOrder, big.NewInt(multiple)), big.NewInt(offset)))
		}
	}
	rest := new(big.Int).Sub(fieldOrder, new(big.Int).Mul(curveOrder, big.NewInt(7)))
	for _, offset := range []int64{-2, -1, 0, 1} { // around the last r of which there are eight x
		xs = append(xs, new(big.Int).Add(rest, big.NewInt(offset)))
	}
	for range 1000 {
		var b [32]byte
		random.Read(b[:])
		xs = append(xs, new(big.Int).SetBytes(b[:]))
	}
	element := func(number *big.Int) (e fp25519.Elt) {
		number.FillBytes(e[:])
		slices.Reverse(e[:])
		return e
	}
	for _, x := range xs {
		x.Mod(x, fieldOrder)
		z := element(new(big.Int).Sub(fieldOrder, big.NewInt(int64(random.Uint64()>>2))))
		point := sumPoint{z: z}
		xElement := element(x)
		fp25519.Mul(&point.x, &xElement, &z)
		want := new(big.Int).Mod(x, curveOrder)
		if got := new(big.Int).SetBytes(bigEndian(point.affineX())); got.Cmp(want) != 0 {
			t.Errorf("x = %x modulo n is %x, want %x", x, got, want)
		}
		// The second is congruent to it modulo p, but not modulo n.
		for _, r := range []*big.Int{want, new(big.Int).Sub(new(big.Int).Add(x, fieldOrder), new(big.Int).Mul(curveOrder, big.NewInt(7))),
			new(big.Int).Add(want, big.NewInt(1)), new(big.Int).Sub(want, big.NewInt(1)), new(big.Int).Sub(curveOrder, want)} {
			var b [scalarSize]byte
			if r.Sign() <= 0 || r.Cmp(curveOrder) >= 0 {
				continue
			}
			s, err := scalarOf(r.FillBytes(b[:]))
			if err != nil {
				t.Fatal(err)
			}
			if got := point.hasX(s); got != (r.Cmp(want) == 0) {
				t.Errorf("x = %x: hasX(%x) is %v", x, r, got)
			}
		}
	}
}

// Valid signatures by many keys; none of them is valid for another hash.
func TestECDSA(t *testing.T) {
	for i := range byte(64) {
		above := fmt.Sprintf("%s#%d\n", signed, i)
		sexp := newTestSigner(i).sign(above)
		if err := check(above, sexp); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
		// The hash is adapted, so that only the curve can differ.
		forged := strings.Replace(sexp, hashOf(above), hashOf(signed), 1)
		checkVerdict(t, check(signed, forged), ErrBadSignature, "the key didn't make")
	}
}

func TestECDSAScalars(t *testing.T) {
	sexp := newTestSigner(1).sign(signed)
	find := func(name string) (string, *big.Int) {
		_, rest, _ := strings.Cut(sexp, "("+name+" #")
		digits, _, _ := strings.Cut(rest, "#")
		number, ok := new(big.Int).SetString(digits, 16)
		if !ok {
			t.Fatalf("no %s in %s", name, sexp)
		}
		return digits, number
	}
	for _, name := range []string{"r", "s"} {
		digits, number := find(name)
		negative := new(big.Int).Sub(curveOrder, number)
		for _, test := range []struct {
			number  *big.Int
			message string
		}{
			{new(big.Int), "must be above 0"},
			{curveOrder, "must be above 0"},
			{new(big.Int).Add(curveOrder, number), "must be above 0"}, // the same modulo n
			{new(big.Int).Lsh(curveOrder, 3), "must be above 0"},
			{new(big.Int).Lsh(big.NewInt(1), 256), "must be above 0"},
			{new(big.Int).Add(number, new(big.Int).Lsh(curveOrder, 100)), "must be above 0"},
			{big.NewInt(1), "the key didn't make"},
			{new(big.Int).Sub(curveOrder, big.NewInt(1)), "the key didn't make"},
			{new(big.Int).Xor(number, big.NewInt(1)), "the key didn't make"},
		} {
			changed := strings.Replace(sexp, digits, fmt.Sprintf("%066X", test.number), 1)
			if len(test.number.Bytes()) > 33 {
				changed = strings.Replace(sexp, digits, hex.EncodeToString(test.number.Bytes()), 1)
			}
			err := check(signed, changed)
			if err == nil {
				t.Errorf("%s = %x was taken", name, test.number)
				continue
			}
			checkVerdict(t, err, ErrBadSignature, test.message)
		}
		// -s gives the negated point, whose x differs on a twisted Edwards curve,
		// unlike on others: signatures are not malleable in this way.
		changed := strings.Replace(sexp, digits, fmt.Sprintf("%064X", negative), 1)
		checkVerdict(t, check(signed, changed), ErrBadSignature, "the key didn't make")
	}
	for _, empty := range []string{"", "00", "0000"} {
		digits, _ := find("r")
		changed := strings.Replace(sexp, digits, empty, 1)
		checkVerdict(t, check(signed, changed), ErrBadSignature, "r is")
	}
}

// smallOrder are the points with an order that divides 8, compressed.
var smallOrder = []string{
	"0100000000000000000000000000000000000000000000000000000000000000", // 1, the identity
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // 2
	"0000000000000000000000000000000000000000000000000000000000000000", // 4
	"0000000000000000000000000000000000000000000000000000000000000080",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // 8
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}

// With such keys, anybody can sign: with s = 1 the sum is z·B + r·Q, and r is its x for one
// of the eight multiples of Q that r·Q may be.
func TestECDSASmallOrder(t *testing.T) {
	forgeries := 0
	for _, encoded := range smallOrder {
		b, err := hex.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		q, err := new(edwards25519.Point).SetBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			above := fmt.Sprintf("%s#%d\n", signed, i)
			z := hashNumber(sha256.Sum256([]byte(above)))
			sum := timesBase(z.Mod(z, curveOrder))
			for range 8 {
				r := xOf(sum)
				multiple := edwards25519.NewIdentityPoint()
				for range new(big.Int).Mod(r, big.NewInt(8)).Uint64() {
					multiple.Add(multiple, q)
				}
				if new(edwards25519.Point).Add(timesBase(z), multiple).Equal(sum) == 1 {
					forgeries++
					checkVerdict(t, check(above, ecdsaSexp(above, b, r, big.NewInt(1))), ErrBadSignature, "small order")
				}
				sum.Add(sum, q)
			}
		}
	}
	if forgeries < 8*4 {
		t.Errorf("only %d forgeries were tried", forgeries)
	}
}

// If the sum is the identity, x is 0.
func TestECDSAIdentity(t *testing.T) {
	z := hashNumber(sha256.Sum256([]byte(signed)))
	// z·B + r·Q is the identity for Q = -(z/r)·B.
	for _, r := range []int64{1, 2} {
		d := new(big.Int).Mul(z, new(big.Int).ModInverse(big.NewInt(r), curveOrder))
		d.Neg(d).Mod(d, curveOrder)
		checkVerdict(t, check(signed, ecdsaSexp(signed, timesBase(d).Bytes(), big.NewInt(r), big.NewInt(1))), ErrBadSignature, "the key didn't make")
	}
}

func TestECDSAPoints(t *testing.T) {
	encode := func(y *big.Int, sign byte) string {
		var b [32]byte
		y.FillBytes(b[:])
		slices.Reverse(b[:])
		b[31] |= sign << 7
		return hex.EncodeToString(b[:])
	}
	one := big.NewInt(1)
	refused := []string{
		encode(one, 1), // x is 0, which has no sign
		encode(new(big.Int).Sub(fieldOrder, one), 1),
		"", "00", strings.Repeat("00", 31), strings.Repeat("00", 33),
	}
	points, none := 0, 0
	for y := range int64(19) {
		for sign := range byte(2) {
			// y+p is the same number as y, and fits into 255 bits.
			refused = append(refused, encode(new(big.Int).Add(fieldOrder, big.NewInt(y)), sign))
			if b, _ := hex.DecodeString(encode(big.NewInt(y), sign)); y > 1 {
				if _, err := publicPoint(b); err == nil {
					points++
				} else {
					none++
				}
			}
		}
	}
	// About every second number is the y of a point.
	if points < 8 || none < 8 {
		t.Errorf("%d points were taken, and %d refused", points, none)
	}
	sexp := newTestSigner(1).sign(signed)
	_, rest, _ := strings.Cut(sexp, "(q #")
	key, _, _ := strings.Cut(rest, "#")
	for _, q := range refused {
		changed := strings.Replace(sexp, key, q, 1)
		checkVerdict(t, check(signed, changed), ErrBadSignature, "must be a point")
	}
}
