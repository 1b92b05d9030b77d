package nars

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/internal/pace"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// spec is an item of a test: a nar of random bytes, or of zeros.
type spec struct {
	n     int
	size  int
	kinds []string // compressions, one for each file
	// unsized omits FileSize.
	unsized bool
}

// made is an item with its files, by their paths.
type made struct {
	spec
	text  string
	names []string
	files map[string][]byte
}

func (s spec) base() string { return fmt.Sprintf("%032d-item", s.n) }

func (s spec) make(t testing.TB) *made {
	t.Helper()
	nar := make([]byte, s.size)
	random := rand.NewChaCha8([32]byte{byte(s.n), byte(s.n >> 8)})
	_, _ = random.Read(nar)
	m := &made{spec: s, files: make(map[string][]byte)}
	m.text = fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: \n", s.base(), narinfo.NarHash(sha256.Sum256(nar)), len(nar))
	if len(s.kinds) == 0 {
		s.kinds = []string{"gzip"}
	}
	for _, kind := range s.kinds {
		name, file := "nar/"+kind+"/"+s.base(), new(bytes.Buffer)
		if kind == "none" {
			name = "nar/" + s.base()
			file.Write(nar)
		} else {
			w, err := compression.NewWriter(kind, 1, file)
			if err == nil {
				_, err = w.Write(nar)
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		m.names = append(m.names, name)
		m.files[name] = file.Bytes()
		m.text += fmt.Sprintf("URL: %s\nCompression: %s\n", name, kind)
		if !s.unsized {
			m.text += fmt.Sprintf("FileSize: %d\n", file.Len())
		}
	}
	return m
}

func (s spec) hash() narinfo.PathHash {
	path, err := narinfo.ParseBaseName(s.base())
	if err != nil {
		panic(err)
	}
	return path.Hash
}

// many makes count items of a size.
func many(t testing.TB, count, size int) (items []*made) {
	for n := range count {
		items = append(items, spec{n: n, size: size}.make(t))
	}
	return items
}

// source is an instance with nars.
type source struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	answers  map[string][]http.HandlerFunc // before the right answer
	requests []string                      // path and range
}

func newSource(t *testing.T, items ...*made) *source {
	t.Helper()
	s := &source{files: make(map[string][]byte), answers: make(map[string][]http.HandlerFunc)}
	for _, m := range items {
		for name, content := range m.files {
			s.files[name] = content
		}
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// first makes the source answer requests for a file in these ways, once each, before the
// right answer.
func (s *source) first(name string, answers ...http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name] = append(s.answers[name], answers...)
}

// asked returns the requests so far.
func (s *source) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

func (s *source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.Lock()
	s.requests = append(s.requests, strings.TrimSpace(name+" "+r.Header.Get("Range")))
	content, known := s.files[name]
	var answer http.HandlerFunc
	if answers := s.answers[name]; len(answers) > 0 {
		answer, s.answers[name] = answers[0], answers[1:]
	}
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case !known:
		http.NotFound(w, r)
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// mirror is a storage without nars.
type mirror struct {
	*storage.Storage
	t     *testing.T
	index *index.Index
	dir   string
	log   *testlog.Buffer
}

func newMirror(t *testing.T, items ...*made) *mirror { return newMirrorIn(t, memoryDir(t), items...) }

// memoryDir is a directory in memory, if possible: on a disk, most of the time is for
// flushing.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nar-herder-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newMirrorIn makes the storage in an existing directory.
func newMirrorIn(t *testing.T, dir string, items ...*made) *mirror {
	t.Helper()
	m := &mirror{t: t, dir: dir, log: new(testlog.Buffer)}
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.index, err = index.Open(t.Context(), filepath.Join(memoryDir(t), "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.index.Close(), store.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(m.log)
		}
	})
	m.Storage = storage.New(m.index, store, storage.Options{})
	m.add(items...)
	return m
}

// add adds the narinfos of items without their nars.
func (m *mirror) add(items ...*made) {
	m.t.Helper()
	err := m.index.Update(context.Background(), func(tx *index.Tx) error {
		for _, item := range items {
			n, err := narinfo.Parse([]byte(item.text))
			if err != nil {
				return err
			}
			entry := m.index.Prepare(n)
			entry.AddedAt = time.Now()
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mirror) item(of *made) *storage.Item {
	m.t.Helper()
	item, err := m.Item(context.Background(), of.hash())
	if err != nil {
		m.t.Fatal(err)
	}
	return item
}

// short is the timing of tests.
var short = timing{
	retry: pace.Backoff{First: 20 * time.Millisecond, Last: 50 * time.Millisecond}, absentRetry: 50 * time.Millisecond,
	pause: pace.Backoff{First: time.Millisecond, Last: 20 * time.Millisecond}, fullPause: 20 * time.Millisecond,
	resumePause: time.Millisecond, passEvery: 100 * time.Millisecond,
}

// fetcher makes a fetcher for the source, and closes it at the test's end.
func (m *mirror) fetcher(from *source, options Options) *Fetcher {
	m.t.Helper()
	base, err := url.Parse(from.URL)
	if err != nil {
		m.t.Fatal(err)
	}
	if options.Limit == 0 {
		options.Limit = -1
	}
	options.Decode = decode
	options.Log = slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	self := peer.Self{Instance: m.Instance(), ProgressTimeout: 200 * time.Millisecond, AnswerTimeout: 10 * time.Second}
	f, err := New(m.Storage, failover.Of(peer.New(base, self)), options)
	if err != nil {
		m.t.Fatal(err)
	}
	f.timing = short
	m.t.Cleanup(f.Close)
	return f
}

// run runs a fetcher until the returned function is called, or the test ends.
func run(t *testing.T, f *Fetcher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return stop
}

func decode(_ context.Context, kind string, compressed io.Reader, _ int64) (io.ReadCloser, error) {
	return compression.NewReader(kind, compressed)
}

// until polls a condition.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		pause = min(pause*5/4, 20*time.Millisecond)
	}
}

// stored reports whether all files of the item are stored.
func (m *mirror) stored(of *made) bool {
	item := m.item(of)
	return item.Stored == 1<<len(of.names)-1
}

// wantStored waits until all files of the items are stored with the right content, and no
// partial files are left.
func (m *mirror) wantStored(items ...*made) {
	m.t.Helper()
	for _, of := range items {
		until(m.t, of.base()+" is stored", func() bool { return m.stored(of) })
		for name, content := range of.files {
			got, err := os.ReadFile(filepath.Join(m.dir, name))
			if err != nil || !bytes.Equal(got, content) {
				m.t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(content))
			}
		}
	}
}

// wantConsistent asserts that index and bytes match, and that the spool is empty.
func (m *mirror) wantConsistent() {
	m.t.Helper()
	for finding, err := range check.New(m.Storage).Compare(context.Background(), nil) {
		m.t.Errorf("check finds %s %s, %v", finding.Kind, finding.Name, err)
	}
}

// spooled returns the names and sizes of the files in the spool.
func (m *mirror) spooled() map[string]int64 {
	m.t.Helper()
	sizes := make(map[string]int64)
	entries, err := os.ReadDir(filepath.Join(m.dir, ".nar-herder-spool"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			m.t.Fatal(err)
		}
		sizes[entry.Name()] = info.Size()
	}
	return sizes
}

// counted returns the value of a metric; reason is its label, "" for none.
func counted(t testing.TB, f *Fetcher, name, reason string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(f)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			labels := metric.GetLabel()
			if family.GetName() == name && (reason == "" || len(labels) == 1 && labels[0].GetValue() == reason) {
				return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, reason)
	return 0
}

func failures(t testing.TB, f *Fetcher, reason string) int {
	return int(counted(t, f, "narherder_mirror_nars_failures_total", reason))
}
