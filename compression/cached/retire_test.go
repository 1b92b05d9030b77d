package cached

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// TestRetired advances the clock: a file is withdrawn and deleted at the right times.
func TestRetired(t *testing.T) {
	day := 24 * time.Hour
	duration := func(d time.Duration) *time.Duration { return &d }
	for _, test := range []struct {
		name                           string
		ttl, newTTL, typeTTL, typesNew *time.Duration
		grace                          time.Duration
	}{
		{name: "none", grace: 36 * time.Hour},
		{name: "ttl", ttl: duration(3 * day), grace: 3 * day},
		{name: "new-ttl lowered", ttl: duration(3 * day), newTTL: duration(day), grace: 3 * day},
		{name: "new-ttl raised", ttl: duration(day), newTTL: duration(3 * day), grace: 3 * day},
		{name: "new-ttl after none", newTTL: duration(day), grace: 36 * time.Hour},
		{name: "of the type", ttl: duration(3 * day), typeTTL: duration(5 * time.Hour), grace: 5 * time.Hour},
		{name: "of the type, lowered", ttl: duration(3 * day), typeTTL: duration(5 * time.Hour), typesNew: duration(time.Hour), grace: 5 * time.Hour},
		{name: "of the type, new", ttl: duration(3 * day), typesNew: duration(time.Hour), grace: 3 * day},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, dir, func(o *Options) {
					o.TTL, o.NewTTL = test.ttl, test.newTTL
					o.Types[0].TTL, o.Types[0].NewTTL = test.typeTTL, test.typesNew
					o.Types[0].Unused = duration(7 * day)
					// The zstd library has channels that all tests share.
					o.Types[0].Name, o.Types[0].Level = "gzip", 6
				})
				k := b.kinds["gzip"]
				retire := func() {
					t.Helper()
					if err := b.retire(context.Background(), k, time.Now()); err != nil {
						t.Fatal(err)
					}
				}
				there := func() bool {
					files, err := os.ReadDir(k.Directory)
					if err != nil {
						t.Fatal(err)
					}
					return len(files) == 1
				}
				if err := b.scan(context.Background(), k, true); err != nil {
					t.Fatal(err)
				}
				b.do(context.Background(), task{hashOf(t, hello), k})
				time.Sleep(3 * day)
				b.options.Uses.Used(hashOf(t, hello), "gzip")
				b.options.Uses.Flush(context.Background())
				time.Sleep(7 * day)
				retire()
				if !b.names(hello, "gzip") {
					t.Fatal("withdrawn too early")
				}
				time.Sleep(time.Millisecond)
				retire()
				if b.names(hello, "gzip") || !there() {
					t.Fatal("not withdrawn, or deleted")
				}
				time.Sleep(test.grace - time.Millisecond)
				retire()
				if !there() {
					t.Fatal("deleted too early")
				}
				time.Sleep(time.Millisecond)
				retire()
				if there() {
					t.Fatal("not deleted")
				}
				if used := k.space.usage(); used != 0 {
					t.Errorf("%d bytes are counted", used)
				}
			})
		})
	}
}

// TestScan cleans up after a crash.
func TestScan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, dir, nil)
	k := b.kinds["zstd"]
	for _, hash := range []string{hello, greeting} {
		b.do(t.Context(), task{hashOf(t, hash), k})
	}
	stranger := filepath.Join(k.Directory, "00000000000000000000000000000000-nobody")
	half := filepath.Join(k.Directory, jobPrefix+"1")
	other := filepath.Join(k.Directory, "README")
	for _, name := range []string{stranger, half, other} {
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := filepath.Glob(filepath.Join(k.Directory, greeting+"-*"))
	if err != nil || len(lost) != 1 || os.Remove(lost[0]) != nil {
		t.Fatal(lost, err)
	}
	if err := b.scan(t.Context(), k, true); err != nil {
		t.Fatal(err)
	}
	if !b.names(hello, "zstd") || b.names(greeting, "zstd") {
		t.Error("the wrong ones are named")
	}
	for name, want := range map[string]bool{stranger: false, half: false, other: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.checkFile(hello)
}

// TestVanished deletes a file without the cache: it is not served, and its row is removed.
func TestVanished(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir(), nil)
	k := b.kinds["zstd"]
	b.do(t.Context(), task{hashOf(t, hello), k})
	row, err := b.index.Item(t.Context(), hashOf(t, hello))
	if err != nil {
		t.Fatal(err)
	}
	item, err := storage.NewItem(row)
	if err != nil {
		t.Fatal(err)
	}
	files, err := b.Files(t.Context(), item.Hash)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(filepath.Join(k.Directory, item.Narinfo.StorePath.BaseName())); err != nil {
		t.Fatal(err)
	}
	changes, err := b.index.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Before Run, and while it starts.
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			if _, _, err := b.Open(t.Context(), item, files[0], 0, -1); !errors.Is(err, storage.ErrNotStored) {
				t.Errorf("%v", err)
			}
		})
	}
	group.Wait()
	if b.names(hello, "zstd") {
		t.Error("the narinfo still names it")
	}
	if left, err := b.Files(t.Context(), item.Hash); err != nil || len(left) != 1 {
		t.Errorf("a read has written to the database: %v, %v", left, err)
	}
	if now, err := b.index.LastChange(t.Context()); err != nil || now != changes {
		t.Errorf("a read has written to the database: %v", err)
	}
	group.Go(func() { _, _, _ = b.Open(t.Context(), item, files[0], 0, -1) })
	notified := make(chan narinfo.PathHash, 10)
	ctx, stop := context.WithCancel(t.Context())
	group.Go(func() { b.Run(ctx, func(hash narinfo.PathHash) { notified <- hash }) })
	if hash := <-notified; hash != item.Hash {
		t.Errorf("notified of %s", hash)
	}
	stop()
	group.Wait()
	if left, err := b.Files(t.Context(), item.Hash); err != nil || len(left) != 0 {
		t.Errorf("it is not forgotten: %v, %v", left, err)
	}
	if b.names(hello, "zstd") {
		t.Error("the narinfo names it again")
	}
}
