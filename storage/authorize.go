package storage

import (
	"errors"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
)

// Refusal is the error of [Authorize]: why clients would refuse a narinfo.
type Refusal struct {
	Reason RefusalReason
	// Err is that of [narinfo.Narinfo.CheckSignature].
	Err error
}

func (r *Refusal) Error() string { return r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }

// RefusalReason is the reason of a refusal, for counters and findings.
type RefusalReason string

const (
	// Unsigned: the narinfo has no signature.
	Unsigned RefusalReason = "unsigned"
	// BadSignature: the signature doesn't match the text, or can't be read.
	BadSignature RefusalReason = "bad signature"
	// Unauthorized: the signing key isn't among the authorized keys.
	Unauthorized RefusalReason = "unauthorized"
	// Unsupported: the signature is of a kind that can't be verified here.
	Unsupported RefusalReason = "unsupported"
)

// Label returns the reason as a label of metrics.
func (r RefusalReason) Label() string { return strings.ReplaceAll(string(r), " ", "_") }

// RefusalReasons lists all reasons.
var RefusalReasons = []RefusalReason{Unsigned, BadSignature, Unauthorized, Unsupported}

// Authorize returns a [Refusal] unless one of the keys has signed the narinfo. If keys is nil,
// any key will do, and so does a signature of a kind that can't be verified here.
func Authorize(n *narinfo.Narinfo, keys *signing.Keys) error {
	err := n.CheckSignature(keys)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, narinfo.ErrUnsigned):
		return &Refusal{Unsigned, err}
	case errors.Is(err, signing.ErrUnauthorized):
		return &Refusal{Unauthorized, err}
	case !errors.Is(err, signing.ErrUnknownAlgorithm):
		return &Refusal{BadSignature, err}
	case keys == nil:
		return nil
	}
	return &Refusal{Unsupported, err}
}

// Reason returns the reason of a refusal, or "" for any other error.
func Reason(err error) RefusalReason {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return ""
}

// Keys returns the keys that are authorized to sign the items; nil for any key.
func (s *Storage) Keys() *signing.Keys { return s.keys }
