// Package signing makes and verifies the signatures of narinfos with the keys of Guix, which
// uses libgcrypt: s-expressions with ECDSA on the curve Ed25519, or RSA.
package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nar-herder/narinfo/signing/sexp"
)

var (
	// ErrBadSignature reports a signature that doesn't match its text: the text, the
	// signature, or both were damaged or changed. It is one of the next three.
	ErrBadSignature = errors.New("bad signature")

	// ErrCorrupt reports a signature that can't be parsed.
	ErrCorrupt error = badSignature("corrupt signature")

	// ErrHashMismatch reports a signature of another text.
	ErrHashMismatch error = badSignature("hash mismatch")

	// ErrInvalid reports a signature that wasn't made by the key that it names.
	ErrInvalid error = badSignature("invalid signature")

	// ErrUnknownAlgorithm reports a signature of an unsupported kind, which may be valid. The
	// sha256 of the text matches the signature, so the text was not damaged by accident.
	ErrUnknownAlgorithm = errors.New("signatures of this kind can't be verified here")

	// ErrUnauthorized reports a signature by a key that isn't among the authorized keys. It
	// may be valid.
	ErrUnauthorized = errors.New("unauthorized key")
)

// badSignature is an [ErrBadSignature], named as Guix's signature-case does.
type badSignature string

func (e badSignature) Error() string        { return string(e) }
func (e badSignature) Is(target error) bool { return target == ErrBadSignature }

// signatureVersion is the only version.
const signatureVersion = "1"

// maxSignatureSize is the maximum length in bytes of a field Signature. Those with the longest
// RSA key have 18 KB.
const maxSignatureSize = 64 << 10

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
	sexpSignature  = "signature"
	sexpData       = "data"
	sexpHash       = "hash"
	sexpFlags      = "flags"
	sexpSigVal     = "sig-val"
	sexpPublicKey  = "public-key"
	sexpPrivateKey = "private-key"
	sexpCurve      = "curve"

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
// The error wraps, in Guix's order, [ErrCorrupt], [ErrUnauthorized], [ErrHashMismatch], or
// [ErrInvalid]. In place of the last it wraps [ErrUnknownAlgorithm] if the signature is of this
// hash but of an unsupported kind: Guix makes, and Verify supports, ECDSA on the curve Ed25519
// and RSA with PKCS #1.
func Verify(signature string, hash [sha256.Size]byte, keys *Keys) error {
	text, err := decodeSignature(signature)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if u, ok := readUsual(text); ok && u.hash == hash {
		if key, ok := keys.authorized(u.key); ok {
			if verifier, ok := key.verifier.(*ecdsaKey); ok {
				return invalid(verifier.verifyNumbers(u.r, u.s, hash))
			}
		}
	}
	parsed, err := parseSignature(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	signed, err := parsed.signedHash()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	list, err := parsed.Child(sexpPublicKey)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	key, err := decodedKey(list)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	authorized, ok := keys.authorized(key)
	if !ok {
		return fmt.Errorf("%w: %.200s", ErrUnauthorized, oneLine(key.text))
	}
	// Compare the value first, whatever the algorithm, as the client does.
	if !bytes.Equal(signed.value, hash[:]) {
		return fmt.Errorf("%w: the sha256 of the text above it is %x, the signed text had %.40x; fetch the narinfo again",
			ErrHashMismatch, hash, signed.value)
	}
	if signed.algorithm != hashSHA256 {
		return fmt.Errorf("%w: the hash is %.80q", ErrUnknownAlgorithm, signed.algorithm)
	}
	return invalid(parsed.verify(authorized, hash))
}

// invalid makes an error an [ErrInvalid], unless it is an [ErrUnknownAlgorithm].
func invalid(err error) error {
	if err == nil || errors.Is(err, ErrUnknownAlgorithm) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// oneLine joins the lines of a printed s-expression.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// Key returns the public key in a signature, the value of a narinfo's field Signature, in the
// format of guix archive --authorize and signing-key.pub: an s-expression in libgcrypt's
// printed form, with a newline at the end. Equal keys give equal texts. Key doesn't verify the
// signature.
func Key(signature string) (string, error) {
	decoded, err := decodeSignature(signature)
	if err != nil {
		return "", err
	}
	parsed, err := parseSignature(decoded)
	if err != nil {
		return "", err
	}
	for _, part := range parsed.List[1:] {
		if part.Head() == sexpPublicKey {
			key, err := decodedKey(part)
			if err != nil {
				return "", err
			}
			return key.text, nil
		}
	}
	return "", errors.New("it has no public-key")
}

// signature is an s-expression (signature …).
type signature struct{ sexp.Expr }

// decodeSignature decodes the value of the field Signature to the text of an s-expression.
func decodeSignature(text string) ([]byte, error) {
	if len(text) > maxSignatureSize {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(text), maxSignatureSize)
	}
	version, rest, _ := strings.Cut(text, ";")
	_, encoded, found := strings.Cut(rest, ";") // after the host
	if !found || strings.Contains(encoded, ";") {
		return nil, fmt.Errorf("%.80q: must be VERSION;HOST;BASE64", text)
	}
	if version != signatureVersion {
		return nil, fmt.Errorf("version %.80q, only %s is known", version, signatureVersion)
	}
	decoded, err := strictBase64.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("must be base64: %w", err)
	}
	return decoded, nil
}

// strictBase64 also detects damage to the last characters.
var strictBase64 = base64.StdEncoding.Strict()

// parseSignature parses the s-expression of a signature.
func parseSignature(text []byte) (signature, error) {
	tree, err := sexp.Parse(string(text))
	if err != nil {
		return signature{}, err
	}
	if tree.Head() != sexpSignature {
		return signature{}, fmt.Errorf("the s-expression is %.80q, must be a signature", tree.Head())
	}
	return signature{tree}, nil
}

type signedHash struct {
	algorithm string
	value     []byte
}

// signedHash returns what was signed: the hash of a text.
func (s signature) signedHash() (signedHash, error) {
	data, err := s.Child(sexpData)
	if err != nil {
		return signedHash{}, err
	}
	hash, err := data.Child(sexpHash)
	if err != nil {
		return signedHash{}, err
	}
	if len(hash.List) != 3 {
		return signedHash{}, errors.New("the hash must be of the form (hash ALGORITHM VALUE)")
	}
	value, err := hash.List[2].Value()
	if err != nil {
		return signedHash{}, fmt.Errorf("hash: %w", err)
	}
	return signedHash{hash.List[1].Atom, value}, nil
}

// verify verifies that the key signed the hash.
func (s signature) verify(key *publicKey, hash [sha256.Size]byte) error {
	sigVal, err := s.Child(sexpSigVal)
	if err != nil {
		return err
	}
	if len(sigVal.List) != 2 || sigVal.List[1].Head() == "" {
		return errors.New("the sig-val must be of the form (sig-val (ALGORITHM (PARAMETER VALUE) …))")
	}
	data, err := s.Child(sexpData)
	if err != nil {
		return err
	}
	flags, err := data.Child(sexpFlags)
	if err != nil {
		return err
	}
	flag := ""
	if len(flags.List) == 2 {
		flag = flags.List[1].Atom
	}
	if err := only(s.Expr, sexpData, sexpSigVal, sexpPublicKey); err != nil {
		return err
	}
	if err := only(data, sexpFlags, sexpHash); err != nil {
		return err
	}
	values := sigVal.List[1]
	switch {
	case values.Head() == algorithmECDSA && key.algorithm == algorithmECC && flag == flagECDSA:
	case values.Head() == algorithmRSA && key.algorithm == algorithmRSA && flag == flagRSA:
	default:
		return fmt.Errorf("%w: it is of %.80q with the flag %.80q, by a key of %.80q",
			ErrUnknownAlgorithm, values.Head(), flag, key.algorithm)
	}
	if key.err != nil {
		return key.err
	}
	return key.verifier.verify(values, hash)
}

// only returns an error if the list s has lists that begin with other names: they may change
// how to verify, or be damage.
func only(s sexp.Expr, names ...string) error {
	for _, item := range s.List[1:] {
		if !slices.Contains(names, item.Head()) {
			return fmt.Errorf("%w: %.80q has %.80q in it, only %s are known",
				ErrUnknownAlgorithm, s.Head(), item.Head()+item.Atom, strings.Join(names, ", "))
		}
	}
	return nil
}
