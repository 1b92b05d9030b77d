package cached

import (
	"errors"
	"fmt"
	"sync"
)

// errNoRoom is the error for a file that would exceed the limit of its directory.
var errNoRoom = errors.New("the directory's limit would be exceeded")

// space counts the disk space of a directory, in whole blocks.
type space struct {
	max int64 // negative for no limit

	mu      sync.Mutex
	used    int64 // by files
	writing int64 // reserved for files that are being written
}

// blockSize is the block size of most file systems.
const blockSize = 4096

func (s *space) set(used int64) {
	s.mu.Lock()
	s.used = used
	s.mu.Unlock()
}

func (s *space) free(n int64) {
	s.mu.Lock()
	s.used = max(s.used-n, 0)
	s.mu.Unlock()
}

func (s *space) usage() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used + s.writing
}

// reservation is space for a file that is being written.
type reservation struct {
	space *space
	size  int64
}

// grow makes the reservation at least that large.
func (r *reservation) grow(size int64) error {
	size = (size + blockSize - 1) / blockSize * blockSize
	s := r.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if size <= r.size {
		return nil
	}
	if s.max >= 0 && s.used+s.writing+size-r.size > s.max {
		return fmt.Errorf("%w: %d of %d bytes are used, and at least %d more are needed", errNoRoom, s.used+s.writing-r.size, s.max, size)
	}
	s.writing += size - r.size
	r.size = size
	return nil
}

// keep turns the reservation into the usage of a finished file.
func (r *reservation) keep(usage int64) {
	s := r.space
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing -= r.size
	s.used += usage
	r.size = 0
}

// drop releases the space, unless keep was called.
func (r *reservation) drop() { r.keep(0) }
