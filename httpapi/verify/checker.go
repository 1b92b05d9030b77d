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
	"nar-herder/internal/logonce"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// ComparedFor is how long a good file is sent without comparing it again. check --verify
	// finds later damage.
	ComparedFor = 24 * time.Hour
	// mostCompared bounds the remembered good files, and the damaged ones.
	mostCompared = 1 << 16
	// DamagedFor is how long requests for a damaged file are refused without reading it again.
	DamagedFor = time.Minute
	// Concurrency is how many large files are compared at a time.
	Concurrency = 2
)

// ErrComparing is the error for a range of a nar that is still being compared.
var ErrComparing = errors.New("this nar is being compared with its hash")

// Checker compares nars with their hashes. It remembers good files without compression, and large
// damaged ones, so that it doesn't read them again for each request.
type Checker struct {
	Options Options

	Now   func() time.Time // the clock; tests replace it
	good  *lru.Cache[comparedPart, time.Time]
	bad   *lru.Cache[comparedPart, time.Time]
	Slots chan struct{} // held by comparisons of large files

	logged logonce.Filter

	mu      sync.Mutex
	running map[comparedPart]*comparison
}

// Options of [New].
type Options struct {
	Decoders *decoders.Pool
	// Wait is how long a request waits for memory, or for a comparison.
	Wait time.Duration
	// Live is the context of reads, and Streaming that of waiting requests.
	Live, Streaming context.Context
	// Cut is called when an answer with a nar of another instance is cut, and Corrupt
	// counts damaged nars in the storage.
	Cut     func(item *storage.Item, err error)
	Corrupt prometheus.Counter
	Log     *slog.Logger
}

// comparison is a comparison in progress.
type comparison struct {
	done chan struct{}
	err  error // set before done is closed
}

// comparedPart is a version of a file from start on, with the hash it was compared with.
type comparedPart struct {
	file  fileVersion
	start int64
	want  [sha256.Size]byte
}

// fileVersion identifies a version of a file.
type fileVersion struct {
	device, inode  uint64 // of a local file
	changed        syscall.Timespec
	name, tag      string // of an object in a bucket
	size, modified int64
}

// New makes a checker.
func New(options Options) *Checker {
	good, goodErr := lru.New[comparedPart, time.Time](mostCompared)
	bad, badErr := lru.New[comparedPart, time.Time](mostCompared)
	if err := errors.Join(goodErr, badErr); err != nil {
		panic(err) // New fails only for a size below one
	}
	return &Checker{Options: options, Now: time.Now, good: good, bad: bad, Slots: make(chan struct{}, Concurrency), running: make(map[comparedPart]*comparison)}
}

// Good returns how many good files are remembered.
func (c *Checker) Good() int { return c.good.Len() }

// Forget forgets all good files.
func (c *Checker) Forget() { c.good.Purge() }

// Running returns how many comparisons are in progress.
func (c *Checker) Running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

// isGood reports whether the part was found good within ComparedFor.
func (c *Checker) isGood(p comparedPart) bool {
	at, ok := c.good.Get(p)
	return ok && c.Now().Sub(at) < ComparedFor
}

// isBad reports whether the part was found damaged within DamagedFor.
func (c *Checker) isBad(p comparedPart) bool {
	at, ok := c.bad.Get(p)
	return ok && c.Now().Sub(at) < DamagedFor
}

// remember records that the part is good, if its version is known.
func (c *Checker) remember(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.good.Add(p, c.Now())
	}
}

// rememberBad records that the part is damaged, if its version is known.
func (c *Checker) rememberBad(p comparedPart) {
	if p.file != (fileVersion{}) {
		c.bad.Add(p, c.Now())
	}
}

// Part is a part of an item's file without compression that has a known hash: the
// nar, or the content of a flat nar.
type Part struct {
	Item          *storage.Item
	Start, Length int64
	Want          [sha256.Size]byte
}

// Compared returns an Opener for ranges of the part, which compares the part with its hash
// unless it is remembered. Parts of up to CheckedFirst bytes are compared before any byte is
// returned, and larger ones while the whole part is sent. For a range of a larger local file,
// the whole part is compared first, once for concurrent requests. Ranges of large objects in a
// bucket are not compared: a request for a byte must not cost reading the whole object.
func (c *Checker) Compared(p Part, open content.Opener) content.Opener {
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
			case c.isGood(key):
				return reader, info, nil
			case c.isBad(key):
				reader.Close()
				return nil, info, ErrDamaged
			case p.Length <= CheckedFirst:
				reader, err = c.comparedFirst(p, key, reader, file, offset, isWhole, open)
				return reader, info, err
			case isWhole:
				v := c.Verify(content.NewPart(io.LimitReader(stored{reader}, p.Length), reader), p.Length, p.Want, p.Item, nil)
				v.passed = func() { c.remember(key) }
				return v, info, nil
			case length == 0 || file == nil:
				return reader, info, nil
			}
			if err := c.waitCompared(p, key, reader, file); err != nil {
				return nil, info, err
			}
		}
		return nil, bytestore.Info{}, fmt.Errorf("%s changes while it is read", p.Item.Narinfo.StorePath)
	}
}

// comparedFirst compares the part and returns the reader, or a reader of the same bytes in
// memory of the decoders' budget. file is the local file of the reader, or nil. It closes the
// reader if there is an error, which is ErrComparing if memory is short.
func (c *Checker) comparedFirst(p Part, key comparedPart, reader io.ReadCloser, file *os.File, offset int64, isWhole bool, open content.Opener) (io.ReadCloser, error) {
	if file != nil {
		if _, err := c.Verified(stored{io.NewSectionReader(file, p.Start, p.Length)}, p.Length, p.Want, p.Item, nil); err != nil {
			reader.Close()
			return nil, err
		}
		c.remember(key)
		return reader, nil
	}
	wait, cancel := context.WithTimeout(c.Options.Streaming, c.Options.Wait)
	defer cancel()
	if c.Options.Decoders.ReservePiece(wait) != nil {
		reader.Close()
		return nil, ErrComparing
	}
	all := reader
	if !isWhole {
		var err error
		all, _, err = open(p.Start, p.Length)
		reader.Close() // after open, as closing may cancel a download
		if err != nil {
			c.Options.Decoders.ReleasePiece()
			return nil, err
		}
	}
	body, err := c.Verified(io.LimitReader(stored{all}, p.Length), p.Length, p.Want, p.Item, nil)
	all.Close()
	if err != nil {
		c.Options.Decoders.ReleasePiece()
		return nil, err
	}
	c.remember(key)
	return c.Options.Decoders.NewBody(body[offset-p.Start:]), nil
}

// waitCompared waits until the whole part was compared, and returns nil if it is good. It
// takes ownership of the reader of the file. The error is ErrComparing after Options.Wait.
func (c *Checker) waitCompared(p Part, key comparedPart, reader io.ReadCloser, file *os.File) error {
	c.mu.Lock()
	running := c.running[key]
	if running == nil {
		running = &comparison{done: make(chan struct{})}
		c.running[key] = running
		go func() {
			running.err = c.compare(p, key, file)
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
	wait, cancel := context.WithTimeout(c.Options.Streaming, c.Options.Wait)
	defer cancel()
	select {
	case <-running.done:
		return running.err
	case <-wait.Done():
		return ErrComparing
	}
}

// compare compares the part of the file, and remembers the result.
func (c *Checker) compare(p Part, key comparedPart, file *os.File) error {
	select {
	case c.Slots <- struct{}{}:
		defer func() { <-c.Slots }()
	case <-c.Options.Live.Done():
		return c.Options.Live.Err()
	}
	v := c.Verify(io.NopCloser(stored{io.NewSectionReader(file, p.Start, p.Length)}), p.Length, p.Want, p.Item, nil)
	v.passed = func() { c.remember(key) }
	piece := make([]byte, decoders.Piece)
	for {
		switch _, err := v.Read(piece); {
		case err == io.EOF:
			return nil
		case errors.As(err, new(readError)):
			return err
		case err != nil:
			c.rememberBad(key)
			return ErrDamaged
		case c.Options.Live.Err() != nil:
			return c.Options.Live.Err()
		}
	}
}

// LocalFile returns the complete local file that the reader reads, or nil.
func LocalFile(reader io.Reader) *os.File {
	if local, ok := reader.(bytestore.LocalFile); ok {
		if _, growing := reader.(bytestore.GrowingFile); !growing {
			file, _ := local.Local()
			return file
		}
	}
	return nil
}

// versionOf returns the version of a local file, or of the object that info describes if file
// is nil. It is zero if unknown.
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
