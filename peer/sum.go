package peer

import (
	"strings"

	"nar-herder/narinfo"
)

// SumTag is the entity tag of a file with that [bytestore.Info.Sum], at all instances.
func SumTag(sum [16]byte) []byte {
	return append(narinfo.AppendBase32(append(make([]byte, 0, 28), '"'), sum[:]), '"')
}

// parseSumTag returns the sum of such a tag, or zero for any other tag.
func parseSumTag(tag string) (sum [16]byte) {
	text, opened := strings.CutPrefix(tag, `"`)
	text, closed := strings.CutSuffix(text, `"`)
	if !opened || !closed || narinfo.DecodeBase32(sum[:], text) != nil {
		return [16]byte{}
	}
	return sum
}

// SumOf returns the [bytestore.Info.Sum] of a file that [Peer.OpenFile] has opened, or zero.
// It comes from the peer's entity tag and has not been compared with the bytes.
func SumOf(body any) [16]byte {
	if b, ok := body.(interface{ Sum() [16]byte }); ok {
		return b.Sum()
	}
	return [16]byte{}
}

// Sum is what [SumOf] returns.
func (b *Body) Sum() [16]byte { return b.fileSum }
