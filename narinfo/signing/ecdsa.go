package signing

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"filippo.io/edwards25519"
)

// scalarSize is the length in bytes of a number below n, the order of Ed25519's base point. n
// has 253 bits.
const scalarSize = 32

// checkECDSA verifies an ECDSA signature (ecdsa (r …) (s …)) of a hash by a key
// (ecc (curve Ed25519) (q …)).
//
// This is ECDSA as in FIPS 186, but with the curve and the encoding of points of EdDSA (RFC
// 8032): libgcrypt's default for this curve. No Go library has this mixture.
func checkECDSA(values, key sexp, hash [sha256.Size]byte) error {
	// A key with flags is for EdDSA, or has another form of q.
	if err := key.only("curve", "q"); err != nil {
		return err
	}
	if err := values.only("r", "s"); err != nil {
		return err
	}
	curve, err := key.parameter("curve")
	if err != nil {
		return err
	}
	if string(curve) != curveEd25519 {
		return fmt.Errorf("%w: the curve is %.80q, only %s is known", ErrUnknownAlgorithm, curve, curveEd25519)
	}
	encoded, err := key.parameter("q")
	if err != nil {
		return err
	}
	q, err := publicPoint(encoded)
	if err != nil {
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
	w := new(edwards25519.Scalar).Invert(s)
	u1 := new(edwards25519.Scalar).Multiply(hashScalar(hash), w)
	u2 := new(edwards25519.Scalar).Multiply(r, w)
	// Everything here is public, so the time may vary. If the sum is the identity, x is 0,
	// which differs from r.
	sum := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(u2, q, u1)
	if affineX(sum).Equal(r) != 1 {
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
func scalar(values sexp, name string) (*edwards25519.Scalar, error) {
	number, err := values.number(name)
	if err != nil {
		return nil, err
	}
	if 0 < len(number) && len(number) <= scalarSize {
		var b [scalarSize]byte
		copy(b[scalarSize-len(number):], number)
		slices.Reverse(b[:]) // to little-endian
		if s, err := new(edwards25519.Scalar).SetCanonicalBytes(b[:]); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s is %.40x, must be above 0 and below the curve's order", name, number)
}

// hashScalar returns ECDSA's number for a hash: its first 253 bits, as many as n has, modulo n.
func hashScalar(hash [sha256.Size]byte) *edwards25519.Scalar {
	const surplus = 8*sha256.Size - 253
	var wide [64]byte // little-endian
	for i, c := range hash {
		wide[len(hash)-1-i] = c >> surplus
		if i > 0 {
			wide[len(hash)-1-i] |= hash[i-1] << (8 - surplus)
		}
	}
	return reduce(&wide)
}

// affineX returns a point's x, modulo n.
func affineX(p *edwards25519.Point) *edwards25519.Scalar {
	x, _, z, _ := p.ExtendedCoordinates()
	var wide [64]byte
	copy(wide[:], x.Multiply(x, z.Invert(z)).Bytes())
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
