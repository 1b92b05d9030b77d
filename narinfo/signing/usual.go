package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"filippo.io/edwards25519"
)

// usual is a signature with ECDSA, written as libgcrypt prints it, by a key that was decoded
// before. Most are. Parsing others takes more time than verifying them.
type usual struct {
	key  *publicKey
	hash [sha256.Size]byte
	r, s *edwards25519.Scalar
}

var (
	// usualBefore is what precedes the numbers of the hash, r and s.
	usualBefore = [][]byte{
		[]byte("(signature \n (data \n  (flags rfc6979)\n  (hash sha256 #"),
		[]byte("#)\n  )\n (sig-val \n  (ecdsa \n   (r #"),
		[]byte("#)\n   (s #"),
	}
	// usualBeforeKey and usualAfterKey enclose the list (public-key …).
	usualBeforeKey = []byte("#)\n   )\n  )\n ")
	usualAfterKey  = []byte("\n )\n")
)

// readUsual reads a signature. It returns false for any that [sexp.Parse] could read in another
// way.
func readUsual(text []byte) (u usual, ok bool) {
	var numbers [3][sha256.Size]byte // from their end, in big-endian order
	for i, before := range usualBefore {
		if text, ok = bytes.CutPrefix(text, before); !ok {
			return u, false
		}
		end := max(0, bytes.IndexByte(text, '#'))
		size := end / 2
		if end%2 != 0 || size > sha256.Size {
			return u, false
		}
		if _, err := hex.Decode(numbers[i][sha256.Size-size:], text[:end]); err != nil || i == 0 && size < sha256.Size {
			return u, false
		}
		text = text[end:]
	}
	source, begun := bytes.CutPrefix(text, usualBeforeKey)
	source, ended := bytes.CutSuffix(source, usualAfterKey)
	if !begun || !ended {
		return u, false
	}
	u.key, ok = decodedKeys().Get(string(source))
	var err1, err2 error
	u.hash = numbers[0]
	u.r, err1 = scalarOf(numbers[1][:])
	u.s, err2 = scalarOf(numbers[2][:])
	zero := [sha256.Size]byte{}
	return u, ok && err1 == nil && err2 == nil && numbers[1] != zero && numbers[2] != zero
}
