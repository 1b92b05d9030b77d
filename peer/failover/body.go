package failover

import (
	"context"
	"io"

	"nar-herder/storage"
)

// continued is a part of a file from one server after the other.
type continued struct {
	s    *Source
	ctx  context.Context
	item *storage.Item
	n    int
	via  []string

	first, from *answer // the latter is read
	// offset is that of the next byte, and end that of the part; negative if unknown.
	offset, end int64
	// recent are the last bytes before the offset.
	recent []byte
	// resumed says that it has continued at another server, and gained how many bytes have
	// come since.
	resumed bool
	gained  int64
	failure error // of from
	cut     bool  // Read has returned it
}

// Read implements [io.Reader].
func (b *continued) Read(p []byte) (int, error) {
	for {
		if b.end >= 0 {
			p = p[:min(int64(len(p)), b.end-b.offset)]
			if len(p) == 0 {
				return 0, io.EOF
			}
		}
		if b.failure != nil && !b.resume() {
			b.cut = true
			return 0, b.failure
		}
		n, err := b.from.Read(p)
		b.remember(p[:n])
		if err == io.EOF && b.offset < b.end {
			err = io.ErrUnexpectedEOF
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		if b.failure = err; n > 0 {
			return n, nil
		}
	}
}

// remember keeps the last bytes.
func (b *continued) remember(p []byte) {
	b.offset += int64(len(p))
	b.gained += int64(len(p))
	p = p[max(0, len(p)-overlap):]
	// Move the bytes seldom, and not for each read.
	if len(b.recent)+len(p) > 4*overlap {
		b.recent = append(b.recent[:0], b.recent[len(b.recent)-overlap:]...)
	}
	b.recent = append(b.recent, p...)
}

// ReadAt reads recent bytes.
func (b *continued) ReadAt(p []byte, offset int64) (int, error) {
	at := offset - (b.offset - int64(len(b.recent)))
	if at < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, b.recent[at:]), nil
}

// resume continues at another server. It returns false if that is not possible.
func (b *continued) resume() bool {
	if b.ctx.Err() != nil || b.resumed && b.gained < minGain {
		return false
	}
	begin := b.offset - int64(min(len(b.recent), overlap))
	next, _, err := b.s.resume(b.ctx, b.item, b.n, b, begin, b.offset, b.via)
	if err != nil {
		return false
	}
	b.from.Close()
	b.from, b.failure, b.resumed, b.gained = next, nil, true, 0
	return true
}

// Sum is for [nar-herder/peer.SumOf].
func (b *continued) Sum() [16]byte { return b.from.Sum() }

// Close implements [io.Closer].
func (b *continued) Close() error { return b.from.Close() }
