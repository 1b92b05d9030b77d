package narinfo

import (
	"fmt"
	"strings"
)

const narHashPrefix = "sha256:"

// NarHash is the sha256 of a nar before compression. In text it is "sha256:"
// and 52 characters of base32; Guix's client knows no other algorithm here.
type NarHash [32]byte

// ParseNarHash reads the text form.
func ParseNarHash(s string) (NarHash, error) {
	var h NarHash
	digits, ok := strings.CutPrefix(s, narHashPrefix)
	if !ok {
		return h, fmt.Errorf("hash %s: must be sha256: and %d characters of base32", quote(s), base32Len(len(h)))
	}
	if err := DecodeBase32(h[:], digits); err != nil {
		return NarHash{}, fmt.Errorf("hash %s: %w", quote(s), err)
	}
	return h, nil
}

// String returns the text form.
func (h NarHash) String() string {
	dst := make([]byte, 0, len(narHashPrefix)+base32Len(len(h)))
	return string(AppendBase32(append(dst, narHashPrefix...), h[:]))
}
