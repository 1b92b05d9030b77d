package httpapi

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"nar-herder/storage"
)

// growingFile grows step by step, until it fails and must be read.
type growingFile struct {
	*os.File
	content string
	off     int64
	step    int64
	broken  int64 // offset from which on the file can't be sent
	failure error // returned then, also by Read
}

func (g *growingFile) Local() (*os.File, int64) { return g.File, g.off }
func (g *growingFile) Skip(n int64)             { g.off += n }

func (g *growingFile) Next() (int64, error) {
	if g.off >= g.broken {
		return 0, errors.New("it is of no use any more")
	}
	return min(g.step, g.broken-g.off), nil
}

func (g *growingFile) Read(p []byte) (int, error) {
	if g.failure != nil {
		return 0, g.failure
	}
	if g.off == int64(len(g.content)) {
		return 0, io.EOF
	}
	n := copy(p, g.content[g.off:])
	g.off += int64(n)
	return n, nil
}

// growing are nars of another instance.
type growing func(offset int64) *growingFile

func (g growing) OpenFile(_ context.Context, item *storage.Item, n int, offset, _ int64, _ []string) (io.ReadCloser, int64, error) {
	return g(offset), item.StoredSize(n), nil
}

func (growing) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "", [16]byte{}, storage.ErrNotStored
}

// TestGrowing sends a growing file, and reads it when it can't be sent any more.
func TestGrowing(t *testing.T) {
	t.Parallel()
	m := make1(t, "growing", strings.Repeat("0123456789", 50_000), "none")
	content := string(m.file)
	name := t.TempDir() + "/nar"
	if err := os.WriteFile(name, m.file, 0o644); err != nil {
		t.Fatal(err)
	}
	size := int64(len(content))
	for _, test := range []struct {
		step, broken int64
		failure      error
	}{
		{step: size, broken: size + 1}, {step: 70_000, broken: size + 1}, {step: 70_000, broken: size},
		{step: 70_000, broken: 100_000}, {step: 1, broken: 10}, {step: 1, broken: 0},
		{step: 70_000, broken: 100_000, failure: errors.New("it is not the nar")},
	} {
		a := without(t, m)
		opts := options()
		opts.Remote = growing(func(offset int64) *growingFile {
			file, err := os.Open(name)
			if err != nil {
				t.Error(err)
			}
			return &growingFile{file, content, offset, test.step, test.broken, test.failure}
		})
		server := start(t, a, opts)
		for _, header := range []string{"", "Range: bytes=5000-", "Range: bytes=5000-205000"} {
			c := dial(t, server.address)
			want := content
			switch header {
			case "Range: bytes=5000-":
				want = content[5000:]
			case "Range: bytes=5000-205000":
				want = content[5000:205001]
			}
			var headers []string
			if header != "" {
				headers = []string{header}
			}
			got := c.ask("GET", "/"+m.url(), headers...)
			if test.failure != nil {
				if got.err == nil || len(got.body) >= len(want) {
					t.Errorf("%+v, %q: %d bytes, %v: not cut", test, header, len(got.body), got.err)
				}
				continue
			}
			if got.err != nil || got.body != want {
				t.Errorf("%+v, %q: %s, %d bytes of %d, %v", test, header, got.Status, len(got.body), len(want), got.err)
				continue
			}
			if again := c.ask("GET", "/nix-cache-info"); again.StatusCode != 200 {
				t.Errorf("%+v: the next answer: %s", test, again.Status)
			}
		}
	}
}
