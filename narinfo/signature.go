package narinfo

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"nar-herder/narinfo/signing"
)

// ErrUnsigned is the error for a narinfo without a signature.
var ErrUnsigned = errors.New("narinfo has no signature")

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
	key, err := signing.Key(n.signature)
	if err != nil {
		return "", fmt.Errorf("narinfo: Signature: %w", err)
	}
	return key, nil
}

// CheckSignature checks the signature of the narinfo's own text, see [signing.Verify], so that
// a mirror of a source without digests notices damage before clients would refuse it.
//
// The error is [ErrUnsigned] when there is no signature. It wraps [signing.ErrBadSignature]
// or [signing.ErrUnknownAlgorithm] as that of Verify does, the former also when StorePath,
// NarHash or References aren't among the signed bytes, see [Narinfo.Signed].
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

// checkSignedFields returns an error unless the fields that the client relies on were signed
// as a whole, not just their beginnings.
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
