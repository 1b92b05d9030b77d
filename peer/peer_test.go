package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// short is how long the tests wait for an answer that never comes.
const short = 100 * time.Millisecond

const narContent = "the bytes of a nar, which are long enough for parts"

// testItem has two files, both stored here.
func testItem(t testing.TB, n int) *storage.Item {
	t.Helper()
	base := fmt.Sprintf("%032d-item", n)
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 96\nReferences:\n"+
		"URL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\nURL: nar/zstd/%s\nCompression: zstd\nFileSize: 7\n", base, n, base, len(narContent), base)
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	item, err := storage.NewItem(&index.Item{Hash: path.Hash, Text: []byte(text), Stored: 3})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// newPeer makes a peer at a server of the test.
func newPeer(t testing.TB, address string, self Self) *Peer {
	t.Helper()
	base, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	p := New(base, self)
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// serve answers until the test ends, even if requests are still running.
func serve(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// honest returns the answer of an instance that has everything.
func honest(r *http.Request, items []*storage.Item) StoredReply {
	reply := StoredReply{Instance: "other", Storage: "their storage", Nonce: r.URL.Query().Get(NonceKey)}
	for _, item := range items {
		nar := StoredNar{Hash: item.Hash.String(), Stored: true, NarHash: item.Narinfo.NarHash.String()}
		for n, file := range item.Narinfo.Files {
			nar.Files = append(nar.Files, StoredFile{file.URL, item.StoredSize(n)})
		}
		reply.Nars = append(reply.Nars, nar)
	}
	return reply
}

func writeJSON(w http.ResponseWriter, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(text)
}

// cut sends less than its Content-Length.
func cut(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Length", fmt.Sprint(len(text)+10))
	_, _ = io.WriteString(w, text)
}

// here is the asking instance in these tests.
func here() Self {
	return Self{Instance: "own", Storage: func(context.Context) (string, error) { return "own storage", nil }}
}

// patient allows long waits, except in tests of slow answers.
func patient(self Self, test string) Self {
	if strings.HasPrefix(test, "slow") {
		self.AnswerTimeout, self.ProgressTimeout = short, short
	}
	return self
}

// TestStored: a peer answers this program's query wrongly in various ways. Only an answer
// that is right in every way counts.
func TestStored(t *testing.T) {
	t.Parallel()
	items := []*storage.Item{testItem(t, 1), testItem(t, 2)}
	changed := func(change func(*StoredReply)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			reply := honest(r, items)
			change(&reply)
			writeJSON(w, reply)
		}
	}
	first := func(change func(*StoredNar)) http.HandlerFunc {
		return changed(func(r *StoredReply) { change(&r.Nars[0]) })
	}
	elsewhere := serve(t, changed(func(*StoredReply) {}))
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string // of both: y, n; "" for an error
		is     error
	}{
		"honest":       {answer: changed(func(*StoredReply) {}), want: "yy"},
		"more files":   {answer: first(func(n *StoredNar) { n.Files = append(n.Files, StoredFile{"nar/x", 3}) }), want: "yy"},
		"escaped URL":  {answer: first(func(n *StoredNar) { n.Files[0].URL = strings.Replace(n.Files[0].URL, "item", "it%65m", 1) }), want: "yy"},
		"slash before": {answer: first(func(n *StoredNar) { n.Files[0].URL = "/" + n.Files[0].URL }), want: "yy"},
		"unknown members": {answer: func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, struct {
				StoredReply
				Later int
			}{honest(r, items), 1})
		}, want: "yy"},
		"not stored":        {answer: first(func(n *StoredNar) { *n = StoredNar{Hash: n.Hash} }), want: "ny"},
		"says no with all":  {answer: first(func(n *StoredNar) { n.Stored = false }), want: "ny"},
		"fault":             {answer: first(func(n *StoredNar) { n.Fault = true }), want: "ny"},
		"another NarHash":   {answer: first(func(n *StoredNar) { n.NarHash = items[1].Narinfo.NarHash.String() }), want: "ny"},
		"no NarHash":        {answer: first(func(n *StoredNar) { n.NarHash = "" }), want: "ny"},
		"another size":      {answer: first(func(n *StoredNar) { n.Files[1].Size++ }), want: "ny"},
		"size not known":    {answer: first(func(n *StoredNar) { n.Files[1].Size = -1 }), want: "ny"},
		"a file is missing": {answer: first(func(n *StoredNar) { n.Files = n.Files[:1] }), want: "ny"},
		"no files":          {answer: first(func(n *StoredNar) { n.Files = nil }), want: "ny"},
		"a file twice": {answer: first(func(n *StoredNar) {
			n.Files = append([]StoredFile{{n.Files[0].URL, 1}}, n.Files...)
		}), want: "ny"},
		"URL of elsewhere": {answer: first(func(n *StoredNar) { n.Files[0].URL = "http://elsewhere.example/" + n.Files[0].URL }), want: "ny"},

		"wrong nonce":       {answer: changed(func(r *StoredReply) { r.Nonce = "of yesterday" })},
		"no nonce":          {answer: changed(func(r *StoredReply) { r.Nonce = "" })},
		"no instance":       {answer: changed(func(r *StoredReply) { r.Instance = "" })},
		"itself":            {answer: changed(func(r *StoredReply) { r.Instance = "own" }), is: ErrSelf},
		"same storage":      {answer: changed(func(r *StoredReply) { r.Storage = "own storage" }), is: ErrSharedStorage},
		"no storage name":   {answer: changed(func(r *StoredReply) { r.Storage = "" }), is: ErrNoStorageName},
		"another item":      {answer: first(func(n *StoredNar) { n.Hash = testItem(t, 3).Hash.String() }), is: ErrAnswer},
		"another order":     {answer: changed(func(r *StoredReply) { r.Nars[0], r.Nars[1] = r.Nars[1], r.Nars[0] }), is: ErrAnswer},
		"too few":           {answer: changed(func(r *StoredReply) { r.Nars = r.Nars[:1] }), is: ErrAnswer},
		"none":              {answer: changed(func(r *StoredReply) { r.Nars = nil }), is: ErrAnswer},
		"too many":          {answer: changed(func(r *StoredReply) { r.Nars = append(r.Nars, r.Nars[0]) }), is: ErrAnswer},
		"HTML":              {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<!DOCTYPE html><title>Welcome</title>") }, is: ErrAnswer},
		"nothing":           {answer: func(http.ResponseWriter, *http.Request) {}, is: ErrAnswer},
		"JSON list":         {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `[{"stored":true}]`) }, is: ErrAnswer},
		"JSON of the plain": {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"stored":true}`) }, is: ErrAnswer},
		"two answers": {answer: func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, honest(r, items))
			writeJSON(w, honest(r, items))
		}, is: ErrAnswer},
		"other types": {answer: func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"instance":"other","storage":"s","nonce":%q,"nars":["yes","yes"]}`, r.URL.Query().Get(NonceKey))
		}, is: ErrAnswer},
		"5 MB": {answer: func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, honest(r, items))
			_, _ = io.WriteString(w, strings.Repeat(" ", 5<<20))
		}, is: ErrAnswer},
		"cut": {answer: func(w http.ResponseWriter, r *http.Request) {
			text, _ := json.Marshal(honest(r, items))
			cut(w, string(text))
		}, is: io.ErrUnexpectedEOF},
		"500": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			writeJSON(w, honest(r, items))
		}},
		"203": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNonAuthoritativeInfo)
			writeJSON(w, honest(r, items))
		}},
		"redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.RequestURI(), http.StatusFound)
		}},
		"slow": {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		"slow after the head": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, is: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if !strings.HasPrefix(r.URL.Path, StoredPath) {
					t.Errorf("it was asked for %s", r.URL)
				}
				test.answer(w, r)
			})
			p := newPeer(t, server.URL, patient(here(), name))
			wantVerdicts(t, p, items, test.want, test.is)
			if asked.Load() != 1 {
				t.Errorf("%d questions", asked.Load())
			}
			if failed := p.Pause() > 0; failed != (test.want == "") {
				t.Errorf("it is left alone for %s", p.Pause())
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(nil)
		server.Close()
		wantVerdicts(t, newPeer(t, server.URL, here()), items, "", nil)
	})
	t.Run("no HTTP", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			conn, err := listener.Accept()
			if err == nil {
				_, _ = io.WriteString(conn, "220 mail.example ESMTP\r\n")
				conn.Close()
			}
		}()
		wantVerdicts(t, newPeer(t, "http://"+listener.Addr().String(), here()), items, "", nil)
	})
	t.Run("too many items", func(t *testing.T) {
		t.Parallel()
		if _, _, err := newPeer(t, elsewhere.URL, here()).Stored(t.Context(), make([]*storage.Item, MostAsked+1)); err == nil {
			t.Error("no error")
		}
	})
	t.Run("without a storage", func(t *testing.T) {
		t.Parallel()
		wantVerdicts(t, newPeer(t, elsewhere.URL, Self{Instance: "own"}), items, "yy", nil)
	})
}

// wantVerdicts asserts the verdicts of an answer.
func wantVerdicts(t *testing.T, p *Peer, items []*storage.Item, want string, is error) {
	t.Helper()
	verdicts, _, err := p.Stored(t.Context(), items)
	if (err == nil) != (want != "") || is != nil && !errors.Is(err, is) {
		t.Errorf("error %v; want %v", err, is)
	}
	if err != nil && !strings.Contains(err.Error(), p.String()) {
		t.Errorf("the error does not name the peer: %v", err)
	}
	got := ""
	for _, verdict := range verdicts {
		if verdict.Stored {
			got += "y"
		} else {
			got += "n"
		}
		if verdict.Stored == (verdict.Reason != "") {
			t.Errorf("%+v", verdict)
		}
	}
	if got != want {
		t.Errorf("%q, want %q: %+v", got, want, verdicts)
	}
}

// TestStoredPlainly: a peer only knows the original's query.
func TestStoredPlainly(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	text := string(item.Text)
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	notFound := http.HandlerFunc(http.NotFound)
	narinfo, yes := answer(text), answer(`{"stored": true}`)
	with := func(name, value string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(name, value)
			yes(w, r)
		}
	}
	elsewhere := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/info") {
			yes(w, r)
		} else {
			narinfo(w, r)
		}
	})
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
	}
	broken := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"stored": true}`)
	}
	stuck := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	dated := func(after time.Duration) string { return time.Now().Add(after).UTC().Format(http.TimeFormat) }
	for name, test := range map[string]struct {
		narinfo, info http.HandlerFunc
		want          string
		is            error
	}{
		"stored":           {narinfo: narinfo, info: yes, want: "y"},
		"no sizes":         {narinfo: answer(withoutSizes(text)), info: yes, want: "y"},
		"further members":  {narinfo: narinfo, info: answer(`{"stored":true,"x":[]}`), want: "y"},
		"not stored":       {narinfo: narinfo, info: answer(`{"stored": false}`), want: "n"},
		"unknown":          {narinfo: notFound, info: yes, want: "n"},
		"no info":          {narinfo: narinfo, info: notFound, want: "n"},
		"another nar":      {narinfo: answer(strings.Replace(text, "sha256:0", "sha256:1", 1)), info: yes, want: "n"},
		"other size":       {narinfo: answer(strings.Replace(text, "FileSize: 7", "FileSize: 8", 1)), info: yes, want: "n"},
		"other files":      {narinfo: answer(strings.Replace(text, "nar/zstd", "nar/gzip", 1)), info: yes, want: "n"},
		"another item":     {narinfo: answer(string(testItem(t, 2).Text)), info: yes, is: ErrAnswer},
		"HTML narinfo":     {narinfo: answer("<html>"), info: yes, is: ErrAnswer},
		"HTML info":        {narinfo: narinfo, info: answer("<html>"), is: ErrAnswer},
		"empty object":     {narinfo: narinfo, info: answer("{}"), is: ErrAnswer},
		"null":             {narinfo: narinfo, info: answer(`{"stored": null}`), is: ErrAnswer},
		"text":             {narinfo: narinfo, info: answer(`{"stored": "true"}`), is: ErrAnswer},
		"only true":        {narinfo: narinfo, info: answer(`true`), is: ErrAnswer},
		"two":              {narinfo: narinfo, info: answer(`{"stored": true}{"stored": true}`), is: ErrAnswer},
		"narinfo too long": {narinfo: answer(text + strings.Repeat("x", 5<<20)), info: yes, is: ErrAnswer},
		"500 narinfo":      {narinfo: broken, info: yes},
		"500 info":         {narinfo: narinfo, info: broken},
		"slow narinfo":     {narinfo: stuck, info: yes},
		"slow info":        {narinfo: narinfo, info: stuck},
		"redirect narinfo": {narinfo: redirect, info: yes},
		"redirect info":    {narinfo: narinfo, info: redirect},
		"cut narinfo":      {narinfo: func(w http.ResponseWriter, _ *http.Request) { cut(w, text) }, info: yes, is: io.ErrUnexpectedEOF},
		"cut info":         {narinfo: narinfo, info: func(w http.ResponseWriter, _ *http.Request) { cut(w, `{"stored": true}`) }, is: io.ErrUnexpectedEOF},
		"out of a cache":   {narinfo: narinfo, info: with("Age", "30")},
		"just cached":      {narinfo: narinfo, info: with("Age", "0"), want: "y"},
		"of yesterday":     {narinfo: narinfo, info: with("Date", dated(-24*time.Hour)), is: ErrAnswer},
		"of tomorrow":      {narinfo: narinfo, info: with("Date", dated(24*time.Hour)), want: "y"},
		"a slow clock":     {narinfo: narinfo, info: with("Date", dated(-mostSkew/2)), want: "y"},
		"no date":          {narinfo: narinfo, info: with("Date", "yesterday"), want: "y"},
		"itself":           {narinfo: narinfo, info: with(InstanceHeader, "own"), is: ErrSelf},
		"no storage name":  {narinfo: narinfo, info: with(InstanceHeader, "other"), is: ErrNoStorageName},
		"same storage": {narinfo: narinfo, info: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(InstanceHeader, "other")
			with(StorageHeader, "own storage")(w, r)
		}, is: ErrSharedStorage},
		"other storage": {narinfo: narinfo, info: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(InstanceHeader, "other")
			with(StorageHeader, "their storage")(w, r)
		}, want: "y"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/sub/" + item.Hash.String() + ".narinfo":
					test.narinfo(w, r)
				case "/sub/" + item.Hash.String() + ".narinfo/info":
					test.info(w, r)
				default:
					http.NotFound(w, r)
				}
			})
			wantVerdicts(t, newPeer(t, server.URL+"/sub/", patient(here(), name)), []*storage.Item{item}, test.want, test.is)
		})
	}
}

func withoutSizes(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "FileSize") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// TestStoredPlainlyCached: a proxy in front of the original caches answers without saying
// so.
func TestStoredPlainlyCached(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	var stored atomic.Bool
	stored.Store(true)
	var cache sync.Map // by URL
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer := string(item.Text)
		switch r.URL.Path {
		case "/" + item.Hash.String() + ".narinfo":
		case "/" + item.Hash.String() + ".narinfo/info":
			answer = fmt.Sprintf(`{"stored": %v}`, stored.Load())
		default:
			http.NotFound(w, r)
			return
		}
		known, _ := cache.LoadOrStore(r.URL.RequestURI(), answer)
		_, _ = io.WriteString(w, known.(string))
	})
	p := newPeer(t, server.URL, here())
	wantVerdicts(t, p, []*storage.Item{item}, "y", nil)
	stored.Store(false)
	wantVerdicts(t, p, []*storage.Item{item}, "n", nil)
}

// TestStoredPlainlyMany: if one of many items is unknown, all are. It is remembered for a
// while that the peer is an original.
func TestStoredPlainlyMany(t *testing.T) {
	t.Parallel()
	items := make([]*storage.Item, 50)
	byHash := make(map[string]*storage.Item)
	for n := range items {
		items[n] = testItem(t, n)
		byHash[items[n].Hash.String()] = items[n]
	}
	var ours atomic.Int32
	var fails atomic.Bool
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		hash, info := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo/info")
		item := byHash[strings.TrimSuffix(hash, ".narinfo")]
		w.Header()["Date"] = nil // the test has another clock
		switch {
		case item == nil:
			ours.Add(1)
			http.NotFound(w, r)
		case !info:
			_, _ = w.Write(item.Text)
		case fails.Load() && item == items[33]:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprintf(w, `{"stored": %v}`, item != items[7])
		}
	})
	now := time.Now()
	p := newPeer(t, server.URL, Self{Now: func() time.Time { return now }})
	for range 2 {
		wantVerdicts(t, p, items, strings.Repeat("y", 7)+"n"+strings.Repeat("y", 42), nil)
	}
	fails.Store(true)
	wantVerdicts(t, p, items, "", nil)
	if ours.Load() != 1 {
		t.Errorf("it was asked our question %d times", ours.Load())
	}
	fails.Store(false)
	now = now.Add(plainFor)
	wantVerdicts(t, p, items[8:10], "yy", nil)
	if ours.Load() != 2 {
		t.Errorf("it was asked our question %d times, also later", ours.Load())
	}
}

// TestOwnFault: if this instance can't read its own storage's name, it asks nothing, and
// that doesn't count as a failure of the peer.
func TestOwnFault(t *testing.T) {
	t.Parallel()
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked for", r.URL) })
	own := errors.New("the disk is gone")
	p := newPeer(t, server.URL, Self{Instance: "own", Storage: func(context.Context) (string, error) { return "", own }})
	if _, _, err := p.Stored(t.Context(), []*storage.Item{testItem(t, 1)}); !errors.Is(err, own) {
		t.Errorf("%v", err)
	}
	if pause := p.Pause(); pause != 0 {
		t.Errorf("the peer is left alone for %s", pause)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	p = newPeer(t, server.URL, here())
	if _, _, err := p.Stored(ended, []*storage.Item{testItem(t, 1)}); !errors.Is(err, context.Canceled) || p.Pause() != 0 {
		t.Errorf("%v, pause %s", err, p.Pause())
	}
}

// TestPause: pauses double with each failure in a row.
func TestPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(&url.URL{Scheme: "http", Host: "peer.example"}, Self{})
		settle := func(begun time.Time, err error) {
			p.record(t.Context(), &p.queries, begun, err)
			p.record(t.Context(), &p.nars, begun, err)
		}
		fail := errors.New("failed")
		pause := backoff.First
		for range 30 {
			settle(time.Now(), fail)
			if got := p.Pause(); got < pause/2 || got >= 3*pause/2 {
				t.Errorf("%s, want about %s", got, pause)
			}
			if p.IsResting() {
				t.Error("it rests after a failure that took no time")
			}
			pause = min(2*pause, backoff.Last)
		}
		begun := time.Now()
		time.Sleep(p.Pause())
		if p.Pause() != 0 {
			t.Errorf("%s are left", p.Pause())
		}
		settle(begun, fail)
		if !p.IsResting() {
			t.Error("it does not rest after a slow failure")
		}
		time.Sleep(restAfter)
		if p.IsResting() {
			t.Error("it rests for ever")
		}
		settle(time.Now(), nil)
		if p.Pause() != 0 {
			t.Errorf("%s are left after a success", p.Pause())
		}
		settle(time.Now(), fail)
		if got := p.Pause(); got >= 3*backoff.First/2 {
			t.Errorf("%s after a success and a failure", got)
		}
	})
}

// TestRecords: a peer answers queries and fails to send nars, and the other way round:
// neither affects the other.
func TestRecords(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	items := []*storage.Item{item}
	var now atomic.Int64
	var answers, sendsNars, slowly atomic.Bool
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if slowly.Load() {
			now.Add(int64(2 * time.Second))
		}
		question := strings.HasPrefix(r.URL.Path, StoredPath)
		switch {
		case question && answers.Load():
			writeJSON(w, honest(r, items))
		case !question && sendsNars.Load():
			sends(w, r)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	self := here()
	self.Now = func() time.Time { return time.Unix(0, now.Load()) }
	p := newPeer(t, server.URL, self)
	fetch := func(want error) {
		t.Helper()
		body, _, err := p.OpenFile(t.Context(), item, 0, 0, -1, nil)
		if err == nil {
			body.Close()
		}
		if !isErr(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	locate := func(want error) {
		t.Helper()
		if _, _, err := p.Locate(t.Context(), item, 0, nil); !isErr(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}

	answers.Store(true)
	fetch(errAny)
	locate(errAny)
	if pause := p.Pause(); pause != 0 {
		t.Errorf("nars fail: it is not asked for %s", pause)
	}
	slowly.Store(true)
	locate(errAny)
	if !p.IsResting() {
		t.Error("a slow answer of 500 to Locate does not count as a failure")
	}
	wantVerdicts(t, p, items, "y", nil)
	if !p.IsResting() {
		t.Error("an answer ends the rest after a slow failure to send a nar")
	}

	answers.Store(false)
	sendsNars.Store(true)
	fetch(nil)
	if p.IsResting() {
		t.Error("it rests after a nar has come")
	}
	wantVerdicts(t, p, items, "", nil)
	if p.IsResting() {
		t.Error("clients don't get nars as questions fail")
	}
	slowly.Store(false)
	pause := p.Pause()
	if pause == 0 {
		t.Error("no pause after a question that failed")
	}
	fetch(nil)
	locate(nil)
	if got := p.Pause(); got != pause {
		t.Errorf("nars come: pause %s, it was %s", got, pause)
	}
}

// FuzzStored: an answer of any bytes never panics, and never confirms a nar without its
// hash and sizes.
func FuzzStored(f *testing.F) {
	item := testItem(f, 1)
	request := httptest.NewRequest(http.MethodGet, StoredPath+"x?"+NonceKey+"=N", nil)
	seed := func(change func(*StoredReply)) {
		reply := honest(request, []*storage.Item{item})
		change(&reply)
		text, err := json.Marshal(reply)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	seed(func(*StoredReply) {})
	seed(func(r *StoredReply) { r.Nars[0].Fault = true })
	seed(func(r *StoredReply) { r.Nars[0].Files[0].Size = -1 })
	seed(func(r *StoredReply) { r.Nars[0].Files = r.Nars[0].Files[1:] })
	seed(func(r *StoredReply) { r.Nars[0].NarHash = "" })
	seed(func(r *StoredReply) { r.Nars = append(r.Nars, r.Nars...) })
	f.Add([]byte(`{"nonce":"N","instance":"x","storage":"y","nars":[{"hash":null,"stored":1}]}`))
	f.Add([]byte("<html>"))
	p := New(&url.URL{Scheme: "http", Host: "peer.example"}, here())
	f.Fuzz(func(t *testing.T, body []byte) {
		verdicts, _, err := p.judgeReply(body, "N", []*storage.Item{item}, "own storage")
		if err != nil {
			return
		}
		var reply StoredReply
		if err := json.Unmarshal(body, &reply); err != nil || len(verdicts) != 1 || len(reply.Nars) != 1 {
			t.Fatalf("%+v for %q", verdicts, body)
		}
		if !verdicts[0].Stored {
			return
		}
		nar := reply.Nars[0]
		if reply.Nonce != "N" || reply.Instance == "own" || reply.Storage == "own storage" || reply.Storage == "" ||
			nar.Hash != item.Hash.String() || !nar.Stored || nar.Fault || nar.NarHash != item.Narinfo.NarHash.String() {
			t.Fatalf("%q vouches", body)
		}
		for n := range item.Narinfo.Files {
			some := false
			for _, file := range nar.Files {
				name, err := (&narinfo.File{URL: file.URL}).Path()
				if err != nil || name != item.FileName(n) {
					continue
				}
				if some = true; file.Size != item.StoredSize(n) {
					t.Fatalf("%q vouches with another size", body)
				}
			}
			if !some {
				t.Fatalf("%q vouches without a file", body)
			}
		}
	})
}
