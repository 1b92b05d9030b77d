package signing

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/big"
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
func decodeRSAKey(key sexp) (*rsaKey, sexp, error) {
	if err := key.only("n", "e"); err != nil {
		return nil, sexp{}, err
	}
	modulus, err := key.number("n")
	if err != nil {
		return nil, sexp{}, err
	}
	exponent, err := key.number("e")
	if err != nil {
		return nil, sexp{}, err
	}
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if bits := n.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, sexp{}, fmt.Errorf("%w: the RSA key has %d bits, must have %d to %d", ErrUnknownAlgorithm, bits, minRSABits, maxRSABits)
	}
	if !e.IsInt64() || e.Int64() > maxRSAExponent {
		return nil, sexp{}, fmt.Errorf("%w: the RSA key's exponent has %d bits, must be at most %d", ErrUnknownAlgorithm, e.BitLen(), maxRSAExponent)
	}
	return &rsaKey{rsa.PublicKey{N: n, E: int(e.Int64())}}, rsaList(modulus, exponent), nil
}

// rsaList returns the list (rsa (n …) (e …)).
func rsaList(n, e []byte) sexp {
	return listOf(algorithmRSA, numberOf("n", n), numberOf("e", e))
}

func (k *rsaKey) verify(values sexp, hash [sha256.Size]byte) error {
	if err := values.only("s"); err != nil {
		return err
	}
	signature, err := values.number("s")
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
	list := listOf(algorithmRSA)
	numbers := make(map[string]*big.Int)
	for _, name := range []string{"n", "e", "d", "p", "q", "u"} {
		numbers[name] = new(big.Int).SetBytes(values[name])
		list.list = append(list.list, numberOf(name, values[name]))
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
		list:   listOf(sexpPrivateKey, list),
		public: listOf(sexpPublicKey, public),
		signer: rsaSigner{key},
	}, nil
}

func (k rsaSigner) sign(hash [sha256.Size]byte) (flag string, values sexp, err error) {
	s, err := rsa.SignPKCS1v15(nil, k.key, crypto.SHA256, hash[:])
	if err != nil {
		return "", sexp{}, err
	}
	return flagRSA, listOf(algorithmRSA, listOf("s", atomOf(s))), nil
}
