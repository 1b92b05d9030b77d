package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"nar-herder/storage/bytestore"
)

func testStagedIsInvisible(t *testing.T, s bytestore.Store) {
	stage(t, s, name, []byte("first"), func(staged bytestore.Staged) {
		wantAbsent(t, s, name)
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, name, []byte("first"))
	})
	stage(t, s, name, []byte("the second"), func(staged bytestore.Staged) {
		wantContent(t, s, name, []byte("first"))
		// Remove doesn't remove staged content.
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, name)
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, name, []byte("the second"))
	})
	wantNothingLeft(t, s, name)
}

// nothingFirst is a reader with every other Read returning 0, nil.
type nothingFirst struct {
	io.Reader
	calls int
}

func (r *nothingFirst) Read(p []byte) (int, error) {
	if r.calls++; r.calls%2 == 1 {
		return 0, nil
	}
	return r.Reader.Read(p)
}

// testWrongSize tries several kinds of readers with too few and too many bytes.
func testWrongSize(t *testing.T, s bytestore.Store) {
	content := random(70_000, 1)
	length := int64(len(content))
	sources := map[string]func(io.Reader) io.Reader{
		"plain": func(r io.Reader) io.Reader { return r },
		"byte by byte": func(r io.Reader) io.Reader { // at both ends
			return struct{ io.Reader }{io.MultiReader(iotest.OneByteReader(io.LimitReader(r, 1000)), io.LimitReader(r, length-2000), iotest.OneByteReader(r))}
		},
		"data with EOF":  iotest.DataErrReader,
		"halves":         iotest.HalfReader,
		"nothing first":  func(r io.Reader) io.Reader { return &nothingFirst{Reader: r} },
		"without others": func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
		"a file": func(r io.Reader) io.Reader {
			file, err := os.Create(filepath.Join(t.TempDir(), "source"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { file.Close() })
			_, err = io.Copy(file, r)
			if _, seekErr := file.Seek(0, io.SeekStart); err != nil || seekErr != nil {
				t.Fatal(err, seekErr)
			}
			return file
		},
	}
	put(t, s, name, []byte("as before"))
	for kind, source := range sources {
		for _, size := range []int64{0, 1, length - 1, length + 1, 2 * length, 1 << 40} {
			for _, name := range []string{name, "nar/new/" + name} {
				staged, err := s.Stage(t.Context(), name, source(bytes.NewReader(content)), size)
				if err == nil {
					staged.Abort()
				}
				if !errors.Is(err, bytestore.ErrWrongSize) {
					t.Errorf("%s: %d bytes staged as %d: %v, want ErrWrongSize", kind, length, size, err)
				}
			}
		}
		staged, err := s.Stage(t.Context(), names[1], source(bytes.NewReader(content)), length)
		if err != nil {
			t.Errorf("%s: the right size: %v", kind, err)
			continue
		}
		if err := staged.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		wantContent(t, s, names[1], content)
	}
	// Empty content with another size.
	if _, err := s.Stage(t.Context(), name, strings.NewReader(""), 1); !errors.Is(err, bytestore.ErrWrongSize) {
		t.Errorf("nothing staged as one byte: %v, want ErrWrongSize", err)
	}
	wantContent(t, s, name, []byte("as before"))
	wantAbsent(t, s, "nar/new/"+name)
	wantNothingLeft(t, s, name, names[1])
}

func testFailingSource(t *testing.T, s bytestore.Store) {
	broken := errors.New("the line is broken")
	for _, good := range []int{0, 1, 10, 100_000} {
		source := io.MultiReader(bytes.NewReader(random(good, 1)), iotest.ErrReader(broken))
		// At the announced end, and before.
		for _, size := range []int64{int64(good), int64(good) + 1, int64(good) + 10_000} {
			_, err := s.Stage(t.Context(), name, source, size)
			if !errors.Is(err, broken) {
				t.Errorf("the source fails after %d of %d bytes: %v, want its error", good, size, err)
			}
			source = io.MultiReader(bytes.NewReader(random(good, 1)), iotest.ErrReader(broken))
		}
	}
	wantAbsent(t, s, name)
	wantNothingLeft(t, s)
}

func testCommitTwice(t *testing.T, s bytestore.Store) {
	stage(t, s, name, []byte("one"), func(staged bytestore.Staged) {
		for range 3 {
			if err := staged.Commit(t.Context()); err != nil {
				t.Errorf("commit: %v", err)
			}
		}
		wantContent(t, s, name, []byte("one"))
		// A second Commit does nothing, even if there is other content now.
		put(t, s, name, []byte("two"))
		if err := staged.Commit(t.Context()); err != nil {
			t.Errorf("commit: %v", err)
		}
		wantContent(t, s, name, []byte("two"))
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := staged.Commit(t.Context()); err != nil {
			t.Errorf("commit: %v", err)
		}
	})
	wantAbsent(t, s, name)
	wantNothingLeft(t, s)
}

func testAbort(t *testing.T, s bytestore.Store) {
	stage(t, s, name, []byte("never"), func(staged bytestore.Staged) {
		staged.Abort()
		wantAbsent(t, s, name)
		staged.Abort()
		if err := staged.Commit(t.Context()); err == nil {
			t.Error("Commit after Abort succeeds")
		}
	})
	wantAbsent(t, s, name)
	put(t, s, name, []byte("before"))
	stage(t, s, name, []byte("never"), func(staged bytestore.Staged) { staged.Abort() })
	wantContent(t, s, name, []byte("before"))
	wantNothingLeft(t, s, name)
}

func testAbortAfterCommit(t *testing.T, s bytestore.Store) {
	stage(t, s, name, []byte("stays"), func(staged bytestore.Staged) {
		if err := staged.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		staged.Abort()
	})
	wantContent(t, s, name, []byte("stays"))
	wantNothingLeft(t, s, name)
}

// testStageTwice: the last Commit counts, not the last Stage.
func testStageTwice(t *testing.T, s bytestore.Store) {
	stage(t, s, name, []byte("first staged"), func(first bytestore.Staged) {
		stage(t, s, name, []byte("second"), func(second bytestore.Staged) {
			for _, staged := range []bytestore.Staged{second, first} {
				if err := staged.Commit(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	})
	wantContent(t, s, name, []byte("first staged"))
	stage(t, s, name, []byte("aborted"), func(first bytestore.Staged) {
		stage(t, s, name, []byte("committed"), func(second bytestore.Staged) {
			first.Abort()
			if err := second.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	wantContent(t, s, name, []byte("committed"))
	wantNothingLeft(t, s, name)
}

func testConcurrentStages(t *testing.T, s bytestore.Store) {
	const writers, rounds = 8, 10
	contents := map[string]bool{}
	for w := range writers {
		contents[string(random(10_000+w, byte(w)))] = true
	}
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			content := random(10_000+w, byte(w))
			for range rounds {
				// A common name, and a name of its own.
				for _, name := range []string{name, fmt.Sprintf("nar/%d/own", w)} {
					staged, err := s.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
					if err == nil {
						err = staged.Commit(t.Context())
					}
					if err == nil {
						err = s.Sync(t.Context())
					}
					if err != nil {
						t.Errorf("writer %d: %v", w, err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if content, _ := read(t, s, name, 0, -1); !contents[string(content)] {
		t.Errorf("%s has %s, which no writer wrote", name, show(content))
	}
	want := []string{name}
	for w := range writers {
		own := fmt.Sprintf("nar/%d/own", w)
		wantContent(t, s, own, random(10_000+w, byte(w)))
		want = append(want, own)
	}
	wantNothingLeft(t, s, want...)
}

// testConcurrentReadersAndWriters: a reader gets a whole content with its size, or
// fs.ErrNotExist.
func testConcurrentReadersAndWriters(t *testing.T, s bytestore.Store) {
	contents := [][]byte{random(50_000, 1), random(90_000, 2), {}}
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for i := range 60 {
			if i%5 == 4 {
				if err := s.Remove(t.Context(), name); err != nil {
					t.Error(err)
				}
				continue
			}
			put(t, s, name, contents[i%len(contents)])
		}
	})
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				reader, info, err := s.Open(t.Context(), name, 0, -1)
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				content, err := io.ReadAll(reader)
				reader.Close()
				if err != nil {
					continue // removed during the read
				}
				if int64(len(content)) != info.Size {
					t.Errorf("read %d bytes, but the size is %d", len(content), info.Size)
				}
				if !bytes.Equal(content, contents[0]) && !bytes.Equal(content, contents[1]) && len(content) != 0 {
					t.Errorf("read %s, which no writer wrote", show(content))
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

// testCommitNew: CommitNew fails if the name exists.
func testCommitNew(t *testing.T, s bytestore.Store) {
	put(t, s, name, []byte("first"))
	for _, content := range []string{"other", "", "first", "a longer one"} {
		stage(t, s, name, []byte(content), func(staged bytestore.Staged) {
			for range 2 {
				if err := staged.CommitNew(t.Context()); !errors.Is(err, fs.ErrExist) {
					t.Errorf("CommitNew of an existing name: %v, want fs.ErrExist", err)
				}
			}
			staged.Abort()
		})
		wantContent(t, s, name, []byte("first"))
	}
	wantNothingLeft(t, s, name)
}

// testCommitNewAtOnce: one of several concurrent CommitNew succeeds.
func testCommitNewAtOnce(t *testing.T, s bytestore.Store) {
	for round := range 5 {
		other := names[1] + strconv.Itoa(round)
		const writers = 8
		contents := make([]string, writers)
		errs := make([]error, writers)
		staged := make([]bytestore.Staged, writers)
		for i := range writers {
			contents[i] = fmt.Sprint("of writer ", i)
			var err error
			if staged[i], err = s.Stage(t.Context(), other, strings.NewReader(contents[i]), int64(len(contents[i]))); err != nil {
				t.Fatal(err)
			}
		}
		var group sync.WaitGroup
		for i := range writers {
			group.Go(func() { errs[i] = staged[i].CommitNew(t.Context()) })
		}
		group.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won >= 0:
				t.Errorf("writers %d and %d have both succeeded", won, i)
			case err == nil:
				won = i
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("CommitNew: %v, want fs.ErrExist", err)
			}
		}
		if won < 0 {
			t.Fatal("none of the writers has succeeded")
		}
		// A second call does nothing.
		if err := staged[won].CommitNew(t.Context()); err != nil {
			t.Error(err)
		}
		for i := range writers {
			staged[i].Abort()
			if err := staged[i].CommitNew(t.Context()); i != won && err == nil {
				t.Error("CommitNew after Abort succeeds")
			}
		}
		wantContent(t, s, other, []byte(contents[won]))
		if err := s.Remove(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	wantNothingLeft(t, s)
}
