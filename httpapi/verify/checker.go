// Package verify compares nars with their hashes before or while they are sent.
package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// ComparedFor is how long a file that was compared with its hash is sent without
	// comparing it again. Damage that comes in between is for check --verify to find.
	ComparedFor = 24 * time.Hour
	// mostCompared bounds the good files that are remembered, and the damaged ones.
	mostCompared = 1 << 16
	// DamagedFor is how long requests for a damaged file are refused without reading it again.
	DamagedFor = time.Minute
	// Concurrency is how many large files are read at a time to compare them.
	Concurrency = 2
)

// ErrComparing says that a part of a nar can't be sent yet.
var ErrComparing = errors.New("this nar is being compared with its hash")

// Checker compares nars with their hashes. It remembers which files without compression have the bytes that they should
// have and which large ones don't, and reads those of which that is not known.
type Checker struct {
	Options Options

	Now   func() time.Time // the clock, but in tests
	good  *lru.Cache[comparedPart, time.Time]
	bad   *lru.Cache[comparedPart, time.Time]
	Slots chan struct{} // of comparisons of large files

	mu      sync.Mutex
	running map[comparedPart]*comparison
}

// Options of [New].
type Options struct {
	Decoders *decoders.Pool
	// Wait is how long a request waits for memory, or for a comparison.
	Wait time.Duration
	// Live is the context of what is read, and Streaming that of requests that wait.
	Live, Streaming context.Context
	// Cut is called when an answer with a nar of another instance is cut, and Corrupt
	// counts nars that are damaged in the storage.
	Cut     func(item *storage.Item, err error)
	Corrupt prometheus.Counter
	Log     *slog.Logger
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

// New makes a checker.
func New(options Options) *Checker {
	good, goodErr := lru.New[comparedPart, time.Time](mostCompared)
	bad, badErr := lru.New[comparedPart, time.Time](mostCompared)
	if err := errors.Join(goodErr, badErr); err != nil {
		panic(err) // only the size can be wrong
	}
	return &Checker{Options: options, Now: time.Now, good: good, bad: bad, Slots: make(chan struct{}, Concurrency), running: make(map[comparedPart]*comparison)}
}

// Good returns how many files are remembered as good.
func (c *Checker) Good() int { return c.good.Len() }

// Forget forgets them.
func (c *Checker) Forget() { c.good.Purge() }

// Running returns how many comparisons are under way.
func (c *Checker) Running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

// isGood reports whether the part was compared lately.
func (c *Checker) isGood(p comparedPart) bool {
	at, ok := c.good.Get(p)
	return ok && c.Now().Sub(at) < ComparedFor
}

// isBad reports whether the part was found damaged a short time ago.
func (c *Checker) isBad(p comparedPart) bool {
	at, ok := c.bad.Get(p)
	return ok && c.Now().Sub(at) < DamagedFor
}

// remember notes that the part is as it should be, if its version is known.
func (c *Checker) remember(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.good.Add(p, c.Now())
	}
}

// rememberBad notes that the part is damaged, if its version is known.
func (c *Checker) rememberBad(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.bad.Add(p, c.Now())
	}
}

// Part is a part of an item's file without compression that has a known hash: the
// nar, or what a flat nar contains.
type Part struct {
	Item          *storage.Item
	Start, Length int64
	Want          [sha256.Size]byte
}

// Compared returns an Opener of the part, or a part of it, that compares it with its hash
// unless that was done lately. Files of up to CheckedFirst bytes are compared before
// anything of them is given out, larger ones while all of them is sent. For less, a file
// of this machine is read as a whole first, once for all who ask. Of a large object in a
// bucket, less is given as it comes: a request for a byte must not cost reading all of it.
func (s *Checker) Compared(p Part, open content.Opener) content.Opener {
	return func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		for range 2 {
			reader, info, err := open(offset, length)
			if err != nil || p.Length == 0 {
				return reader, info, err
			}
			file := LocalFile(reader)
			key := comparedPart{versionOf(file, info), p.Start, p.Want}
			isWhole := offset == p.Start && length >= p.Length
			switch {
			case s.isGood(key):
				return reader, info, nil
			case s.isBad(key):
				reader.Close()
				return nil, info, ErrDamaged
			case p.Length <= CheckedFirst:
				reader, err = s.comparedFirst(p, key, reader, file, offset, isWhole, open)
				return reader, info, err
			case isWhole:
				v := s.Verify(content.NewPart(io.LimitReader(stored{reader}, p.Length), reader), p.Length, p.Want, p.Item)
				v.passed = func() { s.remember(key) }
				return v, info, nil
			case length == 0 || file == nil:
				return reader, info, nil
			}
			if err := s.waitCompared(p, key, reader, file); err != nil {
				return nil, info, err
			}
		}
		return nil, bytestore.Info{}, fmt.Errorf("%s changes while it is read", p.Item.Narinfo.StorePath)
	}
}

// comparedFirst returns the reader, or one of the same bytes in memory of the decoders'
// budget, when the part is good. file is the reader's, or nil. It closes the reader if there
// is an error, which is ErrComparing when memory is short.
func (s *Checker) comparedFirst(p Part, key comparedPart, reader io.ReadCloser, file *os.File, offset int64, isWhole bool, open content.Opener) (io.ReadCloser, error) {
	if file != nil {
		if _, err := s.Verified(stored{io.NewSectionReader(file, p.Start, p.Length)}, p.Length, p.Want, p.Item); err != nil {
			reader.Close()
			return nil, err
		}
		s.remember(key)
		return reader, nil
	}
	wait, cancel := context.WithTimeout(s.Options.Streaming, s.Options.Wait)
	defer cancel()
	if s.Options.Decoders.ReservePiece(wait) != nil {
		reader.Close()
		return nil, ErrComparing
	}
	all := reader
	if !isWhole {
		var err error
		all, _, err = open(p.Start, p.Length)
		reader.Close() // only now, as a file that is being fetched might be dropped
		if err != nil {
			s.Options.Decoders.ReleasePiece()
			return nil, err
		}
	}
	body, err := s.Verified(io.LimitReader(stored{all}, p.Length), p.Length, p.Want, p.Item)
	all.Close()
	if err != nil {
		s.Options.Decoders.ReleasePiece()
		return nil, err
	}
	s.remember(key)
	return s.Options.Decoders.NewBody(body[offset-p.Start:]), nil
}

// waitCompared waits until the part was read as a whole, and returns nil if it is good. It
// closes the reader, whose file is read. The error is ErrComparing when that takes long.
func (s *Checker) waitCompared(p Part, key comparedPart, reader io.ReadCloser, file *os.File) error {
	c := s
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
	wait, cancel := context.WithTimeout(s.Options.Streaming, s.Options.Wait)
	defer cancel()
	select {
	case <-running.done:
		return running.err
	case <-wait.Done():
		return ErrComparing
	}
}

// compare reads the part of the file, and remembers it when it is good.
func (s *Checker) compare(p Part, key comparedPart, file *os.File) error {
	select {
	case s.Slots <- struct{}{}:
		defer func() { <-s.Slots }()
	case <-s.Options.Live.Done():
		return s.Options.Live.Err()
	}
	v := s.Verify(io.NopCloser(stored{io.NewSectionReader(file, p.Start, p.Length)}), p.Length, p.Want, p.Item)
	v.passed = func() { s.remember(key) }
	piece := make([]byte, decoders.Piece)
	for {
		switch _, err := v.Read(piece); {
		case err == io.EOF:
			return nil
		case errors.As(err, new(readError)):
			return err
		case err != nil:
			s.rememberBad(key)
			return ErrDamaged
		case s.Options.Live.Err() != nil:
			return s.Options.Live.Err()
		}
	}
}

// LocalFile returns the file of this machine that the reader reads, if it is
// complete, or nil.
func LocalFile(reader io.Reader) *os.File {
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
