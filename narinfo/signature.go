package narinfo

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"nar-herder/narinfo/signing"
)

// ErrUnsigned reports a narinfo without a signature.
var ErrUnsigned = errors.New("narinfo has no signature")

// SigningKey returns the public key that the signature names, in the format of guix archive
// --authorize and signing-key.pub: an s-expression in libgcrypt's printed form, with a newline
// at the end. Equal keys give equal texts. It does not verify the signature.
//
// The error is [ErrUnsigned], or says why the signature can't be read.
func (n *Narinfo) SigningKey() (string, error) {
	if n.signature == "" {
		return "", ErrUnsigned
	}
	key, err := signing.Key(n.signature)
	if err != nil {
		return "", fmt.Errorf("narinfo: Signature: %w", err)
	}
	return key, nil
}

// CheckSignature verifies the signature of the narinfo's text, see [signing.Verify], so that a
// mirror of a source without digests notices damage before clients refuse it.
//
// The error is [ErrUnsigned] if there is no signature. It wraps [signing.ErrBadSignature] or
// [signing.ErrUnknownAlgorithm] like that of Verify, the former also if StorePath, NarHash or
// References aren't among the signed bytes, see [Narinfo.Signed].
func (n *Narinfo) CheckSignature() error {
	if n.signature == "" {
		return ErrUnsigned
	}
	err := n.checkSignedFields()
	if err != nil {
		err = fmt.Errorf("%w: %w", signing.ErrBadSignature, err)
	} else {
		err = signing.Verify(n.signature, sha256.Sum256(n.Signed()))
	}
	if err != nil {
		return fmt.Errorf("narinfo: Signature: %w", err)
	}
	return nil
}

// checkSignedFields returns an error unless the fields that the client depends on are signed
// completely.
func (n *Narinfo) checkSignedFields() error {
	p := parser{Narinfo: new(Narinfo)}
	if err := p.record(string(n.Signed())); err != nil {
		return fmt.Errorf("the text above %q doesn't end with a field: %w", signatureMark, err)
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
	return fmt.Errorf("%s isn't signed, must be above %q, like StorePath, NarHash and References", unsigned, signatureMark)
}
