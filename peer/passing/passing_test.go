package passing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// nar is an item with one file.
type nar struct {
	*storage.Item
	file []byte
}

// newNar makes one of random bytes, optionally without sizes.
func newNar(t *testing.T, size int, kind string, sized bool) *nar {
	t.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = random.Read(content)
	var file bytes.Buffer
	if kind == "none" || kind == "brotli" {
		file.Write(content)
	} else {
		w, err := compression.NewWriter(kind, 1, &file)
		if err == nil {
			_, err = w.Write(content)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	base := fmt.Sprintf("%032d-item", size)
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nReferences:\nURL: nar/%s/%s\nCompression: %s\n", base, narinfo.NarHash(sha256.Sum256(content)), kind, base, kind)
	if sized {
		text += fmt.Sprintf("FileSize: %d\nNarSize: %d\n", file.Len(), size)
	}
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	item, err := storage.NewItem(&index.Item{Hash: path.Hash, Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return &nar{item, file.Bytes()}
}

// opener sends a file.
type opener struct {
	file    []byte
	ranges  bool
	unsized bool
	closed  int
}

func (o *opener) OpenFile(_ context.Context, _ *storage.Item, _ int, offset, length int64, _ []string) (io.ReadCloser, int64, error) {
	if offset > 0 && !o.ranges {
		return nil, 0, peer.ErrNoRange
	}
	part := o.file[offset:]
	if length >= 0 {
		part = part[:min(length, int64(len(part)))]
	}
	size := int64(len(o.file))
	if o.unsized {
		size = -1
	}
	return closing{bytes.NewReader(part), o}, size, nil
}

func (o *opener) Resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, offset int64, via []string) (io.ReadCloser, int64, error) {
	return failover.Of(server{o}).Resume(ctx, item, n, before, offset, via)
}

// server is an opener as a server.
type server struct{ *opener }

func (server) String() string  { return "a server" }
func (server) IsResting() bool { return false }
func (server) HasFailed() bool { return false }

func (*opener) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "somewhere", [16]byte{}, nil
}

type closing struct {
	io.Reader
	o *opener
}

func (c closing) Close() error { c.o.closed++; return nil }

// free waits until all memory is released.
func (s *Source) free(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.memory.Acquire(ctx, s.budget); err != nil {
		t.Error("memory is not given back")
	}
}

var sizes = []int{0, 1, 1000, tail - 1000, tail, tail + 1, 3 * tail}

func TestGood(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"none", "gzip", "zstd", "lzip"} {
		for _, size := range sizes {
			if kind == "lzip" && size < tail {
				continue // slow, with the race detector
			}
			for _, sized := range []bool{true, false} {
				of := newNar(t, size, kind, sized)
				o := &opener{file: of.file, unsized: !sized}
				s := New(o, 0)
				body, told, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil)
				if err != nil {
					t.Errorf("%s %d: %v", kind, size, err)
					continue
				}
				got, err := io.ReadAll(body)
				if err != nil || !bytes.Equal(got, of.file) || sized && told != int64(len(of.file)) {
					t.Errorf("%s %d: %d bytes, %v, size %d", kind, size, len(got), err, told)
				}
				if body.Close(); o.closed != 1 {
					t.Errorf("closed %d times", o.closed)
				}
				s.free(t)
			}
		}
	}
}

// TestWrong: the last bytes of a wrong file are never passed on, and nothing of a small
// one.
func TestWrong(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"none", "gzip", "zstd", "lzip"} {
		for _, size := range sizes[2:] {
			if kind == "lzip" && size != 3*tail {
				continue
			}
			for _, sized := range []bool{true, false} {
				of := newNar(t, size, kind, sized)
				flipped := func(at int) []byte {
					file := bytes.Clone(of.file)
					file[at] ^= 1
					return file
				}
				for what, file := range map[string][]byte{
					"flipped at the end": flipped(len(of.file) - 1), "flipped in the middle": flipped(len(of.file) / 2), "flipped at first": flipped(0),
					"cut": of.file[:len(of.file)-1], "longer": append(bytes.Clone(of.file), 0), "twice": slices.Concat(of.file, of.file), "empty": nil,
					"a secret": []byte("<html>secret</html>"),
				} {
					o := &opener{file: file, unsized: !sized}
					s := New(o, 0)
					body, _, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil)
					var got []byte
					if err == nil {
						got, err = io.ReadAll(body)
						body.Close()
					}
					if err == nil || len(got) > max(0, len(file)-tail) {
						t.Errorf("%s %d, sized %v, %s: %d of %d bytes, %v", kind, size, sized, what, len(got), len(file), err)
					}
					if o.closed != 1 {
						t.Errorf("closed %d times", o.closed)
					}
					s.free(t)
				}
			}
		}
	}
}

// TestParts: a range that overlaps the withheld end is passed on after the whole was
// verified, as is any range if the peer sends no ranges.
func TestParts(t *testing.T) {
	t.Parallel()
	small, large := newNar(t, 1000, "none", true), newNar(t, 4*tail, "none", true)
	for _, test := range []struct {
		of             *nar
		offset, length int64
		isCompared     bool
	}{
		{small, 0, 10, true}, {small, 990, -1, true}, {small, 990, 100, true}, {small, 1000, -1, true},
		{large, 0, 10, false}, {large, tail, tail, false}, {large, 0, 3 * tail, false}, {large, 0, 4 * tail, true},
		{large, 0, 3*tail + 1, true}, {large, 1, -1, true}, {large, 4*tail - 1, 1, true}, {large, 4*tail - 10, 9, true},
		{large, 4 * tail, -1, true}, {large, tail, 9 * tail, true},
	} {
		want := test.of.file[test.offset:]
		if test.length >= 0 {
			want = want[:min(test.length, int64(len(want)))]
		}
		wrong := bytes.Clone(test.of.file)
		wrong[len(wrong)-1] ^= 1
		for _, ranges := range []bool{true, false} {
			for _, file := range [][]byte{test.of.file, wrong} {
				o := &opener{file: file, ranges: ranges}
				s := New(o, 0)
				body, size, err := s.OpenFile(t.Context(), test.of.Item, 0, test.offset, test.length, nil)
				var got []byte
				if err == nil {
					got, err = io.ReadAll(body)
					body.Close()
				}
				switch {
				case &file[0] == &wrong[0] && (test.isCompared || !ranges && test.offset > 0):
					if end := test.offset + int64(len(got)); len(got) > 0 && end > int64(len(file)-tail) || test.isCompared && !errors.Is(err, narcheck.ErrWrongNar) {
						t.Errorf("%d, %d of a wrong file: %d bytes, %v", test.offset, test.length, len(got), err)
					}
				case err != nil || !bytes.Equal(got, want) || size != int64(len(file)):
					t.Errorf("%d, %d: %d bytes, %v, size %d", test.offset, test.length, len(got), err, size)
				}
				if o.closed != 1 {
					t.Errorf("%d, %d: closed %d times", test.offset, test.length, o.closed)
				}
				s.free(t)
			}
		}
	}
}

// TestResume: the beginning of a file comes from another place.
func TestResume(t *testing.T) {
	t.Parallel()
	of := newNar(t, 4*tail, "gzip", true)
	half := int64(len(of.file) / 2)
	wrong := bytes.Clone(of.file)
	wrong[5000] ^= 1
	for _, ranges := range []bool{true, false} {
		for name, before := range map[string][]byte{"right": of.file, "wrong": wrong} {
			s := New(&opener{file: of.file, ranges: ranges}, 0)
			body, err := s.Resume(t.Context(), of.Item, 0, bytes.NewReader(before), half, nil)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(body)
				body.Close()
			}
			if name == "right" && (err != nil || !bytes.Equal(got, of.file[half:])) || name == "wrong" && (err == nil || len(got) > len(of.file)-int(half)-tail) {
				t.Errorf("%s, ranges %v: %d bytes, %v", name, ranges, len(got), err)
			}
			s.free(t)
		}
	}
}

// TestUnknownCompression: a file that can't be verified is not passed on.
func TestUnknownCompression(t *testing.T) {
	t.Parallel()
	of := newNar(t, 1000, "brotli", true)
	if _, _, err := New(&opener{file: of.file}, 0).OpenFile(t.Context(), of.Item, 0, 0, -1, nil); !errors.Is(err, narcheck.ErrUnreadable) {
		t.Error(err)
	}
}

// TestLeaves: a client leaves, and others come while the memory is taken: their nars are
// not verified.
func TestLeaves(t *testing.T) {
	t.Parallel()
	of := newNar(t, 4*tail, "lzip", true) // decoders of zstd are reused outside of the bubble
	wrong := bytes.Clone(of.file)
	wrong[len(wrong)-1] ^= 1
	synctest.Test(t, func(t *testing.T) {
		o := &opener{file: of.file}
		s := New(o, 1<<20)
		first, _, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := s.OpenFile(ctx, of.Item, 0, 0, -1, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		for _, file := range [][]byte{of.file, wrong} {
			o.file = file
			body, size, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, file) || size != int64(len(file)) {
				t.Errorf("%d bytes of %d, %v", len(got), size, err)
			}
			body.Close()
			body, err = s.Resume(t.Context(), of.Item, 0, bytes.NewReader(file), tail, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, file[tail:]) {
				t.Errorf("resumed: %d bytes, %v", len(got), err)
			}
			body.Close()
		}
		o.file = append(bytes.Clone(of.file), make([]byte, narcheck.MaxFileSize(of.Item.Narinfo))...)
		if body, _, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil); err != nil {
			t.Error(err)
		} else if got, err := io.ReadAll(body); !errors.Is(err, narcheck.ErrWrongNar) {
			t.Errorf("more than the nar can have: %d bytes, %v", len(got), err)
		}
		if got := s.unchecked.Load(); got != 5 {
			t.Errorf("%d were not compared", got)
		}
		if _, err := first.Read(make([]byte, 10)); err != nil {
			t.Error(err)
		}
		first.Close()
		s.free(t)
	})
}

// turns counts the turns in use.
type turns struct {
	free      chan struct{}
	now, most atomic.Int32
	taken     atomic.Int32
}

func (t *turns) Lock() {
	t.free <- struct{}{}
	t.taken.Add(1)
	t.most.Store(max(t.most.Load(), t.now.Add(1)))
}

func (t *turns) Unlock() {
	t.now.Add(-1)
	<-t.free
}

// TestTurns: there are more nars than turns. Each is verified, takes a turn only while it
// computes, and releases it, even if its client leaves.
func TestTurns(t *testing.T) {
	t.Parallel()
	turns := &turns{free: make(chan struct{}, 1)}
	var all sync.WaitGroup
	for i, kind := range []string{"gzip", "zstd", "none", "gzip"} {
		of := newNar(t, 4*tail+i, kind, true)
		wrong := bytes.Clone(of.file)
		wrong[len(wrong)/2] ^= 1
		for _, file := range [][]byte{of.file, wrong} {
			s := New(&opener{file: file}, 0)
			s.Turns = turns
			left, _, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil) // it reads no bytes meanwhile
			if err != nil && !errors.Is(err, narcheck.ErrWrongNar) {
				t.Fatal(err)
			}
			all.Go(func() {
				body, _, err := s.OpenFile(t.Context(), of.Item, 0, 0, -1, nil)
				if err == nil {
					_, err = io.Copy(io.Discard, body)
					body.Close()
				}
				if isRight := &file[0] == &of.file[0]; (err == nil) != isRight {
					t.Errorf("%s, right %v: %v", kind, isRight, err)
				}
				if left != nil {
					left.Close()
				}
				s.free(t)
			})
		}
	}
	all.Wait()
	if turns.taken.Load() == 0 || turns.most.Load() != 1 || turns.now.Load() != 0 {
		t.Errorf("%d turns were taken, %d at a time, %d are left", turns.taken.Load(), turns.most.Load(), turns.now.Load())
	}
}

// TestUncompared: callers that verify the decompressed nar get the file as it arrives.
func TestUncompared(t *testing.T) {
	t.Parallel()
	of := newNar(t, 1000, "gzip", true)
	s := New(&opener{file: []byte("anything"), ranges: true}, 0)
	body, _, err := s.OpenFile(peer.Uncompared(t.Context()), of.Item, 0, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); string(got) != "anything" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	body, err = s.Resume(peer.Uncompared(t.Context()), of.Item, 0, strings.NewReader("anything"), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); string(got) != "thing" || err != nil {
		t.Errorf("resumed: %q, %v", got, err)
	}
}
