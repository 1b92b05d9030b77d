package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/s3server"
)

// recorder keeps the heads of requests.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
}

func (r *recorder) hook(request *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, request.Clone(request.Context()))
	return nil, nil
}

// uploads returns what protects the requests with content, in their order: the names
// of headers.
func (r *recorder) uploads() (protection []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range r.seen {
		if request.Method != http.MethodPut {
			continue
		}
		names := []string{}
		for name := range request.Header {
			if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-checksum-") || name == "content-md5" {
				names = append(names, name)
			}
		}
		protection = append(protection, strings.Join(names, " "))
	}
	return protection
}

// logged is a log in memory.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns those that have the word.
func (l *logged) lines(word string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, word) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

const (
	headerCRC32C = "x-amz-checksum-crc32c"
	headerCRC32  = "x-amz-checksum-crc32"
	headerMD5    = "content-md5"
)

// TestSignedHeaders: every request signs its host and its x-amz-* headers, and nothing
// that a proxy on the way may change.
func TestSignedHeaders(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	put(t, b, "nar/small", random(small, 1))
	put(t, b, "nar/empty", nil)
	var seen recorder
	way.set(seen.hook)
	for name, do := range operations {
		if name == "List" || name == "Remove" {
			continue // in their order, below
		}
		if err := do(t, b); err != nil && name != "Flush" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if infos := list(t, b); len(infos) != 3 {
		t.Errorf("List gives %+v", infos)
	}
	if _, err := b.Stat(t.Context(), "nar/empty"); err != nil { // which makes a HEAD
		t.Error(err)
	}
	put(t, b, "nar/small", random(small, 1))
	staged, err := b.Stage(t.Context(), "nar/once", strings.NewReader("x"), 1)
	if err == nil {
		err = staged.CommitNew(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
	b.fastGet.pausedUntil.Store(math.MaxInt64) // all GETs by the SDK
	wantContent(t, b, "nar/small", random(small, 1))
	if err := b.Remove(t.Context(), "nar/small"); err != nil {
		t.Error(err)
	}
	methods := map[string]bool{}
	for _, r := range seen.seen {
		methods[r.Method] = true
		_, list, ok := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
		list, _, _ = strings.Cut(list, ",")
		if !ok {
			t.Fatalf("%s %s: not signed", r.Method, r.URL)
		}
		signed := strings.Split(list, ";")
		want := []string{"host"}
		for name := range r.Header {
			switch name = strings.ToLower(name); {
			case name == "content-type", name == "content-md5", name == "range", strings.HasPrefix(name, "x-amz-"):
				want = append(want, name)
			}
		}
		if slices.Sort(want); !slices.Equal(signed, want) {
			t.Errorf("%s %s signs %q, want %q", r.Method, r.URL, signed, want)
		}
	}
	for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
		if !methods[method] {
			t.Errorf("no %s was made", method)
		}
	}
	presigned, err := b.Presign(t.Context(), "nar/small", time.Minute)
	if err != nil || !strings.Contains(presigned, "X-Amz-SignedHeaders=host&") {
		t.Errorf("%s, %v: want it to sign the host alone", presigned, err)
	}
}

// providerChecksums are what works with the providers.
var providerChecksums = map[s3server.Provider]struct {
	header string
	kind   checksum
	tried  []string // by the first upload
}{
	s3server.Backblaze:  {headerMD5, noChecksum, []string{headerCRC32C, headerCRC32}},
	s3server.Cloudflare: {headerCRC32, crc32Checksum, []string{headerCRC32C}},
	s3server.Google:     {headerCRC32C, crc32cChecksum, nil},
}

// TestFirstUpload: the first upload finds out which checksum the server accepts, and
// all later ones have it. No refused header is sent again.
func TestFirstUpload(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("there is no server")
	}
	for provider, want := range providerChecksums {
		for _, size := range []int{0, small, large, twoParts} {
			t.Run(fmt.Sprint(provider, " ", size), func(t *testing.T) {
				t.Parallel()
				front := server.Front(t, provider)
				var way faulty
				var seen recorder
				var log logged
				options := quick(&way)
				options.Log = log.logger()
				b := open(t, placeAt(front.URL), options)
				way.set(seen.hook)
				content := random(size, 1)
				put(t, b, "nar/first", content)
				if got, first := front.Refused(), len(want.tried); got != first {
					t.Errorf("%d requests of the first upload were refused, want %d", got, first)
				}
				for _, size := range []int{small, large} {
					put(t, b, "nar/later", random(size, 2))
				}
				if got := front.Refused(); got != len(want.tried) {
					t.Errorf("%d requests were refused after the first upload", got-len(want.tried))
				}
				uploads := seen.uploads()
				if size < mostInMemory { // where none is refused in an upload's first request, which has no content
					tried := want.tried
					for len(tried) > 0 && len(uploads) > 0 && uploads[0] == tried[0] {
						tried, uploads = tried[1:], uploads[1:]
					}
					if len(tried) > 0 {
						t.Errorf("%q was not tried", tried)
					}
				}
				if len(uploads) < 3 {
					t.Errorf("%d uploads were seen", len(uploads))
				}
				for _, header := range uploads {
					if header != want.header {
						t.Errorf("an upload is protected by %q, want %q", header, want.header)
					}
				}
				if lines := log.lines("checksum="); len(lines) != 1 || !strings.Contains(lines[0], "checksum="+string(want.kind)) {
					t.Errorf("logged: %q, want it once, with %s", lines, want.kind)
				}
				wantContent(t, b, "nar/first", content)
				for _, name := range []string{"nar/first", "nar/later"} {
					if err := b.Remove(t.Context(), name); err != nil {
						t.Error(err)
					}
				}
				if infos := list(t, b); len(infos) != 0 {
					t.Errorf("left: %+v", infos)
				}
			})
		}
	}
}

// TestManyFirstUploads: uploads that begin at once find the same.
func TestManyFirstUploads(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("there is no server")
	}
	front := server.Front(t, s3server.Backblaze)
	var log logged
	b := open(t, placeAt(front.URL), Options{Log: log.logger()})
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			if err := stage(t, b, fmt.Sprint("nar/", i), []int{small, large}[i%2]); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if lines := log.lines("checksum="); len(lines) != 1 {
		t.Errorf("logged: %q, want it once", lines)
	}
	if infos := list(t, b); len(infos) != 8 {
		t.Errorf("%d objects and uploads, want 8", len(infos))
	}
}

// TestPartRefused: a server may accept the announcement of a checksum and refuse it
// with the part.
func TestPartRefused(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	way.set(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get(headerCRC32C) != "" {
			return answerWith(r, 501, "NotImplemented", "Header '"+headerCRC32C+"' not implemented"), nil
		}
		return nil, nil
	})
	content := random(twoParts, 1)
	put(t, b, "nar/x", content)
	wantContent(t, b, "nar/x", content)
	if kind := b.checksums.known(); kind != crc32Checksum {
		t.Errorf("%q is known to work, want crc32", kind)
	}
	if infos := list(t, b); len(infos) != 1 {
		t.Errorf("left: %+v", infos)
	}
}

// TestRefusedLater: a server that begins to refuse the checksum that was found is tried
// again, by the same upload where its content is still there, or by the next one.
func TestRefusedLater(t *testing.T) {
	t.Parallel()
	for _, size := range []int{small, twoParts} {
		var way faulty
		var log logged
		options := quick(&way)
		options.Log = log.logger()
		b := open(t, place(t), options)
		put(t, b, "nar/x", random(small, 1))
		way.set(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get(headerCRC32C) != "" {
				return answerWith(r, 501, "NotImplemented", "Header '"+headerCRC32C+"' not implemented"), nil
			}
			return nil, nil
		})
		if size == twoParts { // their upload has announced CRC32C
			wantFault(t, "a part", stage(t, b, "nar/x", size), "NotImplemented", "the next upload detects again which checksum the server accepts")
		}
		content := random(size, 2)
		put(t, b, "nar/x", content)
		wantContent(t, b, "nar/x", content)
		if kind := b.checksums.known(); kind != crc32Checksum {
			t.Errorf("%d bytes: %q is known to work, want crc32", size, kind)
		}
		for word, lines := range map[string]int{"checksum=crc32c": 2, "checksum=crc32\n": 1} {
			if got := log.lines(word); len(got) != lines {
				t.Errorf("%d bytes: %d lines have %q: %q", size, len(got), word, got)
			}
		}
		if infos := list(t, b); len(infos) != 1 {
			t.Errorf("left: %+v", infos)
		}
	}
}

// answerWith is an error of S3 with a message.
func answerWith(r *http.Request, status int, code, message string) *http.Response {
	return answer(r, status, "application/xml", "<Error><Code>"+code+"</Code><Message>"+message+"</Message></Error>")
}

// TestUnrelatedFailures: no failure for another reason makes later uploads less
// protected.
func TestUnrelatedFailures(t *testing.T) {
	t.Parallel()
	invalid := func(message string) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			return answerWith(r, 400, "InvalidArgument", message), nil
		}
	}
	for name, test := range map[string]struct {
		hook    func(*http.Request) (*http.Response, error)
		first   int // to how many requests it is given; 0 for all
		succeed bool
		most    int // requests of the first upload; 0 for any
	}{
		"invalid once":     {hook: invalid("Invalid Argument"), first: 1, succeed: true},
		"invalid":          {hook: invalid("Invalid Argument")},
		"invalid checksum": {hook: invalid("The checksum is not what this server likes")},
		"not implemented":  {hook: always(501, "NotImplemented")},
		"a digest":         {hook: always(400, "BadDigest"), most: 1},
		"another 400":      {hook: always(400, "InvalidRequest"), most: 1},
		"no permission":    {hook: always(403, "AccessDenied"), most: 1},
		"page":             {hook: always(400, page), most: 1},
		"page 501":         {hook: always(501, page), most: 1},
		"slow down":        {hook: always(503, "SlowDown"), most: attempts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{small, large} {
				var way faulty
				b := open(t, place(t), quick(&way))
				hook := test.hook
				if test.first > 0 {
					hook = times(test.first, hook)
				}
				uploads := 0
				way.set(ofWrites(func(r *http.Request) (*http.Response, error) { uploads++; return hook(r) }))
				if err := stage(t, b, "nar/x", size); (err == nil) != test.succeed {
					t.Errorf("%d bytes: %v", size, err)
				}
				if test.most > 0 && uploads > test.most {
					t.Errorf("%d bytes: %d requests, want %d", size, uploads, test.most)
				}
				var seen recorder
				way.set(seen.hook)
				put(t, b, "nar/x", random(small, 1))
				if uploads := seen.uploads(); len(uploads) != 1 || uploads[0] != headerCRC32C {
					t.Errorf("%d bytes: later uploads are protected by %q", size, uploads)
				}
				// What is known to work stays so.
				way.set(ofWrites(always(501, "NotImplemented")))
				wantFault(t, name, stage(t, b, "nar/x", size), "NotImplemented")
				if kind := b.checksums.known(); kind != crc32cChecksum {
					t.Errorf("%d bytes: %q is known to work", size, kind)
				}
				// When every checksum is refused, the next upload tries all again.
				way.set(ofWrites(invalid("no " + headerCRC32C)))
				wantFault(t, name, stage(t, b, "nar/x", size), "InvalidArgument", "the next upload")
				way.set(nil)
				put(t, b, "nar/x", random(small, 1))
				if kind := b.checksums.known(); kind != crc32cChecksum {
					t.Errorf("%d bytes: %q is known to work", size, kind)
				}
			}
		})
	}
}

// TestChecksumParameter: what the URL names is used, whatever the server says.
func TestChecksumParameter(t *testing.T) {
	t.Parallel()
	for kind, header := range map[checksum]string{crc32cChecksum: headerCRC32C, crc32Checksum: headerCRC32, noChecksum: headerMD5} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var way faulty
			var seen recorder
			var log logged
			options := quick(&way)
			options.Log = log.logger()
			b := open(t, place(t)+"&checksum="+string(kind), options)
			for _, size := range []int{0, small, large, twoParts} {
				content := random(size, 1)
				way.set(seen.hook)
				put(t, b, "nar/x", content)
				wantContent(t, b, "nar/x", content)
				way.set(nil)
				// What the server receives is what was sent, or nothing.
				way.set(func(r *http.Request) (*http.Response, error) {
					if r.Method != http.MethodPut || r.ContentLength < 1 {
						return nil, nil
					}
					sent, err := io.ReadAll(r.Body)
					sent[len(sent)/2] ^= 1
					r.Body = io.NopCloser(bytes.NewReader(sent))
					r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") // as with TLS
					return nil, errors.Join(err, signAgain(r))
				})
				if size > 0 {
					wantFault(t, "damaged on the way", stage(t, b, "nar/y", size))
				}
			}
			way.set(nil)
			uploads := seen.uploads()
			if len(uploads) != 5 {
				t.Errorf("%d uploads were seen", len(uploads))
			}
			for _, got := range uploads {
				if got != header {
					t.Errorf("an upload is protected by %q, want %q", got, header)
				}
			}
			if lines := log.lines("checksum="); len(lines) != 0 {
				t.Errorf("logged: %q", lines)
			}
			if infos := list(t, b); len(infos) != 1 {
				t.Errorf("left: %+v", infos)
			}
			for _, r := range seen.seen {
				if asks := r.Header.Get("X-Amz-Checksum-Mode") != ""; asks && kind == noChecksum {
					t.Errorf("%s %s asks for a checksum", r.Method, r.URL)
				}
			}
			if kind == noChecksum {
				return
			}
			b = open(t, placeAt(server.Front(t, s3server.Backblaze).URL)+"&checksum="+string(kind), options)
			for _, size := range []int{small, large} {
				wantFault(t, "a checksum that is refused", stage(t, b, "nar/x", size), "InvalidArgument", "Unsupported header", "remove checksum=")
			}
		})
	}
}

// TestReadWithoutChecksums: a server that refuses to be asked for checksums is not
// asked again, also by an instance that stores nothing.
func TestReadWithoutChecksums(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("there is no server")
	}
	front := server.Front(t, s3server.Backblaze)
	at := placeAt(front.URL)
	content := random(small, 1)
	put(t, open(t, at, Options{}), "nar/x", content)
	refused := front.Refused()
	b := open(t, at, Options{})
	for range 3 {
		wantContent(t, b, "nar/x", content)
	}
	if got := front.Refused() - refused; got != 2 { // without the SDK, and with it
		t.Errorf("%d requests were refused, want 2", got)
	}
	// Another failure leaves it as it is.
	var way faulty
	b = open(t, place(t), quick(&way))
	put(t, b, "nar/x", content)
	for _, hook := range []func(*http.Request) (*http.Response, error){
		always(400, "InvalidArgument"), always(501, "NotImplemented"), always(503, "SlowDown"), always(404, "NoSuchBucket"),
		times(1, always(400, "InvalidArgument")),
	} {
		b.fastGet.pausedUntil.Store(math.MaxInt64) // all GETs by the SDK
		way.set(hook)
		_, _ = readAll(t, b, "nar/x", 0)
		if b.checksums.noMode.Load() {
			t.Fatal("the server is not asked for checksums any more")
		}
	}
}
