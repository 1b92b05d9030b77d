package scrub

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"nar-herder/storage/narcheck"
)

// decode is [Options.Decode] with the turns of [Scrubber.TakeTurns]: the decoder holds one while it
// computes, but not while it waits for memory or for the bytes.
func (s *Scrubber) decode(ctx context.Context, compression string, compressed io.Reader, size int64) (io.ReadCloser, error) {
	if s.turns == nil {
		return s.options.Decode(ctx, compression, compressed, size)
	}
	source := &turnless{Reader: compressed, turns: s.turns}
	decoder, err := s.options.Decode(ctx, compression, source, size)
	if err != nil {
		return nil, err
	}
	return &taking{decoder, source}, nil
}

// turnless is a reader that releases the turn, if the decoder has one, while it waits.
type turnless struct {
	io.Reader
	turns sync.Locker
	held  bool
}

func (t *turnless) Read(p []byte) (int, error) {
	if t.held {
		t.turns.Unlock()
		defer t.turns.Lock()
	}
	return t.Reader.Read(p)
}

// taking is a decoder that takes a turn for each read.
type taking struct {
	io.ReadCloser
	source *turnless
}

func (t *taking) Read(p []byte) (n int, err error) {
	t.source.turns.Lock()
	t.source.held = true
	defer func() {
		t.source.held = false
		t.source.turns.Unlock()
		if fault := recover(); fault != nil {
			n, err = 0, fmt.Errorf("%w: a fault of the decompressor, please report it: %v\n%s", narcheck.ErrUnreadable, fault, debug.Stack())
		}
	}()
	return t.ReadCloser.Read(p)
}
