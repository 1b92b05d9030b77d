package httpapi

import (
	"bufio"
	"context"
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

	"nar-herder/compression"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// patience is the timeout of waits in tests.
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
	s.importAll(t, importer.Options{Keep: true}, sources...)
	return s
}

// openStore opens the store in a directory, or makes one.
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

func (s *store) importAll(t testing.TB, options importer.Options, sources ...string) {
	t.Helper()
	if len(sources) == 0 {
		return
	}
	err := importer.New(s.Storage).Import(t.Context(), sources, options, func(i importer.Imported) {
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
	err = importer.New(s.Storage).Import(context.Background(), []string{published}, importer.Options{Keep: true}, func(i importer.Imported) {
		if i.Err != nil {
			panic(i.Err)
		}
	})
	if err != nil {
		panic(err)
	}
	return s
})

// shared is a directory that several tests share.
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
	listener net.Addr
	address  string // of the listener
	log      *testlog.Buffer
	stop     context.CancelFunc
	ended    chan error
}

func options() Options { return Options{Decompress: compression.NewReaderWithin, AnswerCache: 1 << 20} }

// start serves until the test ends.
func start(t testing.TB, items Items, options Options) *started {
	t.Helper()
	return startWith(t, items, options, nil)
}

// startWith lets the test change fields before the server serves.
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
	s := &started{log: new(testlog.Buffer), ended: make(chan error, 1)}
	options.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s.Server = New(items, options)
	return s
}

func (s *started) serve(t testing.TB, listener net.Listener) {
	s.listener, s.address = listener.Addr(), listener.Addr().String()
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

// client is a connection that sends raw bytes.
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

// answer is a response with its body.
type answer struct {
	*http.Response
	body string
	err  error // while reading the body
}

// receive reads the answer to a request with that method.
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

// closed checks that the server has closed the connection.
func (c *client) closed() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		c.t.Errorf("got byte %q and error %v where the connection should be closed", b, err)
	}
}

// stillOpen checks that the connection serves another request.
func (c *client) stillOpen() {
	c.t.Helper()
	if a := c.ask("GET", "/nix-cache-info"); a.StatusCode != http.StatusOK || a.body != narinfo.CacheInfo {
		c.t.Errorf("next request on the connection: %s, body %q", a.Status, a.body)
	}
}

// until waits for a condition, with growing intervals, as a check can be expensive.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(patience); !condition(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		pause = min(pause*5/4, 20*time.Millisecond)
	}
}

// readCloser reads from one value and closes another.
type readCloser struct {
	io.Reader
	io.Closer
}
