package narinfo

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// ErrUnsigned is the error for a narinfo without a signature.
var ErrUnsigned = errors.New("narinfo has no signature")

// signatureVersion is the only one there is.
const signatureVersion = "1"

// SigningKey returns the public key that the narinfo says it was signed with,
// as guix archive --authorize takes it and signing-key.pub has it: an
// s-expression in libgcrypt's printed form, with a newline at the end. Equal
// keys give equal texts. That the signature was made with it, or is good, isn't
// checked.
//
// The error is [ErrUnsigned], or says why the signature can't be read.
func (n *Narinfo) SigningKey() (string, error) {
	if n.signature == "" {
		return "", ErrUnsigned
	}
	key, err := signingKey(n.signature)
	if err != nil {
		return "", fmt.Errorf("narinfo: Signature: %w", err)
	}
	return key, nil
}

func signingKey(signature string) (string, error) {
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
	return "", errors.New("there is no public-key in it")
}

var errNoPublicKey = errors.New("the public-key must be of the form (public-key (ALGORITHM (PARAMETER VALUE) …))")

// parseSignature reads the value of the field Signature, and returns the
// s-expression (signature …) in it.
func parseSignature(signature string) (sexp, error) {
	parts := strings.Split(signature, ";")
	if len(parts) != 3 {
		return sexp{}, fmt.Errorf("%s: must be VERSION;HOST;BASE64", quote(signature))
	}
	if parts[0] != signatureVersion {
		return sexp{}, fmt.Errorf("version %s, only %s is known", quote(parts[0]), signatureVersion)
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
		return sexp{}, fmt.Errorf("the s-expression is %s, must be a signature", quote(tree.head()))
	}
	return tree, nil
}
