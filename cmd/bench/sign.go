package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"strings"

	"filippo.io/edwards25519"
)

// signer makes valid signatures like those of Guix: ECDSA on the curve Ed25519. Its nonces
// follow each other, which makes it fast and discloses the key.
type signer struct {
	secret *edwards25519.Scalar
	key    string               // the public key, in hexadecimal
	nonce  *edwards25519.Scalar // of the next signature
	point  *edwards25519.Point  // nonce times the base point
	one    *edwards25519.Scalar
	text   []byte // reused
}

func newSigner(seed uint64) *signer {
	number := func(what string) *edwards25519.Scalar {
		half := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(what), seed))
		return scalarOf(half[:])
	}
	s := &signer{secret: number("secret"), nonce: number("nonce"), one: scalarOf([]byte{1})}
	s.key = strings.ToUpper(hex.EncodeToString(new(edwards25519.Point).ScalarBaseMult(s.secret).Bytes()))
	s.point = new(edwards25519.Point).ScalarBaseMult(s.nonce)
	return s
}

// scalarOf returns a little-endian number of up to 64 bytes, modulo the group's order.
func scalarOf(number []byte) *edwards25519.Scalar {
	var wide [64]byte
	copy(wide[:], number)
	scalar, err := new(edwards25519.Scalar).SetUniformBytes(wide[:])
	if err != nil {
		panic(err) // the length is 64
	}
	return scalar
}

// sign returns the signature of a text as an s-expression in libgcrypt's printed form. It is
// valid until the next call.
func (s *signer) sign(text []byte) []byte {
	hash := sha256.Sum256(text)
	first := new(big.Int).SetBytes(hash[:])
	z := scalarOf(reversed(first.Rsh(first, 8*sha256.Size-253).FillBytes(make([]byte, sha256.Size))))
	x, _, projected, _ := s.point.ExtendedCoordinates()
	r := scalarOf(x.Multiply(x, projected.Invert(projected)).Bytes())
	value := new(edwards25519.Scalar).Invert(s.nonce)
	value.Multiply(value, new(edwards25519.Scalar).MultiplyAdd(r, s.secret, z))
	s.nonce = new(edwards25519.Scalar).Add(s.nonce, s.one)
	s.point = new(edwards25519.Point).Add(s.point, edwards25519.NewGeneratorPoint())

	b := append(s.text[:0], "(signature \n (data \n  (flags rfc6979)\n  (hash sha256 #"...)
	b = appendHex(b, hash[:])
	b = append(b, "#)\n  )\n (sig-val \n  (ecdsa \n   (r #"...)
	b = appendHex(b, reversed(r.Bytes()))
	b = append(b, "#)\n   (s #"...)
	b = appendHex(b, reversed(value.Bytes()))
	b = append(b, "#)\n   )\n  )\n (public-key \n  (ecc \n   (curve Ed25519)\n   (q #"+s.key+"#)\n   )\n  )\n )\n"...)
	s.text = b
	return b
}

// publicKey returns the public key in libgcrypt's printed form.
func (s *signer) publicKey() string {
	return "(public-key \n (ecc \n  (curve Ed25519)\n  (q #" + s.key + "#)\n  )\n )\n"
}

// reversed reverses bytes in place.
func reversed(b []byte) []byte {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return b
}

func appendHex(b, bytes []byte) []byte {
	for _, c := range bytes {
		b = append(b, hexDigits[c>>4], hexDigits[c&15])
	}
	return b
}
