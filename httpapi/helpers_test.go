package httpapi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// patience is how long a test waits for what has to come.
const patience = 30 * time.Second

// Items of the corpus.
const (
	published = "../testdata/published"

	greeting  = "f7d5xvkf9s1mdnclid1kqndn30nim936-greeting.txt"
	odd       = "2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z"
	oddURL    = "2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0%2Bx%3Dy%3Fz"
	gtk       = "mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk+-2.24.33-doc"
	emptyFile = "whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file"
	entropy   = "d1srdrndhd8maaz82liwpkdkmbm5rfcm-entropy-1"
	gofmt     = "vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26"
	hello     = "g699dxrv55xnrdq6z90qwfmsgz16p3xg-hello-2.10.tar.gz"
	helloHash = "0wz7x8ngv5y6qk5w3i659y2ccawyfniixrghnr4km447cls0p45k"
	nobody    = "00000000000000000000000000000000"
)

// hashOf returns the part of a base name before its hyphen.
func hashOf(base string) string { return base[:narinfo.PathHashLen] }

// store is an index and a storage with their names.
type store struct {
	*storage.Storage
	index     *index.Index
	database  string
	directory string
}

func newStore(t testing.TB, sources ...string) *store {
	t.Helper()
	s := openStore(t, t.TempDir())
	s.importAll(t, storage.ImportOptions{Keep: true}, sources...)
	return s
}

// openStore opens what lies in a directory, or makes it.
func openStore(t testing.TB, dir string) *store {
	t.Helper()
	s, err := makeStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.index.Close() })
	return s
}

func makeStore(dir string) (*store, error) {
	s := &store{database: filepath.Join(dir, "index.db"), directory: filepath.Join(dir, "storage")}
	err := os.MkdirAll(s.directory, 0o755)
	if err != nil {
		return nil, err
	}
	bytes, err := directory.Open(s.directory)
	if err != nil {
		return nil, err
	}
	if s.index, err = index.Open(context.Background(), s.database, index.Options{}); err != nil {
		return nil, err
	}
	s.Storage = storage.New(s.index, bytes, storage.Options{})
	return s, nil
}

func (s *store) importAll(t testing.TB, options storage.ImportOptions, sources ...string) {
	t.Helper()
	if len(sources) == 0 {
		return
	}
	err := s.Import(t.Context(), sources, options, func(i storage.Imported) {
		if i.Err != nil {
			t.Errorf("import %s: %v", i.File, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// corpus is a store with all of published/, for tests that only read it.
var corpus = sync.OnceValue(func() *store {
	s, err := makeStore(filepath.Join(shared, "corpus"))
	if err != nil {
		panic(err)
	}
	err = s.Import(context.Background(), []string{published}, storage.ImportOptions{Keep: true}, func(i storage.Imported) {
		if i.Err != nil {
			panic(i.Err)
		}
	})
	if err != nil {
		panic(err)
	}
	return s
})

// shared is a directory for what several tests use.
var shared string

func TestMain(m *testing.M) {
	var err error
	if shared, err = os.MkdirTemp("", "httpapi"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(shared)
	os.Exit(code)
}

// contents reads a file of the corpus.
func contents(t testing.TB, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// started is a server on a loopback address.
type started struct {
	*Server
	address string
	log     *logBuffer
	stop    context.CancelFunc
	ended   chan error
}

func options() Options { return Options{Decompress: compression.NewReader, AnswerCache: 1 << 20} }

// start serves until the test ends.
func start(t testing.TB, items Items, options Options) *started {
	t.Helper()
	return startWith(t, items, options, nil)
}

// startWith lets the test change what only tests change.
func startWith(t testing.TB, items Items, options Options, change func(*Server)) *started {
	t.Helper()
	s := newStarted(items, options)
	if change != nil {
		change(s.Server)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.serve(t, listener)
	return s
}

func newStarted(items Items, options Options) *started {
	s := &started{log: new(logBuffer), ended: make(chan error, 1)}
	options.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s.Server = New(items, options)
	return s
}

func (s *started) serve(t testing.TB, listener net.Listener) {
	s.address = listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.ended <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-s.ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
			s.ended <- nil
		case <-time.After(patience):
			t.Error("Serve does not return")
		}
	})
}

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// client is a connection that sends bytes as they are given.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &client{t, conn, bufio.NewReader(conn)}
}

func (c *client) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, raw); err != nil {
		c.t.Fatal(err)
	}
}

// answer is a response that has been read to its end.
type answer struct {
	*http.Response
	body string
	err  error // while reading the body
}

// receive reads an answer to a request of that method.
func (c *client) receive(method string) *answer {
	c.t.Helper()
	response, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read the answer: %v", err)
	}
	body, err := io.ReadAll(response.Body)
	return &answer{response, string(body), err}
}

// ask sends one request with header lines.
func (c *client) ask(method, target string, header ...string) *answer {
	c.t.Helper()
	c.send(request(method, target, header...))
	return c.receive(method)
}

func request(method, target string, header ...string) string {
	raw := method + " " + target + " HTTP/1.1\r\nHost: herder.example\r\n"
	for _, line := range header {
		raw += line + "\r\n"
	}
	return raw + "\r\n"
}

// closed makes sure that the server has closed the connection.
func (c *client) closed() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		c.t.Errorf("got byte %q and error %v where the connection should be closed", b, err)
	}
}

// stillOpen makes sure that the connection serves another request.
func (c *client) stillOpen() {
	c.t.Helper()
	if a := c.ask("GET", "/nix-cache-info"); a.StatusCode != http.StatusOK || a.body != cacheInfo {
		c.t.Errorf("next request on the connection: %s, body %q", a.Status, a.body)
	}
}

// until waits for a condition that another goroutine brings about.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// fakeItems are items whose faults a test chooses. What is nil is not found.
type fakeItems struct {
	text    func(narinfo.PathHash) ([]byte, error)
	item    func(narinfo.PathHash) (*storage.Item, error)
	open    func(item *storage.Item, n int, offset, length int64) (io.ReadCloser, storage.Info, error)
	healthy func() (indexErr, bytesErr error)
	totals  func() (index.Totals, error)
}

func (f *fakeItems) Text(_ context.Context, hash narinfo.PathHash) ([]byte, error) {
	if f.text == nil {
		return nil, storage.ErrNotFound
	}
	return f.text(hash)
}

func (f *fakeItems) Item(_ context.Context, hash narinfo.PathHash) (*storage.Item, error) {
	if f.item == nil {
		return nil, storage.ErrNotFound
	}
	return f.item(hash)
}

func (f *fakeItems) OpenFile(_ context.Context, item *storage.Item, n int, offset, length int64) (io.ReadCloser, storage.Info, error) {
	if f.open == nil {
		return nil, storage.Info{}, storage.ErrNotStored
	}
	return f.open(item, n, offset, length)
}

func (f *fakeItems) Healthy(context.Context) (indexErr, bytesErr error) {
	if f.healthy == nil {
		return nil, nil
	}
	return f.healthy()
}

func (f *fakeItems) Totals(context.Context) (index.Totals, error) {
	if f.totals == nil {
		return index.Totals{}, nil
	}
	return f.totals()
}

// made is a store item that a test makes up: a flat file, which is also
// fixed-output, in one compression. Its fields may be changed before use.
type made struct {
	path        narinfo.StorePath
	digest      string // of the content, in base32
	nar         []byte
	narHash     [sha256.Size]byte
	narSize     int64 // -1 leaves the field out
	compression string
	file        []byte // the nar compressed
	fileSize    int64
}

func make1(t testing.TB, name, content, how string) *made {
	t.Helper()
	sum := sha256.Sum256([]byte(content))
	path, err := narinfo.FixedOutputPath(name, sum)
	if err != nil {
		t.Fatal(err)
	}
	m := &made{path: path, digest: narinfo.EncodeBase32(sum[:]), nar: flatNar(content), compression: how}
	m.narHash, m.narSize = sha256.Sum256(m.nar), int64(len(m.nar))
	m.file = compress(t, how, m.nar)
	m.fileSize = int64(len(m.file))
	return m
}

func flatNar(content string) []byte {
	var nar []byte
	add := func(s string) {
		nar = binary.LittleEndian.AppendUint64(nar, uint64(len(s)))
		nar = append(nar, s...)
		nar = append(nar, make([]byte, (8-len(s)%8)%8)...)
	}
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", content, ")"} {
		add(s)
	}
	return nar
}

func compress(t testing.TB, how string, nar []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "none":
		return nar
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	default:
		t.Fatalf("no writer for %s", how)
	}
	if err == nil {
		_, err = w.Write(nar)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (m *made) url() string { return "nar/" + m.compression + "/" + m.path.BaseName() }

func (m *made) text() []byte {
	text := fmt.Sprintf("StorePath: %s\nNarHash: sha256:%s\n", m.path, narinfo.EncodeBase32(m.narHash[:]))
	if m.narSize >= 0 {
		text += fmt.Sprintf("NarSize: %d\n", m.narSize)
	}
	return fmt.Appendf(nil, "%sReferences: \nURL: %s\nCompression: %s\nFileSize: %d\n", text, m.url(), m.compression, m.fileSize)
}

// item is what the storage would say of it.
func (m *made) item(t testing.TB) *storage.Item {
	t.Helper()
	item, err := storage.NewItem(&index.Item{Hash: m.path.Hash, Text: m.text(), Stored: 1})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// items serves it alone, with its file read from memory.
func (m *made) items(t testing.TB) *fakeItems {
	t.Helper()
	item := m.item(t)
	return &fakeItems{
		text: func(hash narinfo.PathHash) ([]byte, error) {
			if hash != m.path.Hash {
				return nil, storage.ErrNotFound
			}
			return item.Text, nil
		},
		item: func(hash narinfo.PathHash) (*storage.Item, error) {
			if hash != m.path.Hash {
				return nil, storage.ErrNotFound
			}
			return item, nil
		},
		open: func(_ *storage.Item, _ int, offset, _ int64) (io.ReadCloser, storage.Info, error) {
			return io.NopCloser(bytes.NewReader(m.file[offset:])), storage.Info{Size: m.fileSize, ModTime: time.Unix(1e9, 0)}, nil
		},
	}
}

// write puts narinfo and nar below a directory, as a publisher does, and
// returns the narinfo's name.
func (m *made) write(t testing.TB, dir string) string {
	t.Helper()
	nar := filepath.Join(dir, filepath.FromSlash(m.url()))
	name := filepath.Join(dir, m.path.Hash.String()+".narinfo")
	err := errors.Join(os.MkdirAll(filepath.Dir(nar), 0o755), os.WriteFile(nar, m.file, 0o644), os.WriteFile(name, m.text(), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return name
}
