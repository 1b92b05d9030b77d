package transfer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/transfer"
)

// files are contents by name.
type files map[string]string

// name returns the name of the Nth item's nar.
func name(n int) string { return fmt.Sprintf("nar/%032d-item-%d", n, n) }

// some returns the nars of that many items.
func some(count int) files {
	made := make(files)
	for n := range count {
		made[name(n)] = fmt.Sprintf("the nar of item %d", n)
	}
	return made
}

// opened makes a directory with the files, and opens it.
func opened(t testing.TB, content files) (*directory.Directory, string) {
	t.Helper()
	// In memory if possible: otherwise most of the time is for flushing.
	where, err := os.MkdirTemp("/dev/shm", "nar-herder-test-")
	if err != nil {
		where = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(where) })
	for name, text := range content {
		file := filepath.Join(where, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := directory.Open(where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, where
}

// on returns all files of a directory.
func on(t testing.TB, where string) files {
	t.Helper()
	found := make(files)
	err := filepath.WalkDir(where, func(file string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		found[strings.TrimPrefix(file, where+"/")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func wantFiles(t testing.TB, where string, want files) {
	t.Helper()
	if got := on(t, where); !maps.Equal(got, want) {
		t.Errorf("%s has %q, want %q", where, got, want)
	}
}

// results are the outcomes by name.
type results struct {
	outcomes map[string]transfer.Outcome
	errs     map[string]error
}

// copied runs a copy.
func copied(t testing.TB, ctx context.Context, c *transfer.Copy) (results, transfer.Summary, error) {
	t.Helper()
	r := results{make(map[string]transfer.Outcome), make(map[string]error)}
	report := c.Report
	c.Report = func(result transfer.Result) {
		if _, twice := r.outcomes[result.Name]; twice {
			t.Errorf("%s was reported twice", result.Name)
		}
		r.outcomes[result.Name], r.errs[result.Name] = result.Outcome, result.Err
		bad := result.Outcome == transfer.Failed || result.Outcome == transfer.Wrong || result.Outcome == transfer.Differs
		if bad != (result.Err != nil) {
			t.Errorf("%s: %v, %v", result.Name, result.Outcome, result.Err)
		}
		if report != nil {
			report(result)
		}
	}
	summary, err := c.Run(ctx)
	total := int64(0)
	for _, count := range summary.Files {
		total += count
	}
	if total != int64(len(r.outcomes)) {
		t.Errorf("%d reports, but the summary is %+v", len(r.outcomes), summary)
	}
	return r, summary, err
}

// items are known by the names of their only files. The NarHash of each is the hash of its
// content.
type items map[string]*storage.Item

func (i items) FileUnder(_ context.Context, name string) (*storage.Item, int, error) {
	item, ok := i[name]
	switch {
	case !ok:
		return nil, -1, storage.ErrNotFound
	case item == nil:
		return nil, -1, errFault
	}
	return item, 0, nil
}

// itemsOf returns items with the files as their nars.
func itemsOf(t testing.TB, nars files) items {
	t.Helper()
	made := make(items)
	for name, text := range nars {
		made[name] = itemOf(t, name, "none", text, int64(len(text)))
	}
	return made
}

// itemOf returns an item with a stored file of that size.
func itemOf(t testing.TB, name, compression, nar string, size int64) *storage.Item {
	t.Helper()
	sum := sha256.Sum256([]byte(nar))
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nURL: %s\nCompression: %s\nFileSize: %d\nNarHash: %v\nNarSize: %d\nReferences: \n",
		filepath.Base(name), name, compression, size, narinfo.NarHash(sum[:]), len(nar))
	hash, err := narinfo.ParsePathHash(filepath.Base(name)[:narinfo.PathHashLen])
	if err != nil {
		t.Fatal(err)
	}
	item, err := storage.NewItem(&index.Item{Hash: hash, Text: []byte(text), Stored: 1})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// decode supports uncompressed files only.
func decode(_ context.Context, kind string, from io.Reader, _ int64) (io.ReadCloser, error) {
	if kind != "none" {
		return nil, fmt.Errorf("%w: %s", narcheck.ErrUnreadable, kind)
	}
	return io.NopCloser(from), nil
}

// errFault is the error of a failing store.
var errFault = errors.New("the storage has failed")

// hooked is a store with a hook before each call. An error of the hook is returned by the
// call.
type hooked struct {
	bytestore.Store
	hook func(call, name string) error

	mu    sync.Mutex
	calls map[string]int
}

func (h *hooked) call(call, name string) error {
	h.mu.Lock()
	if h.calls == nil {
		h.calls = make(map[string]int)
	}
	h.calls[call]++
	h.mu.Unlock()
	if h.hook == nil {
		return nil
	}
	return h.hook(call, name)
}

func (h *hooked) count(call string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[call]
}

func (h *hooked) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	if err := h.call("stat", name); err != nil {
		return bytestore.Info{}, err
	}
	return h.Store.Stat(ctx, name)
}

func (h *hooked) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if err := h.call("open", name); err != nil {
		return nil, bytestore.Info{}, err
	}
	body, info, err := h.Store.Open(ctx, name, offset, length)
	if err != nil {
		return nil, info, err
	}
	return &hookedReader{body, h, name}, info, nil
}

type hookedReader struct {
	io.ReadCloser
	*hooked
	name string
}

func (r *hookedReader) Read(p []byte) (int, error) {
	if err := r.call("read", r.name); err != nil {
		return 0, err
	}
	return r.ReadCloser.Read(p)
}

func (h *hooked) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if err := h.call("stage", name); err != nil {
		return nil, err
	}
	staged, err := h.Store.Stage(ctx, name, from, size)
	if err != nil {
		return nil, err
	}
	return &hookedStaged{staged, h, name}, nil
}

type hookedStaged struct {
	bytestore.Staged
	*hooked
	name string
}

func (s *hookedStaged) Commit(ctx context.Context) error {
	if err := s.call("commit", s.name); err != nil {
		return err
	}
	return s.Staged.Commit(ctx)
}

func (h *hooked) Flush(ctx context.Context, name string) error {
	if err := h.call("flush", name); err != nil {
		return err
	}
	return h.Store.Flush(ctx, name)
}

func (h *hooked) Sync(ctx context.Context) error {
	if err := errors.Join(ctx.Err(), h.call("sync", "")); err != nil {
		return err
	}
	return h.Store.Sync(ctx)
}

func (h *hooked) Probe(ctx context.Context) error {
	if err := h.call("probe", ""); err != nil {
		return err
	}
	return h.Store.Probe(ctx)
}

func (h *hooked) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if err := h.call("list", ""); err != nil {
			yield(bytestore.Info{}, err)
			return
		}
		for info, err := range h.Store.List(ctx) {
			if err == nil {
				if named := h.call("listed", info.Name); named != nil {
					err = named
				}
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// remote is a remote store.
type remote struct {
	*hooked
	concurrency int
}

func (d remote) IsRemote() bool { return true }

func (d remote) Concurrency() int { return d.concurrency }
