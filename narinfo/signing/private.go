package signing

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/edwards25519"

	"nar-herder/narinfo/signing/sexp"
)

// maxPrivateKeySize is the maximum length in bytes of a private key. The longest RSA key has
// 15 KB.
const maxPrivateKeySize = 64 << 10

// PrivateKey signs narinfos. Its public key is part of each signature.
type PrivateKey struct {
	list   sexp.Expr // (private-key …)
	public sexp.Expr // (public-key …)
	signer signer
}

// signer signs hashes with one key.
type signer interface {
	// sign returns the flag of the signed data, and the signature (ALGORITHM (PARAMETER
	// VALUE) …).
	sign(hash [sha256.Size]byte) (flag string, values sexp.Expr, err error)
}

// None of the errors about private keys quotes them.
var (
	errNoPrivateKey = errors.New("must be of the form (private-key (ecc (curve Ed25519) (q POINT) (d NUMBER))) or (private-key (rsa (n NUMBER) (e NUMBER) (d NUMBER) (p NUMBER) (q NUMBER) (u NUMBER)))")
	errPublicKey    = errors.New("this is a public key, must be the private key")
	errECDSAPrivate = errors.New("the private key's d must be a number of at most 32 bytes that isn't a multiple of the curve's order")
	errECDSAPair    = errors.New("the private key's q and d don't belong together")
)

// ParsePrivateKey reads a private key of Guix, as in signing-key.sec: for ECDSA on Ed25519, or
// for RSA. The error doesn't quote the text.
func ParsePrivateKey(text []byte) (*PrivateKey, error) {
	if len(text) > maxPrivateKeySize {
		return nil, fmt.Errorf("%d bytes, a private key has at most %d", len(text), maxPrivateKeySize)
	}
	tree, err := sexp.Parse(string(text))
	if err != nil {
		return nil, err
	}
	if tree.Head() == sexpPublicKey {
		return nil, errPublicKey
	}
	if tree.Head() != sexpPrivateKey || len(tree.List) != 2 {
		return nil, errNoPrivateKey
	}
	parameters, values := tree.List[1], make(map[string][]byte)
	names, parse := []string{sexpCurve, "q", "d"}, parseECDSAPrivate
	switch parameters.Head() {
	case algorithmECC:
	case algorithmRSA:
		names, parse = []string{"n", "e", "d", "p", "q", "u"}, parseRSAPrivate
	default:
		return nil, errNoPrivateKey
	}
	if len(parameters.List) != 1+len(names) {
		return nil, errNoPrivateKey
	}
	for _, name := range names {
		value, err := parameters.Parameter(name)
		if err != nil {
			return nil, errNoPrivateKey
		}
		values[name] = value
	}
	return parse(values)
}

// GenerateKey returns a new key for ECDSA on Ed25519, Guix's default. random is
// crypto/rand.Reader, except in tests.
func GenerateKey(random io.Reader) (*PrivateKey, error) {
	for {
		// Like libgcrypt, use the form that EdDSA gives to the number, which is not below n.
		d := make([]byte, scalarSize)
		if _, err := io.ReadFull(random, d); err != nil {
			return nil, err
		}
		d[0] = d[0]&0x3F | 0x40
		d[scalarSize-1] &= 0xF8
		q, err := publicOf(d)
		if err != nil {
			return nil, err
		}
		key, err := newECDSAPrivate(q, d)
		// One key in some thousand has a quoted string, which Guix reads in a UTF-8 locale
		// only.
		if err != nil || !strings.Contains(key.Private(), `"`) {
			return key, err
		}
	}
}

// Private returns the private key in the format of Guix's signing-key.sec.
func (k *PrivateKey) Private() string { return k.list.Print() }

// Public returns the public key in the format of Guix's signing-key.pub, as [Key] does.
func (k *PrivateKey) Public() string { return k.public.Print() }

// Sign returns the value of a narinfo's field Signature, byte for byte as Guix makes it, for a
// text with the hash. host is the name of the signing machine, which no program reads.
func (k *PrivateKey) Sign(hash [sha256.Size]byte, host string) (string, error) {
	for _, c := range host {
		if c <= ' ' || c == ';' || c > '~' {
			return "", fmt.Errorf("host name %.80q: must be printable ASCII without spaces and semicolons", host)
		}
	}
	flag, values, err := k.signer.sign(hash)
	if err != nil {
		return "", err
	}
	text := sexp.NewList(sexpSignature,
		sexp.NewList(sexpData,
			sexp.NewList(sexpFlags, sexp.Expr{Atom: flag}),
			sexp.NewList(sexpHash, sexp.Expr{Atom: hashSHA256}, sexp.NewAtom(hash[:]))),
		sexp.NewList(sexpSigVal, values),
		k.public).Print()
	return strings.Join([]string{signatureVersion, host, base64.StdEncoding.EncodeToString([]byte(text))}, ";"), nil
}

// ecdsaSigner signs with ECDSA, with nonces as in RFC 6979.
type ecdsaSigner struct {
	octets [scalarSize]byte // d as in the key
	d      *edwards25519.Scalar
}

func parseECDSAPrivate(values map[string][]byte) (*PrivateKey, error) {
	if string(values[sexpCurve]) != curveEd25519 {
		return nil, fmt.Errorf("%w: the private key must be on the curve %s", ErrUnknownAlgorithm, curveEd25519)
	}
	q, err := publicOf(values["d"])
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(q, values["q"]) {
		return nil, errECDSAPair
	}
	return newECDSAPrivate(q, values["d"])
}

// privateScalar returns d modulo n. d may be above n.
func privateScalar(d []byte) (*edwards25519.Scalar, error) {
	if len(sexp.TrimZeros(d)) > scalarSize {
		return nil, errECDSAPrivate
	}
	var wide [64]byte
	for i, c := range d {
		if at := len(d) - 1 - i; at < len(wide) {
			wide[at] = c
		}
	}
	scalar := reduce(&wide)
	if scalar.Equal(edwards25519.NewScalar()) == 1 {
		return nil, errECDSAPrivate
	}
	return scalar, nil
}

// publicOf returns the public key of d.
func publicOf(d []byte) ([]byte, error) {
	scalar, err := privateScalar(d)
	if err != nil {
		return nil, err
	}
	return new(edwards25519.Point).ScalarBaseMult(scalar).Bytes(), nil
}

func newECDSAPrivate(q, d []byte) (*PrivateKey, error) {
	scalar, err := privateScalar(d)
	if err != nil {
		return nil, err
	}
	s := &ecdsaSigner{d: scalar}
	d = sexp.TrimZeros(d)
	copy(s.octets[scalarSize-len(d):], d)
	return &PrivateKey{
		list:   sexp.NewList(sexpPrivateKey, eccList(q, sexp.NewNumber("d", d))),
		public: sexp.NewList(sexpPublicKey, eccList(q)),
		signer: s,
	}, nil
}

// sign takes the same time for each key and hash, apart from the number of nonces that are
// rejected, which reveals nothing about the one that is used.
func (k *ecdsaSigner) sign(hash [sha256.Size]byte) (flag string, values sexp.Expr, err error) {
	e := hashScalar(hash)
	for nonce := range k.nonces(e) {
		point := sumPointOf(new(edwards25519.Point).ScalarBaseMult(nonce))
		r := point.affineX()
		s := new(edwards25519.Scalar).MultiplyAdd(r, k.d, e)
		s.Multiply(s, nonce.Invert(nonce))
		zero := edwards25519.NewScalar()
		if r.Equal(zero) == 0 && s.Equal(zero) == 0 {
			return flagECDSA, sexp.NewList(algorithmECDSA, // libgcrypt's unsigned format, unlike sexp.NewNumber
				sexp.NewList("r", sexp.NewAtom(sexp.TrimZeros(bigEndian(r)))),
				sexp.NewList("s", sexp.NewAtom(sexp.TrimZeros(bigEndian(s))))), nil
		}
	}
	panic("not reached")
}

// nonces yields the numbers below n of RFC 6979, section 3.2, for a hash with the number e. The
// first one is used, unless the signature would have a zero.
func (k *ecdsaSigner) nonces(e *edwards25519.Scalar) func(yield func(*edwards25519.Scalar) bool) {
	return func(yield func(*edwards25519.Scalar) bool) {
		v, key := bytes.Repeat([]byte{1}, sha256.Size), make([]byte, sha256.Size)
		update := func(parts ...[]byte) []byte {
			mac := hmac.New(sha256.New, key)
			mac.Write(v)
			for _, part := range parts {
				mac.Write(part)
			}
			return mac.Sum(nil)
		}
		octets := bigEndian(e)
		for _, separator := range []byte{0, 1} {
			key = update([]byte{separator}, k.octets[:], octets)
			v = update()
		}
		for {
			v = update()
			candidate := shift([sha256.Size]byte(v))
			nonce, err := scalarOf(candidate[:])
			if err == nil && nonce.Equal(edwards25519.NewScalar()) == 0 && !yield(nonce) {
				return
			}
			key = update([]byte{0})
			v = update()
		}
	}
}
