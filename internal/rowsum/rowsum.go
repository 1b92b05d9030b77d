// Package rowsum sums up the rows of a table, so that a copy of it can be compared with
// what was written. It finds damage, and not forgery.
package rowsum

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the sum of rows in any order; the zero Sum is that of none.
type Sum struct {
	rows  int64
	total uint64
}

// Add adds a row of two numbers and some bytes.
func (s *Sum) Add(a, b int64, content []byte) {
	var head [16]byte
	binary.LittleEndian.PutUint64(head[:], uint64(a))
	binary.LittleEndian.PutUint64(head[8:], uint64(b))
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, content)
	s.rows++
	s.total += uint64(sum)
}

// String is the sum as it is compared and kept.
func (s *Sum) String() string { return fmt.Sprintf("%d:%x", s.rows, s.total) }
