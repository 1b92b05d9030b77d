package item

import (
	"errors"
	"slices"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
)

// verdict is a judgement in words.
type verdict struct{ Text, Class string }

// signature is who signed the narinfo.
type signature struct {
	Host    string // the name that the signer gave
	Key     string // the public key as a text, "" if it can't be read
	KeyName string // under which the server publishes the key; "" if it doesn't
	Verdict verdict
	Fault   string // why the signature is bad, for those who want to know
}

// signature verifies the signature by the key that it names. Which keys the server itself
// trusts is for the administrator.
func (o *Options) signature(n *narinfo.Narinfo) (s signature) {
	if parts := strings.SplitN(n.Signature(), ";", 3); len(parts) == 3 {
		s.Host = shorten(parts[1], longestValue)
	}
	if key, err := n.SigningKey(); err == nil {
		s.Key = key
		if i := slices.Index(o.Keys, key); i >= 0 {
			s.KeyName = o.KeyNames[i]
		}
	}
	err := n.CheckSignature(nil)
	switch {
	case err == nil:
		s.Verdict = verdict{"Valid: the key below has signed this narinfo.", "good"}
	case errors.Is(err, narinfo.ErrUnsigned):
		s.Verdict = verdict{"None: Guix refuses substitutes without a signature.", "bad"}
	case errors.Is(err, signing.ErrUnknownAlgorithm):
		s.Verdict = verdict{"Unknown: this server can't verify signatures of this kind.", "warn"}
	default:
		s.Verdict = verdict{"Bad: Guix refuses this narinfo.", "bad"}
		s.Fault = shorten(strings.TrimPrefix(err.Error(), "narinfo: Signature: "), longestValue)
	}
	return s
}

// authorized says whether one of the server's authorized keys has signed the narinfo.
func authorized(n *narinfo.Narinfo, keys *signing.Keys) verdict {
	err := storage.Authorize(n, keys)
	switch {
	case keys == nil:
		return verdict{"Any key is: neither --acl nor --authorized-key is set.", "warn"}
	case err == nil:
		return verdict{"Yes: the key is authorized here.", "good"}
	}
	return verdict{"No: " + string(storage.Reason(err)), "bad"}
}
