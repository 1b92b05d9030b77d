package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
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
	"nar-herder/internal/testlog"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// patience is how long a test waits for what has to come.
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

// testPath is the store path of the Nth test item. What tells it from others is at the
// end, which the index looks at first.
func testPath(n int) narinfo.StorePath {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	hash := bytes.Repeat([]byte("0"), narinfo.PathHashLen)
	for i := len(hash) - 1; n > 0; i, n = i-1, n/32 {
		hash[i] = digits[n%32]
	}
	path, err := narinfo.ParseBaseName(string(hash) + "-item")
	if err != nil {
		panic(err)
	}
	return path
}

// testInfo is the Nth item's narinfo in one of its versions; another nar has
// another NarHash.
func testInfo(n, version, nar int) *narinfo.Narinfo {
	path := testPath(n)
	signed := fmt.Appendf(nil, "StorePath: %s\nNarHash: sha256:%052d\nNarSize: 120\nReferences: \nVersion: %d\n", path, nar, version)
	// By an algorithm that nobody can verify: the hash of what was signed is right.
	signature := fmt.Sprintf("(signature (data (flags test) (hash sha256 #%X#)) (sig-val (test (s #00#))) (public-key (test (q #00#))))", sha256.Sum256(signed))
	info, err := narinfo.Parse(fmt.Appendf(signed, "Signature: 1;farm.example;%s\nURL: nar/none/%s\nCompression: none\nFileSize: 120\n",
		base64.StdEncoding.EncodeToString([]byte(signature)), path.BaseName()))
	if err != nil {
		panic(err)
	}
	return info
}

// instance is an index with a server of it.
type instance struct {
	t       testing.TB
	index   *index.Index
	storage *storage.Storage
	server  *httpapi.Server
	front   *httptest.Server
	address string // of the server behind the front
	chain   func() []string

	mu sync.Mutex
	// dumped is what the front has as the dump; nil for 503.
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

// at is the time of the Nth change in tests.
func at(n int) time.Time { return time.Date(2026, 1, 1, 0, 0, n, 0, time.UTC) }

// add has the instance have narinfos, at a time.
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

// remove has clients of the instance no longer be told of an item.
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

// list is what clients are told of, with the times.
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

// told is what others are told by time.
func (i *instance) told() (lines []string) {
	place := index.TimePlace{}
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

// dump publishes the state as the original would; numbered also as this program
// does.
func (i *instance) dump(numbered bool) {
	i.t.Helper()
	if numbered {
		i.dumpAs(i.index.Instance())
	} else {
		i.dumpAs("")
	}
}

// dumpAs has the dump say, unless the name is empty, that its numbers are those of
// that instance.
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
	place := index.TimePlace{}
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

// tellsChain has the instance tell which others it mirrors.
func (i *instance) tellsChain(m *Mirror) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.chain = m.Chain
}

// rewrite changes the database past the index.
func (i *instance) rewrite(statements ...string) {
	i.t.Helper()
	db, err := sql.Open("sqlite", i.index.Path())
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

// trim has the log lose its oldest changes.
func (i *instance) trim(upTo int64) {
	i.t.Helper()
	if _, err := i.index.TrimChanges(i.t.Context(), upTo, 0); err != nil {
		i.t.Fatal(err)
	}
}

// following is a mirror that runs.
type following struct {
	*Mirror
	*instance
	logged *testlog.Buffer
	stop   func()
}

// follow has an instance follow another until the test ends, or stop is called.
func follow(t testing.TB, i, source *instance, change func(*Options)) *following {
	t.Helper()
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &following{instance: i, logged: new(testlog.Buffer)}
	options := Options{
		Storage: i.storage, Index: i.index, Downloads: filepath.Join(t.TempDir(), "download"),
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

// same waits until the mirror has what the source has.
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
