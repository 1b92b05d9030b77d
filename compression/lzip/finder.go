package lzip

import (
	"encoding/binary"
	"math/bits"
)

const (
	// dataPad bytes follow the data of an encoder, so that 8 bytes can be compared at a time up to its end.
	dataPad = 8

	hash3Bits = 16
	// The main hash table has an entry for two positions of the dictionary, in these bounds.
	minHash4Bits = 10
	maxHash4Bits = 23
)

// candidate is a match that a finder found: its length, and its distance less one.
type candidate struct {
	len  uint32
	dist uint32
}

// matchLen returns how many bytes at a and b are equal, looking at no more than limit. At least limit+dataPad bytes
// must follow both.
func matchLen(data []byte, a, b, limit int) int {
	n := 0
	for n < limit {
		x := binary.LittleEndian.Uint64(data[a+n:]) ^ binary.LittleEndian.Uint64(data[b+n:])
		if x != 0 {
			return min(n+bits.TrailingZeros64(x)>>3, limit)
		}
		n += 8
	}
	return limit
}

// treeFinder finds the longest matches by binary search trees: one for each hash of 4 bytes, ordered by what follows,
// the newest position at the root. Matches of 2 and 3 bytes come from tables of the last position.
//
// Positions are stored plus one, so that zero is none.
type treeFinder struct {
	data  []byte
	size  int // of the data without padding
	pos   int // the next position to search
	nice  int // length of a match that ends the search
	depth int // steps down a tree

	cyclic int     // how many positions the trees hold
	slot   int     // pos modulo cyclic
	sons   []int32 // two for each position: smaller, greater
	hash2  []int32
	hash3  []int32
	hash4  []int32
	shift4 uint
}

// grown returns an empty table of n entries, s if it is large enough.
func grown(s []int32, n int) []int32 {
	if cap(s) < n {
		return make([]int32, n)
	}
	return s[:n]
}

// reset takes data, dataPad bytes of padding included.
func (f *treeFinder) reset(data []byte, size, dict, nice, depth int) {
	f.data, f.size, f.pos = data, size, 0
	f.nice, f.depth = nice, depth
	f.cyclic = min(dict, size)
	f.slot = 0
	f.sons = grown(f.sons, 2*f.cyclic)
	h := min(max(bits.Len(uint(f.cyclic))-2, minHash4Bits), maxHash4Bits)
	f.shift4 = uint(32 - h)
	f.hash2, f.hash3, f.hash4 = grown(f.hash2, 1<<16), grown(f.hash3, 1<<hash3Bits), grown(f.hash4, 1<<h)
	clear(f.hash2)
	clear(f.hash3)
	clear(f.hash4)
}

// find appends the matches at the next position, each longer and farther than the one before.
func (f *treeFinder) find(found []candidate) []candidate {
	pos, data := f.pos, f.data
	limit := min(f.nice, f.size-pos)
	if limit < 4 {
		f.advance()
		return found
	}
	head := binary.LittleEndian.Uint32(data[pos:])
	h2 := &f.hash2[uint16(head)]
	h3 := &f.hash3[(head<<8*0x9E3779B1)>>(32-hash3Bits)]
	best := 1
	if p := int(*h2); p > 0 && pos-p+1 < f.cyclic {
		best = matchLen(data, p-1, pos, limit)
		found = append(found, candidate{uint32(best), uint32(pos - p)})
	}
	if p := int(*h3); p > 0 && p != int(*h2) && pos-p+1 < f.cyclic && best < limit {
		if n := matchLen(data, p-1, pos, limit); n > best && n >= 3 {
			best = n
			found = append(found, candidate{uint32(best), uint32(pos - p)})
		}
	}
	*h2, *h3 = int32(pos+1), int32(pos+1)

	h4 := &f.hash4[head*0x9E3779B1>>f.shift4]
	p := int(*h4) - 1
	*h4 = int32(pos + 1)
	return f.descend(p, limit, max(best, 3), found)
}

// skip adds n positions to the trees without returning matches.
func (f *treeFinder) skip(n int) {
	for range n {
		pos := f.pos
		limit := min(f.nice, f.size-pos)
		if limit < 4 {
			f.advance()
			continue
		}
		head := binary.LittleEndian.Uint32(f.data[pos:])
		f.hash2[uint16(head)] = int32(pos + 1)
		f.hash3[(head<<8*0x9E3779B1)>>(32-hash3Bits)] = int32(pos + 1)
		h4 := &f.hash4[head*0x9E3779B1>>f.shift4]
		p := int(*h4) - 1
		*h4 = int32(pos + 1)
		f.descend(p, limit, maxMatch, nil)
	}
}

func (f *treeFinder) advance() {
	f.pos++
	if f.slot++; f.slot == f.cyclic {
		f.slot = 0
	}
}

// descend makes the position the root of its tree in place of p, and records matches longer than best on the way.
// It splits the old tree into smaller and greater nodes than the new root.
func (f *treeFinder) descend(p, limit, best int, found []candidate) []candidate {
	data, sons, pos, slot := f.data, f.sons, f.pos, f.slot
	smaller, greater := 2*slot, 2*slot+1 // where the next smaller and greater nodes hang
	lenSmaller, lenGreater := 0, 0       // how much of pos all that is to come shares with the bounds
	for depth := f.depth; ; depth-- {
		delta := pos - p
		if p < 0 || delta >= f.cyclic || depth == 0 {
			sons[smaller], sons[greater] = 0, 0
			break
		}
		at := slot - delta
		if at < 0 {
			at += f.cyclic
		}
		pair := sons[2*at : 2*at+2]
		n := min(lenSmaller, lenGreater)
		a, b := data[p:p+limit+dataPad], data[pos:pos+limit+dataPad]
		for n < limit {
			x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:])
			if x != 0 {
				n += bits.TrailingZeros64(x) >> 3
				break
			}
			n += 8
		}
		if n >= limit {
			if limit > best {
				found = append(found, candidate{uint32(limit), uint32(delta - 1)})
			}
			sons[smaller], sons[greater] = pair[0], pair[1]
			break
		}
		if n > best {
			best = n
			found = append(found, candidate{uint32(n), uint32(delta - 1)})
		}
		if a[n] < b[n] {
			sons[smaller] = int32(p + 1)
			smaller = 2*at + 1
			p = int(pair[1]) - 1
			lenSmaller = n
		} else {
			sons[greater] = int32(p + 1)
			greater = 2 * at
			p = int(pair[0]) - 1
			lenGreater = n
		}
	}
	f.advance()
	return found
}
