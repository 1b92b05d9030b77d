package overview

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/compression/cached"
	"nar-herder/httpapi/page"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/removal"
	"nar-herder/removal/eviction"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/scrub"
	"nar-herder/storage/uses"
)

// openStorage makes a storage with the corpus, and returns its directory.
func openStorage(t *testing.T) (s *storage.Storage, dir string) {
	t.Helper()
	dir = t.TempDir()
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	s = storage.New(x, store, storage.Options{})
	err = importer.New(s).Import(t.Context(), []string{"../../../testdata/published"}, importer.Options{Keep: true}, func(i importer.Imported) {
		if i.Err != nil {
			t.Error(i.File, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// stopped is a source of nars and a decoder that do nothing until the gate is closed.
type stopped struct{ gate chan struct{} }

func (s *stopped) wait(ctx context.Context) error {
	select {
	case <-s.gate:
	case <-ctx.Done():
	}
	return errors.New("there is nothing more")
}

func (s *stopped) Open(ctx context.Context, _ *storage.Item) (io.ReadCloser, string, error) {
	return nil, "", s.wait(ctx)
}

func (s *stopped) OpenFile(ctx context.Context, _ *storage.Item, _ int, _, _ int64, _ []string) (io.ReadCloser, int64, error) {
	return nil, 0, s.wait(ctx)
}

func (s *stopped) Resume(ctx context.Context, _ *storage.Item, _ int, _ io.ReaderAt, _ int64, _ []string) (io.ReadCloser, int64, error) {
	return nil, 0, s.wait(ctx)
}

func (s *stopped) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "", [16]byte{}, storage.ErrNotStored
}

func (s *stopped) decode(ctx context.Context, _ string, _ io.Reader, _ int64) (io.ReadCloser, error) {
	return nil, s.wait(ctx)
}

// TestWork: the status page names what the parts of a server work on, for the administrator alone.
func TestWork(t *testing.T) {
	t.Parallel()
	s, dir := openStorage(t)
	from := &stopped{make(chan struct{})}
	counter := uses.New(s.Index(), nil)
	cache, err := cached.New(s, cached.Options{
		Types: []cached.Type{{Spec: compression.Spec{Name: "zstd", Level: 1}, Directory: t.TempDir(), MaxSize: -1}}, MinUses: 1, Workers: 1, Uses: counter, Source: from,
	})
	if err != nil {
		t.Fatal(err)
	}
	fetcher, err := nars.New(s, from, nars.Options{Limit: -1, Decode: from.decode})
	if err != nil {
		t.Fatal(err)
	}
	workers := &Workers{
		Index: s.Index(), Cache: cache, Fetcher: fetcher,
		Scrubber: scrub.New(s, scrub.Options{Interval: time.Hour, Decode: from.decode}),
		Remover:  removal.New(s, removal.Options{Limit: -1, MinimumFree: -1}),
		Evictor:  eviction.New(s, eviction.Options{IsUpstream: func(string) bool { return true }, Uses: counter, Limit: -1}),
	}
	sources := full(t)
	sources.Workers = workers

	// An item is withdrawn, and another has lost its nar.
	hash := func(text string) narinfo.PathHash {
		hash, err := narinfo.ParsePathHash([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	const hello, entropy, greeting, zeros = "g699dxrv55xnrdq6z90qwfmsgz16p3xg", "d1srdrndhd8maaz82liwpkdkmbm5rfcm", "f7d5xvkf9s1mdnclid1kqndn30nim936", "gvwwzfzg1796x97nb72b9ycjy2gs53vb"
	err = s.Index().Update(t.Context(), func(tx *index.Tx) error {
		if _, err := tx.Withdraw(hash(hello), time.Now()); err != nil {
			return err
		}
		origin, err := tx.Origin("https://upstream.example")
		if err != nil {
			return err
		}
		return tx.SetOrigin(hash(entropy), origin, time.Time{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := workers.Evictor.Evict(t.Context(), 1); err != nil || freed.Items != 1 {
		t.Fatalf("evicted %+v, %v", freed, err)
	}
	// Others are being compressed, fetched and verified.
	item, err := s.Item(t.Context(), hash(zeros))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Index().Update(t.Context(), func(tx *index.Tx) error { return tx.Unstore(item.Item, item.Narinfo, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, item.FileName(0))); err != nil {
		t.Fatal(err)
	}
	if item, err = s.Item(t.Context(), hash(zeros)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var working sync.WaitGroup
	t.Cleanup(func() {
		close(from.gate)
		stop()
		working.Wait()
		fetcher.Close()
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
	})
	working.Go(func() { cache.Run(ctx, func(narinfo.PathHash) {}) })
	working.Go(func() { _, _, _ = fetcher.OpenFile(ctx, item, 0, 0, -1, nil) })
	working.Go(func() { _ = workers.Scrubber.Pass(ctx) })
	counter.Used(hash(greeting), "")
	counter.Flush(ctx)
	want := map[string]string{
		"Compressing nars for the cache": "being compressed: greeting.txt (zstd, for ",
		"Fetching nars":                  "being fetched: zeros-1 (0 B of ",
		"Verifying stored nars (scrub)":  "being verified: ",
		"Removing and withdrawing":       "withdrawn, to be deleted next: hello-2.10.tar.gz (",
		"Evicting nars of upstreams":     "nars evicted last: entropy-1 (2.9 MiB, ",
	}
	lists := func() (found map[string]string) {
		t.Helper()
		groups, err := makeGroups(t.Context(), nil, workers, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		found = make(map[string]string)
		for _, group := range groups {
			for _, list := range group.Lists {
				for _, item := range list.Items {
					found[group.Title] += list.Title + ": " + item.Name + " (" + item.Note + ")\n"
				}
			}
		}
		return found
	}
	isAll := func() bool {
		found := lists()
		for group, text := range want {
			if !strings.HasPrefix(found[group], text) || strings.Count(found[group], "\n") != 1 {
				return false
			}
		}
		return len(found) == len(want)
	}
	for end := time.Now().Add(time.Minute); !isAll(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q, want %q", lists(), want)
		}
	}
	shown := render(t, sources, page.Options{Size: page.Full}, "/status")
	for _, name := range []string{"greeting.txt", "zeros-1", "hello-2.10.tar.gz", "entropy-1", ">being verified<"} {
		if !strings.Contains(shown, name) {
			t.Errorf("the administrator doesn't see %s", name)
		}
	}
	text := public(t, sources, page.Request{ShowsMetrics: true}, "/status")
	for _, hidden := range []string{"greeting", "zeros", "hello", "entropy"} {
		if strings.Contains(text, hidden) {
			t.Errorf("all see %s", hidden)
		}
	}
}
