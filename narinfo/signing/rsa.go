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

// checkRSA verifies an RSA signature (rsa (s …)) of a hash by a key (rsa (n …) (e …)).
func checkRSA(values, key sexp, hash [sha256.Size]byte) error {
	if err := key.only("n", "e"); err != nil {
		return err
	}
	if err := values.only("s"); err != nil {
		return err
	}
	modulus, err := key.number("n")
	if err != nil {
		return err
	}
	exponent, err := key.number("e")
	if err != nil {
		return err
	}
	signature, err := values.number("s")
	if err != nil {
		return err
	}
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if bits := n.BitLen(); bits < minRSABits || bits > maxRSABits {
		return fmt.Errorf("%w: the RSA key has %d bits, must have %d to %d", ErrUnknownAlgorithm, bits, minRSABits, maxRSABits)
	}
	if !e.IsInt64() || e.Int64() > maxRSAExponent {
		return fmt.Errorf("%w: the RSA key's exponent has %d bits, must be at most %d", ErrUnknownAlgorithm, e.BitLen(), maxRSAExponent)
	}
	public := &rsa.PublicKey{N: n, E: int(e.Int64())}
	if len(signature) > public.Size() {
		return errors.New("the number s is longer than the key")
	}
	// PKCS #1 requires leading zeros, which the number lacks.
	padded := make([]byte, public.Size())
	copy(padded[len(padded)-len(signature):], signature)
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, hash[:], padded); err != nil {
		return fmt.Errorf("the key didn't make this signature: %w", err)
	}
	return nil
}
