package narinfo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrBadSignature is the error for a narinfo whose signature doesn't hold
	// for its text: the text, the signature, or both were damaged or changed.
	ErrBadSignature = errors.New("the signature isn't good")

	// ErrUnknownAlgorithm is the error for a signature of a kind that can't be
	// verified here, and may well be good. The text has the sha256 that the
	// signature says it has, so that the text wasn't damaged by accident.
	ErrUnknownAlgorithm = errors.New("signatures of this kind can't be verified here")
)

// The names in Guix's signatures. They have the form
//
//	(signature
//	 (data (flags FLAG) (hash sha256 HASH))
//	 (sig-val (ecdsa (r NUMBER) (s NUMBER)))
//	 (public-key (ecc (curve Ed25519) (q POINT))))
//
// or, with RSA, (rsa (s NUMBER)) and (rsa (n NUMBER) (e NUMBER)). The outer
// level is that of signature-sexp in Guix's (guix pki), the flags are from
// bytevector->hash-data in Guile-Gcrypt's (gcrypt pk-crypto), and what is within
// sig-val and public-key is libgcrypt's: see "Cryptographic Functions" and
// "Used S-expressions" in its manual.
const (
	sexpData      = "data"
	sexpHash      = "hash"
	sexpFlags     = "flags"
	sexpSigVal    = "sig-val"
	sexpPublicKey = "public-key"

	hashSHA256 = "sha256"

	algorithmECDSA = "ecdsa" // in sig-val
	algorithmECC   = "ecc"   // in public-key, for ECDSA and EdDSA alike
	algorithmRSA   = "rsa"   // in both

	flagECDSA = "rfc6979" // how the signer chose its random number
	flagRSA   = "pkcs1"   // PKCS #1 version 1.5

	curveEd25519 = "Ed25519"
)

// CheckSignature tells whether the signature holds for the narinfo's own text,
// by the key that it names itself. Whether that key is to be trusted is the
// client's affair: anybody can make a key and sign with it. It is there so that
// a mirror notices what was damaged on its way from a source that gives no
// digests, before it hands that on to clients who would refuse it.
//
// The error is [ErrUnsigned] when there is no signature. It wraps
// [ErrBadSignature] when the signature can't be read; StorePath, NarHash or
// References aren't among the bytes that were signed, see [Narinfo.Signed]; the
// sha256 in the signature isn't theirs; or the signature isn't that of this
// hash by this key. It wraps [ErrUnknownAlgorithm] when all is well up to the
// last of these, and that can't be decided: only ECDSA on the curve Ed25519, and
// RSA with PKCS #1, can be verified, which is what Guix makes.
func (n *Narinfo) CheckSignature() error {
	if n.signature == "" {
		return ErrUnsigned
	}
	err := n.checkSignature()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnknownAlgorithm):
		return fmt.Errorf("narinfo: Signature: %w", err)
	default:
		return fmt.Errorf("narinfo: Signature: %w: %w", ErrBadSignature, err)
	}
}

// checkSignature does it; its errors are all about bad signatures, save those
// that wrap ErrUnknownAlgorithm.
func (n *Narinfo) checkSignature() error {
	signature, err := parseSignature(n.signature)
	if err != nil {
		return err
	}
	if err := n.checkSignedFields(); err != nil {
		return err
	}
	data, err := signature.child(sexpData)
	if err != nil {
		return err
	}
	signed, err := data.child(sexpHash)
	if err != nil {
		return err
	}
	if len(signed.list) != 3 {
		return errors.New("the hash must be of the form (hash ALGORITHM VALUE)")
	}
	value, err := signed.list[2].value()
	if err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	// The client compares the value before it looks at anything else, whatever
	// the algorithm is called.
	hash := sha256.Sum256(n.Signed())
	if !bytes.Equal(value, hash[:]) {
		return fmt.Errorf("the sha256 of the text above it is %x, what was signed had %s; fetch the narinfo again",
			hash, quote(fmt.Sprintf("%x", value)))
	}
	if algorithm := signed.list[1].atom; algorithm != hashSHA256 {
		return fmt.Errorf("%w: the hash is %s", ErrUnknownAlgorithm, quote(algorithm))
	}
	return checkHashSignature(signature, data, hash)
}

// checkSignedFields tells whether what the client relies on was signed: the
// whole fields, not just their beginnings.
func (n *Narinfo) checkSignedFields() error {
	p := parser{Narinfo: new(Narinfo)}
	if err := p.record(string(n.Signed())); err != nil {
		return fmt.Errorf("what stands above %q doesn't end with a field: %w", signatureMark, err)
	}
	unsigned := ""
	switch {
	case p.seen&seenStorePath == 0 || p.StorePath != n.StorePath:
		unsigned = "StorePath"
	case p.seen&seenNarHash == 0 || p.NarHash != n.NarHash:
		unsigned = "NarHash"
	case p.seen&seenReferences == 0 || !slices.Equal(p.References, n.References):
		unsigned = "References"
	default:
		return nil
	}
	return fmt.Errorf("%s isn't signed, must stand above %q, as StorePath, NarHash and References all must", unsigned, signatureMark)
}

// checkHashSignature tells whether the signature of a hash is good. data is the
// part of signature that says what was signed.
func checkHashSignature(signature, data sexp, hash [sha256.Size]byte) error {
	sigVal, err := signature.child(sexpSigVal)
	if err != nil {
		return err
	}
	if len(sigVal.list) != 2 || sigVal.list[1].head() == "" {
		return errors.New("the sig-val must be of the form (sig-val (ALGORITHM (PARAMETER VALUE) …))")
	}
	publicKey, err := signature.child(sexpPublicKey)
	if err != nil {
		return err
	}
	if !publicKey.isPublicKey() {
		return errNoPublicKey
	}
	flags, err := data.child(sexpFlags)
	if err != nil {
		return err
	}
	flag := ""
	if len(flags.list) == 2 {
		flag = flags.list[1].atom
	}
	values, key := sigVal.list[1], publicKey.list[1]
	if err := signature.only(sexpData, sexpSigVal, sexpPublicKey); err != nil {
		return err
	}
	if err := data.only(sexpFlags, sexpHash); err != nil {
		return err
	}
	switch {
	case values.head() == algorithmECDSA && key.head() == algorithmECC && flag == flagECDSA:
		return checkECDSA(values, key, hash)
	case values.head() == algorithmRSA && key.head() == algorithmRSA && flag == flagRSA:
		return checkRSA(values, key, hash)
	default:
		return fmt.Errorf("%w: it is of %s with the flag %s, by a key of %s",
			ErrUnknownAlgorithm, quote(values.head()), quote(flag), quote(key.head()))
	}
}

// child returns the list within s that begins with name. There must be just
// one: of several, another program might take another.
func (s sexp) child(name string) (sexp, error) {
	var found sexp
	for _, item := range s.list {
		if item.head() != name {
			continue
		}
		if found.list != nil {
			return sexp{}, fmt.Errorf("%s has more than one %s", quote(s.head()), name)
		}
		found = item
	}
	if found.list == nil {
		return sexp{}, fmt.Errorf("%s has no %s", quote(s.head()), name)
	}
	return found, nil
}

// only tells whether the list s has nothing but lists that begin with one of
// names. What else there is may say how to verify, or be damage.
func (s sexp) only(names ...string) error {
	for _, item := range s.list[1:] {
		if !slices.Contains(names, item.head()) {
			return fmt.Errorf("%w: %s has %s in it, only %s are known",
				ErrUnknownAlgorithm, quote(s.head()), quote(item.head()+item.atom), strings.Join(names, ", "))
		}
	}
	return nil
}

// parameter returns the value of (name VALUE) within s.
func (s sexp) parameter(name string) ([]byte, error) {
	child, err := s.child(name)
	if err != nil {
		return nil, err
	}
	if len(child.list) != 2 {
		return nil, fmt.Errorf("%s: %s must have one value, has %d", quote(s.head()), name, len(child.list)-1)
	}
	value, err := child.list[1].value()
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", quote(s.head()), name, err)
	}
	return value, nil
}

// number returns a parameter that is a number, in big-endian order without
// leading zeros. libgcrypt writes as many bytes as it needs, and one more when
// the number would be taken for a negative one.
func (s sexp) number(name string) ([]byte, error) {
	value, err := s.parameter(name)
	return bytes.TrimLeft(value, "\x00"), err
}
