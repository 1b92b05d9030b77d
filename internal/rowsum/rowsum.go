// Package rowsum computes a checksum of a table's rows, to detect damage in a copy. It
// doesn't detect forgery.
package rowsum

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the checksum of rows, regardless of their order. The zero Sum is that of no rows.
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

// String returns the sum as it is stored and compared.
func (s *Sum) String() string { return fmt.Sprintf("%d:%x", s.rows, s.total) }
