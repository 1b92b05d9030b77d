package narinfo

import "fmt"

// base32Alphabet is Nix's: the digits and the letters without e, o, t and u.
const base32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// notBase32 marks, in base32Value, a byte outside the alphabet. It has bits above the five
// of a character, so that or-ing all values of a text checks it.
const notBase32 = 0xff

// base32Value gives the five bits of a character.
var base32Value = func() (table [256]byte) {
	for i := range table {
		table[i] = notBase32
	}
	for i := range len(base32Alphabet) {
		table[base32Alphabet[i]] = byte(i)
	}
	return table
}()

// base32Len is the number of characters for n bytes.
func base32Len(n int) int { return (n*8 + 4) / 5 }

// EncodeBase32 returns src in Nix's base32, which is not that of RFC 4648: the
// bytes are one little-endian number, and its highest five bits come first.
func EncodeBase32(src []byte) string {
	return string(AppendBase32(make([]byte, 0, base32Len(len(src))), src))
}

// AppendBase32 appends what [EncodeBase32] returns to dst.
func AppendBase32(dst, src []byte) []byte {
	for i := base32Len(len(src)) - 1; i >= 0; i-- {
		bit := i * 5
		at, shift := bit/8, bit%8
		v := uint16(src[at])
		if at+1 < len(src) {
			v |= uint16(src[at+1]) << 8
		}
		dst = append(dst, base32Alphabet[v>>shift&0x1f])
	}
	return dst
}

// DecodeBase32 decodes s, written as [EncodeBase32] does, into the whole of
// dst. The length of s must be exactly that of len(dst) encoded bytes, and bits
// of its first character that no byte needs must be zero, so that each value
// has one text only. After an error the content of dst is undefined.
func DecodeBase32(dst []byte, s string) error {
	if len(s) != base32Len(len(dst)) {
		return fmt.Errorf("base32: %d characters, %d are needed", len(s), base32Len(len(dst)))
	}
	clear(dst)
	for i := range len(s) {
		c := s[len(s)-1-i]
		v := base32Value[c]
		if v == notBase32 {
			return fmt.Errorf("base32: character %q is none of %s", c, base32Alphabet)
		}
		bit := i * 5
		at, shift := bit/8, bit%8
		wide := uint16(v) << shift
		dst[at] |= byte(wide)
		if at+1 < len(dst) {
			dst[at+1] |= byte(wide >> 8)
		} else if wide>>8 != 0 {
			return fmt.Errorf("base32: first character %q has bits beyond %d bytes", c, len(dst))
		}
	}
	return nil
}
