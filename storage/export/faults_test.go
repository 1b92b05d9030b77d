package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// errFault is the error of a failing step.
var errFault = errors.New("the disk has failed")

// crash is the panic that ends a run like a kill or a loss of power.
type crash struct{}

// faults counts steps, and makes one of them and all later ones fail.
type faults struct {
	at    int // the step that fails; none if negative
	once  bool
	power bool // crash instead of failing
	steps int
}

func (f *faults) step(string) error {
	step := f.steps
	f.steps++
	if f.at < 0 || step < f.at || f.once && step > f.at {
		return nil
	}
	if f.power {
		panic(crash{})
	}
	return errFault
}

// crashing exports, and reports whether the run has crashed.
func (p *place) crashing(change func(*Export)) (crashed bool, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			if _, ok := fault.(crash); !ok {
				panic(fault)
			}
			crashed = true
		}
	}()
	_, _, err = p.export(change)
	return false, err
}

// TestEveryStep: each step that changes the copy fails or is the last before a crash, while
// items are added, removed and changed. The copy never has a narinfo without its nar, and the
// next run completes it.
func TestEveryStep(t *testing.T) {
	t.Parallel()
	before := many(5)
	before[3].url = strings.Replace(before[3].nar(), "0-", "0%2D", 1) // two names
	after := many(7)[1:]
	after[0].note = "signed again"
	after[1].content, after[1].digit = strings.ToUpper(after[1].content), "1"
	after[2].content, after[2].digit = "another length", "1"

	top := memoryDir(t)
	p := placeIn(t, top)
	p.add(t, before...)
	for _, copies := range []bool{false, true} {
		old := filepath.Join(top, fmt.Sprintf("old-%v", copies))
		p.out = old
		p.exports(t, Summary{Added: 5}, func(e *Export) { e.Copy = copies })
	}
	p.remove(t, before[0])
	p.add(t, after...)

	for _, copies := range []bool{false, true} {
		for _, f := range []faults{{power: true}, {}, {once: true}} {
			for f.at = 0; ; f.at++ {
				when := fmt.Sprintf("copies %v, %+v", copies, f)
				p.out = filepath.Join(top, "run")
				if err := os.RemoveAll(p.out); err != nil {
					t.Fatal(err)
				}
				cloneLinks(t, filepath.Join(top, fmt.Sprintf("old-%v", copies)), p.out)
				f.steps = 0
				crashed, err := p.crashing(func(e *Export) { e.Copy, e.Delete, e.fault = copies, true, f.step })
				if f.power && err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				p.wantSound(t, when, before, after)
				reached := f.steps > f.at
				if f.power != crashed && reached {
					t.Errorf("%s: the run has not crashed", when)
				}
				if _, _, err := p.export(func(e *Export) { e.Copy, e.Delete = copies, true }); err != nil {
					t.Fatalf("%s: the next run: %v", when, err)
				}
				p.wantFiles(t, after...)
				if t.Failed() {
					t.Fatal(when)
				}
				if !reached {
					if f.at < 15 {
						t.Errorf("there are only %d steps", f.at)
					}
					break
				}
			}
		}
	}
}

// cloneLinks copies a copy with hard links of its nars.
func cloneLinks(t testing.TB, from, to string) {
	t.Helper()
	for name := range files(t, from) {
		target := filepath.Join(to, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.Link(filepath.Join(from, name), target)); err != nil {
			t.Fatal(err)
		}
	}
}

// memoryDir returns a directory in memory if possible, for many small runs.
func memoryDir(t testing.TB) string {
	t.Helper()
	name, err := os.MkdirTemp("/dev/shm", "nar-herder-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// TestFull: on a full disk, the copy stays consistent, and the next run completes it after
// space was freed. The copy is on another file system than the storage.
func TestFull(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := make([]fake, 40)
	for n := range items {
		items[n] = fake{n: n, content: strings.Repeat(fmt.Sprintf("nar %d\n", n), 5000)}
	}
	p.add(t, items...)
	mount := testfs.Small(t, 4<<20)
	p.out = filepath.Join(mount, "out")
	filler := filepath.Join(mount, "filler")
	if err := os.WriteFile(filler, make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	summary, _, err := p.export(nil)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), p.out) {
		t.Fatalf("full: %v", err)
	}
	if summary.Added == 0 || summary.Added == 40 || summary.Linked > 0 {
		t.Errorf("full: %+v", summary)
	}
	p.wantSound(t, "full", items)
	if _, err := os.Stat(filepath.Join(p.out, temporaryDirectory)); !os.IsNotExist(err) {
		t.Errorf("a temporary file is left: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	added := summary.Added
	p.exports(t, Summary{Added: 40 - added, Unchanged: added}, nil)
	p.wantFiles(t, items...)

	testfs.Freeze(t, mount)
	// Without changes, only temporary files are written.
	if _, _, err := p.export(nil); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), p.out) {
		t.Errorf("read-only: %v", err)
	}
	p.wantFiles(t, items...)
}

// hooked is a storage with a hook before each nar is opened.
type hooked struct {
	*directory.Directory
	before func(name string) error
}

func (h hooked) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if err := h.before(name); err != nil {
		return nil, bytestore.Info{}, err
	}
	return h.Directory.Open(ctx, name, offset, length)
}

func (p *place) hook(t testing.TB, before func(name string) error) {
	t.Helper()
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bytes.Close() })
	p.storage = storage.New(p.index, hooked{bytes, before}, storage.Options{})
}

// TestUnreadable: if nars are unreadable or missing in the storage, the rest is exported, and
// their old files are kept.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(6)
	p.add(t, items[:4]...)
	p.exports(t, Summary{Added: 4}, nil)
	p.add(t, items...)
	if err := errors.Join(os.Remove(filepath.Join(p.store, items[1].nar())), os.Truncate(filepath.Join(p.store, items[4].nar()), 1)); err != nil {
		t.Fatal(err)
	}
	p.hook(t, func(name string) error {
		if name == items[0].nar() || name == items[5].nar() {
			return &os.PathError{Op: "read", Path: name, Err: syscall.EIO}
		}
		return nil
	})
	results := p.exports(t, Summary{Unchanged: 2, Failed: 4}, func(e *Export) { e.Delete = true })
	for n, want := range map[int]string{0: "input/output error", 1: "index and storage disagree", 4: "index and storage disagree", 5: "input/output error"} {
		if text := errorOf(results, items[n]); !strings.Contains(text, want) {
			t.Errorf("item %d: %q, want %q", n, text, want)
		}
	}
	p.wantFiles(t, items[:4]...)
}

// TestShort: the storage returns fewer or more bytes than announced.
func TestShort(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(2)
	p.add(t, items...)
	p.hook(t, func(name string) error { return nil })
	p.storage = storage.New(p.index, lying{p.storageBytes(t), items[0].nar()}, storage.Options{})
	p.exports(t, Summary{Added: 1, Failed: 1}, nil)
	p.wantFiles(t, items[1])
}

func (p *place) storageBytes(t testing.TB) *directory.Directory {
	t.Helper()
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bytes.Close() })
	return bytes
}

// lying ends a nar early without an error, and is not a local file.
type lying struct {
	*directory.Directory
	name string
}

func (l lying) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	reader, info, err := l.Directory.Open(ctx, name, offset, length)
	if err != nil {
		return nil, info, err
	}
	most := info.Size
	if name == l.name {
		most--
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(reader, most), reader}, info, nil
}

// TestMeanwhile: items are removed and changed after their rows were read and before their
// nars are.
func TestMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(4)
	p.add(t, items...)
	changed := items[2]
	changed.content, changed.digit = "changed later", "1"
	done := make(map[string]bool)
	p.hook(t, func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		switch name {
		case items[1].nar():
			p.remove(t, items[1])
		case items[2].nar():
			p.add(t, changed)
		}
		return nil
	})
	p.exports(t, Summary{Added: 3}, nil)
	items[2] = changed
	p.wantFiles(t, items[0], items[2], items[3])
}

// TestCancelled: after a cancellation, complete items become visible.
func TestCancelled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(5)
	p.add(t, items...)
	ctx, cancel := context.WithCancel(t.Context())
	opened := 0
	p.hook(t, func(string) error {
		if opened++; opened == 3 {
			cancel()
		}
		return nil
	})
	e := &Export{Storage: p.storage, Copy: true}
	if summary, err := e.To(ctx, p.out); !errors.Is(err, context.Canceled) || summary.Added != 2 {
		t.Errorf("%+v, %v", summary, err)
	}
	p.wantSound(t, "cancelled", items)
	if got := files(t, p.out); len(got) != 5 {
		t.Errorf("there are %q", got)
	}
}

// TestLinksOut: nothing is written or deleted through symbolic links that lead out of the
// copy.
func TestLinksOut(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(3)
	p.add(t, items...)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	write(t, victim, "another program's")
	write(t, filepath.Join(outside, items[0].path().BaseName()), "another program's")
	if err := errors.Join(os.MkdirAll(p.out+"/nar/lzip", 0o755), os.Symlink(victim, filepath.Join(p.out, items[1].file())),
		os.Symlink(victim, filepath.Join(p.out, items[1].nar())), os.Symlink(outside, filepath.Join(p.out, temporaryDirectory)),
		os.Symlink(outside, filepath.Join(p.out, "nar/xz"))); err != nil {
		t.Fatal(err)
	}
	p.exports(t, Summary{Updated: 1, Added: 2}, func(e *Export) { e.Delete = true })
	if err := os.Remove(p.out + "/nar/xz"); err != nil {
		t.Error(err)
	}
	p.wantFiles(t, items...)

	// A directory instead of nar/lzip.
	if err := errors.Join(os.RemoveAll(p.out+"/nar/lzip"), os.Symlink(outside, p.out+"/nar/lzip")); err != nil {
		t.Fatal(err)
	}
	results := p.exports(t, Summary{Failed: 3}, func(e *Export) { e.Delete = true })
	if text := errorOf(results, items[0]); !strings.Contains(text, errLinkOut.Error()) {
		t.Errorf("%q", text)
	}
	if got := files(t, outside); len(got) != 2 || got["victim"] != "another program's" || got[items[0].path().BaseName()] != "another program's" {
		t.Errorf("outside: %q", got)
	}
}

// TestTwoRuns: a second run is refused, and removes temporary files of a killed one.
func TestTwoRuns(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(2)
	p.add(t, items...)
	write(t, filepath.Join(p.out, temporaryDirectory, "1"), "half of a nar")
	write(t, filepath.Join(p.out, temporaryDirectory, "x/y"), "what?")
	tried := false
	p.exports(t, Summary{Added: 2}, func(e *Export) {
		e.fault = func(string) error {
			if !tried {
				tried = true
				if _, _, err := p.export(nil); err == nil || !strings.Contains(err.Error(), "another export") {
					t.Errorf("a second run: %v", err)
				}
			}
			return nil
		}
	})
	p.wantFiles(t, items...)
}

// TestUnwritable has unwritable directories.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(2)
	p.add(t, items...)
	p.exports(t, Summary{Added: 2}, nil)
	out := p.out
	p.out = testfs.ReadOnly(t, out)
	p.exports(t, Summary{Unchanged: 2}, func(e *Export) { e.DryRun = true })
	if _, _, err := p.export(nil); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
	p.out = filepath.Join(out, items[0].file())
	if _, _, err := p.export(nil); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file instead of the directory: %v", err)
	}
}

// TestOrder: files are flushed before a change that depends on them.
func TestOrder(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(3)
	p.add(t, items...)
	var steps []string
	record := func(e *Export) {
		steps = nil
		e.Delete, e.fault = true, func(step string) error {
			steps = append(steps, step)
			return nil
		}
	}
	// Names of narinfos begin with the zeros of the hashes.
	ordered := func(what, first, last string) {
		t.Helper()
		left, flushed := false, false
		for _, step := range steps {
			switch {
			case strings.HasPrefix(step, first):
				left, flushed = true, false
			case step == "sync":
				flushed = true
			case strings.HasPrefix(step, last) && (!left || !flushed):
				t.Errorf("%s: %q before the flush in %q", what, step, steps)
			}
		}
		if !left {
			t.Errorf("%s: no %q in %q", what, first, steps)
		}
	}
	p.exports(t, Summary{Added: 3}, record)
	ordered("new items", "rename nar/", "rename 0")
	p.remove(t, items[1])
	p.exports(t, Summary{Unchanged: 2, StaleNarinfos: 1, StaleNars: 1}, record)
	ordered("a removed item", "remove 0", "remove nar/")
	items[0].content, items[0].digit = "other", "1"
	p.add(t, items[0])
	p.exports(t, Summary{Unchanged: 1, Updated: 1}, record)
	ordered("another nar: the old narinfo", "remove 0", "rename nar/")
	ordered("another nar: the new narinfo", "rename nar/", "rename 0")
}
