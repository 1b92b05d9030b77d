package signing

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/math/fp25519"

	"nar-herder/narinfo/signing/sexp"
)

// scalarSize is the length in bytes of a number below n, the order of Ed25519's base point. n
// has 253 bits.
const scalarSize = 32

// groupOrder is n.
var groupOrder, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

// ecdsaKey verifies ECDSA signatures (ecdsa (r …) (s …)).
//
// This is ECDSA as in FIPS 186, but with the curve and the encoding of points of EdDSA (RFC
// 8032): libgcrypt's default for this curve. No Go library has this mixture.
type ecdsaKey struct {
	q         *edwards25519.Point
	multiples func() *multiples
	uses      atomic.Int64
}

// usesForTable is the number of signatures by one key from which on a table of its multiples
// is worth its time. It is above 1 against sources that sign each narinfo with another key.
const usesForTable = 8

// decodeECDSAKey decodes a key (ecc (curve Ed25519) (q …)). It also returns the key as
// libgcrypt prints it.
func decodeECDSAKey(key sexp.Expr) (*ecdsaKey, sexp.Expr, error) {
	// A key with flags is for EdDSA, or has another form of q.
	if err := only(key, sexpCurve, "q"); err != nil {
		return nil, sexp.Expr{}, err
	}
	curve, err := key.Parameter(sexpCurve)
	if err != nil {
		return nil, sexp.Expr{}, err
	}
	if string(curve) != curveEd25519 {
		return nil, sexp.Expr{}, fmt.Errorf("%w: the curve is %.80q, only %s is known", ErrUnknownAlgorithm, curve, curveEd25519)
	}
	encoded, err := key.Parameter("q")
	if err != nil {
		return nil, sexp.Expr{}, err
	}
	q, err := publicPoint(encoded)
	if err != nil {
		return nil, sexp.Expr{}, err
	}
	return &ecdsaKey{
		q:         q,
		multiples: sync.OnceValue(func() *multiples { return multiplesOf(q) }),
	}, eccList(encoded), nil
}

// eccList returns the list (ecc (curve Ed25519) (q …) …).
func eccList(q []byte, more ...sexp.Expr) sexp.Expr {
	return sexp.NewList(algorithmECC, append([]sexp.Expr{
		sexp.NewList(sexpCurve, sexp.Expr{Atom: curveEd25519}),
		sexp.NewList("q", sexp.NewAtom(q)),
	}, more...)...)
}

func (k *ecdsaKey) verify(values sexp.Expr, hash [sha256.Size]byte) error {
	if err := only(values, "r", "s"); err != nil {
		return err
	}
	r, err := scalar(values, "r")
	if err != nil {
		return err
	}
	s, err := scalar(values, "s")
	if err != nil {
		return err
	}
	return k.verifyNumbers(r, s, hash)
}

// verifyNumbers verifies the signature of a hash. r and s are not 0.
func (k *ecdsaKey) verifyNumbers(r, s *edwards25519.Scalar, hash [sha256.Size]byte) error {
	// Everything here is public, so the time may vary.
	w := varTimeInvert(s)
	u1 := new(edwards25519.Scalar).Multiply(hashScalar(hash), w)
	u2 := new(edwards25519.Scalar).Multiply(r, w)
	sum := sumPointOf(edwards25519.NewIdentityPoint())
	if k.uses.Add(1) < usesForTable {
		sum = sumPointOf(new(edwards25519.Point).VarTimeDoubleScalarBaseMult(u2, k.q, u1))
	} else {
		baseMultiples().addTo(&sum, u1)
		k.multiples().addTo(&sum, u2)
	}
	// If the sum is the identity, x is 0, which differs from r.
	if !sum.hasX(r) {
		return errors.New("the key didn't make this signature")
	}
	return nil
}

// publicPoint decodes a public key: a point in the compressed form of EdDSA.
func publicPoint(encoded []byte) (*edwards25519.Point, error) {
	q, err := new(edwards25519.Point).SetBytes(encoded)
	// SetBytes also accepts coordinates beyond the field's order, and a sign of x = 0.
	if err != nil || !bytes.Equal(q.Bytes(), encoded) {
		return nil, fmt.Errorf("the key's q is %.40x, must be a point of the curve, compressed to 32 bytes", encoded)
	}
	// Eight points, including the identity, are not valid keys: anybody can forge signatures
	// for them.
	if new(edwards25519.Point).MultByCofactor(q).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return nil, errors.New("the key's q is a point of small order, which is not a valid key")
	}
	return q, nil
}

// scalar returns a parameter, which must be a number from 1 to n-1.
func scalar(values sexp.Expr, name string) (*edwards25519.Scalar, error) {
	number, err := values.Number(name)
	if err != nil {
		return nil, err
	}
	if 0 < len(number) && len(number) <= scalarSize {
		if s, err := scalarOf(number); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s is %.40x, must be above 0 and below the curve's order", name, number)
}

// scalarOf converts a big-endian number of at most 32 bytes, which must be below n.
func scalarOf(number []byte) (*edwards25519.Scalar, error) {
	var b [scalarSize]byte
	copy(b[scalarSize-len(number):], number)
	slices.Reverse(b[:]) // to little-endian
	return new(edwards25519.Scalar).SetCanonicalBytes(b[:])
}

// bigEndian is the inverse of scalarOf.
func bigEndian(s *edwards25519.Scalar) []byte {
	b := s.Bytes()
	slices.Reverse(b)
	return b
}

// varTimeInvert returns 1/s modulo n, for a public s that isn't 0.
func varTimeInvert(s *edwards25519.Scalar) *edwards25519.Scalar {
	number := new(big.Int).SetBytes(bigEndian(s))
	var b [scalarSize]byte
	inverse, err := scalarOf(number.ModInverse(number, groupOrder).FillBytes(b[:]))
	if err != nil {
		panic(err) // ModInverse's result is below n
	}
	return inverse
}

// hashScalar returns ECDSA's number for a hash: its first 253 bits, as many as n has, modulo n.
func hashScalar(hash [sha256.Size]byte) *edwards25519.Scalar {
	number := shift(hash)
	slices.Reverse(number[:])
	var wide [64]byte
	copy(wide[:], number[:])
	return reduce(&wide)
}

// shift drops the last 3 of the 256 bits of a number, and keeps its length.
func shift(number [sha256.Size]byte) (shifted [sha256.Size]byte) {
	for i, c := range number {
		shifted[i] = c >> 3
		if i > 0 {
			shifted[i] |= number[i-1] << 5
		}
	}
	return shifted
}

// hasX reports whether the point's x, modulo n, is r: x is one of r, r+n, … r+7n. As x = X/Z means
// X = xZ, this takes no inversion.
func (p *sumPoint) hasX(r *edwards25519.Scalar) bool {
	candidate, step, x := fp25519.Elt(r.Bytes()), orderElement, p.x
	candidates := 7
	if bytes.Compare(bigEndian(r), lastWith8) <= 0 {
		candidates++ // else r+7n is not below the field's order
	}
	fp25519.Mul(&candidate, &candidate, &p.z)
	fp25519.Mul(&step, &step, &p.z)
	fp25519.Sub(&x, &x, &candidate)
	for range candidates {
		if fp25519.IsZero(&x) {
			return true
		}
		fp25519.Sub(&x, &x, &step)
	}
	return false
}

var (
	// orderElement is n as a number of the field.
	orderElement = func() (n fp25519.Elt) {
		groupOrder.FillBytes(n[:])
		slices.Reverse(n[:])
		return n
	}()
	// lastWith8 is the largest r for which r+7n is below the field's order, p: p-1-7n.
	lastWith8 = func() []byte {
		p := fp25519.P()
		slices.Reverse(p[:])
		last := new(big.Int).SetBytes(p[:])
		last.Sub(last, big.NewInt(1))
		last.Sub(last, new(big.Int).Mul(groupOrder, big.NewInt(7)))
		return last.FillBytes(make([]byte, scalarSize))
	}()
)

// affineX returns a point's x, modulo n.
func (p *sumPoint) affineX() *edwards25519.Scalar {
	var x fp25519.Elt
	fp25519.Inv(&x, &p.z)
	fp25519.Mul(&x, &x, &p.x)
	fp25519.Modp(&x)
	var wide [64]byte
	copy(wide[:], x[:])
	return reduce(&wide)
}

// reduce returns a little-endian number modulo n.
func reduce(wide *[64]byte) *edwards25519.Scalar {
	s, err := new(edwards25519.Scalar).SetUniformBytes(wide[:])
	if err != nil {
		panic(err) // the length is 64
	}
	return s
}
