// Package signing verifies the signatures of narinfos, as Guix makes them with libgcrypt:
// s-expressions with ECDSA on the curve Ed25519, or RSA. It trusts no key and distrusts
// none.
package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrBadSignature is the error for a signature that doesn't hold for its text: the
	// text, the signature, or both were damaged or changed.
	ErrBadSignature = errors.New("the signature isn't good")

	// ErrUnknownAlgorithm is the error for a signature of a kind that can't be
	// verified here, and may well be good. The text has the sha256 that the
	// signature says it has, so that the text wasn't damaged by accident.
	ErrUnknownAlgorithm = errors.New("signatures of this kind can't be verified here")
)

// signatureVersion is the only one there is.
const signatureVersion = "1"

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

// Verify checks a signature, the value of a narinfo's field Signature, of a text with the
// hash, by the key that the signature itself names. Whether that key is to be trusted is
// the client's decision: anybody can make a key and sign with it.
//
// The error wraps [ErrBadSignature] when the signature can't be read, is of another hash,
// or wasn't made by this key. It wraps [ErrUnknownAlgorithm] when the signature is of this
// hash, and of a kind that can't be verified: only ECDSA on the curve Ed25519, and RSA with
// PKCS #1, can, which is what Guix makes.
func Verify(signature string, hash [sha256.Size]byte) error {
	err := verify(signature, hash)
	if err == nil || errors.Is(err, ErrUnknownAlgorithm) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrBadSignature, err)
}

func verify(text string, hash [sha256.Size]byte) error {
	signature, err := parseSignature(text)
	if err != nil {
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
	if !bytes.Equal(value, hash[:]) {
		return fmt.Errorf("the sha256 of the text above it is %x, what was signed had %.40x; fetch the narinfo again",
			hash, value)
	}
	if algorithm := signed.list[1].atom; algorithm != hashSHA256 {
		return fmt.Errorf("%w: the hash is %.80q", ErrUnknownAlgorithm, algorithm)
	}
	return checkHashSignature(signature, data, hash)
}

// Key returns the public key in a signature, the value of a narinfo's field Signature, as
// guix archive --authorize takes it and signing-key.pub has it: an s-expression in
// libgcrypt's printed form, with a newline at the end. Equal keys give equal texts. Key
// doesn't check that the signature was made with it, or is good.
func Key(signature string) (string, error) {
	tree, err := parseSignature(signature)
	if err != nil {
		return "", err
	}
	for _, part := range tree.list[1:] {
		if part.head() == "public-key" {
			if !part.isPublicKey() {
				return "", errNoPublicKey
			}
			return part.print(), nil
		}
	}
	return "", errors.New("it has no public-key")
}

var errNoPublicKey = errors.New("the public-key must be of the form (public-key (ALGORITHM (PARAMETER VALUE) …))")

// parseSignature reads the value of the field Signature, and returns the
// s-expression (signature …) in it.
func parseSignature(signature string) (sexp, error) {
	parts := strings.Split(signature, ";")
	if len(parts) != 3 {
		return sexp{}, fmt.Errorf("%.80q: must be VERSION;HOST;BASE64", signature)
	}
	if parts[0] != signatureVersion {
		return sexp{}, fmt.Errorf("version %.80q, only %s is known", parts[0], signatureVersion)
	}
	// Strict, so that no damage to the last characters goes unnoticed.
	text, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil {
		return sexp{}, fmt.Errorf("must be base64: %w", err)
	}
	tree, err := parseSexp(string(text))
	if err != nil {
		return sexp{}, err
	}
	if tree.head() != "signature" {
		return sexp{}, fmt.Errorf("the s-expression is %.80q, must be a signature", tree.head())
	}
	return tree, nil
}

// checkHashSignature verifies the signature of a hash. data is the
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
		return fmt.Errorf("%w: it is of %.80q with the flag %.80q, by a key of %.80q",
			ErrUnknownAlgorithm, values.head(), flag, key.head())
	}
}
