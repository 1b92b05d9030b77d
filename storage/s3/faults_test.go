package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/s3server"
	"nar-herder/storage/bytestore"
)

// faulty makes requests go wrong on their way to a real server.
type faulty struct {
	mu   sync.Mutex
	hook func(*http.Request) (*http.Response, error)
	// seen are the requests since the hook was set.
	seen int
}

var straight = func() http.RoundTripper {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 32
	return transport
}()

// set has all requests go to the hook; nil lets them through.
func (f *faulty) set(hook func(*http.Request) (*http.Response, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook, f.seen = hook, 0
}

func (f *faulty) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

func (f *faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.seen++
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		if response, err := hook(r); response != nil || err != nil {
			if r.Body != nil {
				r.Body.Close()
			}
			return response, err
		}
	}
	return straight.RoundTrip(r)
}

// answer is an answer of nobody's.
func answer(r *http.Request, status int, contentType, body string) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header:        http.Header{"Content-Type": {contentType}, "Date": {time.Now().UTC().Format(http.TimeFormat)}},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
	}
}

// always answers with an error of S3, or with what else the body is.
func always(status int, body string) func(*http.Request) (*http.Response, error) {
	contentType := "text/html"
	if !strings.Contains(body, "<") && body != "" {
		contentType = "application/xml"
		body = `<?xml version="1.0" encoding="UTF-8"?>` + "\n<Error><Code>" + body + "</Code><Message>It said " + body + ".\nReally.</Message><RequestId>1</RequestId></Error>"
	}
	return func(r *http.Request) (*http.Response, error) { return answer(r, status, contentType, body), nil }
}

// ofWrites is a hook for requests that change something only.
func ofWrites(hook func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodPut && r.Method != http.MethodPost {
			return nil, nil
		}
		return hook(r)
	}
}

// lostTo has the server do what it is asked for, and its answer be lost to another.
func lostTo(answer func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		response, err := straight.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return answer(r)
	}
}

// times is a hook for the first requests only.
func times(n int, hook func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	var mu sync.Mutex
	return func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		n--
		left := n
		mu.Unlock()
		if left < 0 {
			return nil, nil
		}
		return hook(r)
	}
}

const page = "<!DOCTYPE html><html><head><title>Sorry</title></head><body><h1>404</h1><p>NoSuchKey</body></html>"

// wantFault asserts that an error is one that says nothing about what is there,
// and that operators can read.
func wantFault(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	text := err.Error()
	if errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v: that it is not there is not known", what, err)
	}
	if strings.ContainsAny(text, "\n\r") || len(text) > 700 || strings.Contains(text, s3server.SecretKey) || strings.Contains(text, "RequestID") {
		t.Errorf("%s: not for people: %q", what, text)
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: %v: want it to have %q", what, err, word)
		}
	}
}

func random(size int, seed byte) []byte {
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	return content
}

func put(t *testing.T, b *Bucket, name string, content []byte) {
	t.Helper()
	staged, err := b.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// readAll reads all from offset on.
func readAll(t *testing.T, b *Bucket, name string, offset int64) ([]byte, error) {
	t.Helper()
	reader, _, err := b.Open(t.Context(), name, offset, -1)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}

func wantContent(t *testing.T, b *Bucket, name string, want []byte) {
	t.Helper()
	if got, err := readAll(t, b, name, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
	}
}

// list returns all entries, in the order they come.
func list(t *testing.T, b *Bucket) (infos []bytestore.Info) {
	t.Helper()
	for info, err := range b.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
	}
	return infos
}

// small and large are below and above what waits in memory; twoParts takes two parts
// with the options of quick.
const (
	small    = 1000
	large    = 1500 << 10
	twoParts = 5<<20 + 1
)

// quick are options with which faults take no time.
func quick(f *faulty) Options {
	return Options{HTTPTransport: f, partSize: 5 << 20, longestWait: 5 * time.Millisecond, progress: 5 * time.Second}
}

// operations are all that asks the server.
var operations = map[string]func(*testing.T, *Bucket) error{
	"Stat":  func(t *testing.T, b *Bucket) error { _, err := b.Stat(t.Context(), "nar/small"); return err },
	"Flush": func(t *testing.T, b *Bucket) error { return b.Flush(t.Context(), "nar/absent") },
	"Open":  func(t *testing.T, b *Bucket) error { _, err := readAll(t, b, "nar/small", 0); return err },
	"Open in the midst": func(t *testing.T, b *Bucket) error {
		_, err := readAll(t, b, "nar/small", 10)
		return err
	},
	"Open of nothing": func(t *testing.T, b *Bucket) error {
		_, _, err := b.Open(t.Context(), "nar/small", 0, 0)
		return err
	},
	"Stage small": func(t *testing.T, b *Bucket) error { return stage(t, b, "nar/new", small) },
	"Stage large": func(t *testing.T, b *Bucket) error { return stage(t, b, "nar/new", large) },
	"Remove":      func(t *testing.T, b *Bucket) error { return b.Remove(t.Context(), "nar/small") },
	"Remove an upload": func(t *testing.T, b *Bucket) error {
		return b.Remove(t.Context(), temporaryName("some-id", "nar/small"))
	},
	"List": func(t *testing.T, b *Bucket) error {
		for info, err := range b.List(t.Context()) {
			if err != nil {
				return err
			}
			t.Errorf("List gives %+v", info)
		}
		return nil
	},
	"Probe": func(t *testing.T, b *Bucket) error { return b.Probe(t.Context()) },
}

func stage(t *testing.T, b *Bucket, name string, size int) error {
	staged, err := b.Stage(t.Context(), name, bytes.NewReader(random(size, 9)), int64(size))
	if err != nil {
		return err
	}
	defer staged.Abort()
	return staged.Commit(t.Context())
}

// TestFaults: whatever the server or the way to it says or fails to, nothing is
// said not to be there, nothing goes, and all is well afterwards.
func TestFaults(t *testing.T) {
	t.Parallel()
	refused := func(*http.Request) (*http.Response, error) { return nil, syscall.ECONNREFUSED }
	faults := map[string]struct {
		hook  func(*http.Request) (*http.Response, error)
		words []string
	}{
		"slow down":        {always(503, "SlowDown"), []string{"SlowDown", "retried later"}},
		"internal error":   {always(500, "InternalError"), []string{"InternalError", "HTTP 500"}},
		"no bucket":        {always(404, "NoSuchBucket"), []string{"NoSuchBucket", "create the bucket"}},
		"no permission":    {always(403, "AccessDenied"), []string{"AccessDenied", "permissions"}},
		"expired":          {always(400, "ExpiredToken"), []string{"ExpiredToken", "renew the credentials"}},
		"bad key":          {always(403, "InvalidAccessKeyId"), []string{"InvalidAccessKeyId", "renew the credentials"}},
		"signature":        {always(403, "SignatureDoesNotMatch"), []string{"SignatureDoesNotMatch", "another signature", "renew the credentials", "proxy", "endpoint="}},
		"other region":     {always(301, "PermanentRedirect"), []string{"PermanentRedirect", "region="}},
		"clock":            {always(403, "RequestTimeTooSkewed"), []string{"RequestTimeTooSkewed", "clock"}},
		"unknown":          {always(418, "TeapotError"), []string{"TeapotError", "HTTP 418"}},
		"no key, says 400": {always(400, "NoSuchKey"), []string{"NoSuchKey"}},
		"page 404":         {always(404, page), []string{"HTTP 404", "endpoint="}},
		"page 500":         {always(500, page), []string{"HTTP 500", "endpoint="}},
		"page 403":         {always(403, page), []string{"HTTP 403"}},
		"page 200":         {always(200, page), nil},
		"empty 404":        {always(404, ""), []string{"HTTP 404"}},
		"other XML 404":    {always(404, "<?xml version='1.0'?><Oops><Reason>NoSuchKey</Reason></Oops>"), []string{"HTTP 404"}},
		"refused":          {refused, []string{"connection refused"}},
		"cut head":         {func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, []string{"EOF"}},
		"cut error": {func(r *http.Request) (*http.Response, error) {
			response := answer(r, 404, "application/xml", "")
			response.Body = io.NopCloser(io.MultiReader(strings.NewReader("<Error><Code>NoSuchKey</Code><Mess"), failing{syscall.ECONNRESET}))
			response.ContentLength = 200
			return response, nil
		}, nil},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var way faulty
			url := place(t)
			b := open(t, url, quick(&way))
			content, other := random(small, 1), random(large, 2)
			put(t, b, "nar/small", content)
			put(t, b, "nar/large", other)
			for operation, do := range operations {
				// Of its own, as the retries of one come out of a common store.
				b := open(t, url, quick(&way))
				way.set(fault.hook)
				wantFault(t, operation, do(t, b), fault.words...)
				if n := way.count(); n == 0 || n > 4*attempts {
					t.Errorf("%s: %d requests", operation, n)
				}
				way.set(nil)
			}
			wantContent(t, b, "nar/small", content)
			wantContent(t, b, "nar/large", other)
			if infos := list(t, b); len(infos) != 2 {
				t.Errorf("left: %+v", infos)
			}
			for _, name := range []string{"nar/absent", "nar/new"} {
				if _, err := b.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Stat of what is absent: %v", err)
				}
			}
			if err := errors.Join(stage(t, b, "nar/new", large), b.Remove(t.Context(), "nar/new"), b.Probe(t.Context())); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestFaultsThatPass: what goes wrong a few times is not even noticed.
func TestFaultsThatPass(t *testing.T) {
	t.Parallel()
	for name, hook := range map[string]func(*http.Request) (*http.Response, error){
		"slow down": always(503, "SlowDown"), "internal error": always(500, "InternalError"), "page": always(502, page),
		"refused": func(*http.Request) (*http.Response, error) { return nil, syscall.ECONNREFUSED },
		"reset":   func(*http.Request) (*http.Response, error) { return nil, fmt.Errorf("read: %w", syscall.ECONNRESET) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var way faulty
			for _, size := range []int{0, small, large} {
				// Of its own, as the retries of one come out of a common store.
				b := open(t, place(t), quick(&way))
				content := random(size, 1)
				way.set(times(3, hook))
				put(t, b, "nar/x", content)
				way.set(times(3, hook))
				wantContent(t, b, "nar/x", content)
				way.set(times(3, hook))
				if info, err := b.Stat(t.Context(), "nar/x"); err != nil || info.Size != int64(size) || info.Tag == "" {
					t.Errorf("Stat: %+v, %v", info, err)
				}
				way.set(times(3, hook))
				if _, err := b.Stat(t.Context(), "nar/absent"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Stat of what is absent: %v", err)
				}
				way.set(times(3, hook))
				if infos := list(t, b); len(infos) != 1 || infos[0].Size != int64(size) {
					t.Errorf("List: %+v", infos)
				}
				way.set(times(3, hook))
				if err := b.Remove(t.Context(), "nar/x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
