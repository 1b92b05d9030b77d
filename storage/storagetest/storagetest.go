// Package storagetest contains the tests that every [bytestore.Store] must pass, one for
// each guarantee of the interface.
package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nar-herder/storage/bytestore"
)

// CommitNewAtOnce is the name of the test that exactly one of several concurrent CommitNew
// succeeds. A server without conditional uploads can't pass it.
const CommitNewAtOnce = "CommitNewAtOnce"

// Run runs the tests. open returns a new empty store for each, and closes it with
// t.Cleanup. Run skips the tests named in except, such as [CommitNewAtOnce], for stores
// with fewer guarantees.
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
				t.Skip("this store doesn't guarantee it")
			}
			t.Parallel()
			test.test(t, open(t))
		})
	}
}

// name is the name in most tests.
const name = "nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"

// names are names as in real storages.
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

// put stages and commits content.
func put(t testing.TB, s bytestore.Store, name string, content []byte) {
	t.Helper()
	stage(t, s, name, content, func(staged bytestore.Staged) {
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatalf("commit %s: %v", name, err)
		}
	})
}

// stage stages content and calls then.
func stage(t testing.TB, s bytestore.Store, name string, content []byte, then func(bytestore.Staged)) {
	t.Helper()
	staged, err := s.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatalf("stage %s: %v", name, err)
	}
	then(staged)
}

// read returns length bytes from offset on.
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

// wantContent asserts that Stat, Open and List return the content.
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
		t.Errorf("List lacks %s", name)
	}
}

// wantAbsent asserts that Stat, Open and List don't find the name.
func wantAbsent(t testing.TB, s bytestore.Store, name string) {
	t.Helper()
	if info, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of %s, which is missing: %+v, %v; want fs.ErrNotExist", name, info, err)
	}
	for _, r := range [][2]int64{{0, -1}, {0, 0}, {3, 4}} {
		reader, _, err := s.Open(t.Context(), name, r[0], r[1])
		if err == nil {
			reader.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %s, which is missing, at %d: %v; want fs.ErrNotExist", name, r[0], err)
		}
	}
	if slices.Contains(list(t, s), name) {
		t.Errorf("List has %s, which is missing", name)
	}
}

// list returns the names of files that are not temporary, sorted.
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

// wantNothingLeft asserts that the store has no names other than the given ones, not even
// temporary ones.
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

// random returns pseudo-random bytes.
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
