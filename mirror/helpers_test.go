package mirror

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
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
	"testing"
	"time"

	"nar-herder/httpapi"
	"nar-herder/internal/mirrortest"
	"nar-herder/internal/testlog"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// patience is how long a test waits.
const patience = 30 * time.Second

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

// Helpers that other packages' tests use as well.
var (
	testPath = mirrortest.Path
	testInfo = mirrortest.Narinfo
	at       = mirrortest.At
	copyWith = mirrortest.IndexCopy
	changed  = mirrortest.Changed
	dumpWith = mirrortest.Dump
	listOf   = mirrortest.Items
)

// instance is an index with a server.
type instance struct {
	t       testing.TB
	index   *index.Index
	storage *storage.Storage
	server  *httpapi.Server
	front   *httptest.Server
	address string // of the server behind the front
	chain   func() []string

	mu sync.Mutex
	// dumped is the dump that the front serves; nil for 503.
	dumped []byte
	digest string
	made   time.Time
	// intercept may answer a request itself.
	intercept func(http.ResponseWriter, *http.Request) bool
}

func newInstance(t testing.TB) *instance {
	return openInstance(t, filepath.Join(t.TempDir(), "index.db"))
}

func openInstance(t testing.TB, database string) *instance {
	t.Helper()
	x, err := index.Open(t.Context(), database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{t: t, index: x, storage: storage.New(x, nil, storage.Options{})}
	i.server = httpapi.New(i.storage, httpapi.Options{Changes: x, Identity: i.storage, AnswerCache: 1 << 20, Chain: func() []string {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.chain == nil {
			return nil
		}
		return i.chain()
	}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := x.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i.address = listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { i.server.Follow(ctx, watcher) })
	running.Go(func() { _ = i.server.Serve(ctx, listener) })
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: listener.Addr().String()})
	behind.FlushInterval = -1
	behind.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	i.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		intercept, dumped, digest, made := i.intercept, i.dumped, i.digest, i.made
		i.mu.Unlock()
		if intercept != nil && intercept(w, r) {
			return
		}
		if r.URL.Path != peer.DumpPath {
			behind.ServeHTTP(w, r)
			return
		}
		if dumped == nil {
			http.Error(w, "soon", http.StatusServiceUnavailable)
			return
		}
		if digest != "" {
			w.Header().Set(peer.DigestHeader, digest)
		}
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(len(dumped))))
		http.ServeContent(w, r, "", made, bytes.NewReader(dumped))
	}))
	t.Cleanup(func() {
		stop()
		i.front.CloseClientConnections()
		i.front.Close()
		running.Wait()
		watcher.Close()
		x.Close()
	})
	return i
}

// add adds narinfos at a time.
func (i *instance) add(when time.Time, infos ...*narinfo.Narinfo) {
	i.t.Helper()
	entries := make([]*index.Entry, len(infos))
	for n, info := range infos {
		entries[n] = i.index.Prepare(info)
		entries[n].AddedAt = when
	}
	err := i.index.Update(context.Background(), func(tx *index.Tx) error {
		for _, entry := range entries {
			old, err := tx.Item(entry.Narinfo.StorePath.Hash)
			if err != nil {
				old = nil
			}
			if err := tx.Put(entry, old); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

// remove withdraws an item.
func (i *instance) remove(when time.Time, numbers ...int) {
	i.t.Helper()
	err := i.index.Update(context.Background(), func(tx *index.Tx) error {
		for _, n := range numbers {
			if _, err := tx.WithdrawAs(testPath(n).Hash, time.Now(), when); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

// list returns the visible items with their times.
func (i *instance) list() (lines []string) {
	for item, err := range i.index.Items(context.Background()) {
		if err != nil {
			i.t.Fatal(err)
		}
		if item.WithdrawnAt.IsZero() {
			lines = append(lines, item.AddedAt.Format(time.DateTime)+" "+string(item.Text))
		}
	}
	slices.Sort(lines)
	return lines
}

// told returns the changes that other instances get.
func (i *instance) told() (lines []string) {
	place := index.TimeCursor{}
	told, _, err := i.index.ChangesFrom(context.Background(), &place, 1_000_000)
	if err != nil {
		i.t.Fatal(err)
	}
	for _, change := range told {
		line := change.At.Format(time.DateTime) + " + " + string(change.Text)
		if change.Kind == index.Removed {
			line = change.At.Format(time.DateTime) + " - " + change.StorePath
		}
		lines = append(lines, line)
	}
	return lines
}

// dump publishes a dump as the original would; numbered adds this program's numbers.
func (i *instance) dump(numbered bool) {
	i.t.Helper()
	if numbered {
		i.dumpAs(i.index.Instance())
	} else {
		i.dumpAs("")
	}
}

// dumpAs makes the dump claim, unless the name is empty, that the instance of that name
// numbered it.
func (i *instance) dumpAs(instance string) {
	i.t.Helper()
	name := filepath.Join(i.t.TempDir(), "dump.db")
	w, err := original.Create(i.t.Context(), name)
	if err != nil {
		i.t.Fatal(err)
	}
	last, err := i.index.LastChange(i.t.Context())
	if err != nil {
		i.t.Fatal(err)
	}
	for item, err := range i.index.Items(i.t.Context()) {
		if err != nil {
			i.t.Fatal(err)
		}
		if !item.WithdrawnAt.IsZero() {
			continue
		}
		if err := w.Add(original.Item{Text: item.Text, AddedAt: item.AddedAt}); err != nil {
			i.t.Fatal(err)
		}
	}
	place := index.TimeCursor{}
	told, _, err := i.index.ChangesFrom(i.t.Context(), &place, 1_000_000)
	if err != nil {
		i.t.Fatal(err)
	}
	for _, change := range told {
		c := original.Change{At: change.At, Data: string(change.Text)}
		if change.Kind == index.Removed {
			c.Removal, c.Data = true, change.StorePath
		}
		if err := w.AddChange(c); err != nil {
			i.t.Fatal(err)
		}
	}
	if instance != "" {
		for key, value := range map[string]string{"instance": instance, "last_change": fmt.Sprint(last)} {
			if err := w.SetInfo(key, value); err != nil {
				i.t.Fatal(err)
			}
		}
	}
	if err := w.Finish(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		i.t.Fatal(err)
	}
	i.publish(text)
}

func (i *instance) publish(text []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.dumped = text
	i.made = time.Unix(1_700_000_000+i.made.Unix()%1000+1, 0) // long ago, and later than the last
}

func (i *instance) through(f func(http.ResponseWriter, *http.Request) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.intercept = f
}

// tellsChain makes the instance send its chain of mirrored instances.
func (i *instance) tellsChain(m *Mirror) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.chain = m.Chain
}

// rewrite changes the database behind the index.
func (i *instance) rewrite(statements ...string) {
	i.t.Helper()
	db, err := sql.Open("sqlite", i.index.Path()+"?_pragma=busy_timeout(30000)")
	if err != nil {
		i.t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			i.t.Fatal(err)
		}
	}
}

// trim removes the oldest changes from the log.
func (i *instance) trim(upTo int64) {
	i.t.Helper()
	if _, err := i.index.TrimChanges(i.t.Context(), upTo, 0); err != nil {
		i.t.Fatal(err)
	}
}

// following is a running mirror.
type following struct {
	*Mirror
	*instance
	logged *testlog.Buffer
	stop   func()
}

// follow makes an instance follow another until the test ends, or stop is called.
func follow(t testing.TB, i, source *instance, change func(*Options)) *following {
	t.Helper()
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &following{instance: i, logged: new(testlog.Buffer)}
	options := Options{
		Storage: i.storage, Downloads: filepath.Join(t.TempDir(), "download"),
		Source:   peer.New(base, peer.Self{Instance: i.index.Instance(), ProgressTimeout: 20 * time.Second}),
		Interval: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(f.logged, nil)),
	}
	if change != nil {
		change(&options)
	}
	f.Mirror = New(options)
	f.Mirror.negligible = 100
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx)
	}()
	f.stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(f.stop)
	return f
}

// same waits until the mirror has the items of the source.
func (f *following) same(source *instance) {
	f.t.Helper()
	end := time.Now().Add(patience)
	for !slices.Equal(f.list(), source.list()) {
		if time.Now().After(end) {
			f.t.Fatalf("the mirror has\n%s\nthe source\n%s\nstatus %+v\nlog\n%s", strings.Join(f.list(), "\n"), strings.Join(source.list(), "\n"), f.Status(), f.logged)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
