package httpapi

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"nar-herder/internal/s3server"
	"nar-herder/storage"
	"nar-herder/storage/checksums"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/s3"
	"nar-herder/storage/tiered"
)

// startSummed is start for a store with checksums of its files.
func startSummed(t *testing.T, s *store) *started {
	t.Helper()
	o := options()
	o.AnswerCache = 64 << 20
	keeper := checksums.New(s.index, slog.New(slog.DiscardHandler))
	o.Checksums = keeper
	server := start(t, s, o)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		keeper.Run(ctx, server.Forget)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return server
}

// tags requests a nar until its entity tag is made of the checksum, and returns the previous
// tag and that one.
func tags(t *testing.T, c *client, target string) (before, after string) {
	t.Helper()
	before = c.ask("GET", target).Header.Get("ETag")
	until(t, "the checksum is known", func() bool {
		after = c.ask("HEAD", target).Header.Get("ETag")
		return !strings.Contains(after, "-")
	})
	return before, after
}

// TestSameTag: two instances give the same bytes the same entity tag, and a download that one
// of them cut can be resumed at the other. Other bytes of the same nar, compression and length
// have another tag.
func TestSameTag(t *testing.T) {
	t.Parallel()
	m := make1(t, "same", strings.Repeat("same", 1000), "gzip")
	dir := t.TempDir()
	first, second := newStore(t, m.write(t, dir)), newStore(t, m.write(t, dir))
	altered := *m
	altered.file = append([]byte(nil), m.file...)
	altered.file[9] ^= 1 // the operating system in gzip's header
	third := newStore(t, altered.write(t, dir))
	target := "/" + m.url()
	for _, s := range []*store{first, second, third} {
		file := filepath.Join(s.directory, filepath.FromSlash(m.url()))
		// One time for two that differ, and two for the same.
		if err := os.Chtimes(file, time.Time{}, time.Unix(1e9+int64(len(s.directory)), 0)); err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := dial(t, startSummed(t, first).address), dial(t, startSummed(t, second).address), dial(t, startSummed(t, third).address)
	before, tag := tags(t, a, target)
	if _, other := tags(t, b, target); other != tag {
		t.Errorf("the same bytes have the tags %s and %s", tag, other)
	}
	if _, other := tags(t, c, target); other == tag {
		t.Errorf("other bytes have the same tag %s", tag)
	}
	for name, test := range map[string]struct {
		at     *client
		tag    string
		status int
	}{
		"resumed at the other":                   {b, tag, 206},
		"resumed after the checksum was known":   {a, before, 206},
		"resumed where there are other bytes":    {c, tag, 200},
		"resumed with the tag of another's time": {c, before + "x", 200},
	} {
		got := test.at.ask("GET", target, "Range: bytes=5-14", "If-Range: "+test.tag)
		want := string(m.file[5:15])
		if test.status == 200 {
			want = string(altered.file)
		}
		if got.StatusCode != test.status || got.body != want {
			t.Errorf("%s: %s, %d bytes", name, got.Status, len(got.body))
		}
	}
	if got := b.ask("GET", target, "If-None-Match: "+tag); got.StatusCode != 304 {
		t.Errorf("If-None-Match with the other's tag: %s", got.Status)
	}
	// Clients with the tag from before the checksum was known.
	for header, status := range map[string]int{
		"If-Match: " + before: 200, "If-None-Match: " + before: 304, "If-None-Match: W/" + before: 304, `If-Match: "x", ` + before: 200,
		"If-Match: W/" + before: 412, "If-Match: ,": 412, "If-None-Match: ,": 200,
	} {
		if got := a.ask("GET", target, header); got.StatusCode != status {
			t.Errorf("%s: %s, want %d", header, got.Status, status)
		}
	}
	// A restart computes nothing again.
	again := dial(t, startSummed(t, first).address)
	if got := again.ask("GET", target).Header.Get("ETag"); got != tag {
		t.Errorf("after a restart the tag is %s, want %s", got, tag)
	}
}

// TestTagOfReplaced: a file that was replaced without the index gets a new tag.
func TestTagOfReplaced(t *testing.T) {
	t.Parallel()
	m := make1(t, "replaced", strings.Repeat("replaced", 1000), "gzip")
	s := newStore(t, m.write(t, t.TempDir()))
	server := startSummed(t, s)
	c := dial(t, server.address)
	target := "/" + m.url()
	_, tag := tags(t, c, target)
	file := filepath.Join(s.directory, filepath.FromSlash(m.url()))
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	m.file[9] ^= 1
	if err := os.WriteFile(file+".new", m.file, 0o644); err != nil {
		t.Fatal(err)
	}
	// As with files from an archive, which all have the same time.
	if err := os.Chtimes(file+".new", time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	until(t, "the new file is served", func() bool { return c.ask("GET", target).body == string(m.file) })
	if got := c.ask("GET", target, "Range: bytes=5-14", "If-Range: "+tag); got.StatusCode != 200 {
		t.Errorf("a download of what was there before is resumed: %s", got.Status)
	}
	if _, again := tags(t, c, target); again == tag {
		t.Errorf("the tag is still %s", again)
	}
}

// TestTagOfFile: the entity tag of the content of a flat nar is its hash.
func TestTagOfFile(t *testing.T) {
	t.Parallel()
	m := make1(t, "flat", "the content", "none")
	first, second := newStore(t, m.write(t, t.TempDir())), newStore(t, m.write(t, t.TempDir()))
	target := "/file/" + m.path.Name + "/sha256/" + m.digest
	var tags []string
	for _, s := range []*store{first, second} {
		got := dial(t, start(t, s, options()).address).ask("GET", target)
		tags = append(tags, got.Header.Get("ETag"))
	}
	if tags[0] == "" || tags[0] != tags[1] {
		t.Errorf("tags %q", tags)
	}
}

// TestSameTagInBucket: a nar in a bucket, and in a cache of one, has the same tag as in a
// directory. If another program replaces it in the bucket, it has another tag.
func TestSameTagInBucket(t *testing.T) {
	t.Parallel()
	server := s3server.New(t)
	random := make([]byte, 9<<20) // several parts
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	items := []*made{make1(t, "small", strings.Repeat("small", 1000), "gzip"), make1(t, "large", string(random), "gzip")}
	sources := t.TempDir()
	var files []string
	for _, m := range items {
		files = append(files, m.write(t, sources))
	}
	url := server.URL("tags/storage")
	bucket, err := s3.Open(t.Context(), url, s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bucket.Close() })
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	primary := &store{Storage: storage.New(x, bucket, storage.Options{}), index: x}
	primary.importAll(t, importer.Options{Keep: true}, files...)
	// After a restart, the file in the cache is found again.
	copies := t.TempDir()
	cached := func() (*store, *tiered.Tiered) {
		cache, err := tiered.New(bucket, tiered.Options{Directory: copies, MaxSize: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		return &store{Storage: storage.New(x, cache, storage.Options{}), index: x}, cache
	}
	first, cache := cached()
	c := dial(t, start(t, first, options()).address)
	for _, m := range items {
		until(t, "there is a copy", func() bool {
			found, err := filepath.Glob(filepath.Join(copies, "??", "*.*"))
			return err == nil && c.ask("GET", "/"+m.url()).body == string(m.file) && len(found) > 0
		})
	}
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
	again, cache := cached()
	t.Cleanup(func() { cache.Close() })
	at := map[string]*client{
		"bucket": dial(t, startSummed(t, primary).address),
		"cache":  dial(t, startSummed(t, again).address),
	}
	directory := dial(t, startSummed(t, newStore(t, files...)).address)
	for _, m := range items {
		target := "/" + m.url()
		_, tag := tags(t, directory, target)
		for where, c := range at {
			for _, method := range []string{"HEAD", "GET"} {
				if got := c.ask(method, target); got.StatusCode != 200 || got.Header.Get("ETag") != tag {
					t.Errorf("%s %s in the %s: %s with the tag %s, want %s", method, target, where, got.Status, got.Header.Get("ETag"), tag)
				}
			}
			if got := c.ask("GET", target, "Range: bytes=5-14", "If-Range: "+tag); got.StatusCode != 206 || got.body != string(m.file[5:15]) {
				t.Errorf("%s resumed at the %s: %s", target, where, got.Status)
			}
		}
		object, err := server.Client.GetObject(t.Context(), &awss3.GetObjectInput{Bucket: aws.String("tags"), Key: aws.String("storage/" + m.url())})
		if err != nil {
			t.Fatal(err)
		}
		object.Body.Close()
		// Twice, perhaps within a second, which is the resolution of times in a
		// bucket.
		for place := 9; place < 11; place++ {
			m.file[place] ^= 1
			if _, err := server.Client.PutObject(t.Context(), &awss3.PutObjectInput{
				Bucket: aws.String("tags"), Key: aws.String("storage/" + m.url()), Body: bytes.NewReader(m.file), Metadata: object.Metadata,
			}); err != nil {
				t.Fatal(err)
			}
			cache.Invalidate(m.url())
			now := ""
			for where, c := range at {
				got := c.ask("GET", target, "Range: bytes=5-14", "If-Range: "+tag)
				if got.StatusCode != 200 || got.body != string(m.file) || got.Header.Get("ETag") == tag {
					t.Errorf("%s replaced in the %s: %s, tag %s", target, where, got.Status, got.Header.Get("ETag"))
				}
				if now = got.Header.Get("ETag"); c.ask("GET", target, "If-Match: "+now).StatusCode != 200 {
					t.Errorf("%s in the %s has another tag than %s at once", target, where, now)
				}
			}
			tag = now
		}
	}
}

// TestSameTagRemote: a nar from another instance has the same tag as there, once that is made
// of its checksum.
func TestSameTagRemote(t *testing.T) {
	t.Parallel()
	for _, compression := range []string{"none", "gzip"} {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			m := make1(t, "elsewhere", strings.Repeat("elsewhere", 1000), compression)
			s := newStore(t, m.write(t, t.TempDir()))
			there := startSummed(t, s)
			front := without(t, m)
			here := dial(t, start(t, front, remoteAt(t, front, there.address)).address)
			target := "/" + m.url()
			before := here.ask("GET", target).Header.Get("ETag")
			_, tag := tags(t, dial(t, there.address), target)
			for _, test := range []struct {
				method, header string
				status         int
			}{
				{"GET", "Accept: */*", 200}, {"HEAD", "Accept: */*", 200}, {"GET", "Range: bytes=0-3", 206},
				{"GET", "If-None-Match: " + tag, 304}, {"GET", "If-Match: " + tag, 200}, {"GET", "If-Match: " + before, 200},
				{"GET", `If-Match: "x"`, 412}, {"GET", "Range: bytes=5-14\r\nIf-Range: " + tag, 206}, {"GET", "Range: bytes=5-14\r\nIf-Range: " + before, 206},
				{"GET", "Range: bytes=5-14\r\nIf-Range: \"x\"", 200},
			} {
				got := here.ask(test.method, target, test.header)
				if got.StatusCode != test.status || test.status != 412 && got.Header.Get("ETag") != tag {
					t.Errorf("%s with %q: %s, tag %s, want %d and %s", test.method, test.header, got.Status, got.Header.Get("ETag"), test.status, tag)
				}
			}
		})
	}
}

var _ Checksums = (*checksums.Keeper)(nil)
