package removal

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"nar-herder/httpapi"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/criteria"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// clock is the clock of all instances in a test.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.at.Store(time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time               { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) advance(by time.Duration)     { c.at.Add(int64(by)) }
func (c *clock) back(by time.Duration) func() { c.advance(-by); return func() { c.advance(by) } }

// instance is a storage with its index and server.
type instance struct {
	*storage.Storage
	t         *testing.T
	clock     *clock
	index     *index.Index
	directory string
	mu        sync.Mutex
	running   *Remover // the latest
	log       *testlog.Buffer
	address   string // of the server itself

	// front is the address for others: it forwards to the server, unless the test
	// intercepts requests.
	front     *httptest.Server
	between   atomic.Pointer[http.HandlerFunc]
	questions atomic.Int32
}

func newInstance(t *testing.T, c *clock) *instance {
	t.Helper()
	return newInstanceIn(t, c, filepath.Join(memoryDir(t), "storage"))
}

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

func newInstanceIn(t *testing.T, c *clock, dir string) *instance {
	t.Helper()
	i := &instance{t: t, clock: c, directory: dir, log: new(testlog.Buffer)}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if i.index, err = index.Open(t.Context(), filepath.Join(memoryDir(t), "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	i.Storage = storage.New(i.index, store, storage.Options{Now: c.now})
	// It is an ordinary file, and counts.
	if _, err := i.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i.address = listener.Addr().String()
	server := httpapi.New(i.Storage, httpapi.Options{Identity: i.Storage, DependsOn: i.reliesOn})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: listener.Addr().String()})
	i.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.questions.Add(1)
		if between := i.between.Load(); between != nil {
			(*between)(w, r)
			if w.Header().Get("Pass") == "" {
				return
			}
			w.Header().Del("Pass")
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		i.front.CloseClientConnections()
		i.front.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := i.index.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// intercept handles requests to this instance. The handler may forward them with pass.
func (i *instance) intercept(handler http.HandlerFunc) { i.between.Store(&handler) }

// pass makes a handler given to intercept leave the request to the server.
func pass(w http.ResponseWriter) { w.Header().Set("Pass", "yes") }

// asked returns the number of questions since its last call.
func (i *instance) asked() int { return int(i.questions.Swap(0)) }

func hashNumber(n int) narinfo.PathHash {
	hash, err := narinfo.ParsePathHash(fmt.Sprintf("%032d", n))
	if err != nil {
		panic(err)
	}
	return hash
}

// spec is an item of a test.
type spec struct {
	n     int
	bytes int
	refs  []int
	note  string
}

func (s spec) base() string { return fmt.Sprintf("%032d-item", s.n) }

func (s spec) text() string {
	var refs []string
	for _, n := range s.refs {
		refs = append(refs, spec{n: n}.base())
	}
	return fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 96\nReferences: %s\nNote: %s\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\n",
		s.base(), s.n, strings.Join(refs, " "), s.note, s.base(), s.bytes)
}

func (s spec) file(dir string) string { return filepath.Join(dir, "nar/lzip", s.base()) }

// imports adds items.
func (i *instance) imports(items ...spec) {
	i.t.Helper()
	source := memoryDir(i.t)
	for _, item := range items {
		for name, content := range map[string][]byte{
			filepath.Join(source, item.base()[:32]+".narinfo"): []byte(item.text()),
			item.file(source): bytes.Repeat([]byte{byte(item.n)}, item.bytes),
		} {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				i.t.Fatal(err)
			}
			if err := os.WriteFile(name, content, 0o644); err != nil {
				i.t.Fatal(err)
			}
		}
	}
	err := importer.New(i.Storage).Import(context.Background(), []string{source}, importer.Options{}, func(imported importer.Imported) {
		if imported.Err != nil {
			i.t.Errorf("import %s: %v", imported.File, imported.Err)
		}
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *instance) update(f func(tx *index.Tx) error) {
	i.t.Helper()
	if err := i.index.Update(context.Background(), f); err != nil {
		i.t.Error(err)
	}
}

func (i *instance) pin(n int) {
	i.t.Helper()
	i.update(func(tx *index.Tx) error {
		_, err := tx.Pin(hashNumber(n), i.clock.now())
		return err
	})
}

func (i *instance) tag(n int, tag string) {
	i.t.Helper()
	key, value, _ := strings.Cut(tag, "=")
	i.update(func(tx *index.Tx) error { return tx.AddTags(hashNumber(n), []index.Tag{{Key: key, Value: value}}) })
}

func (i *instance) used(n int, at time.Time) {
	i.t.Helper()
	i.update(func(tx *index.Tx) error {
		_, err := tx.CountUses([]index.Uses{{Hash: hashNumber(n), Count: 1, Last: at}}, 1000)
		return err
	})
}

// evict deletes the nar of an item, and keeps its row.
func (i *instance) evict(n int) {
	i.t.Helper()
	since, err := i.index.LastChange(i.t.Context())
	if err != nil {
		i.t.Fatal(err)
	}
	item, err := i.Item(i.t.Context(), hashNumber(n))
	if err != nil {
		i.t.Fatal(err)
	}
	if _, _, err := deletion.Evict(i.t.Context(), i.Storage, []*storage.Item{item}, since, func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }); err != nil {
		i.t.Fatal(err)
	}
}

// state returns for each item whether it is stored (s), withdrawn with its bytes (w), or
// has only a row (r); ! for inconsistencies.
func (i *instance) state(count int) string {
	i.t.Helper()
	var state strings.Builder
	for n := range count {
		item, err := i.Item(context.Background(), hashNumber(n))
		if err != nil {
			i.t.Fatal(err)
		}
		_, err = os.Stat(spec{n: n}.file(i.directory))
		switch there := err == nil; {
		case there != (item.Stored != 0):
			state.WriteByte('!')
		case !item.WithdrawnAt.IsZero():
			state.WriteByte('w')
		case there:
			state.WriteByte('s')
		default:
			state.WriteByte('r')
		}
	}
	return state.String()
}

func (i *instance) wantState(want string) {
	i.t.Helper()
	if got := i.state(len(want)); got != want {
		i.t.Errorf("%s, want %s\n%s", got, want, i.log)
	}
}

// onDisk returns the disk usage of all files.
func (i *instance) onDisk() int64 {
	i.t.Helper()
	if err := i.Scan(context.Background()); err != nil {
		i.t.Fatal(err)
	}
	usage, _, err := i.Usage(context.Background())
	if err != nil {
		i.t.Fatal(err)
	}
	return usage
}

// remover makes a remover for this instance. In criteria, B stands for the other
// instance.
func (i *instance) remover(limit int64, other *instance, texts ...string) *Remover {
	i.t.Helper()
	options := Options{
		Limit: limit, Now: i.clock.now, Log: slog.New(slog.NewTextHandler(i.log, nil)),
		Peer: func(u *url.URL) *peer.Peer {
			return peer.New(u, peer.Self{Instance: i.Instance(), Storage: i.Identity, Now: i.clock.now, AnswerTimeout: i.patience()})
		},
	}
	for _, text := range texts {
		if other != nil {
			text = strings.Replace(text, "stored-on=B", "stored-on="+other.front.URL, 1)
		}
		criterion, err := criteria.Parse(text)
		if err != nil {
			i.t.Fatal(err)
		}
		options.Criteria = append(options.Criteria, criterion)
	}
	r := New(i.Storage, options)
	// As if it had run for long.
	r.dependence.AssumeSettled("")
	if other != nil {
		r.dependence.AssumeSettled(other.Instance())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.running = r
	return r
}

// reliesOn returns the statement that others receive.
func (i *instance) reliesOn() peer.Statement {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.running != nil {
		return i.running.ReliesOn()
	}
	return peer.Statement{}
}

// patience is short for tests of requests that never end, but long enough for the next
// request.
func (i *instance) patience() time.Duration {
	if strings.Contains(i.t.Name(), "slow") {
		return 500 * time.Millisecond
	}
	return 0
}

// round runs one round of a remover.
func round(t *testing.T, r *Remover) {
	t.Helper()
	if err := r.Round(t.Context()); err != nil {
		t.Errorf("round: %v", err)
	}
}

// counted returns the value of a metric.
func counted(t *testing.T, r *Remover, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(r)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	if at < 0 {
		t.Fatalf("no metric %s", name)
	}
	metric := families[at].GetMetric()[0]
	return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
}

// many makes count items of a size.
func many(count, size int) (items []spec) {
	for n := range count {
		items = append(items, spec{n: n, bytes: size})
	}
	return items
}

// filesBelow counts files.
func filesBelow(t *testing.T, dir string) (count int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			count++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}
