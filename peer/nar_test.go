package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// sends answers with a range of the content, like a web server.
func sends(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(narContent))
}

// TestOpenFile: a peer sends a nar wrongly in various ways.
func TestOpenFile(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	path := "/sub/" + item.Narinfo.Files[0].URL
	elsewhere := serve(t, func(w http.ResponseWriter, r *http.Request) { sends(w, r) })
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, narContent)
		}
	}
	partial := func(contentRange, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, body)
		}
	}
	whole := fmt.Sprint(len(narContent))
	flushed := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, text)
			w.(http.Flusher).Flush() // so that it is chunked
		}
	}
	for name, test := range map[string]struct {
		answer         http.HandlerFunc
		offset, length int64
		want           string
		openErr        error // wrapped; errAny for any but ErrNotStored
		readErr        error
	}{
		"whole":               {answer: sends, length: -1, want: narContent},
		"whole by length":     {answer: sends, length: int64(len(narContent)), want: narContent},
		"middle":              {answer: sends, offset: 4, length: 5, want: "bytes"},
		"end":                 {answer: sends, offset: 4, length: -1, want: narContent[4:]},
		"beginning":           {answer: sends, length: 9, want: narContent[:9]},
		"in chunks":           {answer: flushed(narContent), length: -1, want: narContent},
		"range ignored, at 0": {answer: status(200), length: 9, want: narContent},
		"redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
		}, offset: 4, length: 5, want: "bytes"},
		"range of unknown size": {answer: partial("bytes 4-8/*", "bytes"), offset: 4, length: 5, want: "bytes"},

		"404":              {answer: status(404), length: -1, openErr: storage.ErrNotStored},
		"410":              {answer: status(410), length: -1, openErr: storage.ErrNotStored},
		"404 to a range":   {answer: status(404), offset: 4, length: 5, openErr: storage.ErrNotStored},
		"500":              {answer: status(500), length: -1, openErr: errAny},
		"416":              {answer: status(416), offset: 4, length: 5, openErr: errAny},
		"206 unasked":      {answer: partial("bytes 0-8/"+whole, narContent[:9]), length: -1, openErr: errAny},
		"range ignored":    {answer: status(200), offset: 4, length: 5, openErr: ErrNoRange},
		"shorter":          {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "short") }, length: -1, openErr: ErrAnswer},
		"longer":           {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, narContent, "x") }, length: -1, openErr: ErrAnswer},
		"empty":            {answer: func(http.ResponseWriter, *http.Request) {}, length: -1, openErr: ErrAnswer},
		"other range":      {answer: partial("bytes 5-9/"+whole, "bytes"), offset: 4, length: 5, openErr: ErrAnswer},
		"no range":         {answer: partial("", "bytes"), offset: 4, length: 5, openErr: ErrAnswer},
		"too short range":  {answer: partial("bytes 4-7/"+whole, "byte"), offset: 4, length: 5, openErr: ErrAnswer},
		"of another file":  {answer: partial("bytes 4-8/1000", "bytes"), offset: 4, length: 5, openErr: ErrAnswer},
		"range of garbage": {answer: partial("bytes 4-8/many", "bytes"), offset: 4, length: 5, openErr: ErrAnswer},
		"redirects for ever": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, length: -1, openErr: errAny},
		"slow": {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, length: -1, openErr: errAny},

		"cut": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", whole)
			_, _ = io.WriteString(w, narContent[:9])
		}, length: -1, want: narContent[:9], readErr: io.ErrUnexpectedEOF},
		"cut in chunks": {answer: func(w http.ResponseWriter, _ *http.Request) {
			flushed(narContent[:9])(w, nil)
			panic(http.ErrAbortHandler)
		}, length: -1, want: narContent[:9], readErr: io.ErrUnexpectedEOF},
		"short in chunks": {answer: flushed(narContent[:9]), length: -1, want: narContent[:9], readErr: io.ErrUnexpectedEOF},
		"ended by the connection's end": {answer: func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				fmt.Fprint(conn, "HTTP/1.0 200 OK\r\n\r\n", narContent[:9])
				conn.Close()
			}
		}, length: -1, want: narContent[:9], readErr: io.ErrUnexpectedEOF},
		"slow in the middle": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", whole)
			flushed(narContent[:9])(w, r)
			<-r.Context().Done()
		}, length: -1, want: narContent[:9], readErr: errAny},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != path {
					t.Errorf("it was asked for %s", r.URL)
				}
				if via := r.Header.Values(ViaHeader); !slices.Equal(via, []string{"1.0 proxy", "1.1 nar-herder-own"}) {
					t.Errorf("via %q", via)
				}
				test.answer(w, r)
			})
			self := patient(here(), name)
			self.AllowPrivateRedirects = true // all test servers are private
			p := newPeer(t, server.URL+"/sub", self)
			body, size, err := p.OpenFile(t.Context(), item, 0, test.offset, test.length, []string{"1.0 proxy"})
			if !isErr(err, test.openErr) {
				t.Fatalf("open: %v, want %v", err, test.openErr)
			}
			if failed := p.nars.failures > 0; failed != (err != nil && !errors.Is(err, storage.ErrNotStored)) {
				t.Errorf("%d failures after %v", p.nars.failures, err)
			}
			if err != nil {
				return
			}
			defer body.Close()
			if size != int64(len(narContent)) {
				t.Errorf("size %d", size)
			}
			content, err := io.ReadAll(body)
			if string(content) != test.want || !isErr(err, test.readErr) {
				t.Errorf("%q, %v; want %q, %v", content, err, test.want, test.readErr)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(nil)
		server.Close()
		if _, _, err := newPeer(t, server.URL, here()).OpenFile(t.Context(), item, 0, 0, -1, nil); !isErr(err, errAny) {
			t.Errorf("%v", err)
		}
	})
}

// errAny is any error that leaves it unknown.
var errAny = errors.New("any error")

func isErr(err, want error) bool {
	if want == errAny {
		return err != nil && err != io.EOF && !errors.Is(err, storage.ErrNotStored)
	}
	return want == nil && err == nil || want != nil && errors.Is(err, want)
}

// TestOpenUnsized: a file of unknown size is opened.
func TestOpenUnsized(t *testing.T) {
	t.Parallel()
	sized := testItem(t, 1)
	item, err := storage.NewItem(&index.Item{Hash: sized.Hash, Text: []byte(withoutSizes(string(sized.Text)))})
	if err != nil {
		t.Fatal(err)
	}
	server := serve(t, sends)
	body, size, err := newPeer(t, server.URL, here()).OpenFile(t.Context(), item, 0, 0, -1, nil)
	if err != nil || size != int64(len(narContent)) {
		t.Fatalf("%d, %v", size, err)
	}
	defer body.Close()
	if content, err := io.ReadAll(body); err != nil || string(content) != narContent {
		t.Errorf("%q, %v", content, err)
	}
}

// TestForeignURL: a file with a URL on another server is not requested, and that says
// nothing about the peer.
func TestForeignURL(t *testing.T) {
	t.Parallel()
	sized := testItem(t, 1)
	item, err := storage.NewItem(&index.Item{Hash: sized.Hash, Text: []byte(strings.ReplaceAll(string(sized.Text), "URL: nar", "URL: http://elsewhere.example/nar"))})
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked for", r.URL) }).URL, here())
	p.record(t.Context(), &p.nars, p.now(), errAny)
	if _, _, err := p.OpenFile(t.Context(), item, 0, 0, -1, nil); !errors.Is(err, storage.ErrNotStored) {
		t.Error(err)
	}
	if _, _, err := p.Locate(t.Context(), item, 0, nil); !errors.Is(err, storage.ErrNotStored) {
		t.Error(err)
	}
	if p.nars.failures == 0 {
		t.Error("a failure is forgotten without an answer")
	}
}

// TestSlowReader: reading a nar's beginning takes longer than the timeout for the rest.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		body := newBody(io.NopCloser(strings.NewReader(narContent)), int64(len(narContent)), time.Minute, cancel, "peer.example")
		if _, err := io.ReadFull(body, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("it was given up while nobody read it: %v", context.Cause(ctx))
		}
		if rest, err := io.ReadAll(body); err != nil || string(rest) != narContent[9:] {
			t.Errorf("%q, %v", rest, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	})
}

// dripping sends some bytes after each pause.
type dripping struct {
	left, piece int
	pause       time.Duration
	ctx         context.Context
}

func (d *dripping) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(d.pause):
	case <-d.ctx.Done():
		return 0, context.Cause(d.ctx)
	}
	n := min(d.piece, d.left, len(p))
	d.left -= n
	return n, nil
}

func (*dripping) Close() error { return nil }

// TestMinimumRate: bodies below the minimum rate are given up; others are received
// completely.
func TestMinimumRate(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	for name, test := range map[string]struct {
		size, piece int
		pause       time.Duration
		given       error
	}{
		"a byte a second":                       {size, 1, time.Second, ErrSlow},
		"a kilobyte and a pause, again":         {size, 1000, 55 * time.Second, ErrSlow},
		"nothing for long":                      {size, size, 61 * time.Second, ErrSlow},
		"56 kbit/s":                             {size, 700, 100 * time.Millisecond, nil},
		"56 kbit/s, shared by six":              {size, 1167, time.Second, nil},
		"a packet a second, as the line is bad": {size, 1460, time.Second, nil},
		"pauses of 50 seconds, and bursts":      {size, 128 << 10, 50 * time.Second, nil},
		"a byte a second, of a small nar":       {50, 1, time.Second, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				begun := time.Now()
				body := newBody(&dripping{test.size, test.piece, test.pause, ctx}, int64(test.size), progressTimeout, cancel, "peer.example")
				defer body.Close()
				var n int
				var err error
				for buffer := make([]byte, 256<<10); err == nil; {
					var more int
					more, err = body.Read(buffer)
					n += more
				}
				if err == io.EOF {
					err = nil
				}
				if !errors.Is(err, test.given) || err == nil && n != test.size {
					t.Errorf("%d bytes, %v; want %v", n, err, test.given)
				}
				if test.given != nil && time.Since(begun) > 3*progressTimeout {
					t.Errorf("given up only after %v", time.Since(begun))
				}
			})
		})
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		err    error
	}{
		"there":           {answer: sends},
		"length not said": {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }},
		"another length":  {answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "3") }, err: ErrAnswer},
		"404":             {answer: http.NotFound, err: storage.ErrNotStored},
		"410":             {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(410) }, err: storage.ErrNotStored},
		"403":             {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, err: errAny},
		"500":             {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, err: errAny},
		"slow":            {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, err: errAny},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodHead || r.URL.Path != "/"+item.Narinfo.Files[0].URL {
					t.Errorf("it was asked %s %s", r.Method, r.URL)
				}
				test.answer(w, r)
			})
			p := newPeer(t, server.URL, patient(here(), name))
			location, _, err := p.Locate(t.Context(), item, 0, nil)
			if failed := p.nars.failures > 0; failed != (err != nil && !errors.Is(err, storage.ErrNotStored)) {
				t.Errorf("%d failures after %v", p.nars.failures, err)
			}
			if !isErr(err, test.err) || err == nil && location != server.URL+"/"+item.Narinfo.Files[0].URL {
				t.Errorf("%q, %v; want %v", location, err, test.err)
			}
		})
	}
}

// TestLocatePrivate: clients are not redirected to a peer with a password, or with a token
// as user, in its URL.
func TestLocatePrivate(t *testing.T) {
	t.Parallel()
	item := testItem(t, 1)
	for _, user := range []string{"user:secret@", "token@"} {
		server := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); !ok {
				t.Error("it is asked without the password")
			}
			sends(w, r)
		})
		p := newPeer(t, strings.Replace(server.URL, "://", "://"+user, 1), here())
		if location, _, err := p.Locate(t.Context(), item, 0, nil); location != "" || err != nil {
			t.Errorf("%s: %q, %v", user, location, err)
		}
	}
}

func TestCanPass(t *testing.T) {
	t.Parallel()
	many := func(n int) (via []string) {
		for i := range n {
			via = append(via, fmt.Sprintf("1.1 nar-herder-%d", i))
		}
		return via
	}
	for _, test := range []struct {
		via  []string
		want bool
	}{
		{nil, true},
		{[]string{"1.1 nginx", "HTTP/2.0 cdn.example (a comment)"}, true},
		{[]string{"1.1 nar-herder-b, 1.1 nar-herder-c"}, true},
		{[]string{"1.1 nar-herder-b, 1.1 nar-herder-a"}, false},
		{[]string{"1.1 nginx,1.1 nar-herder-a", "1.1 nginx"}, false},
		{[]string{"1.1 nar-herder-aa"}, true},
		{[]string{"garbage", ",,", ""}, true},
		{many(mostHops - 1), true},
		{many(mostHops), false},
		{[]string{strings.Join(many(mostHops), ", ")}, false},
		{append(many(mostHops-1), slices.Repeat([]string{"1.1 nginx"}, 20)...), true},
	} {
		if got := CanPass(test.via, "a"); got != test.want {
			t.Errorf("%q: %v", test.via, got)
		}
	}
}
