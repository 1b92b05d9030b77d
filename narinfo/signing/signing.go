// Package signing makes and verifies the signatures of narinfos with the keys of Guix, which
// uses libgcrypt: s-expressions with ECDSA on the curve Ed25519, or RSA.
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
	// ErrBadSignature reports a signature that doesn't match its text: the text, the
	// signature, or both were damaged or changed.
	ErrBadSignature = errors.New("the signature isn't good")

	// ErrUnknownAlgorithm reports a signature of an unsupported kind, which may be valid. The
	// sha256 of the text matches the signature, so the text was not damaged by accident.
	ErrUnknownAlgorithm = errors.New("signatures of this kind can't be verified here")

	// ErrUnauthorized reports a signature by a key that isn't among the authorized keys. It
	// may be valid.
	ErrUnauthorized = errors.New("the signing key isn't authorized")
)

// signatureVersion is the only version.
const signatureVersion = "1"

// The names in Guix's signatures. They have the form
//
//	(signature
//	 (data (flags FLAG) (hash sha256 HASH))
//	 (sig-val (ecdsa (r NUMBER) (s NUMBER)))
//	 (public-key (ecc (curve Ed25519) (q POINT))))
//
// or, with RSA, (rsa (s NUMBER)) and (rsa (n NUMBER) (e NUMBER)). The outer level is from
// signature-sexp in Guix's (guix pki), the flags are from bytevector->hash-data in
// Guile-Gcrypt's (gcrypt pk-crypto), and the content of sig-val and public-key is libgcrypt's:
// see "Cryptographic Functions" and "Used S-expressions" in its manual.
const (
	sexpData      = "data"
	sexpHash      = "hash"
	sexpFlags     = "flags"
	sexpSigVal    = "sig-val"
	sexpPublicKey = "public-key"
	sexpACL       = "acl"

	hashSHA256 = "sha256"

	algorithmECDSA = "ecdsa" // in sig-val
	algorithmECC   = "ecc"   // in public-key, for ECDSA and EdDSA alike
	algorithmRSA   = "rsa"   // in both

	flagECDSA = "rfc6979" // how the signer chose its random number
	flagRSA   = "pkcs1"   // PKCS #1 version 1.5

	curveEd25519 = "Ed25519"
)

// Verify verifies a signature, the value of a narinfo's field Signature, of a text with the
// hash, by the key that the signature itself names. That key must be in keys. If keys is nil,
// any key will do: anybody can make a key and sign with it, so this detects damage only.
//
// The error wraps [ErrUnauthorized] if the key isn't in keys, whatever else is wrong, since
// Guix looks there first. It wraps [ErrBadSignature] if the signature can't be parsed, is of another hash, or
// wasn't made by this key. It wraps [ErrUnknownAlgorithm] if the signature is of this hash but
// of an unsupported kind: Guix makes, and Verify supports, ECDSA on the curve Ed25519 and RSA
// with PKCS #1.
func Verify(signature string, hash [sha256.Size]byte, keys *Keys) error {
	err := verify(signature, hash, keys)
	if err == nil || errors.Is(err, ErrUnknownAlgorithm) || errors.Is(err, ErrUnauthorized) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrBadSignature, err)
}

func verify(text string, hash [sha256.Size]byte, keys *Keys) error {
	signature, err := parseSignature(text)
	if err != nil {
		return err
	}
	if keys != nil {
		publicKey, err := signature.child(sexpPublicKey)
		if err != nil {
			return err
		}
		if !publicKey.isPublicKey() {
			return errNoPublicKey
		}
		if key := publicKey.print(); !keys.Contains(key) {
			return fmt.Errorf("%w: %s", ErrUnauthorized, strings.Join(strings.Fields(key), " "))
		}
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
	// Compare the value first, whatever the algorithm, as the client does.
	if !bytes.Equal(value, hash[:]) {
		return fmt.Errorf("the sha256 of the text above it is %x, the signed text had %.40x; fetch the narinfo again",
			hash, value)
	}
	if algorithm := signed.list[1].atom; algorithm != hashSHA256 {
		return fmt.Errorf("%w: the hash is %.80q", ErrUnknownAlgorithm, algorithm)
	}
	return checkHashSignature(signature, data, hash)
}

// Key returns the public key in a signature, the value of a narinfo's field Signature, in the
// format of guix archive --authorize and signing-key.pub: an s-expression in libgcrypt's
// printed form, with a newline at the end. Equal keys give equal texts. Key doesn't verify the
// signature.
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

// parseSignature parses the value of the field Signature, and returns the s-expression
// (signature …) in it.
func parseSignature(signature string) (sexp, error) {
	parts := strings.Split(signature, ";")
	if len(parts) != 3 {
		return sexp{}, fmt.Errorf("%.80q: must be VERSION;HOST;BASE64", signature)
	}
	if parts[0] != signatureVersion {
		return sexp{}, fmt.Errorf("version %.80q, only %s is known", parts[0], signatureVersion)
	}
	// Strict decoding also detects damage to the last characters.
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

// checkHashSignature verifies the signature of a hash. data is the part of the signature about
// the signed data.
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
