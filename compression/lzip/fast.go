package lzip

import "encoding/binary"

const (
	fastHashBits = 15
	// farForShort is the distance from which on a match of 4 bytes costs about what 4 literals do.
	farForShort = 1 << 15
	// fastInsert is how many positions of a match are entered into the table; the rest of a long one adds little.
	fastInsert = 32
)

// fastEncoder encodes a member greedily: it takes the longest match among the last positions with the same 4 bytes
// and the last distances, at once.
type fastEncoder struct {
	symbolEncoder
	heads []int32 // the last position plus one, by hash
	chain []int32 // the one before it with the same hash, by position modulo the dictionary
	dict  int     // a power of two
}

// encode appends the stream of data, which is padded with dataPad bytes that are not part of it, to out. Dict must be
// a power of two.
func (e *fastEncoder) encode(out, data []byte, dict, nice, depth int) []byte {
	e.symbolEncoder.reset(data, out)
	e.heads, e.chain = grown(e.heads, 1<<fastHashBits), grown(e.chain, dict)
	clear(e.heads)
	e.dict = dict
	size := len(data) - dataPad
	for e.pos < size {
		pos := e.pos
		avail := min(size-pos, maxMatch)
		if avail < 4 {
			e.literal()
			continue
		}
		head := binary.LittleEndian.Uint32(data[pos:])

		rep, repLen := 0, 0
		for i, r := range e.reps {
			p := pos - 1 - int(r)
			if p < 0 || uint16(binary.LittleEndian.Uint32(data[p:])) != uint16(head) {
				continue
			}
			if n := matchLen(data, p, pos, avail); n > repLen {
				rep, repLen = i, n
			}
		}
		n, dist := 0, 0
		if repLen < nice {
			n, dist = e.search(head, pos, avail, nice, depth)
		}
		e.enter(head, pos)
		switch {
		case repLen >= minMatch && repLen+1 >= n:
			e.rep(rep, repLen)
			n = repLen
		case n > 4 || n == 4 && dist < farForShort:
			e.match(uint32(dist-1), n)
		default:
			if p := pos - 1 - int(e.reps[0]); p >= 0 && data[p] == data[pos] {
				e.rep(0, 1)
			} else {
				e.literal()
			}
			continue
		}
		for p := pos + 1; p < min(pos+n, pos+fastInsert, size-4); p++ {
			e.enter(binary.LittleEndian.Uint32(data[p:]), p)
		}
	}
	return e.finish()
}

func fastHash(head uint32) uint32 { return head * 0x9E3779B1 >> (32 - fastHashBits) }

func (e *fastEncoder) enter(head uint32, pos int) {
	h := &e.heads[fastHash(head)]
	e.chain[pos&(e.dict-1)] = *h
	*h = int32(pos + 1)
}

// search returns the length and distance of the longest match of 4 bytes or more, the nearest of those.
func (e *fastEncoder) search(head uint32, pos, avail, nice, depth int) (best, dist int) {
	data := e.data
	p := int(e.heads[fastHash(head)]) - 1
	for ; depth > 0 && p >= 0 && pos-p <= e.dict; depth-- {
		if binary.LittleEndian.Uint32(data[p:]) == head && (best < 4 || data[p+best] == data[pos+best]) {
			if n := matchLen(data, p, pos, avail); n > best {
				best, dist = n, pos-p
				if n >= nice || n == avail {
					break
				}
			}
		}
		p = int(e.chain[p&(e.dict-1)]) - 1
	}
	return best, dist
}
