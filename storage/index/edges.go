package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
)

// edgeSorter puts the edges of a whole new index in order, for one run of all of them,
// in memory that doesn't grow with their number: they are divided by the beginnings of
// their targets, which are random, and each part is sorted by itself. Until then they
// are in a file without a name.
type edgeSorter struct {
	file  *os.File
	size  int64
	parts [edgeParts]edgePart
}

const (
	// edgeParts divides edges by the first byte of their targets.
	edgeParts = 256
	// edgeBuffer is how many bytes of a part are written together.
	edgeBuffer = 32 << 10
	// fewEdges are sorted without being divided, which costs half a MiB.
	fewEdges = 1 << 10
)

type edgePart struct {
	buffer  []byte
	last    int64 // referrer; they only grow
	extents []extent
	edges   int
}

// extent is where in the file some edges of a part are.
type extent struct {
	offset int64
	length int
}

func newEdgeSorter(directory string) (*edgeSorter, error) {
	file, err := os.CreateTemp(directory, ".nar-herder-edges-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &edgeSorter{file: file}, nil
}

// add takes an edge whose referrer is not before that of the last one.
func (s *edgeSorter) add(e edge) error {
	// Targets are compared as signed numbers.
	part := &s.parts[byte(uint64(e.target)>>56)^0x80]
	if part.buffer == nil {
		part.buffer = make([]byte, 0, edgeBuffer)
	}
	if len(part.buffer)+8+binary.MaxVarintLen64 > edgeBuffer {
		if err := s.spill(part); err != nil {
			return err
		}
	}
	part.buffer = binary.BigEndian.AppendUint64(part.buffer, uint64(e.target))
	part.buffer = binary.AppendUvarint(part.buffer, uint64(e.referrer-part.last))
	part.last = e.referrer
	part.edges++
	return nil
}

// spill writes a part's buffer.
func (s *edgeSorter) spill(part *edgePart) error {
	if _, err := s.file.WriteAt(part.buffer, s.size); err != nil {
		return fmt.Errorf("write the references: %w", err)
	}
	part.extents = append(part.extents, extent{s.size, len(part.buffer)})
	s.size += int64(len(part.buffer))
	part.buffer = part.buffer[:0]
	return nil
}

// sorted returns the edges of a part in order, each once.
func (s *edgeSorter) sorted(n int) ([]edge, error) {
	part := &s.parts[n]
	edges := make([]edge, 0, part.edges)
	var referrer int64
	unpack := func(packed []byte) {
		for len(packed) > 8 {
			target := int64(binary.BigEndian.Uint64(packed))
			distance, length := binary.Uvarint(packed[8:])
			packed = packed[8+length:]
			referrer += int64(distance)
			edges = append(edges, edge{target, referrer})
		}
	}
	buffer := make([]byte, edgeBuffer)
	for _, e := range part.extents {
		if _, err := s.file.ReadAt(buffer[:e.length], e.offset); err != nil {
			return nil, fmt.Errorf("read the references: %w", err)
		}
		unpack(buffer[:e.length])
	}
	unpack(part.buffer)
	part.buffer = nil
	return slices.Compact(sortEdges(edges)), nil
}

// sortEdges sorts edges whose targets have their first byte in common, and whose
// referrers come in order. First they are divided by the next two bytes: targets are
// random, so that there are few different ones in each division, or just one that very
// many refer to.
func sortEdges(edges []edge) []edge {
	if len(edges) < fewEdges {
		slices.SortFunc(edges, edge.compare)
		return edges
	}
	division := func(e edge) uint16 { return uint16(uint64(e.target) >> 40) }
	ends := make([]int, 1<<16+1)
	for _, e := range edges {
		ends[int(division(e))+1]++
	}
	for i := range 1 << 16 {
		ends[i+1] += ends[i]
	}
	sorted := make([]edge, len(edges))
	for _, e := range edges {
		d := division(e)
		sorted[ends[d]] = e
		ends[d]++ // and so becomes the end
	}
	begin := 0
	for _, end := range ends[:1<<16] {
		if some := sorted[begin:end]; !slices.IsSortedFunc(some, edge.compare) {
			slices.SortFunc(some, edge.compare)
		}
		begin = end
	}
	return sorted
}

func (s *edgeSorter) close() error { return s.file.Close() }

// sortedPart is the edges of a part, in order.
type sortedPart struct {
	edges []edge
	err   error
}

// all sorts the parts ahead of the one that reads them, on another core.
func (s *edgeSorter) all(ctx context.Context) <-chan sortedPart {
	parts := make(chan sortedPart, 1)
	go func() {
		defer close(parts)
		for n := range edgeParts {
			edges, err := s.sorted(n)
			select {
			case parts <- sortedPart{edges, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return parts
}
