// Package storagetest has the tests that every [bytestore.Store] must pass:
// one for each promise that the interface makes. It assumes nothing about how
// a store keeps its bytes.
package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"nar-herder/storage/bytestore"
	"slices"
	"strings"
	"testing"
)

// CommitNewAtOnce is the test that of several CommitNew at once one alone succeeds,
// which takes a server that knows conditional uploads.
const CommitNewAtOnce = "CommitNewAtOnce"

// Run tests stores that open makes: each time an empty one of its own, which
// open closes at the test's end. The tests named in except are left out, for stores
// that don't promise as much, such as [CommitNewAtOnce].
func Run(t *testing.T, open func(t *testing.T) bytestore.Store, except ...string) {
	tests := []struct {
		name string
		test func(*testing.T, bytestore.Store)
	}{
		{"Absent", testAbsent},
		{"RoundTrip", testRoundTrip},
		{"Names", testNames},
		{"InvalidNames", testInvalidNames},
		{"Ranges", testRanges},
		{"StagedIsInvisible", testStagedIsInvisible},
		{"WrongSize", testWrongSize},
		{"FailingSource", testFailingSource},
		{"Replace", testReplace},
		{"ReplaceWhileOpen", testReplaceWhileOpen},
		{"CommitTwice", testCommitTwice},
		{"CommitNew", testCommitNew},
		{CommitNewAtOnce, testCommitNewAtOnce},
		{"Abort", testAbort},
		{"AbortAfterCommit", testAbortAfterCommit},
		{"StageTwice", testStageTwice},
		{"ConcurrentStages", testConcurrentStages},
		{"ConcurrentReadersAndWriters", testConcurrentReadersAndWriters},
		{"Remove", testRemove},
		{"RemoveWhileOpen", testRemoveWhileOpen},
		{"List", testList},
		{"ListStopped", testListStopped},
		{"ListWhileRemoving", testListWhileRemoving},
		{"FlushSyncProbe", testFlushSyncProbe},
		{"Cancelled", testCancelled},
		{"StageFile", testStageFile},
		{"StageFileWrongSize", testStageFileWrongSize},
		{"StageFileAbort", testStageFileAbort},
		{"StageFileReplace", testStageFileReplace},
		{"StageFileUnusable", testStageFileUnusable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if slices.Contains(except, test.name) {
				t.Skip("this store doesn't promise it")
			}
			t.Parallel()
			test.test(t, open(t))
		})
	}
}

// name is one that most tests use.
const name = "nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"

// names are such as there are in real storages.
var names = []string{
	name,
	"nar/g699dxrv55xnrdq6z90qwfmsgz16p3xg-hello-2.10.tar.gz",
	"nar/lzip/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z",
	"nar/zstd/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z",
	"nar/lzip/mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk+-2.24.33-doc",
	"nar/gzip/f7d5xvkf9s1mdnclid1kqndn30nim936-100%25-percent%",
	"nar/gzip/f7d5xvkf9s1mdnclid1kqndn30nim936-a b&c#d;e",
	"nar/gzip/f7d5xvkf9s1mdnclid1kqndn30nim936-Käse",
	"nar/gzip/f7d5xvkf9s1mdnclid1kqndn30nim936-" + strings.Repeat("long", 45),
	"at-the-top",
	"very/deep/down/below/all/else/nar",
}

// put stages and commits.
func put(t testing.TB, s bytestore.Store, name string, content []byte) {
	t.Helper()
	stage(t, s, name, content, func(staged bytestore.Staged) {
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatalf("commit %s: %v", name, err)
		}
	})
}

// stage stages and hands on to then.
func stage(t testing.TB, s bytestore.Store, name string, content []byte, then func(bytestore.Staged)) {
	t.Helper()
	staged, err := s.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatalf("stage %s: %v", name, err)
	}
	then(staged)
}

// read returns length bytes from offset on, as a caller should read them.
func read(t testing.TB, s bytestore.Store, name string, offset, length int64) ([]byte, bytestore.Info) {
	t.Helper()
	reader, info, err := s.Open(t.Context(), name, offset, length)
	if err != nil {
		t.Fatalf("open %s at %d: %v", name, offset, err)
	}
	defer func() {
		if err := reader.Close(); err != nil {
			t.Errorf("close %s: %v", name, err)
		}
	}()
	var from io.Reader = reader
	if length >= 0 {
		from = io.LimitReader(reader, length)
	}
	content, err := io.ReadAll(from)
	if err != nil {
		t.Fatalf("read %s at %d: %v", name, offset, err)
	}
	return content, info
}

// wantContent asserts that Stat, Open and List agree on the content.
func wantContent(t testing.TB, s bytestore.Store, name string, want []byte) {
	t.Helper()
	content, opened := read(t, s, name, 0, -1)
	if !bytes.Equal(content, want) {
		t.Errorf("%s has %s, want %s", name, show(content), show(want))
	}
	info, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatalf("stat %s: %v", name, err)
	}
	for from, info := range map[string]bytestore.Info{"Stat": info, "Open": opened} {
		if info.Name != name || info.Size != int64(len(want)) || info.Temporary {
			t.Errorf("%s of %s: %+v, want its name and size %d", from, name, info, len(want))
		}
		if info.Usage < 0 || info.ModTime.IsZero() {
			t.Errorf("%s of %s: %+v, want a usage and a time", from, name, info)
		}
	}
	if !slices.Contains(list(t, s), name) {
		t.Errorf("List does not have %s", name)
	}
}

// wantAbsent asserts that all agree there is nothing of that name.
func wantAbsent(t testing.TB, s bytestore.Store, name string) {
	t.Helper()
	if info, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of %s, which is absent: %+v, %v; want fs.ErrNotExist", name, info, err)
	}
	for _, r := range [][2]int64{{0, -1}, {0, 0}, {3, 4}} {
		reader, _, err := s.Open(t.Context(), name, r[0], r[1])
		if err == nil {
			reader.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %s, which is absent, at %d: %v; want fs.ErrNotExist", name, r[0], err)
		}
	}
	if slices.Contains(list(t, s), name) {
		t.Errorf("List has %s, which is absent", name)
	}
}

// list returns the names that are no temporary ones, sorted.
func list(t testing.TB, s bytestore.Store) []string {
	t.Helper()
	found := []string{}
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if !info.Temporary {
			found = append(found, info.Name)
		}
	}
	slices.Sort(found)
	return found
}

// wantNothingLeft asserts that the store has those names and no others, not
// even temporary ones.
func wantNothingLeft(t testing.TB, s bytestore.Store, but ...string) {
	t.Helper()
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if info.Temporary || !slices.Contains(but, info.Name) {
			t.Errorf("left behind: %+v", info)
		}
	}
}

// random returns bytes, the same at each run.
func random(size int, seed byte) []byte {
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	return content
}

// show describes content in a message.
func show(content []byte) string {
	if len(content) > 40 {
		return fmt.Sprintf("%d bytes, %q…", len(content), content[:40])
	}
	return fmt.Sprintf("%q", content)
}
