package narinfo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"unsafe"

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
	if n.signedFirst {
		return nil
	}
	p := parser{Narinfo: new(Narinfo)}
	signed := n.Signed() // not copied, as in ParseInto
	if err := p.record(unsafe.String(unsafe.SliceData(signed), len(signed))); err != nil {
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
// bytes and the blocks of URL stay as they are. Sign doesn't verify the old signature.
//
// A text without a signature gets one below its last field other than URL, Compression,
// FileSize and FileHash, so that these aren't signed, as in the narinfos of guix publish. host
// is the name of the signing machine, see [signing.PrivateKey.Sign].
func (n *Narinfo) Sign(key *signing.PrivateKey, host string) ([]byte, error) {
	start, end := n.signatureLines()
	above := n.Text[:start:start]
	if start > 0 && above[start-1] != '\n' {
		above = append(above, '\n')
	}
	if bytes.Contains(above, []byte(signatureMark)) {
		return nil, fmt.Errorf("narinfo: can't be signed: the client takes only the text above the first %q for signed, but this is in a comment or in another field", signatureMark)
	}
	value, err := key.Sign(sha256.Sum256(above), host)
	if err != nil {
		return nil, fmt.Errorf("narinfo: sign: %w", err)
	}
	text := slices.Concat(above, []byte(signatureMark+" "+value+"\n"), n.Text[end:])
	signed, err := Parse(text)
	if err == nil {
		err = signed.CheckSignature(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("narinfo: can't be signed: %w", err)
	}
	return text, nil
}

// signatureLines returns the part of the text that is the field Signature. If it has none, the
// part is empty and where the field should be.
func (n *Narinfo) signatureLines() (start, end int) {
	offset, field, found := 0, "", false
	for line := range bytes.Lines(n.Text) {
		next := offset + len(line)
		switch {
		case len(bytes.TrimSuffix(line, []byte("\n"))) == 0:
			if field != "" {
				return start, end // the end of the record
			}
		case line[0] == '#':
		default:
			if line[0] != '+' {
				name, _, _ := bytes.Cut(line, []byte(":"))
				field = string(name)
				if field == "Signature" {
					start, found = offset, true
				}
			}
			switch field {
			case "URL", "Compression", "FileSize", "FileHash":
			case "Signature":
				end = next
			default:
				if !found {
					start, end = next, next
				}
			}
		}
		offset = next
	}
	return start, end
}
