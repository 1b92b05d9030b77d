package nars

import (
	"context"
	"errors"
	"io"
	"os"

	"nar-herder/internal/notify"
	"nar-herder/mirror/nars/room"
	"nar-herder/storage"
)

// download brings one file from the source into the storage.
type download struct {
	item     *storage.Item
	n        int
	key      string
	via      []string // of the client's request
	onDemand bool     // it began for a client
	// again is how many downloads of this file were wrong right before.
	again int
	room  *room.Share
	// wrongFrom is the server that sent a wrong file, and others says that there are other
	// servers.
	wrongFrom string
	others    bool
	// release ends the protection of the item's stored files, one of which this becomes.
	release func()
	// done is closed at the end, when result is set.
	done   chan struct{}
	result error

	mu   notify.Mutex // of what follows
	size int64        // of the whole file; negative until known, perhaps at its end
	file *os.File
	have int64 // bytes in the file
	// opened says that the source has answered or the file is complete, and flowing that
	// the source is sending.
	opened, flowing bool
	// resumed says that the bytes are from several answers.
	resumed bool
	// verified says that the file is the nar.
	verified bool
	// err is the reason why no more bytes will come; nil if verified.
	err     error
	readers int
	ended   bool // the file may be closed
}

// Errors that a download ends with, each wrapping the reason.
var (
	// errAnew reports that the partial download of an earlier attempt was wrong, and that
	// a new one has begun.
	errAnew = errors.New("the partial download was wrong, and is fetched anew")
	// errStored reports that the file was stored before the download began.
	errStored = errors.New("it is stored already")
	// errLocal reports a fault of this machine: the source can still serve clients.
	errLocal = errors.New("it can't be stored")
	// errStopped reports that this process ends.
	errStopped = errors.New("the server stops")
)

// localError is a fault of this machine and not of the source.
type localError struct{ error }

func (e localError) Unwrap() error      { return e.error }
func (localError) Is(target error) bool { return target == errLocal }

// visible returns the offset up to which clients may read. The mutex is held.
func (d *download) visible() int64 {
	switch {
	case d.verified:
		return d.size
	case d.size < 0:
		return max(0, d.have-tail)
	}
	return max(0, min(d.have, d.size-tail))
}

// position returns the length so far, and whether the source is sending.
func (d *download) position() (have int64, flowing bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.have, d.flowing || d.verified
}

// length returns the length so far, and that of the whole file, negative if unknown.
func (d *download) length() (have, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.have, d.size
}

// isResumed reports whether the bytes are from several answers.
func (d *download) isResumed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.resumed
}

// hasReaders reports whether clients wait for it.
func (d *download) hasReaders() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readers > 0
}

// join adds a reader, which must leave.
func (d *download) join() {
	d.mu.Set(func() { d.readers++ })
}

func (d *download) leave() {
	d.mu.Set(func() {
		d.readers--
		d.closeUnused()
	})
}

// end notes that nothing more is written to the file.
func (d *download) end() {
	d.mu.Set(func() {
		d.ended = true
		d.closeUnused()
	})
}

// closeUnused closes the file after its last user. The mutex is held.
func (d *download) closeUnused() {
	if !d.ended || d.readers > 0 {
		return
	}
	if d.file != nil {
		_ = d.file.Close() // what counts was flushed
		d.file = nil
	}
	d.release()
}

// begun waits until the status line of an answer can be sent: the source has answered, and a
// small file is complete and verified. size is negative if it is not known yet.
func (d *download) begun(ctx context.Context) (size int64, err error) {
	err = d.mu.Wait(ctx, func() bool {
		size = d.size
		return d.err != nil || d.verified || d.opened && max(d.size, d.have) > tail
	})
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil && !d.verified {
		return 0, d.err
	}
	return size, nil
}

// growing reads the download's file for the check, including the withheld end.
type growing struct {
	ctx context.Context
	d   *download
	off int64
}

func (g *growing) Read(p []byte) (int, error) {
	var have int64
	var atEnd bool
	var failed error
	err := g.d.mu.Wait(g.ctx, func() bool {
		have, failed = g.d.have, g.d.err
		atEnd = g.d.size >= 0 && g.off == g.d.size
		return have > g.off || atEnd || failed != nil
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case atEnd:
		return 0, io.EOF
	}
	n, err := g.d.file.ReadAt(p[:min(int64(len(p)), have-g.off)], g.off)
	g.off += int64(n)
	if n > 0 {
		err = nil
	}
	if err != nil {
		err = localError{err}
	}
	return n, err
}
