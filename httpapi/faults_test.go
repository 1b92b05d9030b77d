package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/probe"
)

var errBroken = errors.New("broken at /secret/path")

func failingOpen(err error) func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
	return func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
		return nil, bytestore.Info{}, err
	}
}

// isFault checks that an answer lets the client retry soon, and reveals nothing about this
// machine.
func isFault(t *testing.T, got *answer, status int) {
	t.Helper()
	if got.StatusCode != status {
		t.Errorf("%s, want %d", got.Status, status)
	}
	cache := ""
	if status >= 500 {
		cache = "no-store"
	}
	if strings.Contains(got.body, "secret") || got.Header.Get("ETag") != "" || got.Header.Get("Cache-Control") != cache ||
		got.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%v %s", got.Header, got.body)
	}
}

// TestIndexFails: a failing index never causes a 404.
func TestIndexFails(t *testing.T) {
	t.Parallel()
	items := &fakeItems{
		text:   func(narinfo.PathHash) ([]byte, error) { return nil, errBroken },
		item:   func(narinfo.PathHash) (*storage.Item, error) { return nil, errBroken },
		totals: func() (index.Totals, error) { return index.Totals{}, errBroken },
	}
	opts := options()
	opts.TTL, opts.NegativeTTL, opts.Pages = seconds(100), seconds(100), brokenPages()
	server := start(t, items, opts)
	c := dial(t, server.address)
	targets := []string{
		"/" + nobody + ".narinfo", "/" + nobody + ".narinfo/info", "/nar/lzip/" + nobody + "-x", "/nar/" + nobody + "-x",
		"/file/hello-2.10.tar.gz/sha256/" + helloHash, "/",
	}
	for i, target := range targets {
		isFault(t, c.ask("GET", target, "Accept: text/html"), 500)
		isFault(t, c.ask("HEAD", target, "Accept: text/html"), 500)
		if metrics := c.ask("GET", "/metrics").body; !strings.Contains(metrics, fmt.Sprintf("narherder_faults_total %d\n", 2*i+2)) {
			t.Errorf("%s: not counted", target)
		}
	}
	// The log has each kind of fault once.
	log := server.log.String()
	for _, tried := range []string{`"look up a narinfo"`, `"look for a nar"`, `"look up an item"`, `"answer with a page"`} {
		if strings.Count(log, "msg=\"can't answer a request\" tried="+tried) != 1 {
			t.Errorf("the log says: %s", log)
		}
	}
}

// TestStoreMismatch: files that differ from the index never get a 200.
func TestStoreMismatch(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(file string) error{
		"missing":   os.Remove,
		"short":     func(file string) error { return os.Truncate(file, 50) },
		"empty":     func(file string) error { return os.Truncate(file, 0) },
		"long":      func(file string) error { return os.Truncate(file, 5000) },
		"directory": func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) },
		"pipe":      func(file string) error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o644)) },
		"link out": func(file string) error { // to the same bytes
			out := filepath.Join(filepath.Dir(file), "../../../out-"+filepath.Base(file))
			return errors.Join(os.Rename(file, out), os.Symlink("../../../"+filepath.Base(out), file))
		},
		"loop": func(file string) error { return errors.Join(os.Remove(file), os.Symlink(filepath.Base(file), file)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flat, plain := make1(t, "source.tar", strings.Repeat("source", 100), "gzip"), make1(t, "plain.tar", strings.Repeat("plain", 100), "none")
			dir := t.TempDir()
			s := newStore(t, flat.write(t, dir), plain.write(t, dir))
			for _, m := range []*made{flat, plain} {
				if err := damage(filepath.Join(s.directory, m.url())); err != nil {
					t.Fatal(err)
				}
			}
			for _, accel := range []bool{false, true} {
				opts := options()
				opts.AccelRedirect = accel
				server := start(t, s, opts)
				c := dial(t, server.address)
				for _, m := range []*made{flat, plain} {
					for _, target := range []string{"/" + m.url(), "/nar/" + m.path.BaseName(), "/file/" + m.path.Name + "/sha256/" + m.digest, "/" + m.path.Hash.String() + ".narinfo/info"} {
						isFault(t, c.ask("GET", target), 500)
						isFault(t, c.ask("HEAD", target), 500)
						isFault(t, c.ask("GET", target, "Range: bytes=0-3"), 500)
						isFault(t, c.ask("GET", target, "Range: bytes=99999-"), 500)
					}
				}
				c.stillOpen()
				if got := server.checker.Options.Decoders.Memory(); got != 0 {
					t.Errorf("%d decoders are left", got)
				}
			}
		})
	}
}

// TestStorageIsGone: an unmounted storage never causes a 404.
func TestStorageIsGone(t *testing.T) {
	t.Parallel()
	s := newStore(t, filepath.Join(published, hashOf(gtk)+".narinfo"))
	c := dial(t, start(t, s, options()).address)
	if err := os.Rename(s.directory, s.directory+".away"); err != nil {
		t.Fatal(err)
	}
	// Open files can still be read.
	_, err := probe.Reading(t.Context(), s.Storage)
	if err := errors.Join(probe.Index(t.Context(), s.Storage), err); err != nil || probe.Writing(t.Context(), s.Storage) == nil {
		t.Errorf("reading: %v; or it can be written", err)
	}
	if err := os.Mkdir(s.directory, 0o755); err != nil { // an empty mount point
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.directory + ".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Reading(t.Context(), s.Storage); !errors.Is(err, bytestore.ErrNotInPlace) {
		t.Errorf("reading: %v, want ErrNotInPlace", err)
	}
	isFault(t, c.ask("GET", "/nar/lzip/"+gtk), 500)
	isFault(t, c.ask("GET", "/"+hashOf(gtk)+".narinfo/info"), 500)
}

// TestNotStored requests a nar that is certainly not stored here.
func TestNotStored(t *testing.T) {
	t.Parallel()
	m := make1(t, "elsewhere", "content", "none")
	items := m.items(t)
	item := m.item(t)
	item.Stored = 0
	items.item = func(narinfo.PathHash) (*storage.Item, error) { return item, nil }
	items.open = failingOpen(storage.ErrNotStored)
	c := dial(t, start(t, items, options()).address)
	for _, target := range []string{"/" + m.url(), "/nar/" + m.path.BaseName(), "/file/elsewhere/sha256/" + m.digest} {
		isFault(t, c.ask("GET", target), 404)
		isFault(t, c.ask("GET", target, "Range: bytes=9999-"), 404)
	}
	if got := c.ask("GET", "/"+m.path.Hash.String()+".narinfo/info"); got.body != `{"stored": false}` {
		t.Errorf("info: %s", got.body)
	}
	if got := c.ask("GET", "/"+m.path.Hash.String()+".narinfo"); got.body != string(m.text()) {
		t.Errorf("narinfo: %s", got.body)
	}
}

// TestCutWhileSending truncates a file after the status line was sent: the connection must be
// cut.
func TestCutWhileSending(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789abcdef", 1<<20) // 16 MiB, more than sockets buffer
	for _, left := range []int64{0, 100_000, 12 << 20} {
		m := make1(t, "large", content, "none")
		s := newStore(t, m.write(t, t.TempDir()))
		c := dial(t, start(t, s, options()).address)
		c.send(request("GET", "/"+m.url()) + request("GET", "/nix-cache-info"))
		response, err := http.ReadResponse(c.r, nil)
		if err != nil || response.StatusCode != 200 || response.ContentLength != m.fileSize {
			t.Fatal(response, err)
		}
		if err := os.Truncate(filepath.Join(s.directory, m.url()), left); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, response.Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("cut to %d: after %d bytes of %d: %v", left, n, m.fileSize, err)
		}
	}
}

// TestGrowsWhileSending appends to a file: the announced length is sent, and the next answer
// follows it.
func TestGrowsWhileSending(t *testing.T) {
	t.Parallel()
	m := make1(t, "large", strings.Repeat("0123456789abcdef", 1<<19), "none")
	s := newStore(t, m.write(t, t.TempDir()))
	c := dial(t, start(t, s, options()).address)
	c.send(request("GET", "/"+m.url()) + request("GET", "/nix-cache-info"))
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(filepath.Join(s.directory, m.url()), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(strings.Repeat("more", 100_000))
	}
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != string(m.nar) {
		t.Errorf("%d bytes of %d, %v", len(body), m.fileSize, err)
	}
	if got := c.receive("GET"); got.body != narinfo.CacheInfo {
		t.Errorf("next answer: %s %q", got.Status, got.body)
	}
}

// TestReaderFails uses byte stores with readers that are not files.
func TestReaderFails(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", strings.Repeat("content", 60_000), "none") // more than is read before the status line
	for name, reader := range map[string]io.Reader{
		"an error":            io.MultiReader(strings.NewReader(string(m.nar[:100_000])), iotestErr{errBroken}),
		"error at once":       iotestErr{errBroken},
		"end too early":       strings.NewReader(string(m.nar[:100_000])),
		"no bytes":            strings.NewReader(""),
		"more than asked for": strings.NewReader(string(m.nar) + "more"),
		"panic":               panicking{},
	} {
		closed := make(chan bool, 1)
		items := m.items(t)
		items.open = func(*storage.Item, int, int64, int64) (io.ReadCloser, bytestore.Info, error) {
			return closer{reader, closed}, bytestore.Info{Size: m.fileSize}, nil
		}
		server := start(t, items, options())
		c := dial(t, server.address)
		c.send(request("GET", "/"+m.url()))
		response, err := http.ReadResponse(c.r, nil)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(response.Body)
		}
		// A reader may return more than requested.
		if name == "more than asked for" {
			if err != nil || string(body) != string(m.nar) {
				t.Errorf("%s: %d bytes, %v", name, len(body), err)
			}
			c.stillOpen()
		} else if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %d bytes, %v", name, len(body), err)
		}
		until(t, name+": the reader is closed", func() bool { return len(closed) > 0 })
		dial(t, server.address).stillOpen()
	}
}

type iotestErr struct{ error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.error }

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("a reader's fault") }

type closer struct {
	io.Reader
	closed chan bool
}

func (c closer) Close() error {
	select {
	case c.closed <- true:
	default:
	}
	return nil
}

// TestPanic: a panic gets a 500.
func TestPanic(t *testing.T) {
	t.Parallel()
	items := &fakeItems{
		text: func(narinfo.PathHash) ([]byte, error) { panic("broken at /secret/path") },
		item: func(narinfo.PathHash) (*storage.Item, error) { panic(errBroken) },
	}
	server := start(t, items, options())
	c := dial(t, server.address)
	for _, target := range []string{"/" + nobody + ".narinfo", "/nar/" + nobody + "-x"} {
		isFault(t, c.ask("GET", target), 500)
		isFault(t, c.ask("HEAD", target), 500)
		c.stillOpen()
	}
	if log := server.log.String(); !strings.Contains(log, "faults_test.go") || !strings.Contains(log, nobody) {
		t.Errorf("the log has no stack, or not the request: %s", log)
	}
	if metrics := c.ask("GET", "/metrics").body; !strings.Contains(metrics, "narherder_faults_total 4\n") {
		t.Error("not counted")
	}
}

// TestUnreadable: a storage that fails while a nar is read is not a damaged nar, which would
// have to be imported again.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	m := make1(t, "source", "content", "none")
	items := m.items(t)
	open := items.open
	items.open = func(item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		r, info, err := open(item, n, offset, length)
		if offset > 0 {
			return io.NopCloser(iotest.ErrReader(errBroken)), info, err
		}
		return r, info, err
	}
	server := start(t, items, options())
	got := dial(t, server.address).ask("GET", "/file/source/sha256/"+m.digest)
	isFault(t, got, 500)
	if log := server.log.String(); strings.Contains(got.body, "damaged") || strings.Contains(log, "import it again") || !strings.Contains(log, "can't be read") {
		t.Errorf("%s\n%s", got.body, log)
	}
}
