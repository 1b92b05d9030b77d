package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/narcheck"
)

// operation is an operation that may be interrupted at any step.
type operation struct {
	name   string
	before []fake // known and stored
	lay    []fake // put into the source directory
	strays []fake // with nars in the storage already
	do     func(s *storage.Storage, source string) error
	after  []fake // served after success
	gone   []fake // unknown after success
	// copies says that the source must keep all its nars.
	copies bool
}

// adding is an operation that imports a directory, item by item.
func adding(options importer.Options, items ...fake) func(*storage.Storage, string) error {
	return func(s *storage.Storage, source string) error {
		for _, f := range items {
			r := importer.New(s).Add(context.Background(), &importer.Addition{
				Narinfo: f.parsed(), Directories: []string{source},
				Keep: options.Keep, Replace: options.Replace, WithReferences: options.WithReferences, Decode: options.Decode,
			})
			if r.Outcome == importer.Failed {
				return r.Err
			}
		}
		return nil
	}
}

// importing imports the directory at once.
func importing(options importer.Options) func(*storage.Storage, string) error {
	return func(s *storage.Storage, source string) error {
		var failures []error
		err := importer.New(s).Import(context.Background(), []string{source}, options, func(i importer.Imported) {
			if i.Outcome == importer.Failed {
				failures = append(failures, i.Err)
			}
		})
		return errors.Join(append(failures, err)...)
	}
}

func removing(items ...fake) func(*storage.Storage, string) error {
	return func(s *storage.Storage, _ string) error {
		for _, f := range items {
			if _, err := s.Remove(context.Background(), f.hash()); err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
		}
		return nil
	}
}

// removingAll removes items in one batch.
func removingAll(items ...fake) func(*storage.Storage, string) error {
	return func(s *storage.Storage, _ string) error {
		removals, err := s.RemoveAll(context.Background(), hashesOf(items), nil)
		for _, r := range removals {
			if !errors.Is(r.Err, storage.ErrNotFound) {
				err = errors.Join(err, r.Err)
			}
		}
		return err
	}
}

// withdrawing withdraws items, and removes them after their grace period.
func withdrawing(items ...fake) func(*storage.Storage, string) error {
	return func(s *storage.Storage, _ string) error {
		if _, err := s.WithdrawAll(context.Background(), hashesOf(items), nil); err != nil {
			return err
		}
		_, err := deletion.RemoveWithdrawn(context.Background(), s, time.Now().Add(48*time.Hour))
		return err
	}
}

func operations() []operation {
	one := fake{n: 1, content: "the first nar", nar: "nar 1"}
	signed := fake{n: 1, content: one.content, note: "new", nar: one.nar}
	two := fake{n: 2, content: "the second", nar: "nar 2"}
	three := fake{n: 3, content: "stays", nar: "nar 3"}
	both := fake{n: 1, content: "the first nar", nar: one.nar, note: "both", extra: []fake{{kind: "zstd", content: "zstd nar"}}}
	smaller := fake{n: 1, content: "first", nar: one.nar, note: "smaller"}
	zstd := fake{n: 1, content: "zstd nar", nar: one.nar, kind: "zstd"}
	rebuilt := fake{n: 1, content: "another, longer nar", nar: "rebuilt 1"}
	sameSize := fake{n: 1, content: "THE FIRST NAR", nar: "rebuilt 1"}
	rebuiltBoth := fake{n: 1, content: "another nar", nar: "rebuilt 1", extra: []fake{{kind: "zstd", content: "another zstd nar"}}}
	keep := importer.Options{Keep: true}
	move := importer.Options{}
	replace := importer.Options{Replace: true}
	verify := importer.Options{Decode: decode}
	verifyCopy := importer.Options{Decode: decode, Keep: true}
	right := fake{n: 1, nar: "a nar", kind: "none", content: "a nar"}
	rightBoth := right
	rightBoth.note, rightBoth.extra = "both", []fake{{url: "nar/NONE/" + right.path().BaseName(), kind: "none", content: "a nar"}}
	return []operation{
		{name: "add", lay: []fake{one}, do: adding(move, one), after: []fake{one}},
		{name: "add a copy", lay: []fake{one}, do: adding(keep, one), after: []fake{one}, copies: true},
		{name: "add two files", lay: []fake{both}, do: adding(move, both), after: []fake{both}},
		{name: "add a stored file", strays: []fake{one}, do: adding(move, one), after: []fake{one}},
		{name: "add two items", lay: []fake{one, two}, do: adding(move, one, two), after: []fake{one, two}},
		{name: "update the text", before: []fake{one}, lay: []fake{signed},
			do: adding(move, signed), after: []fake{signed}},
		{name: "update to another size", before: []fake{one}, lay: []fake{smaller}, do: adding(move, smaller), after: []fake{smaller}},
		{name: "update with another file", before: []fake{one}, lay: []fake{both}, do: adding(move, both), after: []fake{both}},
		{name: "update to another compression", before: []fake{one}, lay: []fake{zstd}, do: adding(move, zstd), after: []fake{zstd}},
		{name: "replace", before: []fake{one}, lay: []fake{rebuilt}, do: adding(replace, rebuilt), after: []fake{rebuilt}},
		{name: "replace by one as long", before: []fake{one}, lay: []fake{sameSize}, do: adding(replace, sameSize), after: []fake{sameSize}},
		{name: "replace two files", before: []fake{both}, lay: []fake{rebuiltBoth}, do: adding(replace, rebuiltBoth), after: []fake{rebuiltBoth}},
		{name: "replace two files by one", before: []fake{both}, lay: []fake{rebuilt}, do: adding(replace, rebuilt), after: []fake{rebuilt}},
		{name: "verify and add", lay: []fake{right}, do: adding(verify, right), after: []fake{right}},
		{name: "verify and add a copy", lay: []fake{right}, do: adding(verifyCopy, right), after: []fake{right}, copies: true},
		{name: "verify a stored file", strays: []fake{right}, do: adding(verify, right), after: []fake{right}},
		{name: "verify another file", before: []fake{right}, lay: []fake{rightBoth}, do: adding(verify, rightBoth), after: []fake{rightBoth}},
		{name: "verify and replace", before: []fake{rebuilt}, lay: []fake{right}, do: adding(importer.Options{Replace: true, Decode: decode}, right), after: []fake{right}},
		{name: "remove", before: []fake{one, two}, do: removing(one), after: []fake{two}, gone: []fake{one}},
		{name: "remove two files", before: []fake{both}, do: removing(both), gone: []fake{both}},
		{name: "remove a batch", before: []fake{both, two, three}, do: removingAll(two, both), after: []fake{three}, gone: []fake{both, two}},
		{name: "withdraw and remove", before: []fake{both, two, three}, do: withdrawing(both, two), after: []fake{three}, gone: []fake{both, two}},
	}
}

// TestCrashes interrupts each operation at each step, in each way, checks the state, and
// repeats the operation.
func TestCrashes(t *testing.T) {
	t.Parallel()
	for i, op := range operations() {
		for _, mode := range []faultMode{power, once, dead} {
			t.Run(op.name+"/"+mode.String(), func(t *testing.T) {
				t.Parallel()
				for at := (i + int(mode)) % stride; crashAt(t, op, mode, at); at += stride {
					if at > 500 {
						t.Fatal("it has no end")
					}
				}
			})
		}
	}
}

// TestImportFaults is the same for imports of many items, which share a transaction,
// without crashes, which would end other goroutines.
func TestImportFaults(t *testing.T) {
	t.Parallel()
	var items, rebuilt []fake
	for n := range 3 {
		items = append(items, fake{n: n, content: fmt.Sprint("nar ", n), nar: fmt.Sprint(n)})
		rebuilt = append(rebuilt, fake{n: n, content: fmt.Sprint("another nar ", n), nar: fmt.Sprint("another ", n)})
	}
	for _, op := range []operation{
		{name: "import", lay: items, do: importing(importer.Options{}), after: items},
		{name: "replace", before: items, lay: rebuilt, do: importing(importer.Options{Replace: true}), after: rebuilt},
	} {
		for _, mode := range []faultMode{once, dead} {
			t.Run(op.name+"/"+mode.String(), func(t *testing.T) {
				t.Parallel()
				for at := 0; crashAt(t, op, mode, at); at += stride {
				}
			})
		}
	}
}

// TestOneFault: one failing call costs at most one item of an import.
func TestOneFault(t *testing.T) {
	t.Parallel()
	items := many(4, nil)
	for at, reached := 0, true; reached; at += stride {
		p := memoryPlace(t)
		faulty := &faultStore{mode: once, at: at}
		s, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
			faulty.Directory = unwrap(bytes)
			return faulty
		})
		if err != nil {
			t.Fatal(err)
		}
		results := importAll(t, s, importer.Options{Keep: true}, laid(t, items...))
		reached, faulty.at = faulty.steps > at, -1
		failed := 0
		for _, r := range results {
			if r.Outcome == importer.Failed {
				failed++
			}
		}
		if failed > 1 || len(results) != len(items) {
			t.Errorf("a fault at step %d: %s", at, outcomes(results))
		}
		wantOnlyUnreferenced(t, s)
		if err := closeAll(); err != nil {
			t.Error(err)
		}
	}
}

// crashAt performs the operation with a fault at a step, and returns false if it has fewer
// steps.
func crashAt(t *testing.T, op operation, mode faultMode, at int) (reached bool) {
	t.Helper()
	p := memoryPlace(t)
	top := filepath.Dir(p.database)
	source := filepath.Join(top, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	lay(t, source, op.lay...)
	layNars(t, p.store, op.strays...)
	faulty := &faultStore{mode: mode, at: -1}
	s, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range op.before {
		before := filepath.Join(top, "before", fmt.Sprint(f.n))
		lay(t, before, f)
		wantOutcomes(t, importAll(t, s, importer.Options{}, before), "1 added")
	}
	faulty.mu.Lock()
	faulty.steps, faulty.at = 0, at
	faulty.mu.Unlock()
	commits := faulty.commits.Load()
	crashed, err := try(func() error { return op.do(s, source) })
	reached = faulty.steps > at
	where := fmt.Sprintf("%s, %v at step %d (%v)", op.name, mode, at, err)
	if err := closeAll(); err != nil {
		t.Errorf("%s: close: %v", where, err)
	}
	if crashed != (reached && mode == power) {
		t.Fatalf("%s: crashed %v, reached %v", where, crashed, reached)
	}

	// The rest runs as another process.
	now := time.Now()
	s, closeAll, err = p.openWhen(nil, func() time.Time { return now })
	if err != nil {
		t.Fatalf("%s: reopen: %v", where, err)
	}
	defer func() {
		if err := closeAll(); err != nil {
			t.Errorf("%s: close: %v", where, err)
		}
	}()
	for _, finding := range findings(t, s) {
		switch kind, _, _ := strings.Cut(finding, " "); kind {
		case "stranger", "unrecorded":
		case "temporary":
			if mode == once {
				t.Errorf("%s: a temporary file is left, although all worked again", where)
			}
		default:
			t.Errorf("%s: check finds %q", where, finding)
		}
	}
	// What was not replaced is served: at once if the replacement had not begun,
	// otherwise after the server has compared the file.
	if !crashed && faulty.commits.Load() == commits {
		wantIntact(t, where+", at once", p, s, op)
	}
	now = now.Add(time.Hour)
	if err := replacing.Resolve(t.Context(), s, decodeFakes(op)); err != nil {
		t.Errorf("%s: resolve: %v", where, err)
	}
	wantIntact(t, where, p, s, op)
	for _, f := range op.lay {
		for _, file := range f.files() {
			inSource := has(filepath.Join(source, file.name()), file.content)
			inStore := has(filepath.Join(p.store, file.name()), file.content)
			if !inSource && (op.copies || !inStore) {
				t.Errorf("%s: the nar %s is lost", where, file.name())
			}
		}
	}
	// A served item is one from before or after the operation.
	known := append(append([]fake{}, op.before...), op.lay...)
	known = append(known, op.strays...)
	for item, err := range s.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		fits := false
		for _, f := range known {
			if f.text() != string(item.Text) {
				continue
			}
			fits = true
			for n, file := range f.files() {
				if content, err := stored(s, item.Hash, n); err == nil && content != file.content {
					t.Errorf("%s: %s is served with %q", where, file.name(), content)
				} else if err != nil && !errors.Is(err, storage.ErrNotStored) {
					t.Errorf("%s: %v", where, err)
				}
			}
		}
		if !fits {
			t.Errorf("%s: an item has the text %q", where, item.Text)
		}
	}

	// After a repetition, everything is right.
	if err := op.do(s, source); err != nil {
		t.Errorf("%s: once more: %v", where, err)
	}
	for _, f := range op.after {
		wantServed(t, s, f)
	}
	for _, f := range op.gone {
		if _, err := s.Text(t.Context(), f.hash()); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: item %d: %v", where, f.n, err)
		}
	}
	for _, finding := range findings(t, s) {
		if kind, _, _ := strings.Cut(finding, " "); kind != "stranger" && kind != "temporary" {
			t.Errorf("%s: after doing it again, check finds %q", where, finding)
		}
	}
	if t.Failed() {
		t.Logf("%s: that was it", where)
		return false
	}
	return reached
}

// wantIntact asserts that files of items from before the operation are served if they still
// exist and the item has its old narinfo.
func wantIntact(t *testing.T, where string, p place, s *storage.Storage, op operation) {
	t.Helper()
	for _, f := range op.before {
		if text, err := s.Text(t.Context(), f.hash()); err != nil || string(text) != f.text() {
			continue // it was removed or replaced
		}
		for n, file := range f.files() {
			if !has(filepath.Join(p.store, file.name()), file.content) {
				continue
			}
			if content, err := stored(s, f.hash(), n); err != nil || content != file.content {
				t.Errorf("%s: %s is there, and not served: %q, %v", where, file.name(), content, err)
			}
		}
	}
}

// decodeFakes decodes the files of an operation's items.
func decodeFakes(op operation) narcheck.Decoder {
	nars := make(map[string]string)
	for _, f := range slices.Concat(op.before, op.lay, op.strays) {
		for _, file := range f.files() {
			nars[file.content] = f.nar
		}
	}
	return func(_ context.Context, _ string, from io.Reader, _ int64) (io.ReadCloser, error) {
		content, err := io.ReadAll(from)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader(nars[string(content)])), nil
	}
}

// try calls f, and reports whether it ended in a crash.
func try(f func() error) (crashed bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			crashed = true
		}
	}()
	return false, f()
}
