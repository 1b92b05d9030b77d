package cached

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

// TestDirectoryGone removes the directory of a running cache.
func TestDirectoryGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, dir, nil)
	b.run()
	b.makes(greeting)
	if err := os.Rename(filepath.Join(dir, "zstd"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	b.fails(hello)
}

// TestDiskFull fills a real disk, below any limit.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1<<20)
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].Directory = disk })
	b.run()
	b.fails(entropy)
	if log := b.log.String(); !strings.Contains(log, "no space left on device") {
		t.Errorf("log: %s", log)
	}
	b.makes(greeting)
	b.checkFile(greeting)
	b.rests()
	left, err := os.ReadDir(disk)
	if err != nil || len(left) != 1 || b.names(entropy, "zstd") {
		t.Errorf("%v, %v", left, err)
	}
	if used := b.total("narherder_cached_bytes"); used != 4096 {
		t.Errorf("%v bytes are counted", used)
	}
}

// TestReadOnly makes a directory read-only, from the start, or later.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1<<20)
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].Directory = disk })
	b.run()
	b.makes(greeting)
	testfs.Freeze(t, disk)
	b.fails(hello)
	if log := b.log.String(); !strings.Contains(log, "read-only file system") {
		t.Errorf("log: %s", log)
	}
	b.checkFile(greeting)
	if b.names(hello, "zstd") || !b.names(greeting, "zstd") {
		t.Error("the wrong ones are named")
	}
	_, err := New(b.storage, Options{Uses: uses.New(b.index, nil), Types: []Type{{Spec: compression.Spec{Name: "zstd", Level: 3}, Directory: disk}}})
	if err == nil || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), "--cached-compression-directory=zstd=DIR") {
		t.Errorf("%v", err)
	}
}

// TestNoRoom has a limit that is smaller than the nar.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	const limit = 600_000
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].MaxSize = limit })
	b.run()
	b.makes(greeting)
	b.fails(entropy)
	if used := b.total("narherder_cached_bytes"); used > limit {
		t.Errorf("%v bytes are used", used)
	}
	if !b.names(greeting, "zstd") {
		t.Error("a file made room for one that never fits")
	}
}

// TestMakesRoom: of two nars, the directory has room for one. The one with fewer uses is
// removed, after its grace period.
func TestMakesRoom(t *testing.T) {
	t.Parallel()
	const limit = 3_600_000
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].MaxSize = limit })
	k := b.kinds["zstd"]
	if err := b.scan(t.Context(), k, true); err != nil {
		t.Fatal(err)
	}
	make1 := func(hash string) {
		b.do(t.Context(), task{hashOf(t, hash), k})
		if used := k.space.usage(); used > limit {
			t.Fatalf("%d bytes are used", used)
		}
	}
	make1(entropy)
	made := time.Now()
	time.Sleep(2 * time.Millisecond) // times have a resolution of milliseconds
	make1(gofmt)
	if b.names(entropy, "zstd") || b.names(gofmt, "zstd") {
		t.Fatal("no room was made, or too much")
	}
	if err := b.retire(t.Context(), k, made.Add(narinfo.UnadvertisedTTL)); err != nil {
		t.Fatal(err)
	}
	b.checkFile(entropy)
	make1(gofmt)
	if b.names(gofmt, "zstd") {
		t.Fatal("it found room where there is none")
	}
	if err := b.retire(t.Context(), k, time.Now().Add(narinfo.UnadvertisedTTL+time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	make1(gofmt)
	if !b.names(gofmt, "zstd") {
		t.Fatalf("not made: %s", b.log.String())
	}
	b.checkFile(gofmt)
}

// TestMakesRoomOfAhead: a file with a last use in the future, because the clock was wrong, is
// removed like others.
func TestMakesRoomOfAhead(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].MaxSize = 3_600_000 })
	k := b.kinds["zstd"]
	if err := b.scan(t.Context(), k, true); err != nil {
		t.Fatal(err)
	}
	b.do(t.Context(), task{hashOf(t, entropy), k})
	err := b.index.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.CountUses([]index.Uses{{Hash: hashOf(t, entropy), Count: 1, Last: time.Now().AddDate(1, 0, 0), Types: []string{"zstd"}}}, 1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.do(t.Context(), task{hashOf(t, gofmt), k})
	if b.names(entropy, "zstd") {
		t.Error("no room was made")
	}
}
