package engine

import (
	"errors"
	"io"
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"nar-herder/internal/rawio"
	"nar-herder/storage/bytestore"
)

// fileBody is a body in a file.
type fileBody struct {
	bytestore.LocalFile
	connection *connection
	length     int64
	cached     pageCached // nil if LocalFile is not one
}

// pageCached is a file that may be known to be in the page cache.
type pageCached interface {
	// IsCached reports whether the file is in the page cache, so that sending it does
	// not wait for a disk.
	IsCached() bool
	// WasSent records that length bytes from the reader's offset were sent.
	WasSent(length int64)
}

// SendFile answers with length bytes of a file, and returns false if they must be copied.
// The head shares a segment with the first bytes of the body.
func SendFile(ctx *fasthttp.RequestCtx, reader io.Reader, length int64) bool {
	file, isLocal := reader.(bytestore.LocalFile)
	if !isLocal || length <= smallFile || length > math.MaxInt {
		return false
	}
	if IsTLS(ctx) {
		return false
	}
	c := pastEngine(ctx)
	if c == nil {
		return false
	}
	c.fileFollows = true
	cached, _ := reader.(pageCached)
	ctx.Response.SetBodyStream(&fileBody{file, c, length, cached}, int(length))
	return true
}

// smallFile is the length up to which a file is copied, as it fits into one write with the
// head.
const smallFile = 4 << 10

// WriteTo sends the file with sendfile, bypassing fasthttp's writer, which is empty once the
// head is flushed. A growing file is sent as it grows.
func (b *fileBody) WriteTo(engine io.Writer) (total int64, err error) {
	defer func() { b.connection.answers.Ended(time.Now(), total, total == b.length) }()
	growing, _ := b.LocalFile.(bytestore.GrowingFile)
	for total < b.length {
		next := b.length - total
		if growing != nil {
			var there int64
			if there, err = growing.Next(); err != nil {
				break
			}
			next = min(next, there)
		}
		var sent int64
		sent, err = b.send(next)
		if growing != nil {
			growing.Skip(sent)
		}
		if total += sent; sent < next {
			if sent > 0 || !isUnsendable(err) {
				return total, err
			}
			break
		}
	}
	if total == b.length {
		if b.cached != nil {
			b.cached.WasSent(b.length)
		}
		return total, nil
	}
	// The file system does not support sendfile, or a growing file has failed and has other sources.
	copied, err := io.CopyN(engine, b.LocalFile, b.length-total)
	total += copied
	return total, err
}

// isUnsendable reports whether an error means that sendfile can't read the file.
func isUnsendable(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// send sends bytes of the file. It does not use package net, which reads from the file
// and loses the bytes once a deadline has passed.
func (b *fileBody) send(length int64) (int64, error) {
	file, offset := b.Local()
	source, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	c := b.connection
	cached := b.cached != nil && b.cached.IsCached()
	if !cached {
		c.leaveLoop() // reading from a disk may take long
	}
	c.engine.sending.Add(1)
	defer c.engine.sending.Add(-1)
	s := &fileSender{source: source, sending: &c.engine.sending, offset: offset, left: length, sendfile: unixSendfile}
	if cached {
		s.sendfile = rawio.Sendfile
	}
	err = c.raw.Write(s.send)
	if err == nil && s.full {
		s.wait = true
		_, err = c.slowly(func() (int64, error) {
			before := s.offset
			err := c.raw.Write(s.send)
			return s.offset - before, err
		})
	}
	if err == nil {
		err = s.err
	}
	return s.offset - offset, err
}

const (
	// wholePiece is how much of a file is sent at once: nars of the usual sizes as a
	// whole, and of others four times what the kernel passes on at a time.
	wholePiece = 256 << 10
	// eagerPiece is used for a few fast clients. The kernel holds back a segment that
	// isn't full until the end of a piece, and such clients wait for it. Compared with
	// wholePiece, pieces of 48 KiB have 1.3 times the speed and take a third more
	// processor time, and pieces of 1 GiB have 0.6 of the speed (one curl on loopback;
	// go run ./cmd/bench nar).
	eagerPiece = 48 << 10
	// eagerMost is the number of bodies at a time up to which eagerPiece is used.
	eagerMost = 2
)

// fileSender sends a part of a file to a socket.
type fileSender struct {
	source       syscall.RawConn
	sending      *atomic.Int32
	offset, left int64
	sendfile     func(to, from uintptr, offset *int64, n int) (int, error)
	begun        bool
	wait         bool // if the socket's buffer is full
	full         bool
	err          error
}

func unixSendfile(to, from uintptr, offset *int64, n int) (int, error) {
	return unix.Sendfile(int(to), int(from), offset, n)
}

// send is called with the socket's descriptor. False asks to be called again when the socket
// is writable.
func (s *fileSender) send(socket uintptr) (done bool) {
	s.full = false
	err := s.source.Control(func(file uintptr) {
		for s.left > 0 && s.err == nil && !s.full {
			piece := int64(wholePiece)
			if s.begun && s.sending.Load() <= eagerMost {
				piece = eagerPiece
			}
			n, err := s.sendfile(socket, file, &s.offset, int(min(s.left, piece))) // advances the offset
			s.left -= int64(max(n, 0))
			s.begun = true
			switch {
			case err == unix.EAGAIN:
				s.full = true
			case err == unix.EINTR:
			case err != nil:
				s.err = os.NewSyscallError("sendfile", err)
			case n == 0:
				s.left = 0 // the file was truncated; the caller counts the bytes
			}
		}
	})
	if err != nil {
		s.err = err
	}
	return !s.full || !s.wait
}
