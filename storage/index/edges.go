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

// edgeSorter sorts the edges of a new index in bounded memory. It sorts pieces, writes them
// to a file without a name, and finally merges the pieces into one run.
type edgeSorter struct {
	directory string
	file      *os.File
	size      int64
	pieces    []edgePiece
	edges     []edge          // added since the last piece
	spilling  chan spillState // result of the goroutine that writes a piece; nil if there is none

	// These are the constants, except in tests.
	pieceEdges, maxPieces int
}

const (
	// pieceEdges is how many edges a piece has, of 16 bytes each in memory. Memory holds
	// three times as many: the edges added meanwhile, and the sorted ones twice.
	pieceEdges = 256 << 10
	// maxPieces limits the buffers of a merge, of mergeBuffer bytes each. So many pieces
	// are merged into one.
	maxPieces   = 1024
	mergeBuffer = 16 << 10
	// unpackedEdges is how many edges of a piece are decoded at a time.
	unpackedEdges = 256
	// mergedEdges is how many edges are passed to the caller at a time.
	mergedEdges = 8 << 10
	// fewEdges are sorted without buckets, which cost half a MiB.
	fewEdges = 1 << 10
)

// edgePiece is the location of sorted edges in the file.
type edgePiece struct{ offset, length int64 }

// spillState is the result of writing a piece, with memory for reuse.
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

// unnamedFile creates a file that is deleted when it is closed.
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

// wait waits until a piece is written, and returns its memory for reuse.
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

// compact merges all pieces into one in a new file.
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

// writePiece writes sorted edges, and returns the number of bytes.
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

// edgeSource iterates over sorted edges.
type edgeSource struct {
	edge   edge          // the current one
	rest   []edge        // decoded edges after it
	packed *bufio.Reader // encoded edges after those; nil if there are none
	block  []edge        // buffer of rest
}

// next advances to the next edge, and reports whether there is one.
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

// read decodes some edges.
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
			return errors.New("they differ from what was written")
		}
		used += length
		s.block, last = append(s.block, e), e
	}
	s.rest = s.block
	_, err = s.packed.Discard(used)
	return err
}

// merge calls yield with the edges of all pieces and the sorted edges in memory, each edge
// once, until yield returns false.
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

// edgeHeap is a heap of sources, least edge first. container/heap would call interface
// methods for each of some hundred million edges.
type edgeHeap []*edgeSource

// down moves a source down to its position.
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

// sortEdges sorts edges. It first divides them into buckets by the first two bytes of their
// targets. Targets are random, so that a bucket has few different ones, or a single popular
// one with its referrers in order.
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
		ends[d]++ // becomes the end
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

// maxInsertion is the size up to which a bucket is sorted by insertion. Most buckets are
// smaller.
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

func (s *edgeSorter) close() error {
	_, err := s.wait()
	return errors.Join(err, s.file.Close())
}

// sortedPart is a batch of sorted edges.
type sortedPart struct {
	edges []edge
	err   error
}

// all sorts the edges on another core, ahead of the caller. The caller must drain the
// channel or cancel the context.
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
