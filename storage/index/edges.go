package index

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// edgeSorter sorts the edges of a whole new index, for one run of all of them, in memory
// that doesn't grow with their number: so many at a time are sorted and written to a file
// without a name, and these pieces are merged in the end.
type edgeSorter struct {
	directory string
	file      *os.File
	size      int64
	pieces    []edgePiece
	edges     []edge          // that were added since the last piece
	spilling  chan spillState // what the goroutine that writes a piece returns; nil without one

	// These are the constants but in tests.
	pieceEdges, maxPieces int
}

const (
	// pieceEdges is how many edges a piece has, of 16 bytes in memory. Three times as many
	// are in memory: those that are added meanwhile, and twice those that are sorted.
	pieceEdges = 256 << 10
	// maxPieces bounds the buffers of a merge, of mergeBuffer bytes each: the pieces are
	// merged into one as soon as there are so many.
	maxPieces   = 1024
	mergeBuffer = 16 << 10
	// unpackedEdges is how many edges of a piece are unpacked together.
	unpackedEdges = 256
	// mergedEdges is how many edges are passed on together.
	mergedEdges = 8 << 10
	// fewEdges are sorted without being divided, which costs half a MiB.
	fewEdges = 1 << 10
)

// edgePiece is where in the file sorted edges are.
type edgePiece struct{ offset, length int64 }

// spillState is a piece that was written, and memory to be used again.
type spillState struct {
	piece edgePiece
	edges []edge
	err   error
}

func newEdgeSorter(directory string) (*edgeSorter, error) {
	file, err := unnamedFile(directory)
	if err != nil {
		return nil, err
	}
	return &edgeSorter{directory: directory, file: file, pieceEdges: pieceEdges, maxPieces: maxPieces}, nil
}

// unnamedFile makes a file that is gone when it is closed.
func unnamedFile(directory string) (*os.File, error) {
	file, err := os.CreateTemp(directory, ".nar-herder-edges-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// add adds an edge.
func (s *edgeSorter) add(e edge) error {
	s.edges = append(s.edges, e)
	if len(s.edges) < s.pieceEdges {
		return nil
	}
	free, err := s.wait()
	if err == nil && len(s.pieces) >= s.maxPieces {
		err = s.compact()
	}
	if err != nil {
		return err
	}
	full, offset := s.edges, s.size
	spilling := make(chan spillState, 1)
	s.edges, s.spilling = free[:0], spilling
	go func() {
		length, err := writePiece(io.NewOffsetWriter(s.file, offset), slices.Values(sortEdges(full)))
		spilling <- spillState{edgePiece{offset, length}, full, err}
	}()
	return nil
}

// wait ends the writing of a piece, and returns memory that is free since.
func (s *edgeSorter) wait() (free []edge, err error) {
	if s.spilling == nil {
		return nil, nil
	}
	done := <-s.spilling
	s.spilling = nil
	if done.err != nil {
		return nil, fmt.Errorf("write the references: %w", done.err)
	}
	s.pieces = append(s.pieces, done.piece)
	s.size = done.piece.offset + done.piece.length
	return done.edges, nil
}

// compact merges the pieces into one in another file.
func (s *edgeSorter) compact() error {
	file, err := unnamedFile(s.directory)
	if err != nil {
		return err
	}
	var failure error
	length, err := writePiece(file, func(yield func(edge) bool) {
		failure = s.merge(nil, yield)
	})
	if err = errors.Join(failure, err); err != nil {
		return errors.Join(fmt.Errorf("merge the references: %w", err), file.Close())
	}
	err = s.file.Close()
	s.file, s.size, s.pieces = file, length, []edgePiece{{0, length}}
	return err
}

// writePiece writes edges that are in order, and returns how many bytes that takes.
func writePiece(w io.Writer, edges func(yield func(edge) bool)) (length int64, err error) {
	buffer := bufio.NewWriterSize(w, 256<<10)
	var last edge
	for e := range edges {
		packed := appendEdge(buffer.AvailableBuffer(), last, e)
		last = e
		length += int64(len(packed))
		if _, err := buffer.Write(packed); err != nil {
			return length, err
		}
	}
	return length, buffer.Flush()
}

// edgeSource goes through edges that are in order.
type edgeSource struct {
	edge   edge          // the present one
	rest   []edge        // those after it, as far as they were read
	packed *bufio.Reader // what comes after those; nil for nothing
	block  []edge        // memory of rest
}

// next goes to the next edge, and says whether there is one.
func (s *edgeSource) next() (bool, error) {
	if len(s.rest) == 0 && s.packed != nil {
		if err := s.read(); err != nil {
			return false, fmt.Errorf("read the references: %w", err)
		}
	}
	if len(s.rest) == 0 {
		return false, nil
	}
	s.edge, s.rest = s.rest[0], s.rest[1:]
	return true, nil
}

// read unpacks some edges.
func (s *edgeSource) read() error {
	const most = 2 * binary.MaxVarintLen64
	packed, err := s.packed.Peek(mergeBuffer)
	if err != nil && err != io.EOF {
		return err
	}
	s.block = s.block[:0]
	used := 0
	for last := s.edge; len(s.block) < unpackedEdges && (len(packed)-used >= most || err == io.EOF && used < len(packed)); {
		e, length := nextEdge(packed[used:], last)
		if length == 0 {
			return errors.New("they are not those that were written")
		}
		used += length
		s.block, last = append(s.block, e), e
	}
	s.rest = s.block
	_, err = s.packed.Discard(used)
	return err
}

// merge calls yield with the edges of all pieces, and with those in memory, which are in
// order too, each edge once, until it returns false.
func (s *edgeSorter) merge(inMemory []edge, yield func(edge) bool) error {
	var heap edgeHeap
	sources := []*edgeSource{{rest: inMemory}}
	for _, piece := range s.pieces {
		sources = append(sources, &edgeSource{packed: bufio.NewReaderSize(io.NewSectionReader(s.file, piece.offset, piece.length), mergeBuffer)})
	}
	for _, source := range sources {
		more, err := source.next()
		if err != nil {
			return err
		}
		if more {
			heap = append(heap, source)
		}
	}
	for i := len(heap)/2 - 1; i >= 0; i-- {
		heap.down(i)
	}
	var last edge
	for first := true; len(heap) > 0; first = false {
		if e := heap[0].edge; first || e != last {
			if last = e; !yield(e) {
				return nil
			}
		}
		more, err := heap[0].next()
		if err != nil {
			return err
		}
		if !more {
			heap[0] = heap[len(heap)-1]
			heap = heap[:len(heap)-1]
		}
		heap.down(0)
	}
	return nil
}

// edgeHeap has the source with the least edge first. Unlike container/heap, it calls
// nothing through an interface for each of some hundred million edges.
type edgeHeap []*edgeSource

// down moves a source to where it belongs among those below it.
func (h edgeHeap) down(i int) {
	for {
		least := 2*i + 1
		if least >= len(h) {
			return
		}
		if other := least + 1; other < len(h) && h[other].edge.before(h[least].edge) {
			least = other
		}
		if !h[least].edge.before(h[i].edge) {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

func (e edge) before(o edge) bool {
	return e.target < o.target || e.target == o.target && e.referrer < o.referrer
}

// sortEdges sorts edges. First they are divided by the first two bytes of their targets,
// which are random, so that there are few different ones in each division, or just one that
// very many refer to: its referrers come in order.
func sortEdges(edges []edge) []edge {
	if len(edges) < fewEdges {
		slices.SortFunc(edges, edge.compare)
		return edges
	}
	// Targets are compared as signed numbers.
	division := func(e edge) uint16 { return uint16(uint64(e.target)>>48) ^ 0x8000 }
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
		switch some := sorted[begin:end]; {
		case len(some) <= maxInsertion:
			insertionSort(some)
		case !slices.IsSortedFunc(some, edge.compare):
			slices.SortFunc(some, edge.compare)
		}
		begin = end
	}
	return sorted
}

// maxInsertion is how many edges are sorted by insertion: most divisions have fewer.
const maxInsertion = 16

func insertionSort(edges []edge) {
	for i := 1; i < len(edges); i++ {
		e, to := edges[i], i
		for ; to > 0 && e.before(edges[to-1]); to-- {
			edges[to] = edges[to-1]
		}
		edges[to] = e
	}
}

// close ends the sorter.
func (s *edgeSorter) close() error {
	_, err := s.wait()
	return errors.Join(err, s.file.Close())
}

// sortedPart is some edges, in order.
type sortedPart struct {
	edges []edge
	err   error
}

// all sorts the edges ahead of the caller that reads them, on another core. The caller reads
// the channel to its end, or ends the context first.
func (s *edgeSorter) all(ctx context.Context) <-chan sortedPart {
	parts := make(chan sortedPart, 4)
	_, err := s.wait()
	go func() {
		defer close(parts)
		pass := func(part sortedPart) bool {
			select {
			case parts <- part:
				return true
			case <-ctx.Done():
				return false
			}
		}
		part := make([]edge, 0, mergedEdges)
		if err == nil {
			err = s.merge(sortEdges(s.edges), func(e edge) bool {
				if part = append(part, e); len(part) < mergedEdges {
					return true
				}
				full := part
				part = make([]edge, 0, mergedEdges)
				return pass(sortedPart{edges: full})
			})
		}
		pass(sortedPart{part, err})
	}()
	return parts
}
