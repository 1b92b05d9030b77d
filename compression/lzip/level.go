package lzip

import "fmt"

// The levels of the lzip program, and its default.
const (
	MinLevel     = 0
	MaxLevel     = 9
	DefaultLevel = 6
)

// level has the parameters of a level.
type level struct {
	dict  int // dictionary size in bytes
	nice  int // length of a match that ends the search
	depth int // how many candidates for a match are compared
	fast  bool
}

// Dictionary sizes and match lengths are those that lzip's manual lists for its levels, so that decoders need as much
// memory.
var levels = [MaxLevel + 1]level{
	{dict: 64 << 10, nice: 16, depth: 4, fast: true},
	{dict: 1 << 20, nice: 5, depth: 16},
	{dict: 3 << 19, nice: 6, depth: 16},
	{dict: 2 << 20, nice: 8, depth: 18},
	{dict: 3 << 20, nice: 12, depth: 20},
	{dict: 4 << 20, nice: 20, depth: 26},
	{dict: 8 << 20, nice: 36, depth: 34},
	{dict: 16 << 20, nice: 68, depth: 50},
	{dict: 24 << 20, nice: 132, depth: 82},
	{dict: 32 << 20, nice: 273, depth: 256},
}

func levelOf(n int) (level, error) {
	if n < MinLevel || n > MaxLevel {
		return level{}, fmt.Errorf("lzip: level %d is not one of %d to %d", n, MinLevel, MaxLevel)
	}
	return levels[n], nil
}

// memberEncoder makes members. It keeps the memory of its encoders from one to the next.
type memberEncoder struct {
	fast    *fastEncoder
	optimal *optimalEncoder
}

// encode appends a member of data, which is padded with dataPad bytes that are not part of it, to out. Crc is that of
// the data.
func (m *memberEncoder) encode(out, data []byte, l level, crc uint32) []byte {
	size := len(data) - dataPad
	code, dict := encodeDictSize(uint32(min(max(size, MinDictSize), l.dict)))
	start := len(out)
	out = append(out, magic[:]...)
	out = append(out, version, code)
	if l.fast {
		if m.fast == nil {
			m.fast = new(fastEncoder)
		}
		out = m.fast.encode(out, data, l.dict, l.nice, l.depth)
	} else {
		if m.optimal == nil {
			m.optimal = new(optimalEncoder)
		}
		out = m.optimal.encode(out, data, int(dict), l.nice, l.depth)
	}
	return trailer{crc, uint64(size), uint64(len(out) - start + trailerSize)}.append(out)
}
