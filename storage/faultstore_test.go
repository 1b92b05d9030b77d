package storage_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// errFault is the error of a failing store.
var errFault = errors.New("the storage has failed")

// crash is the panic that simulates a loss of power.
type crash struct{}

// faultStore is a directory store that fails at a step. Each call has one step before its
// work and one after.
type faultStore struct {
	*directory.Directory
	// mode says what happens at the step.
	mode faultMode

	mu    sync.Mutex
	steps int
	at    int // the step; negative for none
	// before is called before each step; nil for nothing. Its error becomes the call's.
	before func() error

	commits atomic.Int64 // begun so far
}

type faultMode int

const (
	once  faultMode = iota // this call fails, others work
	dead                   // this call and all later ones fail
	power                  // the program ends
)

func (m faultMode) String() string { return [...]string{"once", "dead", "power"}[m] }

// step is called before and after each call's work.
func (s *faultStore) step() error {
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	step := s.steps
	s.steps++
	if s.at < 0 || step < s.at || step > s.at && s.mode == once {
		return nil
	}
	if s.mode == power {
		panic(crash{})
	}
	return errFault
}

// around runs a call between two steps.
func (s *faultStore) around(work func() error) error {
	if err := s.step(); err != nil {
		return err
	}
	if err := work(); err != nil {
		return err
	}
	return s.step()
}

func (s *faultStore) Stat(ctx context.Context, name string) (info bytestore.Info, err error) {
	err = s.around(func() error { info, err = s.Directory.Stat(ctx, name); return err })
	return info, err
}

func (s *faultStore) Open(ctx context.Context, name string, offset, length int64) (r io.ReadCloser, info bytestore.Info, err error) {
	err = s.around(func() error { r, info, err = s.Directory.Open(ctx, name, offset, length); return err })
	return r, info, err
}

func (s *faultStore) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	return s.stage(func() (bytestore.Staged, error) { return s.Directory.Stage(ctx, name, from, size) })
}

func (s *faultStore) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	return s.stage(func() (bytestore.Staged, error) { return s.Directory.StageFile(ctx, name, file, size) })
}

func (s *faultStore) stage(work func() (bytestore.Staged, error)) (bytestore.Staged, error) {
	var staged bytestore.Staged
	err := s.around(func() (err error) { staged, err = work(); return err })
	if err != nil {
		if staged != nil {
			staged.Abort() // a failing store keeps nothing
		}
		return nil, err
	}
	return &faultStaged{staged, s}, nil
}

func (s *faultStore) Flush(ctx context.Context, name string) error {
	return s.around(func() error { return s.Directory.Flush(ctx, name) })
}

func (s *faultStore) Sync(ctx context.Context) error {
	return s.around(func() error { return s.Directory.Sync(ctx) })
}

func (s *faultStore) Remove(ctx context.Context, name string) error {
	return s.around(func() error { return s.Directory.Remove(ctx, name) })
}

func (s *faultStore) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return s.Directory.List(ctx)
}

type faultStaged struct {
	bytestore.Staged
	store *faultStore
}

func (s *faultStaged) Commit(ctx context.Context) error {
	s.store.commits.Add(1)
	return s.store.around(func() error { return s.Staged.Commit(ctx) })
}

func (s *faultStaged) CommitNew(ctx context.Context) error {
	return s.store.around(func() error { return s.Staged.CommitNew(ctx) })
}

func (s *faultStaged) Abort() {
	if s.store.mode == power {
		_ = s.store.step()
	}
	s.Staged.Abort()
}

// unwrap returns the directory store of a storage in these tests.
func unwrap(bytes bytestore.Store) *directory.Directory { return bytes.(*directory.Directory) }
