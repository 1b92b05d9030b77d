package signing

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/big"

	"nar-herder/narinfo/signing/sexp"
)

// Limits of RSA keys.
const (
	// minRSABits is the minimum of crypto/rsa. Anybody can forge signatures of shorter keys.
	minRSABits = 1024

	// maxRSABits bounds the time for a malicious key to some tens of milliseconds. Longer
	// keys aren't in use.
	maxRSABits = 16384

	// maxRSAExponent is crypto/rsa's. The usual one is 65537.
	maxRSAExponent = math.MaxInt32
)

// rsaKey verifies RSA signatures (rsa (s …)).
type rsaKey struct{ public rsa.PublicKey }

// decodeRSAKey decodes a key (rsa (n …) (e …)). It also returns the key as libgcrypt prints it.
func decodeRSAKey(key sexp.Expr) (*rsaKey, sexp.Expr, error) {
	if err := only(key, "n", "e"); err != nil {
		return nil, sexp.Expr{}, err
	}
	modulus, err := key.Number("n")
	if err != nil {
		return nil, sexp.Expr{}, err
	}
	exponent, err := key.Number("e")
	if err != nil {
		return nil, sexp.Expr{}, err
	}
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if bits := n.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, sexp.Expr{}, fmt.Errorf("%w: the RSA key has %d bits, must have %d to %d", ErrUnknownAlgorithm, bits, minRSABits, maxRSABits)
	}
	if !e.IsInt64() || e.Int64() > maxRSAExponent {
		return nil, sexp.Expr{}, fmt.Errorf("%w: the RSA key's exponent has %d bits, must be at most %d", ErrUnknownAlgorithm, e.BitLen(), maxRSAExponent)
	}
	return &rsaKey{rsa.PublicKey{N: n, E: int(e.Int64())}}, rsaList(modulus, exponent), nil
}

// rsaList returns the list (rsa (n …) (e …)).
func rsaList(n, e []byte) sexp.Expr {
	return sexp.NewList(algorithmRSA, sexp.NewNumber("n", n), sexp.NewNumber("e", e))
}

func (k *rsaKey) verify(values sexp.Expr, hash [sha256.Size]byte) error {
	if err := only(values, "s"); err != nil {
		return err
	}
	signature, err := values.Number("s")
	if err != nil {
		return err
	}
	if len(signature) > k.public.Size() {
		return errors.New("the number s is longer than the key")
	}
	// PKCS #1 requires leading zeros, which the number lacks.
	padded := make([]byte, k.public.Size())
	copy(padded[len(padded)-len(signature):], signature)
	if err := rsa.VerifyPKCS1v15(&k.public, crypto.SHA256, hash[:], padded); err != nil {
		return fmt.Errorf("the key didn't make this signature: %w", err)
	}
	return nil
}

// rsaSigner signs with RSA.
type rsaSigner struct{ key *rsa.PrivateKey }

var errRSAPrivate = errors.New("the numbers of the RSA private key don't belong together")

func parseRSAPrivate(values map[string][]byte) (*PrivateKey, error) {
	list := sexp.NewList(algorithmRSA)
	numbers := make(map[string]*big.Int)
	for _, name := range []string{"n", "e", "d", "p", "q", "u"} {
		numbers[name] = new(big.Int).SetBytes(values[name])
		list.List = append(list.List, sexp.NewNumber(name, values[name]))
	}
	public := rsaList(values["n"], values["e"])
	decoded, _, err := decodeRSAKey(public)
	if err != nil {
		return nil, err
	}
	// Validate takes minutes for very long numbers.
	for _, name := range []string{"d", "p", "q", "u"} {
		if numbers[name].BitLen() > numbers["n"].BitLen() {
			return nil, errRSAPrivate
		}
	}
	if new(big.Int).Mul(numbers["p"], numbers["q"]).Cmp(numbers["n"]) != 0 {
		return nil, errRSAPrivate
	}
	key := &rsa.PrivateKey{
		PublicKey: decoded.public,
		D:         numbers["d"],
		Primes:    []*big.Int{numbers["p"], numbers["q"]},
	}
	if key.Validate() != nil {
		return nil, errRSAPrivate
	}
	key.Precompute()
	return &PrivateKey{
		list:   sexp.NewList(sexpPrivateKey, list),
		public: sexp.NewList(sexpPublicKey, public),
		signer: rsaSigner{key},
	}, nil
}

func (k rsaSigner) sign(hash [sha256.Size]byte) (flag string, values sexp.Expr, err error) {
	s, err := rsa.SignPKCS1v15(nil, k.key, crypto.SHA256, hash[:])
	if err != nil {
		return "", sexp.Expr{}, err
	}
	return flagRSA, sexp.NewList(algorithmRSA, sexp.NewList("s", sexp.NewAtom(s))), nil
}
