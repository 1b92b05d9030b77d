// Package testlog provides a buffer for logs and output of processes, which tests can read while
// it is written.
package testlog

import (
	"bytes"
	"sync"
)

// Buffer is an [io.Writer] for several goroutines. The zero value is ready.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements [io.Writer].
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
