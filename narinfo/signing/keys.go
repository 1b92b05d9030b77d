package signing

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"nar-herder/narinfo/signing/sexp"
)

// MaxKeysSize is the maximum length in bytes of an ACL or a key file. An entry of an ACL with
// the longest RSA key has less than 5 KB.
const MaxKeysSize = 1 << 20

// Keys is a set of public keys, those that are authorized to sign narinfos. The zero value is
// empty.
type Keys struct {
	byText map[string]*publicKey
}

// ParseKeys reads public keys: an ACL as in Guix's /etc/guix/acl, (acl (entry KEY (tag (guix
// import))) …), or one KEY, (public-key …), as in signing-key.pub.
//
// As in Guix, an ACL is refused as a whole if an entry has another tag or form; keys may be
// repeated; and a subject that isn't a public key, such as (hash …), authorizes nobody. Unlike
// Guix, ParseKeys refuses keys of which no signature can be verified here, rather than each of
// their signatures.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > MaxKeysSize {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(text), MaxKeysSize)
	}
	tree, err := sexp.Parse(string(text))
	if err != nil {
		return nil, err
	}
	keys := new(Keys)
	switch tree.Head() {
	case sexpPublicKey:
		if err := keys.add(tree); err != nil {
			return nil, err
		}
		return keys, nil
	case "acl":
		for i, entry := range tree.List[1:] {
			if len(entry.List) != 3 || entry.Head() != "entry" || !isImportTag(entry.List[2]) {
				return nil, fmt.Errorf("entry %d of the ACL must be of the form (entry KEY (tag (guix import)))", i+1)
			}
			if entry.List[1].Head() != sexpPublicKey {
				continue
			}
			if err := keys.add(entry.List[1]); err != nil {
				return nil, fmt.Errorf("entry %d of the ACL: %w", i+1, err)
			}
		}
		return keys, nil
	case sexpPrivateKey, "key-data":
		return nil, errors.New("this is a private key, must be the public key or an ACL")
	default:
		return nil, errors.New("must be of the form (public-key …) or (acl …)")
	}
}

// isImportTag reports whether tag is (tag (guix import)).
func isImportTag(tag sexp.Expr) bool {
	return len(tag.List) == 2 && tag.Head() == "tag" && len(tag.List[1].List) == 2 &&
		tag.List[1].Head() == "guix" && tag.List[1].List[1].Atom == "import"
}

func (k *Keys) add(list sexp.Expr) error {
	key, err := decodedKey(list)
	if err == nil {
		err = key.err
	}
	if err != nil {
		return err
	}
	if k.byText == nil {
		k.byText = make(map[string]*publicKey)
	}
	k.byText[key.text] = key
	return nil
}

// Add adds the keys of other.
func (k *Keys) Add(other *Keys) {
	if k.byText == nil {
		k.byText = make(map[string]*publicKey)
	}
	maps.Copy(k.byText, other.byText)
}

// authorized returns the key itself if k is nil, or the equal key of k. Other signers can't displace
// the table of that.
func (k *Keys) authorized(key *publicKey) (*publicKey, bool) {
	if k == nil {
		return key, true
	}
	own, ok := k.byText[key.text]
	return own, ok
}

// Len returns the number of different keys.
func (k *Keys) Len() int { return len(k.byText) }

// Contains reports whether the set has a key, in the form that [Key] returns.
func (k *Keys) Contains(key string) bool {
	_, ok := k.byText[key]
	return ok
}

// All returns the keys in the form that [Key] returns, sorted.
func (k *Keys) All() []string { return slices.Sorted(maps.Keys(k.byText)) }

// publicKey is a decoded public key.
type publicKey struct {
	text      string // as Key returns it
	algorithm string
	verifier  verifier
	err       error // why signatures by this key can't be verified, in place of verifier
}

// verifier verifies signatures by one key.
type verifier interface {
	// verify verifies the signature (ALGORITHM (PARAMETER VALUE) …) of a hash.
	verify(values sexp.Expr, hash [sha256.Size]byte) error
}

var errNoPublicKey = errors.New("the public-key must be of the form (public-key (ALGORITHM (PARAMETER VALUE) …))")

// Few keys make all the signatures of a server, so keep decoded keys. A signer writes its key
// in the same way each time.
const (
	maxDecodedKeys   = 16
	maxDecodedSource = 16 << 10 // an RSA key of 16,384 bits has 4 KB
)

var decodedKeys = sync.OnceValue(func() *lru.Cache[string, *publicKey] {
	cache, err := lru.New[string, *publicKey](maxDecodedKeys)
	if err != nil {
		panic(err) // the size is positive
	}
	return cache
})

// decodedKey decodes a list (public-key …).
func decodedKey(list sexp.Expr) (*publicKey, error) {
	if key, ok := decodedKeys().Get(list.Source); ok {
		return key, nil
	}
	key, err := decodeKey(list)
	if err == nil && key.err == nil && len(list.Source) <= maxDecodedSource {
		decodedKeys().Add(string([]byte(list.Source)), key) // a copy, because it is part of a longer text
	}
	return key, err
}

func decodeKey(list sexp.Expr) (*publicKey, error) {
	if !isPublicKey(list) {
		return nil, errNoPublicKey
	}
	parameters := list.List[1]
	key := &publicKey{text: list.Print(), algorithm: parameters.Head()}
	var plain sexp.Expr
	switch key.algorithm {
	case algorithmECC:
		key.verifier, plain, key.err = decodeECDSAKey(parameters)
	case algorithmRSA:
		key.verifier, plain, key.err = decodeRSAKey(parameters)
	default:
		key.err = fmt.Errorf("%w: the key is of %.80q", ErrUnknownAlgorithm, key.algorithm)
	}
	if key.err == nil {
		key.text = sexp.NewList(sexpPublicKey, plain).Print()
	}
	return key, nil
}

// isPublicKey reports whether s is (public-key (ALGORITHM (PARAMETER VALUE…)…)).
func isPublicKey(s sexp.Expr) bool {
	if len(s.List) != 2 || len(s.List[1].List) < 2 || s.List[1].Head() == "" {
		return false
	}
	for _, parameter := range s.List[1].List[1:] {
		if len(parameter.List) < 2 {
			return false
		}
		for _, value := range parameter.List {
			if value.Atom == "" {
				return false
			}
		}
	}
	return true
}
