package httpapi

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/storage/checksums"
)

// startSummed is start for a store that knows the checksums of its files.
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

// tags asks for a nar until its entity tag is by its content, and returns the tag from
// before and that.
func tags(t *testing.T, c *client, target string) (before, after string) {
	t.Helper()
	before = c.ask("GET", target).Header.Get("ETag")
	until(t, "the checksum is known", func() bool {
		after = c.ask("HEAD", target).Header.Get("ETag")
		return !strings.Contains(after, "-")
	})
	return before, after
}

// TestSameTag: two instances with the same bytes give them the same entity tag, and a
// download that one of them cut can be resumed at the other. Other bytes of the same nar,
// compression and length have another tag.
func TestSameTag(t *testing.T) {
	t.Parallel()
	m := make1(t, "same", strings.Repeat("same", 1000), "gzip")
	dir := t.TempDir()
	first, second := newStore(t, m.write(t, dir)), newStore(t, m.write(t, dir))
	altered := *m
	altered.file = append([]byte(nil), m.file...)
	altered.file[9] ^= 1 // which operating system gzip ran on
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
	// A restart computes nothing again.
	again := dial(t, startSummed(t, first).address)
	if got := again.ask("GET", target).Header.Get("ETag"); got != tag {
		t.Errorf("after a restart the tag is %s, want %s", got, tag)
	}
}

// TestTagOfReplaced replaces a file behind the server's back: its tag doesn't stay.
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
	// As of files out of an archive, which all have one time.
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

// TestTagOfFile: the content of a flat nar is named by its own hash.
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

var _ Checksums = (*checksums.Keeper)(nil)
