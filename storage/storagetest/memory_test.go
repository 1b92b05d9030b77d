package storagetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/storagetest"
)

// memory is a store that keeps bytes in memory. It is the example of
// docs/adding-a-storage.md.
type memory struct {
	bytestore.Defaults
	mu    sync.Mutex
	files map[string]file
}

type file struct {
	content []byte
	modTime time.Time
}

func (f file) info(name string) bytestore.Info {
	size := int64(len(f.content))
	return bytestore.Info{Name: name, Size: size, Usage: size, ModTime: f.modTime}
}

// get returns the file with a name. Every error but fs.ErrNotExist means "unknown".
func (m *memory) get(ctx context.Context, name string) (file, error) {
	if err := ctx.Err(); err != nil {
		return file{}, err
	}
	if !fs.ValidPath(name) {
		return file{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.files[name]
	if !ok {
		return file{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

// Stat implements [bytestore.Store].
func (m *memory) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	f, err := m.get(ctx, name)
	if err != nil {
		return bytestore.Info{}, err
	}
	return f.info(name), nil
}

// Open implements [bytestore.Store].
func (m *memory) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	f, err := m.get(ctx, name)
	if err != nil {
		return nil, bytestore.Info{}, err
	}
	content := f.content[min(offset, int64(len(f.content))):]
	if length >= 0 {
		content = content[:min(length, int64(len(content)))]
	}
	return io.NopCloser(bytes.NewReader(content)), f.info(name), nil
}

// Stage implements [bytestore.Store].
func (m *memory) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !fs.ValidPath(name) || name == "." {
		return nil, &fs.PathError{Op: "stage", Path: name, Err: fs.ErrInvalid}
	}
	// Read one byte more, to detect too many.
	content, err := io.ReadAll(io.LimitReader(from, size+1))
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", name, err)
	}
	if int64(len(content)) != size {
		return nil, fmt.Errorf("stage %s: %w: want %d bytes", name, bytestore.ErrWrongSize, size)
	}
	return &staged{m: m, name: name, content: content}, nil
}

// Remove implements [bytestore.Store].
func (m *memory) Remove(ctx context.Context, name string) error {
	if !fs.ValidPath(name) {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrInvalid}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, name)
	return nil
}

// List implements [bytestore.Store].
func (m *memory) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		m.mu.Lock()
		files := maps.Clone(m.files)
		m.mu.Unlock()
		for name, f := range files {
			if err := ctx.Err(); err != nil {
				yield(bytestore.Info{}, err)
				return
			}
			if !yield(f.info(name), nil) {
				return
			}
		}
	}
}

// Flush implements [bytestore.Store].
func (m *memory) Flush(ctx context.Context, name string) error {
	_, err := m.Stat(ctx, name)
	return err
}

// Sync implements [bytestore.Store].
func (m *memory) Sync(ctx context.Context) error { return ctx.Err() }

// Probe implements [bytestore.Store].
func (m *memory) Probe(ctx context.Context) error { return ctx.Err() }

// String implements [bytestore.Store].
func (m *memory) String() string { return "memory" }

type staged struct {
	m       *memory
	name    string
	content []byte
	done    bool // committed
	aborted bool
}

// Commit implements [bytestore.Staged].
func (s *staged) Commit(ctx context.Context) error { return s.commit(ctx, true) }

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(ctx context.Context) error { return s.commit(ctx, false) }

func (s *staged) commit(ctx context.Context, replace bool) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	switch _, exists := s.m.files[s.name]; {
	case s.done:
		return nil
	case s.aborted:
		return errors.New("commit after abort")
	case ctx.Err() != nil:
		return ctx.Err()
	case exists && !replace:
		return &fs.PathError{Op: "commit", Path: s.name, Err: fs.ErrExist}
	}
	s.m.files[s.name] = file{s.content, time.Now()}
	s.done = true
	return nil
}

// Abort implements [bytestore.Staged].
func (s *staged) Abort() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.aborted = true
}

func newMemory() *memory { return &memory{files: map[string]file{}} }

func TestMemory(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) bytestore.Store { return newMemory() })
}

// TestImportToMemory imports an item into the store, serves its nar and removes it.
func TestImportToMemory(t *testing.T) {
	t.Parallel()
	const hash, content = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9", "the bytes of a nar"
	base := hash + "-greet-1.0"
	source := t.TempDir()
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 96\nReferences: \nURL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\n", base, 0, base, len(content))
	err := errors.Join(os.MkdirAll(filepath.Join(source, "nar/lzip"), 0o755),
		os.WriteFile(filepath.Join(source, "nar/lzip", base), []byte(content), 0o644),
		os.WriteFile(filepath.Join(source, hash+".narinfo"), []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "a.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	bytes := newMemory()
	s := storage.New(x, bytes, storage.Options{})
	err = importer.New(s).Import(t.Context(), []string{source}, importer.Options{}, func(i importer.Imported) {
		if i.Outcome != importer.Added {
			t.Errorf("import %s: %v, %v", i.File, i.Outcome, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	item, n, err := s.FileUnder(t.Context(), "nar/lzip/"+base)
	if err != nil {
		t.Fatal(err)
	}
	reader, _, err := s.OpenFile(t.Context(), item, n, 4, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if got, err := io.ReadAll(reader); err != nil || string(got) != "bytes" {
		t.Errorf("served %q, %v", got, err)
	}
	if _, err := s.Remove(t.Context(), item.Hash); err != nil {
		t.Error(err)
	}
	if left := slices.Collect(maps.Keys(bytes.files)); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}
