package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/peer/passing"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// without makes a store with an item but without its nars.
func without(t *testing.T, items ...*made) *store {
	t.Helper()
	s := newStore(t)
	for _, m := range items {
		s.importAll(t, importer.Options{}, m.write(t, t.TempDir()))
	}
	s.evict(t, items...)
	return s
}

// evict deletes the nars and keeps their rows.
func (s *store) evict(t *testing.T, items ...*made) {
	t.Helper()
	since, err := s.index.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var rows []*storage.Item
	for _, m := range items {
		item, err := s.Item(t.Context(), m.path.Hash)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, item)
	}
	_, gone, err := deletion.Evict(t.Context(), s.Storage, rows, since, func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil })
	if err != nil || gone.Items != len(items) {
		t.Fatalf("%+v, %v", gone, err)
	}
}

// remoteAt returns options with instances at addresses.
func remoteAt(t *testing.T, s *store, addresses ...string) Options {
	t.Helper()
	opts := options()
	opts.Identity = s.Storage
	var peers peer.Peers
	for _, address := range addresses {
		peers = append(peers, peer.New(&url.URL{Scheme: "http", Host: address}, peer.Self{
			Instance: s.Instance(), Storage: s.Identity, AnswerTimeout: patience, ProgressTimeout: 200 * time.Millisecond,
		}))
	}
	opts.Remote = passing.New(failover.Of(peers...), 0)
	return opts
}

// TestRemote requests nars that only another instance has.
func TestRemote(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789", 20_000)
	plain, packed := make1(t, "plain.tar", content, "none"), make1(t, "packed.tar", content+"!", "gzip")
	dir := t.TempDir()
	b := newStore(t, plain.write(t, dir), packed.write(t, dir))
	there := start(t, b, options())
	a := without(t, plain, packed)
	here := start(t, a, remoteAt(t, a, there.address))
	c := dial(t, here.address)
	for _, m := range []*made{plain, packed} {
		whole := string(m.file)
		for _, method := range []string{"GET", "HEAD"} {
			got := c.ask(method, "/"+m.url())
			if got.StatusCode != 200 || got.ContentLength != int64(len(whole)) || method == "GET" && got.body != whole || got.err != nil || got.Header.Get("ETag") == "" {
				t.Fatalf("%s %s: %s, %d bytes of %d, %v", method, m.url(), got.Status, len(got.body), got.ContentLength, got.err)
			}
		}
		etag := c.ask("HEAD", "/"+m.url()).Header.Get("ETag")
		for _, test := range []struct {
			header []string
			status int
			body   string
		}{
			{[]string{"Range: bytes=5-14"}, 206, whole[5:15]},
			{[]string{"Range: bytes=0-3"}, 206, whole[:4]},
			{[]string{"Range: bytes=20-"}, 206, whole[20:]},
			{[]string{"Range: bytes=-7"}, 206, whole[len(whole)-7:]},
			{[]string{"Range: bytes=0-"}, 206, whole},
			{[]string{"Range: bytes=5-14", "If-Range: " + etag}, 206, whole[5:15]},
			{[]string{"Range: bytes=5-14", `If-Range: "of another"`}, 200, whole},
			{[]string{"If-None-Match: " + etag}, 304, ""},
			{[]string{"Range: bytes=999999-"}, 416, ""},
		} {
			got := c.ask("GET", "/"+m.url(), test.header...)
			if got.StatusCode != test.status || got.err != nil || test.status != 416 && got.body != test.body {
				t.Errorf("%s %q: %s, %d bytes, %v", m.url(), test.header, got.Status, len(got.body), got.err)
			}
		}
		for target, want := range map[string]string{
			"/nar/" + m.path.BaseName():                    string(m.nar),
			"/file/" + m.path.Name + "/sha256/" + m.digest: map[*made]string{plain: content, packed: content + "!"}[m],
			"/" + m.path.Hash.String() + ".narinfo":        string(m.text()),
			"/" + m.path.Hash.String() + ".narinfo/info":   `{"stored": false}`,
		} {
			if got := c.ask("GET", target); got.StatusCode != 200 || got.body != want || got.err != nil {
				t.Errorf("%s: %s, %d bytes of %d, %v", target, got.Status, len(got.body), len(want), got.err)
			}
			if got := c.ask("HEAD", target); got.StatusCode != 200 || got.ContentLength != int64(len(want)) {
				t.Errorf("HEAD %s: %s, %d", target, got.Status, got.ContentLength)
			}
		}
	}
	c.stillOpen()
	// With a redirect instead.
	opts := remoteAt(t, a, there.address)
	opts.RedirectRemote = true
	c = dial(t, start(t, a, opts).address)
	for _, method := range []string{"GET", "HEAD"} {
		got := c.ask(method, "/"+plain.url())
		if got.StatusCode != 302 || got.Header.Get("Location") != "http://"+there.address+"/"+plain.url() || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %v", method, got.Status, got.Header)
		}
	}
	if got := c.ask("GET", "/nar/"+packed.path.BaseName()); got.StatusCode != 200 || got.body != string(packed.nar) {
		t.Errorf("what only this instance can make is not sent: %s", got.Status)
	}
	// No instance has it any more.
	b.evict(t, plain)
	isFault(t, c.ask("GET", "/"+plain.url()), 404)
	isFault(t, dial(t, here.address).ask("GET", "/"+plain.url()), 404)
}

// TestRemoteFails: the other instance sends a nar in each wrong way. No complete answer has
// wrong bytes.
func TestRemoteFails(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789abcdef", 1<<16)
	plain, packed := make1(t, "plain.tar", content, "none"), make1(t, "packed.tar", content+"!", "gzip")
	a := without(t, plain, packed)
	fileOf := func(r *http.Request) []byte {
		if strings.HasSuffix(r.URL.Path, packed.path.BaseName()) {
			return packed.file
		}
		return plain.file
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		status int // 200 for a cut body
	}{
		"cut": {func(w http.ResponseWriter, r *http.Request) {
			file := fileOf(r)
			w.Header().Set("Content-Length", fmt.Sprint(len(file)))
			_, _ = w.Write(file[:len(file)/2])
		}, 200},
		"short in chunks": {func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(fileOf(r)[:len(fileOf(r))/2])
		}, 200},
		"stops": {func(w http.ResponseWriter, r *http.Request) {
			file := fileOf(r)
			w.Header().Set("Content-Length", fmt.Sprint(len(file)))
			_, _ = w.Write(file[:len(file)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, 200},
		"another length": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Welcome</html>") }, 502},
		"no length": {func(w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}, 502},
		"garbage length": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nxx")
				conn.Close()
			}
		}, 502},
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 502},
		"403": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, 502},
		"404": {http.NotFound, 404},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			there := httptest.NewServer(test.answer)
			t.Cleanup(func() {
				there.CloseClientConnections()
				there.Close()
			})
			server := start(t, a, remoteAt(t, a, there.Listener.Addr().String()))
			for _, target := range []string{
				"/" + plain.url(), "/" + packed.url(), "/nar/" + packed.path.BaseName(),
				"/file/" + plain.path.Name + "/sha256/" + plain.digest, "/file/" + packed.path.Name + "/sha256/" + packed.digest,
			} {
				c := dial(t, server.address)
				if test.status != 200 {
					isFault(t, c.ask("GET", target), test.status)
					c.stillOpen()
					continue
				}
				c.send(request("GET", target))
				response, err := http.ReadResponse(c.r, nil)
				if err != nil {
					continue // cut before anything was sent
				}
				if response.StatusCode == http.StatusBadGateway {
					continue // detected before anything was sent
				}
				body, err := io.ReadAll(response.Body)
				if got := (&answer{response, string(body), err}); got.StatusCode != 200 || got.err == nil {
					t.Errorf("%s: %s, %d bytes of %d ended with %v", target, got.Status, len(got.body), got.ContentLength, got.err)
				}
				c.closed()
			}
			if got := server.checker.Options.Decoders.Memory(); got != 0 {
				t.Errorf("%d decoders are left", got)
			}
			metrics := dial(t, server.address).ask("GET", "/metrics").body
			if !strings.Contains(metrics, "narherder_damaged_nars_total 0\n") || strings.Contains(server.log.String(), "Remove the item") {
				t.Errorf("a fault on the way counts as a damaged nar here: %s", server.log)
			}
		})
	}
}

// TestRemoteLoop: two instances ask each other for a nar that neither has.
func TestRemoteLoop(t *testing.T) {
	t.Parallel()
	m := make1(t, "nowhere", "content", "gzip")
	a, b := without(t, m), without(t, m)
	// The address of the second is known only once it listens.
	front := httptest.NewUnstartedServer(nil)
	there := start(t, b, remoteAt(t, b, front.Listener.Addr().String()))
	requests := 0
	var mu sync.Mutex
	opts := remoteAt(t, a, there.address)
	here := start(t, a, opts)
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests++
		mu.Unlock()
		request, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+here.address+r.URL.Path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		request.Header = r.Header.Clone()
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Error(err)
			return
		}
		response.Body.Close()
		w.WriteHeader(response.StatusCode)
	})
	front.Start()
	t.Cleanup(front.Close)
	c := dial(t, here.address)
	targets := []string{"/" + m.url(), "/nar/" + m.path.BaseName(), "/file/nowhere/sha256/" + m.digest}
	for _, target := range targets {
		isFault(t, c.ask("GET", target), 404)
		isFault(t, c.ask("HEAD", target), 404)
	}
	mu.Lock()
	defer mu.Unlock()
	if requests != 2*len(targets) {
		t.Errorf("%d requests went around", requests)
	}
}

// TestStoredNars requests the states of many nars, each in another state.
func TestStoredNars(t *testing.T) {
	t.Parallel()
	names := []string{"stored", "withdrawn", "evicted", "missing", "short"}
	made := make(map[string]*made)
	s := newStore(t)
	for _, name := range names {
		made[name] = make1(t, name, "content of "+name, "gzip")
		s.importAll(t, importer.Options{}, made[name].write(t, t.TempDir()))
	}
	s.evict(t, made["evicted"])
	s.withdraw(t, made["withdrawn"])
	if err := errors.Join(os.Remove(filepath.Join(s.directory, made["missing"].url())), os.Truncate(filepath.Join(s.directory, made["short"].url()), 3)); err != nil {
		t.Fatal(err)
	}
	storageName, err := s.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states := peer.Statement{"B": 1, "C": 2, peer.Unknown: 2}
	opts := options()
	opts.Identity, opts.DependsOn = s.Storage, func() peer.Statement { return states }
	server := start(t, s, opts)
	c := dial(t, server.address)
	asked := []string{nobody}
	for _, name := range names {
		asked = append(asked, made[name].path.Hash.String())
	}
	asked = append(asked, asked[1]) // a duplicate
	got := c.ask("GET", peer.StoredPath+strings.Join(asked, ",")+"?nonce=N%20N")
	var reply peer.StoredReply
	if err := json.Unmarshal([]byte(got.body), &reply); err != nil || got.StatusCode != 200 || got.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s %v %s: %v", got.Status, got.Header, got.body, err)
	}
	if !reflect.DeepEqual(reply.ReliesOn, states) {
		t.Errorf("the statement: %+v", reply.ReliesOn)
	}
	if reply.Nonce != "N N" || reply.Instance != s.Instance() || reply.Storage != storageName || len(reply.Nars) != len(asked) {
		t.Fatalf("%+v", reply)
	}
	for i, name := range append([]string{"nobody"}, append(names, "stored")...) {
		nar := reply.Nars[i]
		if nar.Hash != asked[i] || nar.Stored != (name == "stored") || nar.Fault != (name == "missing" || name == "short") {
			t.Errorf("%s: %+v", name, nar)
		}
		if m := made[name]; nar.Stored && (len(nar.Files) != 1 || nar.Files[0] != peer.StoredFile{URL: m.url(), Size: m.fileSize}) {
			t.Errorf("%s: %+v", name, nar)
		}
	}
	if !strings.Contains(c.ask("GET", "/metrics").body, "narherder_faults_total 2\n") {
		t.Error("failed look-ups are not counted")
	}
	// The original's request for one item.
	for name, want := range map[string]string{"stored": `{"stored": true}`, "evicted": `{"stored": false}`} {
		if got := c.ask("GET", "/"+made[name].path.Hash.String()+".narinfo/info"); got.StatusCode != 200 || got.body != want ||
			got.Header.Get(peer.InstanceHeader) != s.Instance() || got.Header.Get(peer.StorageHeader) != storageName || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %s", name, got.Status, got.body)
		}
	}
	isFault(t, c.ask("GET", "/"+made["missing"].path.Hash.String()+".narinfo/info"), 500)
	for _, hash := range []string{nobody, made["withdrawn"].path.Hash.String()} {
		if got := c.ask("GET", "/"+hash+".narinfo/info"); got.StatusCode != 404 {
			t.Errorf("%s: %s", hash, got.Status)
		}
	}
	for target, status := range map[string]int{
		peer.StoredPath:                         400,
		peer.StoredPath + "x":                   400,
		peer.StoredPath + nobody + ",":          400,
		peer.StoredPath + nobody + "," + nobody: 200,
		peer.StoredPath + nobody + strings.Repeat(","+nobody, peer.MostAsked-1): 200,
		peer.StoredPath + nobody + strings.Repeat(","+nobody, peer.MostAsked):   400,
		peer.StoredPath + nobody + "/" + nobody:                                 404,
		strings.TrimSuffix(peer.StoredPath, "/"):                                404,
	} {
		if got := c.ask("GET", target); got.StatusCode != status {
			t.Errorf("%.60s: %s, want %d", target, got.Status, status)
		}
	}
}

// withdraw withdraws an item.
func (s *store) withdraw(t *testing.T, m *made) {
	t.Helper()
	err := s.index.Update(context.Background(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(m.path.Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFrontEndAsks: a front end fetches a nar that is missing from its storage from the owner
// of the storage.
func TestFrontEndAsks(t *testing.T) {
	t.Parallel()
	plain := make1(t, "plain.tar", strings.Repeat("0123456789", 1000), "none")
	packed := make1(t, "packed.tar", strings.Repeat("9876543210", 1000), "gzip")
	there := start(t, newStore(t, plain.write(t, t.TempDir()), packed.write(t, t.TempDir())), options())
	a := without(t, plain, packed)
	if _, err := a.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	bytes, err := directory.Open(a.directory)
	if err != nil {
		t.Fatal(err)
	}
	a.Storage = storage.New(a.index, bytes, storage.Options{ReadOnly: true})
	c := dial(t, start(t, a, remoteAt(t, a, there.address)).address)
	for _, m := range []*made{plain, packed} {
		for target, want := range map[string]string{"/" + m.url(): string(m.file), "/nar/" + m.path.BaseName(): string(m.nar)} {
			if got := c.ask("GET", target); got.StatusCode != 200 || got.body != want || got.err != nil {
				t.Errorf("%s: %s, %d bytes of %d, %v", target, got.Status, len(got.body), len(want), got.err)
			}
			if got := c.ask("HEAD", target); got.StatusCode != 200 || got.ContentLength != int64(len(want)) {
				t.Errorf("HEAD %s: %s, %d", target, got.Status, got.ContentLength)
			}
		}
		if got := c.ask("GET", "/"+m.path.Hash.String()+".narinfo/info"); got.body != `{"stored": false}` {
			t.Errorf("it vouches for a nar: %s", got.body)
		}
	}
	// If the owner can't be reached, the answer is not 404.
	there.stop()
	there.ended <- <-there.ended // restores the result
	if got := c.ask("GET", "/"+plain.url()); got.StatusCode != 502 {
		t.Errorf("without the owner: %s", got.Status)
	}
	c.stillOpen()
}

// presigner makes presigned URLs.
type presigner struct{ err error }

func (p presigner) Presign(_ context.Context, name string, lifetime time.Duration) (string, error) {
	return fmt.Sprintf("https://bucket.example/%s?for=%v", name, lifetime), p.err
}

// TestPresigned: clients are redirected to the byte store only for stored nars, and only with
// the method that the URL is valid for.
func TestPresigned(t *testing.T) {
	t.Parallel()
	plain, gone := make1(t, "plain.tar", "content", "none"), make1(t, "gone.tar", "gone", "none")
	s := newStore(t, plain.write(t, t.TempDir()), gone.write(t, t.TempDir()))
	opts := options()
	opts.Presigned = presigner{}
	c := dial(t, start(t, s, opts).address)
	got := c.ask("GET", "/"+plain.url())
	if got.StatusCode != 302 || got.Header.Get("Location") != "https://bucket.example/"+plain.url()+"?for=10m0s" || got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("GET: %s %v", got.Status, got.Header)
	}
	if got := c.ask("HEAD", "/"+plain.url()); got.StatusCode != 200 || got.ContentLength != int64(len(plain.file)) {
		t.Errorf("HEAD: %s, %d", got.Status, got.ContentLength)
	}
	if got := c.ask("GET", "/nar/zstd/"+plain.path.BaseName()); got.StatusCode != 404 {
		t.Errorf("what there is not: %s", got.Status)
	}
	if err := os.Remove(filepath.Join(s.directory, gone.url())); err != nil {
		t.Fatal(err)
	}
	if got := c.ask("GET", "/"+gone.url()); got.StatusCode != 500 || got.Header.Get("Location") != "" {
		t.Errorf("what is missing: %s %v", got.Status, got.Header)
	}
	opts.Presigned = presigner{errors.New("no credentials")}
	c = dial(t, start(t, s, opts).address)
	if got := c.ask("GET", "/"+plain.url()); got.StatusCode != 500 || got.Header.Get("Location") != "" {
		t.Errorf("without credentials: %s %v", got.Status, got.Header)
	}
	c.stillOpen()
}
