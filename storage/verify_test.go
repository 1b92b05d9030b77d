package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// decode is a narcheck.Decoder.
func decode(_ context.Context, kind string, compressed io.Reader, _ int64) (io.ReadCloser, error) {
	reader, err := compression.NewReader(kind, compressed)
	if err != nil && compression.Refused(err) {
		err = fmt.Errorf("%w: %w", narcheck.ErrUnreadable, err)
	}
	return reader, err
}

// compressed is a nar in a compression.
func compressed(t testing.TB, kind, nar string) string {
	t.Helper()
	out := new(bytes.Buffer)
	writer, err := compression.NewWriter(kind, 1, out)
	if err == nil {
		_, err = writer.Write([]byte(nar))
		err = errors.Join(err, writer.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// genuine is an item with a valid nar.
func genuine(t testing.TB, n int, kind string) fake {
	t.Helper()
	nar := strings.Repeat(fmt.Sprintf("the nar of item %d. ", n), 50)
	return fake{n: n, nar: nar, kind: kind, content: compressed(t, kind, nar)}
}

// verified returns what Verify finds, as "kind name", sorted.
func verified(t testing.TB, s *storage.Storage, options check.VerifyOptions) []string {
	t.Helper()
	if options.Decode == nil {
		options.Decode = decode
	}
	found := []string{}
	for finding, err := range check.New(s).Verify(t.Context(), options) {
		if err != nil && finding.Kind != check.Unknown {
			t.Errorf("%v with an error: %v", finding.Kind, err)
		}
		found = append(found, finding.Kind.String()+" "+finding.Name)
	}
	slices.Sort(found)
	return found
}

// readStore is a directory store that counts opened files, and fails on demand.
type readStore struct {
	*directory.Directory
	mu     sync.Mutex
	opened map[string]int
	// broken are names that can't be opened; torn are those that fail in the middle.
	broken, torn map[string]bool
	open         func(name string)
}

func (s *readStore) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	if s.broken[name] {
		return bytestore.Info{}, syscall.EIO
	}
	return s.Directory.Stat(ctx, name)
}

func (s *readStore) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	s.mu.Lock()
	s.opened[name]++
	s.mu.Unlock()
	if s.open != nil {
		s.open(name)
	}
	if s.broken[name] {
		return nil, bytestore.Info{}, syscall.EIO
	}
	reader, info, err := s.Directory.Open(ctx, name, offset, length)
	if err == nil && s.torn[name] {
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(reader, info.Size/2), failing{syscall.EIO}), reader}, info, nil
	}
	return reader, info, err
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// openReads opens the storage of a place with a readStore.
func (p place) openReads(t testing.TB, now func() time.Time) (*storage.Storage, *readStore) {
	t.Helper()
	reads := &readStore{opened: map[string]int{}, broken: map[string]bool{}, torn: map[string]bool{}}
	var err error
	if reads.Directory, err = directory.Open(p.store); err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), reads.Close()); err != nil {
			t.Error(err)
		}
	})
	return storage.New(x, reads, storage.Options{Now: now}), reads
}

// TestVerify: files of the right size with wrong content.
func TestVerify(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"none", "gzip", "zstd", "lzip"} {
		for name, test := range narFiles(t, kind) {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				p := memoryPlace(t)
				s := p.openTest(t)
				f := test.fake
				wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, f)), "1 added")
				var want []string
				if test.wrong {
					want = []string{"corrupt " + f.name()}
				}
				var decoded counter
				if got := verified(t, s, check.VerifyOptions{Decode: decoded.decode}); !slices.Equal(got, want) {
					t.Errorf("found %q, want %q", got, want)
				}
				if decoded.Load() > 1<<20 {
					t.Errorf("%d bytes were decompressed of a nar of %d", decoded.Load(), len(f.nar))
				}
				wantFindings(t, s) // it compares sizes only
			})
		}
	}
}

// narFile is a file that is stored for an item.
type narFile struct {
	fake
	wrong bool
}

// narFiles returns files in a compression, right and wrong ones.
func narFiles(t testing.TB, kind string) map[string]narFile {
	t.Helper()
	nar := strings.Repeat("a nar that has been compressed. ", 100)
	other := strings.Repeat("another nar of the same length. ", 100)
	good := compressed(t, kind, nar)
	middle := []byte(good)
	middle[len(middle)/2] ^= 4
	last := []byte(good)
	last[len(last)-1] ^= 128
	files := make(map[string]narFile)
	for name, test := range map[string]struct {
		content string
		wrong   bool
	}{
		"good":              {good, false},
		"flipped bit":       {string(middle), true},
		"flipped last bit":  {string(last), true},
		"truncated":         {good[:len(good)-3], true},
		"nothing":           {"", true},
		"zeros behind":      {good + "\x00\x00\x00\x00", true},
		"garbage behind":    {good + "garbage", true},
		"twice":             {good + good, true},
		"another nar":       {compressed(t, kind, other), true},
		"longer nar":        {compressed(t, kind, nar+"x"), true},
		"very long nar":     {compressed(t, kind, strings.Repeat("\x00", 8<<20)), true},
		"shorter nar":       {compressed(t, kind, nar[1:]), true},
		"holes":             {strings.Repeat("\x00", len(good)), true},
		"in two parts":      {compressed(t, kind, nar[:50]) + compressed(t, kind, nar[50:]), false},
		"of another format": {compressed(t, map[bool]string{true: "zstd", false: "gzip"}[kind == "gzip"], nar), true},
	} {
		f := fake{n: 1, nar: nar, kind: kind, content: test.content}
		if test.content == "" {
			f.claim = -1 // a narinfo can't say 0 here
		}
		files[name] = narFile{f, test.wrong}
	}
	return files
}

// counter counts decompressed bytes.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// decode is a narcheck.Decoder.
func (c *counter) decode(ctx context.Context, kind string, from io.Reader, size int64) (io.ReadCloser, error) {
	reader, err := decode(ctx, kind, from, size)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(reader, c), reader}, nil
}

// TestVerifyUnknown: a file that can't be read, or not by this program, is not corrupt.
func TestVerifyUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, reads := p.openReads(t, nil)
	items := []fake{genuine(t, 0, "zstd"), genuine(t, 1, "zstd"), genuine(t, 2, "gzip"), genuine(t, 3, "lzip")}
	items = append(items, fake{n: 4, nar: "nar", kind: "br", content: "brotli"})
	importAll(t, s, importer.Options{}, laid(t, items...))
	reads.broken[items[1].name()] = true
	reads.torn[items[2].name()] = true
	want := []string{"unknown " + items[2].name(), "unknown " + items[4].name(), "unknown " + items[1].name()}
	slices.Sort(want)
	repairer := check.New(s).Repairer(check.RepairOptions{Decode: decode})
	for finding, err := range check.New(s).Verify(t.Context(), check.VerifyOptions{Decode: decode}) {
		if err == nil {
			t.Errorf("%v %s has no error", finding.Kind, finding.Name)
		}
		if repair := repairer.Repair(t.Context(), finding); repair.Outcome != check.Untouched {
			t.Errorf("%s: %v", finding.Name, repair.Outcome)
		}
	}
	if got := verified(t, s, check.VerifyOptions{}); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	reads.broken, reads.torn = nil, nil
	for _, f := range items {
		wantServed(t, s, f)
	}
}

// TestVerifyResumes: an interrupted pass reads each file once in total, and reports files
// again that were wrong before.
func TestVerifyResumes(t *testing.T) {
	t.Parallel()
	const count, first = 40, 17
	for name, stop := range map[string]func(cancel func()) (goOn bool){
		"cancelled": func(cancel func()) bool { cancel(); return true },
		"break":     func(func()) bool { return false },
		"crash":     func(func()) bool { panic(crash{}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := memoryPlace(t)
			// Each look at the clock takes longer than what a crash may lose.
			begin, looks := time.Now(), new(atomic.Int64)
			s, reads := p.openReads(t, func() time.Time { return begin.Add(time.Duration(looks.Add(1)) * time.Minute) })
			items := make([]fake, count)
			for n := range items {
				items[n] = genuine(t, n, "gzip")
			}
			importAll(t, s, importer.Options{}, laid(t, items...))
			order := []string{} // by import
			for item, err := range s.Items(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				order = append(order, item.FileName(0))
			}
			// The file that ends it is always wrong.
			ending := order[first]
			corrupt := func(name string) {
				f := items[slices.IndexFunc(items, func(f fake) bool { return f.name() == name })]
				write(t, p.store+"/"+name, strings.Repeat("x", len(f.content)))
			}
			// One is before it, to be verified again, and one after it. Items
			// are in the order of import, not of their numbers.
			early, late := order[3], order[30]
			corrupt(early)
			corrupt(late)
			corrupt(ending)

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			crashed, _ := try(func() error {
				for finding, err := range check.New(s).Verify(ctx, check.VerifyOptions{Decode: decode}) {
					if finding.Name == ending && !stop(cancel) {
						break
					}
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}
				return nil
			})
			if crashed != (name == "crash") {
				t.Errorf("crashed: %v", crashed)
			}
			if read := len(reads.opened); read != first+1 {
				t.Fatalf("%d files were read at first, want %d", read, first+1)
			}
			place, err := check.New(s).VerifyPosition(t.Context())
			if err != nil || place.Begun.IsZero() || place.Files != first-1 || place.Bytes == 0 {
				t.Fatalf("%+v, %v", place, err)
			}
			before := reads.opened
			// Stopped again while it verifies wrong files again, it loses
			// nothing.
			for range check.New(s).Verify(t.Context(), check.VerifyOptions{Decode: decode, From: place}) {
				break
			}
			stopped, err := check.New(s).VerifyPosition(t.Context())
			if err != nil || !reflect.DeepEqual(stopped, place) {
				t.Errorf("stopped again: %+v, %v; want %+v", stopped, err, place)
			}
			reads.opened = map[string]int{}
			want := []string{"corrupt " + early, "corrupt " + late, "corrupt " + ending}
			slices.Sort(want)
			if got := verified(t, s, check.VerifyOptions{From: place}); !slices.Equal(got, want) {
				t.Errorf("found then %q, want %q", got, want)
			}
			for i, name := range order {
				again := before[name] > 0 && !slices.Contains(want, "corrupt "+name)
				if read := reads.opened[name]; again && read > 0 || !again && read != 1 {
					t.Errorf("file %d, read %d times before, is read %d times then", i, before[name], read)
				}
			}
			// It has reached its end, and the next begins anew.
			if place, err := check.New(s).VerifyPosition(t.Context()); err != nil || !place.Begun.IsZero() {
				t.Errorf("%+v, %v", place, err)
			}
		})
	}
}

// TestVerifyMeanwhile: a file that changes while it is read is not wrong.
func TestVerifyMeanwhile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, s *storage.Storage, f fake){
		"removed": func(t *testing.T, s *storage.Storage, f fake) {
			if _, err := s.Remove(t.Context(), f.hash()); err != nil {
				t.Error(err)
			}
		},
		"replaced": func(t *testing.T, s *storage.Storage, f fake) {
			nar := strings.ToUpper(f.nar)
			f.nar, f.content = nar, compressed(t, f.kind, nar)
			wantOutcomes(t, importAll(t, s, importer.Options{Replace: true}, laid(t, f)), "1 replaced")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s, reads := p.openReads(t, nil)
			f := genuine(t, 1, "zstd")
			good := f.content
			f.content = good[:len(good)-1] + "x" // wrong, so that the row is read again
			importAll(t, s, importer.Options{}, laid(t, f))
			changed := false
			decode := func(ctx context.Context, kind string, from io.Reader, size int64) (io.ReadCloser, error) {
				if !changed {
					changed = true
					change(t, s, f)
				}
				return decode(ctx, kind, from, size)
			}
			if got := verified(t, s, check.VerifyOptions{Decode: decode}); len(got) > 0 {
				t.Errorf("found %q", got)
			}
			if !changed || reads.opened[f.name()] == 0 {
				t.Error("nothing was read")
			}
		})
	}
}
