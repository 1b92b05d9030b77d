package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"nar-herder/storage/bytestore"
	"slices"
	"strings"
	"testing"
)

func testAbsent(t *testing.T, s bytestore.Store) {
	for _, name := range names {
		wantAbsent(t, s, name)
	}
	put(t, s, name, []byte("here"))
	// Names similar to one that exists.
	for _, absent := range []string{"nar", "nar/lzip", name + "x", name[:len(name)-1], name + "/below", "nar/lzip/" + strings.ToUpper(name[9:])} {
		wantAbsent(t, s, absent)
	}
	wantNothingLeft(t, s, name)
}

func testRoundTrip(t *testing.T, s bytestore.Store) {
	sizes := []int{0, 1, 7, 4095, 4096, 4097, 64<<10 + 1, 3<<20 + 11}
	for i, size := range sizes {
		content := random(size, byte(i))
		put(t, s, names[i], content)
		wantContent(t, s, names[i], content)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("sync: %v", err)
	}
	wantNothingLeft(t, s, names[:len(sizes)]...)
}

func testNames(t *testing.T, s bytestore.Store) {
	for i, name := range names {
		put(t, s, name, random(100+i, byte(i)))
	}
	for i, name := range names {
		wantContent(t, s, name, random(100+i, byte(i)))
	}
	want := slices.Sorted(slices.Values(names))
	if got := list(t, s); !slices.Equal(got, want) {
		t.Errorf("List has %q, want %q", got, want)
	}
	for i, name := range names {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
		wantAbsent(t, s, name)
		if i+1 < len(names) {
			wantContent(t, s, names[i+1], random(100+i+1, byte(i+1)))
		}
	}
	wantNothingLeft(t, s)
}

// testInvalidNames: nothing can be stored or found under an invalid name.
func testInvalidNames(t *testing.T, s bytestore.Store) {
	put(t, s, "a/b", []byte("b"))
	put(t, s, "b", []byte("b"))
	for _, invalid := range []string{"", ".", "..", "/", "/b", "../b", "../x", "a/../b", "a/./b", "a//b", "./b", "b/", "a/..", "a/../../b"} {
		if staged, err := s.Stage(t.Context(), invalid, strings.NewReader("evil"), 4); err == nil {
			t.Errorf("Stage accepted the name %q", invalid)
			staged.Abort()
		}
		if info, err := s.Stat(t.Context(), invalid); err == nil {
			t.Errorf("Stat of %q: %+v", invalid, info)
		}
		if reader, _, err := s.Open(t.Context(), invalid, 0, -1); err == nil {
			t.Errorf("Open of %q succeeds", invalid)
			reader.Close()
		}
		if err := s.Flush(t.Context(), invalid); err == nil {
			t.Errorf("Flush of %q succeeds", invalid)
		}
		_ = s.Remove(t.Context(), invalid) // it may fail, but removes nothing
	}
	wantContent(t, s, "a/b", []byte("b"))
	wantContent(t, s, "b", []byte("b"))
	wantNothingLeft(t, s, "a/b", "b")
}

func testRanges(t *testing.T, s bytestore.Store) {
	content := random(10_000, 1)
	size := int64(len(content))
	put(t, s, name, content)
	for _, r := range []struct{ offset, length int64 }{
		{0, -1}, {0, 0}, {0, 1}, {0, size}, {0, size + 1},
		{1, -1}, {1, 1}, {1, 0}, {4096, 4096}, {9999, 1}, {9999, -1}, {9999, 5},
		{size, -1}, {size, 0}, {size, 1},
		{size + 1, -1}, {size + 1, 0}, {size + 1, 1}, {1 << 40, 10},
	} {
		from := min(r.offset, size)
		to := size
		if r.length >= 0 {
			to = min(size, from+r.length)
		}
		got, info := read(t, s, name, r.offset, r.length)
		if !bytes.Equal(got, content[from:to]) {
			t.Errorf("%d bytes at %d: %s, want %s", r.length, r.offset, show(got), show(content[from:to]))
		}
		if info.Size != size {
			t.Errorf("%d bytes at %d: the size is %d, want that of the whole, %d", r.length, r.offset, info.Size, size)
		}
	}
	put(t, s, names[1], nil)
	for _, r := range [][2]int64{{0, -1}, {0, 0}, {0, 5}, {1, -1}} {
		if got, info := read(t, s, names[1], r[0], r[1]); len(got) != 0 || info.Size != 0 {
			t.Errorf("%d bytes at %d of empty content: %s, %+v", r[1], r[0], show(got), info)
		}
	}
}

func testReplace(t *testing.T, s bytestore.Store) {
	// Longer, shorter, as long, empty.
	for i, size := range []int{100, 5000, 10, 10, 0, 300} {
		content := random(size, byte(i))
		put(t, s, name, content)
		wantContent(t, s, name, content)
	}
	wantNothingLeft(t, s, name)
}

// testReplaceWhileOpen: a reader returns the old content to its end.
func testReplaceWhileOpen(t *testing.T, s bytestore.Store) {
	before, after := random(2<<20, 1), random(1<<20, 2)
	put(t, s, name, before)
	reader, _, err := s.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	half := make([]byte, len(before)/2)
	if _, err := io.ReadFull(reader, half); err != nil {
		t.Fatal(err)
	}
	put(t, s, name, after)
	rest, err := io.ReadAll(reader)
	if got := append(half, rest...); err != nil || !bytes.Equal(got, before) {
		t.Errorf("read while it was replaced: %s, %v; want %s", show(got), err, show(before))
	}
	wantContent(t, s, name, after)
}

func testRemove(t *testing.T, s bytestore.Store) {
	for _, name := range names {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("remove %s, which doesn't exist: %v", name, err)
		}
	}
	put(t, s, name, []byte("one"))
	put(t, s, names[1], []byte("two"))
	for range 2 {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("sync after remove: %v", err)
	}
	wantAbsent(t, s, name)
	wantContent(t, s, names[1], []byte("two"))
	put(t, s, name, []byte("again"))
	wantContent(t, s, name, []byte("again"))
}

func testRemoveWhileOpen(t *testing.T, s bytestore.Store) {
	content := random(1<<20, 3)
	put(t, s, name, content)
	reader, _, err := s.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := s.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, s, name)
	// All of it or an error, but never an early EOF.
	if got, err := io.ReadAll(reader); err == nil && !bytes.Equal(got, content) {
		t.Errorf("read while it was removed: %s without an error, want %s", show(got), show(content))
	}
}

func testList(t *testing.T, s bytestore.Store) {
	if got := list(t, s); len(got) != 0 {
		t.Errorf("an empty store lists %q", got)
	}
	wantNothingLeft(t, s)
	sizes := map[string]int64{}
	for i, name := range names {
		put(t, s, name, random(1000*i, byte(i)))
		sizes[name] = int64(1000 * i)
	}
	seen := map[string]bool{}
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		size, ok := sizes[info.Name]
		if !ok || seen[info.Name] || info.Size != size || info.Temporary || info.ModTime.IsZero() {
			t.Errorf("List yields %+v, want each name once, with its size", info)
		}
		if info.Size >= 1000 && info.Usage == 0 {
			t.Errorf("List yields %+v: %d bytes use no space", info, info.Size)
		}
		seen[info.Name] = true
	}
	if len(seen) != len(names) {
		t.Errorf("List yields %d names, want %d", len(seen), len(names))
	}
	// Staged content is listed as temporary, or not at all.
	stage(t, s, names[0]+"-new", []byte("staged"), func(staged bytestore.Staged) {
		for info, err := range s.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if sizes[info.Name] == 0 && !info.Temporary && !seen[info.Name] {
				t.Errorf("List yields %+v although it is only staged", info)
			}
		}
		staged.Abort()
	})
	wantNothingLeft(t, s, names...)
}

func testListStopped(t *testing.T, s bytestore.Store) {
	for _, name := range names {
		put(t, s, name, nil)
	}
	for stop := range len(names) {
		n := 0
		for _, err := range s.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n > stop {
				break
			}
		}
		if n != stop+1 {
			t.Errorf("List yielded %d names, want %d", n, stop+1)
		}
	}
}

// testListWhileRemoving: a removal during List is not an error.
func testListWhileRemoving(t *testing.T, s bytestore.Store) {
	for _, name := range names {
		put(t, s, name, nil)
	}
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("list while removing: %v", err)
		}
		_ = info
		for _, name := range names {
			if err := s.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantNothingLeft(t, s)
}

func testFlushSyncProbe(t *testing.T, s bytestore.Store) {
	ctx := t.Context()
	if s.String() == "" {
		t.Error("String is empty")
	}
	for range 2 {
		if err := errors.Join(s.Probe(ctx), s.Sync(ctx)); err != nil {
			t.Errorf("an empty store: %v", err)
		}
	}
	wantNothingLeft(t, s)
	put(t, s, name, []byte("x"))
	if err := errors.Join(s.Flush(ctx, name), s.Sync(ctx), s.Probe(ctx), s.Sync(ctx)); err != nil {
		t.Error(err)
	}
	if err := s.Flush(ctx, names[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Flush of a missing name: %v, want fs.ErrNotExist", err)
	}
	wantNothingLeft(t, s, name)
	wantContent(t, s, name, []byte("x"))
}

// testCancelled: with a cancelled context, a call succeeds completely or returns the
// context's error, never fs.ErrNotExist.
func testCancelled(t *testing.T, s bytestore.Store) {
	put(t, s, name, []byte("content"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(what string, err error) {
		t.Helper()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v, want context.Canceled", what, err)
		}
	}
	_, err := s.Stat(ctx, name)
	check("Stat", err)
	reader, _, err := s.Open(ctx, name, 0, -1)
	check("Open", err)
	if err == nil {
		reader.Close()
	}
	check("Flush", s.Flush(ctx, name))
	check("Sync", s.Sync(ctx))
	check("Probe", s.Probe(ctx))
	var over error
	for info, err := range s.List(ctx) {
		check("List", err)
		if over != nil {
			t.Errorf("List yields %+v after it has ended with %v", info, over)
		}
		if err != nil && info.Name == "" {
			over = err
		}
	}
	staged, err := s.Stage(ctx, names[1], strings.NewReader("content"), 7)
	check("Stage", err)
	if err == nil {
		err := staged.Commit(ctx)
		check("Commit", err)
		if err == nil {
			wantContent(t, s, names[1], []byte("content"))
		} else {
			wantAbsent(t, s, names[1])
			staged.Abort()
		}
	}
	// Abort has no context.
	stage(t, s, names[2], []byte("content"), func(staged bytestore.Staged) {
		err := staged.Commit(ctx)
		check("Commit", err)
		staged.Abort()
		if err != nil {
			wantAbsent(t, s, names[2])
		}
	})
	err = s.Remove(ctx, name)
	check("Remove", err)
	if err == nil {
		wantAbsent(t, s, name)
	} else {
		wantContent(t, s, name, []byte("content"))
	}
	wantNothingLeft(t, s, names...)
}
