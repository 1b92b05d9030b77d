package lzip

import (
	"errors"
	"hash/crc32"
	"io"
)

const (
	// minMember is the minimum data of a member in a large file, in bytes: each member costs 36 bytes, and its model
	// starts without statistics.
	minMember = 1 << 20
	// firstBuffer is the initial size of a Writer's buffer.
	firstBuffer = 64 << 10
)

// Writer compresses to an lzip file. Each member has twice the dictionary size of data, as with plzip, and at least 1 MiB.
// Several members are compressed at the same time.
//
// Memory for each member being compressed, where N is the size of its data, and D that of the dictionary or of the
// data if they are less: 2 N for data and output, 8 D for trees, 2 D for a table of hashes, and 1 MiB. So for a large
// file up to 113 MiB at level 6, 433 MiB at level 9, 3 MiB at level 0; and one more N for the data that come in.
type Writer struct {
	w       io.Writer
	level   level
	member  int // bytes of data
	buf     []byte
	written bool // a member was started
	err     error

	workers int
	jobs    []*job // in order; those before have been written
	idle    []*job
}

// job is a member on its way. It is reused with all its memory.
type job struct {
	enc  memberEncoder
	data []byte
	out  []byte
	done chan struct{}
}

var errWriterClosed = errors.New("lzip: write after Close")

// NewWriter returns a Writer to w at a level from 0 to 9, with the meaning they have for the lzip program, that
// compresses up to workers members at the same time. The file is complete after Close, which does not close w. Nothing
// is written before a member is complete.
func NewWriter(w io.Writer, n, workers int) (*Writer, error) {
	l, err := levelOf(n)
	if err != nil {
		return nil, err
	}
	return &Writer{w: w, level: l, member: max(2*l.dict, minMember), workers: max(workers, 1)}, nil
}

// Write implements io.Writer. After an error of the underlying writer, all calls return it.
func (z *Writer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if z.err != nil {
			return total - len(p), z.err
		}
		// A full buffer is only compressed when more data arrives, as the last member may be as large.
		if len(z.buf) == z.member {
			z.start()
			continue
		}
		n := min(len(p), z.member-len(z.buf))
		if need := len(z.buf) + n + dataPad; need > cap(z.buf) {
			grown := make([]byte, len(z.buf), min(max(need, 2*cap(z.buf), firstBuffer), z.member+dataPad))
			copy(grown, z.buf)
			z.buf = grown
		}
		z.buf = append(z.buf, p[:n]...)
		p = p[n:]
	}
	return total, z.err
}

// Close compresses and writes the remaining data. An empty file has one empty member.
func (z *Writer) Close() error {
	if z.err == nil && (len(z.buf) > 0 || !z.written) {
		z.start()
	}
	for len(z.jobs) > 0 {
		z.collect()
	}
	z.buf, z.idle = nil, nil
	if z.err == errWriterClosed {
		return nil
	}
	err := z.err
	z.err = errWriterClosed
	return err
}

// start begins to compress the buffer.
func (z *Writer) start() {
	for len(z.jobs) >= z.workers {
		z.collect()
	}
	var j *job
	if n := len(z.idle); n > 0 {
		j, z.idle = z.idle[n-1], z.idle[:n-1]
	} else {
		j = new(job)
	}
	j.data, z.buf = append(z.buf, make([]byte, dataPad)...), j.data[:0]
	j.done = make(chan struct{})
	z.jobs = append(z.jobs, j)
	z.written = true
	l := z.level
	go func() {
		defer close(j.done)
		crc := crc32.ChecksumIEEE(j.data[:len(j.data)-dataPad])
		j.out = j.enc.encode(j.out[:0], j.data, l, crc)
	}()
}

// collect waits for the oldest job and writes its output.
func (z *Writer) collect() {
	j := z.jobs[0]
	z.jobs = append(z.jobs[:0], z.jobs[1:]...)
	<-j.done
	if z.err == nil {
		n, err := z.w.Write(j.out)
		if err == nil && n < len(j.out) {
			err = io.ErrShortWrite
		}
		z.err = err
	}
	z.idle = append(z.idle, j)
}
