package lzip

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// maxParallelMember is the largest member, in bytes of data, that is decoded as a whole into memory. plzip makes
	// members of twice the dictionary, so 64 MiB is its level 9.
	maxParallelMember = 64 << 20
	// maxIndexed bounds the list of members: a hostile file could consist of empty ones. 1<<18 members take 8 MiB.
	maxIndexed = 1 << 18
	// maxExpansion is more than LZMA can expand anything: 273 bytes out of a few hundredths of a byte. A trailer that
	// promises more lies.
	maxExpansion = 1 << 14
)

// member says where a member lies.
type member struct {
	offset   int64
	size     int64
	dataSize int64
}

// findMembers walks the trailers from the end of the file to its beginning, as the trailers hold the sizes.
func findMembers(r io.ReaderAt, size int64) ([]member, error) {
	var members []member
	for end := size; end > 0; {
		if len(members) == maxIndexed {
			return nil, fmt.Errorf("lzip: more than %d members", maxIndexed)
		}
		if end < minMemberSize {
			return nil, fmt.Errorf("%w: %d bytes cannot be a member", ErrHeader, end)
		}
		var tb [trailerSize]byte
		if err := readAt(r, tb[:], end-trailerSize); err != nil {
			return nil, err
		}
		t := parseTrailer(tb)
		if t.memberSize < minMemberSize || t.memberSize > uint64(end) || t.dataSize/maxExpansion > t.memberSize {
			return nil, fmt.Errorf("%w: sizes at offset %d are impossible", ErrChecksum, end-trailerSize)
		}
		start := end - int64(t.memberSize)
		var h [headerSize]byte
		if err := readAt(r, h[:], start); err != nil {
			return nil, err
		}
		if _, err := parseHeader(h); err != nil {
			return nil, err
		}
		members = append(members, member{start, int64(t.memberSize), int64(t.dataSize)})
		end = start
	}
	for i, j := 0, len(members)-1; i < j; i, j = i+1, j-1 {
		members[i], members[j] = members[j], members[i]
	}
	return members, nil
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF || err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// NewReaderAt returns the decompressed bytes of the lzip file of size bytes that r holds, decoding up to workers
// members at the same time. Errors are those of Reader. Close stops the workers and waits for them; it does not close r.
//
// Where there is nothing to gain, with one worker or one member, or where a member has more than 64 MiB of data, or
// where the members cannot be told from the end, it is a plain Reader.
//
// Memory: for each worker what a Reader takes, and the data of a member, at most 64 MiB; and one member more, which is
// the one being read.
func NewReaderAt(r io.ReaderAt, size int64, workers int) io.ReadCloser {
	members, err := findMembers(r, size)
	parallel := err == nil && workers > 1 && len(members) > 1
	for _, m := range members {
		parallel = parallel && m.dataSize <= maxParallelMember
	}
	if !parallel {
		// A file whose trailers make no sense is left to the Reader as well: it knows best what is wrong with it.
		return &sequential{NewReader(io.NewSectionReader(r, 0, size))}
	}
	p := &parallelReader{
		src:     r,
		readers: make(chan *Reader, workers),
		buffers: make(chan []byte, workers+1),
		ordered: make(chan chan piece, workers+1),
		done:    make(chan struct{}),
	}
	for range cap(p.readers) {
		p.readers <- nil // made when first needed
	}
	for range cap(p.buffers) {
		p.buffers <- nil
	}
	p.wg.Add(1)
	go p.dispatch(members)
	return p
}

type sequential struct{ *Reader }

func (s *sequential) Close() error {
	s.err = errClosed
	s.taken = s.dec.pos
	return nil
}

var errClosed = errors.New("lzip: read after Close")

// piece is the data of one member, or what is wrong with it.
type piece struct {
	data []byte
	err  error
}

// parallelReader hands members to goroutines in order and takes their pieces back in the same order. A member needs
// a buffer and a Reader, both from channels that hold only so many; a buffer returns once its piece has been read.
type parallelReader struct {
	src     io.ReaderAt
	readers chan *Reader
	buffers chan []byte
	ordered chan chan piece
	done    chan struct{}
	wg      sync.WaitGroup
	close   sync.Once

	current []byte // to be read
	whole   []byte // what current is a part of
	err     error
}

func (p *parallelReader) dispatch(members []member) {
	defer p.wg.Done()
	defer close(p.ordered)
	for i, m := range members {
		var buf []byte
		var z *Reader
		select {
		case buf = <-p.buffers:
		case <-p.done:
			return
		}
		select {
		case z = <-p.readers:
		case <-p.done:
			return
		}
		res := make(chan piece, 1)
		p.ordered <- res // has room: it is as long as there are buffers
		p.wg.Go(func() {
			if z == nil {
				z = NewReader(nil)
			}
			data, err := p.decode(z, buf, m)
			if err != nil {
				err = fmt.Errorf("lzip: member %d of %d at offset %d: %w", i+1, len(members), m.offset, err)
			}
			res <- piece{data, err}
			p.readers <- z
		})
	}
}

// decode returns the data of m, in buf if it is large enough.
func (p *parallelReader) decode(z *Reader, buf []byte, m member) ([]byte, error) {
	z.Reset(io.NewSectionReader(p.src, m.offset, m.size))
	// The size in the trailer is believed only as the data comes in.
	buf = buf[:0]
	if cap(buf) == 0 {
		buf = make([]byte, 0, min(m.dataSize, firstWindow))
	}
	for int64(len(buf)) < m.dataSize {
		select {
		case <-p.done:
			return nil, errClosed
		default:
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(m.dataSize, 4*int64(cap(buf))))
			copy(grown, buf)
			buf = grown
		}
		n, err := z.Read(buf[len(buf):min(int64(cap(buf)), m.dataSize)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return nil, ErrChecksum
		}
		if err != nil {
			return nil, err
		}
	}
	// What is left is the check of the trailer.
	var one [1]byte
	switch n, err := z.Read(one[:]); {
	case n > 0:
		return nil, ErrChecksum
	case err != io.EOF:
		return nil, err
	}
	return buf, nil
}

// next fetches the piece after the current one.
func (p *parallelReader) next() {
	if p.whole != nil {
		p.buffers <- p.whole
		p.whole, p.current = nil, nil
	}
	res, ok := <-p.ordered
	if !ok {
		p.err = io.EOF
		return
	}
	got := <-res
	p.whole, p.current, p.err = got.data, got.data, got.err
}

func (p *parallelReader) Read(b []byte) (int, error) {
	for len(p.current) == 0 && p.err == nil && len(b) > 0 {
		p.next()
	}
	if len(p.current) == 0 && len(b) > 0 {
		return 0, p.err
	}
	n := copy(b, p.current)
	p.current = p.current[n:]
	return n, nil
}

// WriteTo implements io.WriterTo.
func (p *parallelReader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if len(p.current) > 0 {
			n, err := w.Write(p.current)
			total += int64(n)
			p.current = p.current[n:]
			if err == nil && len(p.current) > 0 {
				err = io.ErrShortWrite
			}
			if err != nil {
				return total, err
			}
		}
		if p.err == io.EOF {
			return total, nil
		}
		if p.err != nil {
			return total, p.err
		}
		p.next()
	}
}

func (p *parallelReader) Close() error {
	p.close.Do(func() {
		close(p.done)
		p.wg.Wait()
		p.current, p.whole, p.err = nil, nil, errClosed
	})
	return nil
}
