package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/compression/decoders"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// outcome is what a client sees of an answer that may be cut.
type outcome struct {
	*http.Response
	body string
	err  error
}

func fetch(t *testing.T, address, target string) outcome {
	t.Helper()
	c := dial(t, address)
	c.send(request("GET", target))
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return outcome{err: err}
	}
	body, err := io.ReadAll(response.Body)
	c.Close()
	return outcome{response, string(body), err}
}

// cut reports whether the client knows that the answer is incomplete.
func (o outcome) cut() bool {
	return errors.Is(o.err, io.ErrUnexpectedEOF) || errors.Is(o.err, syscall.ECONNRESET)
}

// TestDamagedNars: a client never takes a nar that differs from its narinfo for a good one.
func TestDamagedNars(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 10_000)
	for _, content := range []string{"short", long} {
		for _, how := range []string{"gzip", "zstd"} {
			for name, damage := range map[string]func(*made){
				"bit flipped at the end":    func(m *made) { m.file[len(m.file)-6] ^= 1 },
				"bit flipped in the middle": func(m *made) { m.file[len(m.file)/2] ^= 1 },
				"cut":                       func(m *made) { m.file = m.file[:len(m.file)-9] },
				"cut in the middle":         func(m *made) { m.file = m.file[:len(m.file)/2] },
				"nothing":                   func(m *made) { m.file = nil },
				"garbage":                   func(m *made) { m.file = bytes.Repeat([]byte("garbage"), len(m.file)/7+1) },
				"garbage after the end":     func(m *made) { m.file = append(m.file, "garbage"...) },
				"another nar of that size": func(m *made) {
					m.file = compress(t, how, flatNar(strings.ReplaceAll(content, "s", "t")+""))
					m.narHash[0] ^= 1
				},
				"a longer nar": func(m *made) { m.file = compress(t, how, flatNar(content+"12345678")) },
				"a longer nar, its own hash": func(m *made) {
					*m = *make1(t, "source", content+"12345678", how)
					m.narSize -= 8
				},
				"a shorter nar":           func(m *made) { m.file = compress(t, how, flatNar(content[:3])) },
				"a wrong NarHash":         func(m *made) { m.narHash[7] ^= 1 },
				"a NarSize too large":     func(m *made) { m.narSize += 8 },
				"a NarSize too small":     func(m *made) { m.narSize -= 8 },
				"a NarSize of zero":       func(m *made) { m.narSize = 0 },
				"decoder of another kind": func(m *made) { m.file = compress(t, map[string]string{"gzip": "zstd", "zstd": "gzip"}[how], m.nar) },
			} {
				m := make1(t, "source", content, how)
				m.file = bytes.Clone(m.file)
				damage(m)
				m.fileSize = int64(len(m.file))
				if m.fileSize == 0 {
					m.fileSize = 1 // as the row says; zero would be refused before
				}
				server := start(t, m.items(t), options())
				for _, sized := range []bool{true, false} {
					if !sized {
						if strings.Contains(name, "NarSize") || name == "a longer nar, its own hash" {
							continue
						}
						m.narSize = -1
						server = start(t, m.items(t), options())
					}
					before := damagedCount(t, server)
					got := fetch(t, server.address, "/nar/"+m.path.BaseName())
					if !got.cut() && (got.Response == nil || got.StatusCode != 500) {
						t.Errorf("%s, %s, sized %v: %v, %d bytes, %v", how, name, sized, got.Response, len(got.body), got.err)
					}
					after := damagedCount(t, server)
					if got.cut() && after != before+1 {
						t.Errorf("%s, %s, sized %v: cut, counted %d times", how, name, sized, after-before)
					}
					if !strings.Contains(server.log.String(), m.path.BaseName()) {
						t.Errorf("%s, %s, sized %v: the log does not name the item: %s", how, name, sized, server.log)
					}
					until(t, name+": decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
				}
				server.stop()
			}
		}
	}
}

func damagedCount(t *testing.T, s *started) (n int) {
	t.Helper()
	for line := range strings.Lines(dial(t, s.address).ask("GET", "/metrics").body) {
		if _, err := fmt.Sscanf(line, "narherder_damaged_nars_total %d", &n); err == nil {
			return n
		}
	}
	t.Error("no metric for damaged nars")
	return 0
}

// TestDamagedFiles is the same for the content of flat nars.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789", 50_000)
	for name, test := range map[string]struct {
		damage func(*made)
		status int // 0 for a cut answer
	}{
		"good":                 {func(*made) {}, 200},
		"bit flipped":          {func(m *made) { m.file[len(m.file)-6] ^= 1 }, 200}, // in gzip's checksum, which is past the content
		"cut":                  {func(m *made) { m.file = m.file[:len(m.file)/2] }, 0},
		"nothing":              {func(m *made) { m.file, m.fileSize = nil, 1 }, 500},
		"garbage":              {func(m *made) { m.file = bytes.Repeat([]byte("garbage"), 100) }, 500},
		"no nar":               {func(m *made) { m.file = compress(t, "gzip", []byte(content)) }, 500},
		"a nar of a few bytes": {func(m *made) { m.file = compress(t, "gzip", m.nar[:40]) }, 500},
		"other content": {func(m *made) {
			m.file = compress(t, "gzip", flatNar(strings.ToUpper(strings.Repeat("x", len(content)))))
		}, 0},
		"content of another length": {func(m *made) { m.file = compress(t, "gzip", flatNar(content+"more and more")) }, 500},
		"NarSize not given":         {func(m *made) { m.narSize = -1 }, 200},
		"a length past the end": {func(m *made) {
			m.narSize, m.nar = -1, bytes.Clone(m.nar)
			m.nar[90] ^= 0x7f
			m.file = compress(t, "gzip", m.nar)
		}, 0},
		"a length without end": {func(m *made) {
			m.narSize, m.nar = -1, bytes.Clone(m.nar)
			m.nar[95] = 0xff
			m.file = compress(t, "gzip", m.nar)
		}, 500},
		"a directory": {func(m *made) {
			m.narSize = -1
			m.file = compress(t, "gzip", append(append(bytes.Clone(m.nar[:56]), "\x09\x00\x00\x00\x00\x00\x00\x00directory"...), make([]byte, 64)...))
		}, 404},
		"a directory that is short": {func(m *made) {
			m.narSize = -1
			m.file = compress(t, "gzip", append(append(bytes.Clone(m.nar[:56]), "\x09\x00\x00\x00\x00\x00\x00\x00directory"...), make([]byte, 23)...))
		}, 404},
	} {
		m := make1(t, "source", content, "gzip")
		m.file = bytes.Clone(m.file)
		test.damage(m)
		m.fileSize = max(int64(len(m.file)), 1)
		server := start(t, m.items(t), options())
		got := fetch(t, server.address, "/file/source/sha256/"+m.digest)
		switch {
		case test.status == 0 && !got.cut(), test.status != 0 && (got.err != nil || got.StatusCode != test.status):
			t.Errorf("%s: %v, %d bytes, %v, want %d", name, got.Response, len(got.body), got.err, test.status)
		case test.status == 200 && got.body != content:
			t.Errorf("%s: %d bytes", name, len(got.body))
		}
		until(t, name+": decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
	}
}

// TestWithoutNarSize sends chunks. The last one means that the nar is good.
func TestWithoutNarSize(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", strings.Repeat("0123456789", 50_000), "zstd")
	m.narSize = -1
	address := start(t, m.items(t), options()).address
	c := dial(t, address)
	target := "/nar/" + m.path.BaseName()
	got := c.ask("GET", target)
	if got.StatusCode != 200 || len(got.TransferEncoding) != 1 || got.body != string(m.nar) || got.err != nil {
		t.Errorf("%s %v, %d bytes, %v", got.Status, got.TransferEncoding, len(got.body), got.err)
	}
	head := c.ask("HEAD", target)
	if head.StatusCode != 200 || head.Header.Get("ETag") != got.Header.Get("ETag") || head.ContentLength != -1 {
		t.Errorf("HEAD: %s %v, length %d", head.Status, head.Header, head.ContentLength)
	}
	c.stillOpen()
	// HTTP/1.0 has no chunks, and no other way to distinguish a cut body. The proxies that
	// use it support chunks all the same.
	c = dial(t, address)
	c.send("GET " + target + " HTTP/1.0\r\n\r\n")
	old := c.receive("GET")
	if old.StatusCode == 200 && (old.body != string(m.nar) || old.err != nil) {
		t.Errorf("HTTP/1.0: %s %v %v, %d bytes, %v", old.Status, old.Header, old.TransferEncoding, len(old.body), old.err)
	}
}

// TestCompressions reads each compression of which the corpus has a file, or that can be made
// here.
func TestCompressions(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"gzip", "zstd", "none"} {
		m := make1(t, "source", strings.Repeat("0123456789", 50_000), how)
		s := newStore(t, m.write(t, t.TempDir()))
		server := start(t, s, options())
		c := dial(t, server.address)
		for range 2 {
			got := c.ask("GET", "/nar/"+m.path.BaseName())
			if got.StatusCode != 200 || got.body != string(m.nar) || got.ContentLength != int64(len(m.nar)) || got.err != nil {
				t.Errorf("%s: %s, %d bytes, %v", how, got.Status, len(got.body), got.err)
			}
		}
		if got := c.ask("HEAD", "/nar/"+m.path.BaseName()); got.Header.Get("Content-Length") != fmt.Sprint(len(m.nar)) {
			t.Errorf("%s: HEAD %v", how, got.Header)
		}
		until(t, "decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
	}
	unknown := make1(t, "source", "x", "none")
	unknown.compression = "brotli"
	c := dial(t, start(t, unknown.items(t), options()).address)
	isFault(t, c.ask("GET", "/nar/"+unknown.path.BaseName()), 404)
	if got := c.ask("GET", "/"+unknown.url()); got.StatusCode != 200 || got.body != string(unknown.nar) {
		t.Errorf("stored as it is: %s, %d bytes", got.Status, len(got.body))
	}
}

// TestTooManyDecoders: busy decoders hold all memory.
func TestTooManyDecoders(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", "content", "gzip")
	server := startWith(t, m.items(t), options(), func(s *Server) {
		s.checker.Options.Decoders = decodersWithin(1, 2*decoders.Piece)
		s.checker.Options.Wait = 50 * time.Millisecond
	})
	release, err := takeMemory(t, server.checker.Options.Decoders, 2*decoders.Piece)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, server.address)
	targets := []string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest}
	for _, target := range targets {
		got := c.ask("GET", target)
		isFault(t, got, 503)
		if got.Header.Get("Retry-After") != "30" {
			t.Errorf("header %v", got.Header)
		}
	}
	if got := c.ask("GET", "/"+m.url()); got.StatusCode != 200 || got.body != string(m.file) {
		t.Errorf("the compressed one: %s", got.Status)
	}
	// A waiting request gets memory that becomes free.
	server.checker.Options.Wait = patience
	c.send(request("GET", targets[0]))
	until(t, "the request waits", func() bool { return server.checker.Options.Decoders.Waiting() })
	release()
	if got := c.receive("GET"); got.StatusCode != 200 || got.body != string(m.nar) {
		t.Errorf("after waiting: %s", got.Status)
	}
}

// TestClientsLeave: clients close their connections in the middle of nars that are being
// decompressed.
func TestClientsLeave(t *testing.T) {
	t.Parallel()
	m := make1(t, "zeros", strings.Repeat("\x00", 16<<20), "gzip")
	var open atomic.Int32
	items := m.items(t)
	items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
		open.Add(1)
		return readCloser{bytes.NewReader(m.file), closeFunc(func() { open.Add(-1) })}, bytestore.Info{Size: m.fileSize}, nil
	}
	var decompressors atomic.Int32
	opts := options()
	opts.Decompress = func(name string, r io.Reader, memory int64) (io.ReadCloser, error) {
		decompressors.Add(1)
		decompressor, err := compression.NewReaderWithin(name, r, memory)
		return readCloser{decompressor, closeFunc(func() { decompressors.Add(-1); decompressor.Close() })}, err
	}
	server := start(t, items, opts)
	for i := range 20 {
		c := dial(t, server.address)
		c.send(request("GET", []string{"/nar/" + m.path.BaseName(), "/file/zeros/sha256/" + m.digest}[i%2]))
		if _, err := io.ReadFull(c.r, make([]byte, 1000*i)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	until(t, "all is given back", func() bool {
		return server.checker.Options.Decoders.Memory() == 0 && open.Load() == 0 && decompressors.Load() == 0
	})
}

// TestDecompressorFails uses a decompressor that fails at once, and one that panics.
func TestDecompressorFails(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", "content", "gzip")
	for name, decompress := range map[string]func(string, io.Reader, int64) (io.ReadCloser, error){
		"error":            func(string, io.Reader, int64) (io.ReadCloser, error) { return nil, errBroken },
		"error on reading": func(string, io.Reader, int64) (io.ReadCloser, error) { return io.NopCloser(iotestErr{errBroken}), nil },
		"panic":            func(string, io.Reader, int64) (io.ReadCloser, error) { panic(errBroken) },
		"panic on reading": func(string, io.Reader, int64) (io.ReadCloser, error) { return io.NopCloser(panicking{}), nil },
		"panic when closed": func(string, io.Reader, int64) (io.ReadCloser, error) {
			return readCloser{bytes.NewReader(m.nar), closeFunc(func() { panic(errBroken) })}, nil
		},
	} {
		closed := make(chan bool, 8)
		items := m.items(t)
		items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
			return closer{bytes.NewReader(m.file), closed}, bytestore.Info{Size: m.fileSize}, nil
		}
		opts := options()
		opts.Decompress = decompress
		server := start(t, items, opts)
		for _, target := range []string{"/nar/" + m.path.BaseName(), "/file/source/sha256/" + m.digest} {
			got := fetch(t, server.address, target)
			if !got.cut() && (got.Response == nil || got.StatusCode != 500) && name != "panic when closed" {
				t.Errorf("%s: %s: %v, %d bytes, %v", name, target, got.Response, len(got.body), got.err)
			}
		}
		dial(t, server.address).stillOpen()
		until(t, name+": decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
		until(t, name+": files are closed", func() bool { return len(closed) == 2 })
	}
}

type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

func TestEasiestFile(t *testing.T) {
	t.Parallel()
	text := "StorePath: /gnu/store/" + greeting + "\nNarHash: sha256:" + helloHash + "\nNarSize: 1\nReferences: \n"
	for _, how := range []string{"lzip", "brotli", "gzip", "none", "zstd", "xz"} {
		text += "URL: nar/" + how + "/" + greeting + "\nCompression: " + how + "\nFileSize: 1\n"
	}
	item, err := storage.NewItem(&index.Item{Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	for stored, want := range map[uint64]int{0: -1, 1: 0, 0b10: -1, 0b11: 0, 0b101: 2, 0b111111: 3, 0b110111: 4, 0b100001: 0} {
		item.Stored = stored
		if got := item.EasiestFile(item.HasStored); got != want {
			t.Errorf("stored %b: file %d, want %d", stored, got, want)
		}
	}
}
