package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/verify"
	"nar-herder/storage/bytestore"
)

// plainServer is a server with one nar without compression, and an Opener that compares it.
func plainServer(t *testing.T, content string) (*started, *store, *made, content.Opener) {
	m := make1(t, "source", content, "none")
	s := newStore(t, m.write(t, t.TempDir()))
	server := newStarted(s, options())
	item, err := s.Item(t.Context(), m.path.Hash)
	if err != nil {
		t.Fatal(err)
	}
	return server, s, m, server.checker.Compared(verify.Part{Item: item, Length: m.fileSize, Want: item.Narinfo.NarHash}, func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		return s.OpenFile(context.Background(), item, 0, offset, length)
	})
}

// TestCompared: a file that was compared is sent unchanged, and in ranges, until it changes or
// a day has passed.
func TestCompared(t *testing.T) {
	t.Parallel()
	for _, content := range plainContents {
		server, s, m, open := plainServer(t, content)
		// read reports whether the file itself was opened, for the kernel to send.
		read := func(offset, length int64) (bool, error) {
			reader, _, err := open(offset, length)
			if err != nil {
				return false, err
			}
			defer reader.Close()
			got, err := io.ReadAll(io.LimitReader(reader, length))
			if err == nil && !bytes.Equal(got, m.file[offset:offset+length]) {
				t.Errorf("%d bytes, not those at %d", len(got), offset)
			}
			return verify.LocalFile(reader) != nil, err
		}
		if isFile, err := read(0, m.fileSize); isFile != (len(content) < verify.CheckedFirst) || err != nil {
			t.Errorf("%d bytes: first: file %v, %v", len(content), isFile, err)
		}
		for range 2 {
			for _, length := range []int64{m.fileSize, 0, 5} {
				if isFile, err := read(0, length); !isFile || err != nil {
					t.Errorf("%d bytes: again: file %v, %v", len(content), isFile, err)
				}
			}
		}
		if server.checker.Good() != 1 {
			t.Errorf("%d files are remembered", server.checker.Good())
		}
		var later atomic.Int64
		server.checker.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		later.Store(int64(verify.ComparedFor))
		if isFile, err := read(0, m.fileSize); isFile != (len(content) < verify.CheckedFirst) || err != nil {
			t.Errorf("%d bytes: a day later: file %v, %v", len(content), isFile, err)
		}
		// A range compares the whole file.
		later.Add(int64(verify.ComparedFor))
		if isFile, err := read(10, 20); !isFile || err != nil {
			t.Errorf("%d bytes: part: file %v, %v", len(content), isFile, err)
		}
		if isFile, err := read(0, m.fileSize); !isFile || err != nil {
			t.Errorf("%d bytes: after the part: file %v, %v", len(content), isFile, err)
		}
		// Another file of the same size and time.
		name := filepath.Join(s.directory, m.url())
		before, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		wrong := bytes.Clone(m.file)
		wrong[200] ^= 1
		if err := errors.Join(os.WriteFile(name+".new", wrong, 0o644), os.Chtimes(name+".new", time.Time{}, before.ModTime()), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
		if _, err := read(10, 20); !errors.Is(err, verify.ErrDamaged) {
			t.Errorf("%d bytes: replaced: %v", len(content), err)
		}
		if _, err := read(0, m.fileSize); err == nil {
			t.Errorf("%d bytes: replaced, whole: no error", len(content))
		}
	}
}

// TestComparedOnce: many requests for ranges of a large file cause one comparison, and get 503
// if it takes too long.
func TestComparedOnce(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", plainContents[1], "none")
	server := startWith(t, newStore(t, m.write(t, t.TempDir())), options(), func(s *Server) {
		s.checker.Options.Wait = time.Millisecond
		for range verify.Concurrency {
			s.checker.Slots <- struct{}{}
		}
	})
	running := server.checker.Running
	for range 8 {
		got := dial(t, server.address).ask("GET", "/"+m.url(), "Range: bytes=5-14")
		if got.StatusCode != 503 || got.Header.Get("Retry-After") == "" || !strings.Contains(got.body, "compared") || running() != 1 {
			t.Errorf("%s, %v, %q, %d comparisons", got.Status, got.Header, got.body, running())
		}
	}
	for range verify.Concurrency {
		<-server.checker.Slots
	}
	until(t, "it is compared", func() bool { return running() == 0 })
	if got := dial(t, server.address).ask("GET", "/"+m.url(), "Range: bytes=5-14"); got.StatusCode != 206 || got.body != string(m.file[5:15]) {
		t.Errorf("%s, %q", got.Status, got.body)
	}
}

// TestDamageRemembered: many requests for ranges of a large damaged file cause one comparison
// a minute.
func TestDamageRemembered(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", plainContents[1], "none")
	items := newStore(t, m.write(t, t.TempDir()))
	wrong := bytes.Clone(m.file)
	wrong[len(wrong)/2] ^= 1
	if err := os.WriteFile(filepath.Join(items.directory, m.url()), wrong, 0o644); err != nil {
		t.Fatal(err)
	}
	var later atomic.Int64
	server := startWith(t, items, options(), func(s *Server) {
		s.checker.Now = func() time.Time { return time.Unix(later.Load(), 0) }
	})
	for minute := range int64(3) {
		later.Store(minute * int64(verify.DamagedFor/time.Second))
		for _, header := range []string{"Range: bytes=5-14", "Range: bytes=-10", "Range: bytes=0-"} {
			if got := dial(t, server.address).ask("GET", "/"+m.url(), header); got.StatusCode != 500 {
				t.Errorf("minute %d, %s: %s", minute, header, got.Status)
			}
		}
		if n := damagedCount(t, server); n != int(minute)+1 {
			t.Errorf("minute %d: compared %d times", minute, n)
		}
	}
	// Another version of the file is compared at once.
	if err := os.WriteFile(filepath.Join(items.directory, m.url()), m.file, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := dial(t, server.address).ask("GET", "/"+m.url(), "Range: bytes=5-14"); got.StatusCode != 206 || got.body != string(m.file[5:15]) {
		t.Errorf("mended: %s, %q", got.Status, got.body)
	}
}

// TestComparedMemory: a short nar from a bucket takes a piece of the budget until its client
// has read it.
func TestComparedMemory(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", plainContents[0], "none")
	items := m.inBucket(t)
	server := newStarted(items, options())
	server.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece)
	item := m.item(t)
	open := func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		server.checker.Forget()
		return server.checker.Compared(verify.Part{Item: item, Length: m.fileSize, Want: item.Narinfo.NarHash}, func(offset, length int64) (io.ReadCloser, bytestore.Info, error) {
			return items.OpenFile(t.Context(), item, 0, offset, length)
		})(offset, length)
	}
	for _, r := range []headers.Range{{Start: 0, Length: m.fileSize}, {Start: 5, Length: 10}} {
		reader, _, err := open(r.Start, r.Length)
		if err != nil {
			t.Fatal(err)
		}
		if n := server.checker.Options.Decoders.Memory(); n != decoders.Piece {
			t.Errorf("%v: %d bytes of the budget", r, n)
		}
		if got, err := io.ReadAll(io.LimitReader(reader, r.Length)); err != nil || !bytes.Equal(got, m.file[r.Start:r.Start+r.Length]) {
			t.Errorf("%v: %d bytes, %v", r, len(got), err)
		}
		reader.Close()
		reader.Close()
		if n := server.checker.Options.Decoders.Memory(); n != 0 {
			t.Errorf("%v: %d bytes of the budget when closed", r, n)
		}
	}
	release, err := takeMemory(t, server.checker.Options.Decoders, 2*decoders.Piece)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	server.checker.Options.Wait = time.Millisecond
	if _, _, err := open(0, m.fileSize); !errors.Is(err, verify.ErrComparing) {
		t.Errorf("without memory: %v", err)
	}
	m.file[200] ^= 1
	server.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece)
	if _, _, err := open(0, m.fileSize); !errors.Is(err, verify.ErrDamaged) || server.checker.Options.Decoders.Memory() != 0 {
		t.Errorf("damaged: %v, %d bytes of the budget", err, server.checker.Options.Decoders.Memory())
	}
}

// TestDecodedMemory: a short decompressed nar takes a piece of the budget until its client has
// read it.
func TestDecodedMemory(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", strings.Repeat("0123456789", 20_000), "gzip")
	server := startOn(t, m.items(t), options(), smallSockets{listenTCP(t)}, nil)
	for _, target := range []string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest} {
		c := connectSmall(t, server.listener)
		answer := c.begin(target)
		if n := server.checker.Options.Decoders.Memory(); n != decoders.Piece {
			t.Errorf("%s: %d bytes of the budget", target, n)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			t.Error(err)
		}
		until(t, "it is given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
	}
}
