package nars

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"nar-herder/internal/notify"
	"nar-herder/storage"
)

// flight is the way of one file from the source into the storage.
type flight struct {
	item *storage.Item
	n    int
	key  string
	via  []string // of the client's request that it was begun for
	// asked says that it was begun for a client, and again that it is the second
	// after what an earlier one had left was wrong.
	asked, again bool
	// room is what it takes of the storage.
	room *room
	// done is closed when all is over, and result is how it ended.
	done   chan struct{}
	result error

	mu   notify.Mutex // of what follows
	size int64        // of the whole file; negative until it is known
	file *os.File
	have int64 // bytes that are in the file
	// opened says that the source has answered, or all is here, and flowing that
	// it is sending.
	opened, flowing bool
	// resumed says that the bytes are not all of one answer.
	resumed bool
	// verified says that the file is the nar.
	verified bool
	// err is why no more will come; nil with verified.
	err     error
	readers int
	ended   bool // the flight has no more use for the file
}

// Errors that a flight ends with, each around the reason.
var (
	// errAnew says that what an earlier flight had left was wrong, and another
	// has begun from the first byte.
	errAnew = errors.New("what had come before was wrong, and is fetched anew")
	// errStored says that the file was stored before the flight began.
	errStored = errors.New("it is stored already")
	// errLocal says that the trouble is here: clients can be served all the
	// same.
	errLocal = errors.New("it can't be stored")
	// errStopped says that this process ends.
	errStopped = errors.New("the server stops")
)

// localError is an error of this machine, and not of the source.
type localError struct{ error }

func (e localError) Unwrap() error      { return e.error }
func (localError) Is(target error) bool { return target == errLocal }

// visible is up to where readers may read. The mutex is held.
func (fl *flight) visible() int64 {
	switch {
	case fl.verified:
		return fl.size
	case fl.size < 0:
		return 0
	}
	return max(0, min(fl.have, fl.size-tail))
}

// position is how far the flight has come, and whether the source is sending.
func (fl *flight) position() (have int64, flowing bool) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.have, fl.flowing || fl.verified
}

// hasReaders says whether clients wait for it.
func (fl *flight) hasReaders() bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.readers > 0
}

// join counts a reader, who is to leave.
func (fl *flight) join() {
	fl.mu.Set(func() { fl.readers++ })
}

func (fl *flight) leave() {
	fl.mu.Set(func() {
		fl.readers--
		fl.closeUnused()
	})
}

// unlock lets another flight go on with the file.
func (fl *flight) unlock() {
	if fl.file != nil {
		_ = unix.Flock(int(fl.file.Fd()), unix.LOCK_UN) // or it has none
	}
}

// end is for when nothing is written to the file any more.
func (fl *flight) end() {
	fl.mu.Set(func() {
		fl.ended = true
		fl.closeUnused()
	})
}

// closeUnused closes the file after its last user. The mutex is held.
func (fl *flight) closeUnused() {
	if fl.ended && fl.readers == 0 && fl.file != nil {
		_ = fl.file.Close() // what counts was flushed
		fl.file = nil
	}
}

// begun waits until the status line of an answer can be sent: the source has
// answered, and of a small file all has come and was compared.
func (fl *flight) begun(ctx context.Context) (size int64, err error) {
	err = fl.mu.Wait(ctx, func() bool {
		size = fl.size
		return fl.err != nil || fl.verified || fl.opened && fl.size > tail
	})
	if err != nil {
		return 0, err
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.err != nil && !fl.verified {
		return 0, fl.err
	}
	return size, nil
}

// growing reads the flight's file from its beginning, for the checker: it is
// shown what clients are not.
type growing struct {
	ctx context.Context
	fl  *flight
	off int64
}

func (g *growing) Read(p []byte) (int, error) {
	var have int64
	var atEnd bool
	var failed error
	err := g.fl.mu.Wait(g.ctx, func() bool {
		have, failed = g.fl.have, g.fl.err
		atEnd = g.fl.size >= 0 && g.off == g.fl.size
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
	n, err := g.fl.file.ReadAt(p[:min(int64(len(p)), have-g.off)], g.off)
	g.off += int64(n)
	if n > 0 {
		err = nil
	}
	if err != nil {
		err = localError{err}
	}
	return n, err
}
