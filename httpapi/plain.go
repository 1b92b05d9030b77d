package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// comparedFor is how long a file that was compared with its hash is sent without
	// comparing it again. Damage that comes in between is for check --verify to find.
	comparedFor = 24 * time.Hour
	// mostCompared bounds the good files that are remembered, and the damaged ones.
	mostCompared = 1 << 16
	// damagedFor is how long requests for a damaged file are refused without reading it again.
	damagedFor = time.Minute
	// comparesAtOnce is how many large files are read at a time to compare them.
	comparesAtOnce = 2
)

// errComparing says that a part of a nar can't be sent yet.
var errComparing = errors.New("this nar is being compared with its hash")

// compares remembers which files without compression have the bytes that they should
// have and which large ones don't, and reads those of which that is not known.
type compares struct {
	now   func() time.Time // the clock, but in tests
	good  *lru.Cache[comparedPart, time.Time]
	bad   *lru.Cache[comparedPart, time.Time]
	slots chan struct{}

	mu      sync.Mutex
	running map[comparedPart]*comparison
}

// comparison is one that is under way.
type comparison struct {
	done chan struct{}
	err  error // once it is done
}

// comparedPart is what was compared with a hash: a file from start on.
type comparedPart struct {
	file  fileVersion
	start int64
	want  [sha256.Size]byte
}

// fileVersion tells one content of a file from another.
type fileVersion struct {
	device, inode  uint64 // of a file of this machine
	changed        syscall.Timespec
	name, tag      string // of others
	size, modified int64
}

func newCompares() *compares {
	good, goodErr := lru.New[comparedPart, time.Time](mostCompared)
	bad, badErr := lru.New[comparedPart, time.Time](mostCompared)
	if err := errors.Join(goodErr, badErr); err != nil {
		panic(err) // only the size can be wrong
	}
	return &compares{now: time.Now, good: good, bad: bad, slots: make(chan struct{}, comparesAtOnce), running: make(map[comparedPart]*comparison)}
}

// isGood reports whether the part was compared lately.
func (c *compares) isGood(p comparedPart) bool {
	at, ok := c.good.Get(p)
	return ok && c.now().Sub(at) < comparedFor
}

// isBad reports whether the part was found damaged a short time ago.
func (c *compares) isBad(p comparedPart) bool {
	at, ok := c.bad.Get(p)
	return ok && c.now().Sub(at) < damagedFor
}

// remember notes that the part is as it should be, if its version is known.
func (c *compares) remember(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.good.Add(p, c.now())
	}
}

// rememberBad notes that the part is damaged, if its version is known.
func (c *compares) rememberBad(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.bad.Add(p, c.now())
	}
}

// plainPart is a part of an item's file without compression whose hash is known: the
// nar, or what a flat nar contains.
type plainPart struct {
	item          *storage.Item
	start, length int64
	want          [sha256.Size]byte
}

// compared returns an Opener of the part, or a part of it, that compares it with its hash
// unless that was done lately. Files of up to checkedFirst bytes are compared before
// anything of them is given out, larger ones while all of them is sent. For less, a file
// of this machine is read as a whole first, once for all who ask. Of a large object in a
// bucket, less is given as it comes: a request for a byte must not cost reading all of it.
func (s *Server) compared(p plainPart, open content.Opener) content.Opener {
	return func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		for range 2 {
			reader, info, err := open(offset, length)
			if err != nil || p.length == 0 {
				return reader, info, err
			}
			file := storedLocally(reader)
			key := comparedPart{versionOf(file, info), p.start, p.want}
			isWhole := offset == p.start && length >= p.length
			switch {
			case s.compares.isGood(key):
				return reader, info, nil
			case s.compares.isBad(key):
				reader.Close()
				return nil, info, errDamaged
			case p.length <= checkedFirst:
				reader, err = s.comparedFirst(p, key, reader, file, offset, isWhole, open)
				return reader, info, err
			case isWhole:
				v := s.verify(content.NewPart(io.LimitReader(stored{reader}, p.length), reader), p.length, p.want, p.item)
				v.passed = func() { s.compares.remember(key) }
				return v, info, nil
			case length == 0 || file == nil:
				return reader, info, nil
			}
			if err := s.waitCompared(p, key, reader, file); err != nil {
				return nil, info, err
			}
		}
		return nil, bytestore.Info{}, fmt.Errorf("%s changes while it is read", p.item.Narinfo.StorePath)
	}
}

// comparedFirst returns the reader, or one of the same bytes in memory of the decoders'
// budget, when the part is good. file is the reader's, or nil. It closes the reader if there
// is an error, which is errComparing when there is no memory.
func (s *Server) comparedFirst(p plainPart, key comparedPart, reader io.ReadCloser, file *os.File, offset int64, isWhole bool, open content.Opener) (io.ReadCloser, error) {
	if file != nil {
		if _, err := s.verified(stored{io.NewSectionReader(file, p.start, p.length)}, p.length, p.want, p.item); err != nil {
			reader.Close()
			return nil, err
		}
		s.compares.remember(key)
		return reader, nil
	}
	wait, cancel := context.WithTimeout(s.streaming, s.decoderWait)
	defer cancel()
	if s.decoders.ReservePiece(wait) != nil {
		reader.Close()
		return nil, errComparing
	}
	all := reader
	if !isWhole {
		var err error
		all, _, err = open(p.start, p.length)
		reader.Close() // only now, as a file that is being fetched might be dropped
		if err != nil {
			s.decoders.ReleasePiece()
			return nil, err
		}
	}
	body, err := s.verified(io.LimitReader(stored{all}, p.length), p.length, p.want, p.item)
	all.Close()
	if err != nil {
		s.decoders.ReleasePiece()
		return nil, err
	}
	s.compares.remember(key)
	return s.decoders.NewBody(body[offset-p.start:]), nil
}

// waitCompared waits until the part was read as a whole, and returns nil if it is good. It
// closes the reader, whose file is read. The error is errComparing when that takes long.
func (s *Server) waitCompared(p plainPart, key comparedPart, reader io.ReadCloser, file *os.File) error {
	c := s.compares
	c.mu.Lock()
	running := c.running[key]
	if running == nil {
		running = &comparison{done: make(chan struct{})}
		c.running[key] = running
		go func() {
			running.err = s.compare(p, key, file)
			reader.Close()
			c.mu.Lock()
			delete(c.running, key)
			c.mu.Unlock()
			close(running.done)
		}()
	} else {
		reader.Close()
	}
	c.mu.Unlock()
	wait, cancel := context.WithTimeout(s.streaming, s.decoderWait)
	defer cancel()
	select {
	case <-running.done:
		return running.err
	case <-wait.Done():
		return errComparing
	}
}

// compare reads the part of the file, and remembers it when it is good.
func (s *Server) compare(p plainPart, key comparedPart, file *os.File) error {
	select {
	case s.compares.slots <- struct{}{}:
		defer func() { <-s.compares.slots }()
	case <-s.live.Done():
		return s.live.Err()
	}
	v := s.verify(io.NopCloser(stored{io.NewSectionReader(file, p.start, p.length)}), p.length, p.want, p.item)
	v.passed = func() { s.compares.remember(key) }
	piece := make([]byte, decoders.Piece)
	for {
		switch _, err := v.Read(piece); {
		case err == io.EOF:
			return nil
		case errors.As(err, new(readError)):
			return err
		case err != nil:
			s.compares.rememberBad(key)
			return errDamaged
		case s.live.Err() != nil:
			return s.live.Err()
		}
	}
}

// storedLocally returns the file of this machine that the reader reads, whose bytes are all
// there, or nil.
func storedLocally(reader io.Reader) *os.File {
	if local, ok := reader.(bytestore.LocalFile); ok {
		if _, growing := reader.(bytestore.GrowingFile); !growing {
			file, _ := local.Local()
			return file
		}
	}
	return nil
}

// versionOf returns the version of a file, which is that of this machine, or zero where
// nothing tells one from another.
func versionOf(file *os.File, info bytestore.Info) fileVersion {
	if file == nil {
		if info.Tag == "" {
			return fileVersion{}
		}
		return fileVersion{name: info.Name, tag: info.Tag, size: info.Size, modified: info.ModTime.UnixNano()}
	}
	stat, err := file.Stat()
	if err != nil {
		return fileVersion{}
	}
	sys, ok := stat.Sys().(*syscall.Stat_t)
	if !ok {
		return fileVersion{}
	}
	return fileVersion{
		device: uint64(sys.Dev), inode: sys.Ino, changed: sys.Ctim,
		size: stat.Size(), modified: stat.ModTime().UnixNano(),
	}
}
