package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"nar-herder/internal/s3server"
	"nar-herder/storage/bytestore"
)

// cut ends bodies of answers with many bytes after so many.
func cut(after int64, err error) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		response, failure := straight.RoundTrip(r)
		if failure == nil && response.StatusCode < 300 && response.ContentLength > after {
			response.Body = &body{Reader: io.MultiReader(io.LimitReader(response.Body, after), failing{err}), Closer: response.Body}
		}
		return response, failure
	}
}

type body struct {
	io.Reader
	io.Closer
}

// TestCutBodies: a reader goes on where a connection ends.
func TestCutBodies(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	content := random(300_000, 1)
	put(t, b, "nar/x", content)
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, errors.New("connection reset")} {
		for _, after := range []int64{1, 70_000, 299_999} {
			way.set(times(3, cut(after, err)))
			for _, offset := range []int64{0, 1234} {
				if got, err := readAll(t, b, "nar/x", offset); err != nil || !bytes.Equal(got, content[offset:]) {
					t.Errorf("cut after %d, read from %d: %d bytes, %v", after, offset, len(got), err)
				}
			}
		}
		// Each connection brings some.
		way.set(cut(20_000, err))
		if got, err := readAll(t, b, "nar/x", 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("always cut: %d bytes, %v", len(got), err)
		}
		// None does: then it ends, and not as if that were all.
		way.set(cut(0, err))
		got, err := readAll(t, b, "nar/x", 0)
		wantFault(t, "no bytes", err, "at byte 0 of 300000")
		if len(got) != 0 || !errors.Is(err, io.ErrUnexpectedEOF) || way.count() != 1+mostResumed {
			t.Errorf("no bytes: %d bytes, %v, after %d requests", len(got), err, way.count())
		}
		// The rest of a range is no more than the range.
		way.set(times(1, cut(50, err)))
		reader, _, err := b.Open(t.Context(), "nar/x", 100, 100)
		if err != nil {
			t.Fatal(err)
		}
		var copied bytes.Buffer
		if _, err := io.Copy(&copied, reader); err != nil || !bytes.Equal(copied.Bytes(), content[100:200]) {
			t.Errorf("a range that is cut: %d bytes, %v", copied.Len(), err)
		}
		reader.Close()
	}
}

// TestReplacedWhileCut: the rest of another content is not the rest.
func TestReplacedWhileCut(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*Bucket){
		"replaced": func(b *Bucket) { put(t, b, "nar/x", random(300_000, 2)) },
		"removed": func(b *Bucket) {
			if err := b.Remove(t.Context(), "nar/x"); err != nil {
				t.Error(err)
			}
		},
	} {
		var way faulty
		b := open(t, place(t), quick(&way))
		content := random(300_000, 1)
		put(t, b, "nar/x", content)
		way.set(times(1, cut(1000, io.ErrUnexpectedEOF)))
		reader, _, err := b.Open(t.Context(), "nar/x", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		change(b)
		got, err := io.ReadAll(reader)
		wantFault(t, what, err, "replaced or removed")
		if !bytes.Equal(got, content[:1000]) {
			t.Errorf("%s: %d bytes", what, len(got))
		}
		reader.Close()
	}
}

// TestLies: bytes that are not those of the object, or fewer, are not passed for it.
func TestLies(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	content := random(300_000, 1)
	put(t, b, "nar/x", content)
	change := func(how func(*http.Response)) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			response, err := straight.RoundTrip(r)
			if err == nil && response.StatusCode < 300 {
				how(response)
			}
			return response, err
		}
	}
	for what, how := range map[string]func(*http.Response){
		"shorter": func(r *http.Response) {
			r.ContentLength = 200_000
			r.Header.Set("Content-Length", "200000")
			r.Body = &body{io.LimitReader(r.Body, 200_000), r.Body}
		},
		"a flipped bit": func(r *http.Response) {
			all, _ := io.ReadAll(r.Body)
			all[len(all)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(all))
		},
		"no length": func(r *http.Response) { r.ContentLength = -1; r.Header.Del("Content-Length") },
	} {
		way.set(change(how))
		got, err := readAll(t, b, "nar/x", 0)
		wantFault(t, what, err)
		if len(got) >= 200_000 && what == "shorter" || len(got) == len(content) {
			t.Errorf("%s: all %d bytes were given", what, len(got))
		}
	}
	for what, how := range map[string]func(*http.Response){
		"another range": func(r *http.Response) { r.Header.Set("Content-Range", "bytes 0-299989/300000") },
		"no size":       func(r *http.Response) { r.Header.Set("Content-Range", "bytes 10-299999/*") },
		"no range":      func(r *http.Response) { r.Header.Del("Content-Range") },
		"no ETag":       func(r *http.Response) { r.Header.Del("Etag") },
	} {
		way.set(change(how))
		_, err := readAll(t, b, "nar/x", 10)
		wantFault(t, what, err)
	}
}

// TestStalls: what stops to come is asked for again, or given up.
func TestStalls(t *testing.T) {
	t.Parallel()
	var way faulty
	options := quick(&way)
	options.progress, options.callTimeout = 50*time.Millisecond, 300*time.Millisecond
	b := open(t, place(t), options)
	content := random(300_000, 1)
	put(t, b, "nar/x", content)
	way.set(times(1, func(r *http.Request) (*http.Response, error) {
		response, err := straight.RoundTrip(r)
		if err == nil {
			response.Body = &body{io.MultiReader(io.LimitReader(response.Body, 1000), stalled{r.Context()}), response.Body}
		}
		return response, err
	}))
	wantContent(t, b, "nar/x", content)
	// No head: the call ends by itself.
	way.set(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	for name, do := range operations {
		if name == "Stage small" || name == "Stage large" {
			continue // which look for what they stored with a time of its own
		}
		wantFault(t, name, do(t, b), "no response in time")
	}
	// And when the caller leaves, it is his doing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Stat(ctx, "nar/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Stat of one who left: %v", err)
	}
}

// stalled gives nothing until the request ends.
type stalled struct{ ctx context.Context }

func (s stalled) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }

// TestCredentialsChange: keys that are bad are read again, without a restart.
func TestCredentialsChange(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/credentials"
	write := func(access, secret string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("[default]\naws_access_key_id="+access+"\naws_secret_access_key="+secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := strings.Replace(place(t), url.QueryEscape(server.Credentials), url.QueryEscape(file), 1)
	var mu sync.Mutex
	now := time.Now()
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	var way faulty
	options := quick(&way)
	options.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }

	write(s3server.AccessKey, "hush-hush")
	b := open(t, at, options)
	for range 3 {
		_, err := b.Stat(t.Context(), "nar/x")
		wantFault(t, "a bad secret", err, "SignatureDoesNotMatch", "renew the credentials")
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("%v: it has the secret", err)
		}
		pass(2 * rereadPause)
	}
	write(s3server.AccessKey, s3server.SecretKey)
	put(t, b, "nar/x", []byte("x"))
	// They go bad while all is well, and are followed at the next reading; one
	// that can't be read changes nothing.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	pass(2 * rereadAfter)
	wantContent(t, b, "nar/x", []byte("x"))
	write("unknown-key", s3server.SecretKey)
	pass(2 * rereadAfter)
	_, err := b.Stat(t.Context(), "nar/x")
	wantFault(t, "an unknown key", err, "renew the credentials")
	pass(2 * changedFor)
	write(s3server.AccessKey, s3server.SecretKey)
	// All at once find the new ones.
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := b.Stat(t.Context(), "nar/x"); err != nil {
				t.Errorf("with new keys: %v", err)
			}
		})
	}
	group.Wait()
}

// signAgain signs a request that was changed on its way.
func signAgain(r *http.Request) error {
	keys := aws.Credentials{AccessKeyID: s3server.AccessKey, SecretAccessKey: s3server.SecretKey}
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(r.Context(), keys, r, r.Header.Get("X-Amz-Content-Sha256"), "s3", s3server.Region, time.Now())
}

// TestClockSkew: a machine whose clock is wrong is told so by the server, and
// signs as of the server's time.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{-3 * time.Hour, 3 * time.Hour} {
		var way faulty
		b := open(t, place(t), quick(&way))
		// The server's clock is a wrong one: what is signed by ours is refused,
		// what is signed by its own is signed anew for the real server.
		var mu sync.Mutex
		refused := 0
		way.set(func(r *http.Request) (*http.Response, error) {
			theirs := time.Now().Add(skew)
			signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
			if err != nil {
				return nil, err
			}
			if theirs.Sub(signed).Abs() > 15*time.Minute {
				mu.Lock()
				refused++
				mu.Unlock()
				response, err := always(403, "RequestTimeTooSkewed")(r)
				response.Header.Set("Date", theirs.UTC().Format(http.TimeFormat))
				return response, err
			}
			again := r.Clone(r.Context())
			if err := signAgain(again); err != nil {
				return nil, err
			}
			response, err := straight.RoundTrip(again)
			if err == nil {
				response.Header.Set("Date", theirs.UTC().Format(http.TimeFormat))
			}
			return response, err
		})
		put(t, b, "nar/x", []byte("x"))
		wantContent(t, b, "nar/x", []byte("x"))
		// Without the SDK, and with it, which learns by that.
		if refused > 2 {
			t.Errorf("%v: refused %d times, want twice at the most", skew, refused)
		}
	}
}

// TestBucketGone: a bucket that somebody deletes is not one without nars.
func TestBucketGone(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("there is no server")
	}
	name := "gone-" + strings.ToLower(randomWord())
	var way faulty
	b := open(t, server.URL(name+"/prefix"), quick(&way))
	put(t, b, "nar/small", []byte("x"))
	if err := b.Remove(t.Context(), "nar/small"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &name, Key: aws.String("prefix/nar/")}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Client.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
	for operation, do := range operations {
		wantFault(t, operation, do(t, b), "NoSuchBucket", "create the bucket")
	}
	if _, err := server.Client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
	if err := b.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := b.Stat(t.Context(), "nar/small"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat in the new bucket: %v", err)
	}
	put(t, b, "nar/small", []byte("x"))
}

// TestOutage: a server that is away comes back.
func TestOutage(t *testing.T) {
	t.Parallel()
	own := s3server.New(t)
	b := open(t, own.URL("nars"), Options{longestWait: 5 * time.Millisecond})
	put(t, b, "nar/small", []byte("x"))
	own.Stop()
	for operation, do := range operations {
		wantFault(t, operation, do(t, b), "connection refused")
	}
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, "nar/small", []byte("x"))
	if _, err := b.Stat(t.Context(), "nar/absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of what is absent: %v", err)
	}
}

// TestTLS: with TLS, bytes are not signed; and a certificate that nobody vouches
// for is told as that.
func TestTLS(t *testing.T) {
	t.Parallel()
	plain := place(t)
	target := &url.URL{Scheme: "http", Host: server.Address}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // which is signed
	}})
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	front.StartTLS()
	defer front.Close()
	at := strings.Replace(plain, url.QueryEscape("http://"+server.Address), url.QueryEscape(front.URL), 1)
	b := open(t, at, Options{HTTPTransport: front.Client().Transport})
	for _, size := range []int{0, small, large} {
		content := random(size, 1)
		put(t, b, "nar/x", content)
		wantContent(t, b, "nar/x", content)
	}
	b = open(t, at, Options{longestWait: time.Millisecond})
	_, err := b.Stat(t.Context(), "nar/x")
	wantFault(t, "an unknown certificate", err, "install CA certificates", "SSL_CERT_FILE")
}

// TestSpoiled: what a disk behind the server has changed does not come out as a whole,
// whichever way it is asked for.
func TestSpoiled(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"fast path", "by the SDK", "fast path, crc32", "by the SDK, crc32"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			url := place(t)
			if strings.HasSuffix(way, "crc32") {
				url += "&checksum=crc32"
			}
			b := open(t, url, Options{})
			if !strings.HasPrefix(way, "fast path") {
				b.fastGet.pausedUntil.Store(math.MaxInt64)
			}
			content := random(300<<10, 1)
			put(t, b, "nar/x", content)
			wantContent(t, b, "nar/x", content)
			wrong := bytes.Clone(content)
			wrong[100_000] ^= 1
			if err := server.Spoil(b.bucket+"/"+b.key("nar/x"), wrong); errors.Is(err, errors.ErrUnsupported) {
				t.Skip("this server keeps objects in a form of its own")
			} else if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(t, b, "nar/x", 0)
			if !errors.Is(err, bytestore.ErrDamaged) || len(got) == len(content) {
				t.Errorf("%d bytes of %d, %v; want fewer, and ErrDamaged", len(got), len(content), err)
			}
		})
	}
}
