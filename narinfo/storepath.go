package narinfo

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// StoreDir is the directory of all store items. Guix can be configured to another one, but then
// it can't use public substitutes.
const StoreDir = "/gnu/store"

const (
	// PathHashLen is the length of a path hash in characters.
	PathHashLen = 32

	// MaxNameLen is the maximum length of a store item's name in bytes. A file name has at
	// most 255 on usual file systems; the hash and its hyphen take 33, and the daemon needs
	// room for suffixes such as ".lock".
	MaxNameLen = 211

	storePrefix = StoreDir + "/"
)

// PathHash is the digest in a store path: 160 bits, in text 32 characters of
// base32. It names the item everywhere: the narinfo of an item is HASH.narinfo.
type PathHash [20]byte

// ParsePathHash reads the 32 characters of a path hash. It doesn't allocate
// unless it fails.
func ParsePathHash[T string | []byte](s T) (PathHash, error) {
	var h PathHash
	if len(s) != PathHashLen {
		return h, fmt.Errorf("path hash %s: %d bytes, must be %d characters of base32", quote(string(s)), len(s), PathHashLen)
	}
	// The last eight characters are the first five bytes, and so on; 160 is a multiple of 40,
	// so no bit is left over. The loop is written out for speed: it runs for each request and
	// each reference.
	var text [PathHashLen]byte
	copy(text[:], s)
	var all byte
	for group := range 4 {
		c := (*[8]byte)(text[PathHashLen-8-8*group:])
		v0, v1, v2, v3 := base32Value[c[0]], base32Value[c[1]], base32Value[c[2]], base32Value[c[3]]
		v4, v5, v6, v7 := base32Value[c[4]], base32Value[c[5]], base32Value[c[6]], base32Value[c[7]]
		all |= v0 | v1 | v2 | v3 | v4 | v5 | v6 | v7
		binary.LittleEndian.PutUint32(h[5*group:], uint32(v1)<<30|uint32(v2)<<25|uint32(v3)<<20|
			uint32(v4)<<15|uint32(v5)<<10|uint32(v6)<<5|uint32(v7))
		h[5*group+4] = v0<<3 | v1>>2
	}
	if all == notBase32 {
		return PathHash{}, fmt.Errorf("path hash %s: must be of the characters %s", quote(string(s)), base32Alphabet)
	}
	return h, nil
}

// String returns the 32 characters.
func (h PathHash) String() string { return EncodeBase32(h[:]) }

// AppendText implements [encoding.TextAppender]. It appends the 32 characters.
func (h PathHash) AppendText(dst []byte) ([]byte, error) { return AppendBase32(dst, h[:]), nil }

// StorePath is the path of a store item, /gnu/store/HASH-NAME.
type StorePath struct {
	Hash PathHash
	Name string
}

// ParseStorePath parses the path of a store item, but not of a file below it.
func ParseStorePath(s string) (StorePath, error) {
	if len(s) <= len(storePrefix) || s[:len(storePrefix)] != storePrefix {
		return StorePath{}, fmt.Errorf("store path %s: must begin with %s", quote(s), storePrefix)
	}
	return ParseBaseName(s[len(storePrefix):])
}

// ParseBaseName reads the last part of the path of a store item, HASH-NAME. It
// allocates nothing unless it fails: the name is a part of s.
func ParseBaseName(s string) (StorePath, error) {
	if len(s) <= PathHashLen || s[PathHashLen] != '-' {
		return StorePath{}, fmt.Errorf("store item %s: must be HASH-NAME, HASH of %d characters", quote(s), PathHashLen)
	}
	hash, err := ParsePathHash(s[:PathHashLen])
	if err != nil {
		return StorePath{}, err
	}
	name := s[PathHashLen+1:]
	if err := checkName(name); err != nil {
		return StorePath{}, err
	}
	return StorePath{hash, name}, nil
}

// String returns the whole path, /gnu/store/HASH-NAME.
func (p StorePath) String() string {
	dst := make([]byte, 0, len(storePrefix)+PathHashLen+1+len(p.Name))
	return string(p.appendBaseName(append(dst, storePrefix...)))
}

// BaseName returns HASH-NAME.
func (p StorePath) BaseName() string {
	return string(p.appendBaseName(make([]byte, 0, PathHashLen+1+len(p.Name))))
}

// IsBaseName reports whether the name is what BaseName returns.
func (p StorePath) IsBaseName(name string) bool {
	parsed, err := ParseBaseName(name)
	return err == nil && parsed == p
}

func (p StorePath) appendBaseName(dst []byte) []byte {
	dst = AppendBase32(dst, p.Hash[:])
	dst = append(dst, '-')
	return append(dst, p.Name...)
}

// isNameByte has the bytes that the name of a store item may have, as in the daemon.
var isNameByte = func() (table [256]bool) {
	const punctuation = "+-._?="
	for c := range table {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			table[c] = true
		}
	}
	for i := range len(punctuation) {
		table[punctuation[i]] = true
	}
	return table
}()

// checkName refuses a text that can't be the name of a store item.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("item name is empty")
	case len(name) > MaxNameLen:
		return fmt.Errorf("item name %s: %d bytes, at most %d are allowed", quote(name), len(name), MaxNameLen)
	case name[0] == '.':
		return fmt.Errorf("item name %s: must not begin with a dot", quote(name))
	}
	for i := range len(name) {
		if !isNameByte[name[i]] {
			return fmt.Errorf("item name %s: character %q, only letters, digits and +-._?= are allowed", quote(name), name[i])
		}
	}
	return nil
}

// quote returns the beginning of a text for an error, escaped.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
