package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/mirror/dump"
	"nar-herder/peer"
)

// testDumps are dumps that a test makes.
type testDumps struct {
	directory string

	mu          sync.Mutex
	generations []dump.Generation
	err         error
}

func newDumps(t testing.TB) *testDumps { return &testDumps{directory: t.TempDir()} }

func (d *testDumps) Generations() ([]dump.Generation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.generations, d.err
}

func (d *testDumps) Open(file dump.File) (*os.File, error) {
	return os.Open(filepath.Join(d.directory, file.Name))
}

func (d *testDumps) Name() string { return "the dump.db" }

// contentOf returns the content of a file of the Nth dump.
func contentOf(n int, kind string) string {
	return strings.Repeat(fmt.Sprintf("%s of %d ", kind, n), 3000+n)
}

// add adds the Nth dump as the newest.
func (d *testDumps) add(t testing.TB, n int) dump.Generation {
	t.Helper()
	g := dump.Generation{Instance: "INSTANCE", LastChange: int64(100 * n), CreatedAt: time.Unix(1_700_000_000+int64(n), 0).UTC()}
	for kind, file := range map[string]*dump.File{"database": &g.Database, "zstd": &g.Zstd, "index": &g.Index} {
		text := contentOf(n, kind)
		*file = dump.File{Name: fmt.Sprintf("%s-%d", kind, n), Size: int64(len(text)), SHA256: sha256.Sum256([]byte(text))}
		if err := os.WriteFile(filepath.Join(d.directory, file.Name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.generations
	if len(before) > 1 {
		before = before[:1]
	}
	d.generations = append([]dump.Generation{g}, before...)
	return g
}

func startDumps(t testing.TB, dumps *testDumps, change func(*Options)) *started {
	opts := options()
	opts.Dumps = dumps
	if change != nil {
		change(&opts)
	}
	return start(t, corpus(), opts)
}

// TestDumps requests each file, as a whole and in ranges, and checks all headers.
func TestDumps(t *testing.T) {
	t.Parallel()
	dumps := newDumps(t)
	dumps.add(t, 1)
	dumps.add(t, 2)
	c := dial(t, startDumps(t, dumps, nil).address)
	tags := make(map[string]bool)
	for _, test := range []struct{ target, accept, kind string }{
		{peer.DumpPath, "identity", "database"},
		{peer.DumpPath, "gzip, deflate, br", "database"},
		{peer.DumpPath, "gzip, zstd", "zstd"},
		{peer.IndexPath, "zstd", "index"},
	} {
		want := contentOf(2, test.kind)
		sum := sha256.Sum256([]byte(want))
		accept := "Accept-Encoding: " + test.accept
		for _, part := range []struct {
			header     []string
			status     int
			start, end int
		}{
			{nil, 200, 0, len(want)},
			{[]string{"Range: bytes=10-10009"}, 206, 10, 10010},
			{[]string{"Range: bytes=-100"}, 206, len(want) - 100, len(want)},
			{[]string{"Range: bytes=0-1"}, 206, 0, 2},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				got := c.ask(method, test.target, append(part.header, accept)...)
				name := fmt.Sprintf("%s %s, %s, %v", method, test.target, test.accept, part.header)
				body := want[part.start:part.end]
				if got.StatusCode != part.status || got.ContentLength != int64(len(body)) || method == "GET" && got.body != body {
					t.Errorf("%s: %s, %d bytes announced, got %d", name, got.Status, got.ContentLength, len(got.body))
				}
				header := map[string]string{
					"Content-Type": "application/vnd.sqlite3", "Accept-Ranges": "bytes", "Last-Modified": time.Unix(1_700_000_002, 0).UTC().Format(http.TimeFormat),
					"Repr-Digest": "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":", "Nar-Herder-Instance": "INSTANCE", "Nar-Herder-Change": "200",
					"Cache-Control": "no-cache", "Vary": "Accept-Encoding", "Content-Encoding": "",
				}
				if test.kind == "zstd" {
					header["Content-Encoding"] = "zstd"
				}
				if test.kind == "index" {
					header["Vary"] = ""
				}
				if part.status == 206 {
					header["Content-Range"] = fmt.Sprintf("bytes %d-%d/%d", part.start, part.end-1, len(want))
				}
				for key, value := range header {
					if got.Header.Get(key) != value {
						t.Errorf("%s: %s is %q, want %q", name, key, got.Header.Get(key), value)
					}
				}
				tag := got.Header.Get("ETag")
				if !strings.HasPrefix(tag, `"`+fmt.Sprintf("%x", sum)[:32]) {
					t.Errorf("%s: ETag %s", name, tag)
				}
				tags[test.kind+tag] = true
			}
		}
		tag := c.ask("HEAD", test.target, accept).Header.Get("ETag")
		if got := c.ask("GET", test.target, accept, "If-None-Match: "+tag); got.StatusCode != 304 || got.Header.Get("ETag") != tag || got.Header.Get("Nar-Herder-Change") != "200" {
			t.Errorf("%s: %s %v", test.target, got.Status, got.Header)
		}
		got := c.ask("GET", test.target, accept, "Range: bytes=9999999-")
		if got.StatusCode != 416 || got.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", len(want)) || got.Header.Get("Repr-Digest") != "" || got.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %s %v", test.target, got.Status, got.Header)
		}
	}
	if len(tags) != 3 {
		t.Errorf("three files have the tags %v", tags)
	}
	if got := c.ask("POST", peer.DumpPath); got.StatusCode != 405 {
		t.Errorf("POST: %s", got.Status)
	}
	for _, target := range []string{peer.DumpPath + "/", peer.IndexPath + "/x", peer.DumpPath + ".zst"} {
		if got := c.ask("GET", target); got.StatusCode != 404 && got.StatusCode != 400 {
			t.Errorf("%s: %s", target, got.Status)
		}
	}
}

// TestDumpReplaced: a client that began with a dump gets the rest of it after the next one was
// made, and after one more the newest from the start.
func TestDumpReplaced(t *testing.T) {
	t.Parallel()
	dumps := newDumps(t)
	dumps.add(t, 1)
	c := dial(t, startDumps(t, dumps, nil).address)
	for _, test := range []struct{ target, accept, kind string }{
		{peer.DumpPath, "", "database"}, {peer.DumpPath, "zstd", "zstd"}, {peer.IndexPath, "", "index"},
	} {
		accept := "Accept-Encoding: " + test.accept
		begun := c.ask("GET", test.target, accept, "Range: bytes=0-99")
		tag, modified := begun.Header.Get("ETag"), begun.Header.Get("Last-Modified")
		generations, _ := dumps.Generations()
		n := int(generations[0].LastChange / 100)
		wants := func(status, of, from int, header ...string) {
			t.Helper()
			got := c.ask("GET", test.target, append(header, accept)...)
			want := contentOf(of, test.kind)[from:]
			sum := sha256.Sum256([]byte(contentOf(of, test.kind)))
			if got.StatusCode != status || got.body != want || got.Header.Get("Nar-Herder-Change") != fmt.Sprint(100*of) ||
				got.Header.Get("Repr-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
				t.Errorf("%s %q after %d: %s %v, %d bytes", test.target, header, n, got.Status, got.Header, len(got.body))
			}
		}
		wants(206, n, 100, "Range: bytes=100-", "If-Range: "+tag)
		dumps.add(t, n+1)
		wants(206, n, 100, "Range: bytes=100-", "If-Range: "+tag)
		wants(206, n, 100, "Range: bytes=100-", "If-Range: "+modified)
		wants(206, n+1, 100, "Range: bytes=100-")
		wants(200, n+1, 0, "If-Range: "+tag)
		wants(200, n+1, 0, "If-None-Match: "+tag)
		dumps.add(t, n+2)
		wants(200, n+2, 0, "Range: bytes=100-", "If-Range: "+tag)
		wants(200, n+2, 0, "Range: bytes=100-", "If-Range: "+modified)
	}
}

// TestDumpWhileReplaced: an answer that has begun continues after the file was removed.
func TestDumpWhileReplaced(t *testing.T) {
	t.Parallel()
	dumps := newDumps(t)
	g := dumps.add(t, 1)
	want := strings.Repeat(contentOf(1, "index"), 200) // more than a connection buffers
	g.Index.Size = int64(len(want))
	if err := os.WriteFile(filepath.Join(dumps.directory, g.Index.Name), []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	dumps.generations = []dump.Generation{g}
	c := dial(t, startDumps(t, dumps, nil).address)
	c.send(request("GET", peer.IndexPath))
	if _, err := c.r.Peek(1); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dumps.directory, g.Index.Name)); err != nil {
		t.Fatal(err)
	}
	dumps.add(t, 2)
	if got := c.receive("GET"); got.StatusCode != 200 || got.body != want || got.err != nil {
		t.Errorf("%s, %d bytes, %v", got.Status, len(got.body), got.err)
	}
	c.stillOpen()
}

// vanishing are dumps that are replaced while they are being opened.
type vanishing struct {
	*testDumps
	mu     sync.Mutex
	vanish int
	err    error
}

func (d *vanishing) Open(file dump.File) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.vanish > 0 {
		d.vanish--
		return nil, d.err
	}
	return d.testDumps.Open(file)
}

// TestNoDump checks the answers if there is no dump, or that is unknown.
func TestNoDump(t *testing.T) {
	t.Parallel()
	for _, target := range []string{peer.DumpPath, peer.IndexPath} {
		if got := dial(t, start(t, corpus(), options()).address).ask("GET", target); got.StatusCode != 404 {
			t.Errorf("without dumps: %s", got.Status)
		}
		dumps := newDumps(t)
		if got := dial(t, startDumps(t, dumps, nil).address).ask("GET", target); got.StatusCode != 404 || got.Header.Get("Retry-After") != "" {
			t.Errorf("with none, and none to come: %s", got.Status)
		}
		s := startDumps(t, dumps, func(o *Options) { o.DumpsExpected = true })
		c := dial(t, s.address)
		if got := c.ask("GET", target); got.StatusCode != 503 || got.Header.Get("Retry-After") != "60" {
			t.Errorf("before the first: %s %v", got.Status, got.Header)
		}
		dumps.err = errBroken
		isFault(t, c.ask("GET", target), 500)
		if !strings.Contains(s.log.String(), errBroken.Error()) {
			t.Errorf("the log does not say why: %s", s.log.String())
		}
		dumps.err = nil
		dumps.add(t, 1)

		gone := fmt.Errorf("open: %w", fs.ErrNotExist)
		for _, test := range []struct {
			vanish, status int
			err            error
		}{{1, 200, gone}, {2, 500, gone}, {1, 500, errors.New("no descriptors")}} {
			v := &vanishing{testDumps: dumps, vanish: test.vanish, err: test.err}
			c := dial(t, startDumps(t, dumps, func(o *Options) { o.Dumps = v }).address)
			got := c.ask("GET", target)
			if got.StatusCode != test.status || strings.Contains(got.body, "descriptors") {
				t.Errorf("%+v: %s %q", test, got.Status, got.body)
			}
			if test.status != 200 && (got.Header.Get("ETag") != "" || got.Header.Get("Repr-Digest") != "") {
				t.Errorf("%+v: %v", test, got.Header)
			}
			c.stillOpen()
		}
	}
}

// TestDumpAccelRedirect: nginx sends the original's database, and no other file.
func TestDumpAccelRedirect(t *testing.T) {
	t.Parallel()
	dumps := newDumps(t)
	dumps.add(t, 1)
	c := dial(t, startDumps(t, dumps, func(o *Options) { o.AccelRedirect = true }).address)
	for _, method := range []string{"GET", "HEAD"} {
		got := c.ask(method, peer.DumpPath, "Accept-Encoding: zstd", "Range: bytes=3-5")
		if got.StatusCode != 200 || got.body != "" || got.Header.Get("X-Accel-Redirect") != "/internal/database/the%20dump.db" || got.Header.Get("Content-Encoding") != "" || got.Header.Get("ETag") != "" {
			t.Errorf("%s: %s %v", method, got.Status, got.Header)
		}
	}
	if got := c.ask("GET", peer.IndexPath); got.StatusCode != 200 || got.body != contentOf(1, "index") || got.Header.Get("X-Accel-Redirect") != "" {
		t.Errorf("%s %v", got.Status, got.Header)
	}
	if err := os.Remove(filepath.Join(dumps.directory, "database-1")); err != nil {
		t.Fatal(err)
	}
	isFault(t, c.ask("GET", peer.DumpPath), 500)
}
