// Package resign signs narinfos with a key of this machine: unsigned ones, and those of another
// key in its place.
package resign

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
)

// Signer signs narinfos with one key. It is safe for concurrent use.
type Signer struct {
	Key *signing.PrivateKey
	// Host is the name of the signer in signatures.
	Host string
	// Replace also replaces valid signatures by other keys, which are lost: a narinfo has
	// one signature.
	Replace bool
	// Mirrored also signs items that a mirror has from its source. They become items of
	// this instance, which the source doesn't change or remove any more.
	Mirrored bool
}

// Outcome is what became of one narinfo.
type Outcome int

const (
	// Failed: the error says why. Nothing has changed.
	Failed Outcome = iota
	// Signed: it was unsigned.
	Signed
	// Replaced: it had a valid signature by another key, which is lost.
	Replaced
	// Current: it had a valid signature by this key, and is unchanged.
	Current
	// Kept: it has a valid signature by another key, and is unchanged.
	Kept
	// OfSource: the item is unchanged, since the mirrored instance has it, and would restore
	// its own narinfo here.
	OfSource
	// Withdrawn: the item is unchanged, since it is not served.
	Withdrawn
	// Removed: the item was removed meanwhile.
	Removed
)

var (
	// ErrDoubtful says that a narinfo was not signed, since it has a signature that is wrong
	// or of an unknown kind: its text may be damaged or forged, which a new signature would
	// hide.
	ErrDoubtful = errors.New("not signed, since its present signature can't be verified, so its text may be wrong: import it anew from a server that you trust")

	errOther = errors.New("signing has changed more than the signature")
)

// Sign returns the narinfo with a signature by the key, and the outcome as if that replaced it.
// Without a change, it returns nil.
func (s *Signer) Sign(n *narinfo.Narinfo) (*narinfo.Narinfo, Outcome, error) {
	outcome := Signed
	err := n.CheckSignature(nil)
	if err == nil {
		key, err := n.SigningKey()
		switch {
		case err != nil:
			return nil, Failed, err
		case key == s.Key.Public():
			return nil, Current, nil
		case !s.Replace:
			return nil, Kept, nil
		}
		outcome = Replaced
	} else if !errors.Is(err, narinfo.ErrUnsigned) {
		return nil, Failed, fmt.Errorf("%w: %w", ErrDoubtful, err)
	}
	text, err := n.Sign(s.Key, s.Host)
	if err != nil {
		return nil, Failed, err
	}
	signed, err := narinfo.Parse(text)
	if err != nil {
		return nil, Failed, err
	}
	if signed.StorePath != n.StorePath || signed.NarHash != n.NarHash || !slices.Equal(signed.Files, n.Files) {
		return nil, Failed, errOther
	}
	return signed, outcome, nil
}

// SignUnsigned is Sign for narinfos without a signature. It returns others as they are.
func (s *Signer) SignUnsigned(n *narinfo.Narinfo) (*narinfo.Narinfo, error) {
	if n.Signature() != "" {
		return n, nil
	}
	signed, _, err := s.Sign(n)
	return signed, err
}

// Host returns the name of the signer in a narinfo's signature, which anybody can choose; "" for
// none.
func Host(n *narinfo.Narinfo) string {
	_, rest, _ := strings.Cut(n.Signature(), ";")
	host, _, _ := strings.Cut(rest, ";")
	return host
}
