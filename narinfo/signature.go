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

// CheckSignature verifies the signature of the narinfo's text by one of the authorized keys,
// as a client with these keys does. If keys is nil, any key will do, which detects damage only.
//
// The error is [ErrUnsigned] if there is no signature. It wraps [signing.ErrBadSignature] if
// StorePath, NarHash or References aren't among the signed bytes, see [Narinfo.Signed]. Else
// it is that of [signing.Verify].
func (n *Narinfo) CheckSignature(keys *signing.Keys) error {
	if n.signature == "" {
		return ErrUnsigned
	}
	err := n.checkSignedFields()
	if err != nil {
		err = fmt.Errorf("%w: %w", signing.ErrBadSignature, err)
	} else {
		err = signing.Verify(n.signature, sha256.Sum256(n.Signed()), keys)
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

// Sign returns the text with a signature by key in place of that which it may have. The signed
// bytes and the blocks of URL stay as they are. It doesn't verify the old signature.
//
// A text without a signature gets one below its last field other than URL, Compression,
// FileSize and FileHash, so that these aren't signed, as in the narinfos of guix publish. host
// is the name of the signer, see [signing.PrivateKey.Sign].
func (n *Narinfo) Sign(key *signing.PrivateKey, host string) ([]byte, error) {
	return nil, errors.New("not implemented yet")
}
