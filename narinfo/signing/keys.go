package signing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MaxKeysSize is the maximum length in bytes of an ACL or a key file. An entry of an ACL with
// the longest RSA key has less than 5 KB.
const MaxKeysSize = 1 << 20

// Keys is a set of public keys, those that are authorized to sign narinfos. The zero value is
// empty.
type Keys struct {
	texts map[string]struct{}
}

// ParseKeys reads public keys: an ACL as in Guix's /etc/guix/acl, (acl (entry KEY (tag (guix
// import))) …), or one KEY, (public-key …), as in signing-key.pub.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > MaxKeysSize {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(text), MaxKeysSize)
	}
	tree, err := parseSexp(string(text))
	if err != nil {
		return nil, err
	}
	keys := new(Keys)
	switch tree.head() {
	case sexpPublicKey:
		return keys, keys.add(tree)
	case sexpACL:
		for i, entry := range tree.list[1:] {
			if len(entry.list) != 3 || entry.head() != "entry" || !isImportTag(entry.list[2]) {
				return nil, fmt.Errorf("entry %d of the ACL must be of the form (entry KEY (tag (guix import)))", i+1)
			}
			if entry.list[1].head() != sexpPublicKey {
				continue
			}
			if err := keys.add(entry.list[1]); err != nil {
				return nil, fmt.Errorf("entry %d of the ACL: %w", i+1, err)
			}
		}
		return keys, nil
	case "private-key", "key-data":
		return nil, errors.New("this is a private key, must be the public key or an ACL")
	default:
		return nil, fmt.Errorf("the s-expression is %.80q, must be a public-key or an acl", tree.head())
	}
}

func isImportTag(tag sexp) bool {
	return len(tag.list) == 2 && tag.head() == "tag" && len(tag.list[1].list) == 2 &&
		tag.list[1].head() == "guix" && tag.list[1].list[1].atom == "import"
}

func (k *Keys) add(key sexp) error {
	if !key.isPublicKey() {
		return errNoPublicKey
	}
	if k.texts == nil {
		k.texts = make(map[string]struct{})
	}
	k.texts[key.print()] = struct{}{}
	return nil
}

// Add adds the keys of other.
func (k *Keys) Add(other *Keys) {
	if k.texts == nil {
		k.texts = make(map[string]struct{})
	}
	maps.Copy(k.texts, other.texts)
}

// Len returns the number of different keys.
func (k *Keys) Len() int { return len(k.texts) }

// Contains reports whether the set has a key, in the form that [Key] returns.
func (k *Keys) Contains(key string) bool {
	_, ok := k.texts[key]
	return ok
}

// All returns the keys in the form that [Key] returns, sorted.
func (k *Keys) All() []string { return slices.SortedFunc(maps.Keys(k.texts), strings.Compare) }
