package signing

import (
	"crypto/sha256"
	"errors"
	"io"
)

// PrivateKey signs narinfos.
type PrivateKey struct{}

var errNotYet = errors.New("not implemented yet")

// GenerateKey returns a new key for ECDSA on Ed25519, Guix's default. random is usually
// crypto/rand.Reader.
func GenerateKey(random io.Reader) (*PrivateKey, error) { return nil, errNotYet }

// ParsePrivateKey reads a private key of Guix, as in signing-key.sec.
func ParsePrivateKey(text []byte) (*PrivateKey, error) { return nil, errNotYet }

// ReadPrivateKey reads a private key from a file. It refuses a file that others can read.
func ReadPrivateKey(path string) (*PrivateKey, error) { return nil, errNotYet }

// WriteKeyPair writes a new key to two files that must not exist: the private key with mode
// 0600, and the public key with mode 0644.
func WriteKeyPair(key *PrivateKey, private, public string) error { return errNotYet }

// Private returns the private key in the format of Guix's signing-key.sec.
func (k *PrivateKey) Private() string { return "" }

// Public returns the public key in the format of Guix's signing-key.pub, as [Key] does.
func (k *PrivateKey) Public() string { return "" }

// Sign returns the value of a narinfo's field Signature for a text with the hash. host is the
// name of the signer: Guix writes the host's name, and doesn't read it.
func (k *PrivateKey) Sign(hash [sha256.Size]byte, host string) (string, error) {
	return "", errNotYet
}
