package search

import (
	"math/bits"
)

// set is a set of positions, with a bit for each possible one.
type set struct{ words []uint64 }

// newSet returns an empty set for positions up to last.
func newSet(last int64) *set { return &set{make([]uint64, max(last, 0)/64+1)} }

func (s *set) add(position int64) {
	if word := position / 64; position >= 0 && word < int64(len(s.words)) {
		s.words[word] |= 1 << (position % 64)
	}
}

func (s *set) has(position int64) bool {
	word := position / 64
	return position >= 0 && word < int64(len(s.words)) && s.words[word]&(1<<(position%64)) != 0
}

// without returns the first positions, at most limit, that the other set, of the same length,
// lacks.
func (s *set) without(other *set, limit int) (lacking []int64) {
	for i, word := range s.words {
		for left := word &^ other.words[i]; left != 0; left &= left - 1 {
			if len(lacking) == limit {
				return lacking
			}
			lacking = append(lacking, int64(i)*64+int64(bits.TrailingZeros64(left)))
		}
	}
	return lacking
}
