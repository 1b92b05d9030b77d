package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/hostile"
	"nar-herder/internal/testlog"
	"nar-herder/mirror/bootstrap"
	"nar-herder/mirror/health"
	"nar-herder/mirror/sourcedump"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// publishIndex makes the instance publish a copy of its index. change may change the
// answers.
func (i *instance) publishIndex(change func(w http.ResponseWriter, r *http.Request, copied []byte) bool) {
	i.t.Helper()
	name := filepath.Join(i.t.TempDir(), "copy.db")
	if _, err := i.index.Copy(i.t.Context(), name, time.Now(), 10); err != nil {
		i.t.Fatal(err)
	}
	copied, err := os.ReadFile(name)
	if err != nil {
		i.t.Fatal(err)
	}
	i.through(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != peer.IndexPath {
			return false
		}
		sum := sha256.Sum256(copied)
		w.Header().Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		w.Header().Set("ETag", fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(sum[:8])))
		if change != nil && change(w, r, copied) {
			return true
		}
		http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), strings.NewReader(string(copied)))
		return true
	})
}

// begin makes a mirror's database, and opens it.
func begin(t *testing.T, source *instance) (*instance, *testlog.Buffer) {
	t.Helper()
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	log := new(testlog.Buffer)
	b := bootstrap.New(database, peer.New(base, peer.Self{}), slog.New(slog.NewTextHandler(log, nil)))
	b.FirstPause = time.Millisecond
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(database + ".*")
	if err != nil || len(left) > 0 {
		t.Errorf("it leaves %q, %v", left, err)
	}
	return openInstance(t, database), log
}

// filled is an instance with items.
func filled(t *testing.T) *instance {
	source := newInstance(t)
	for n := range 50 {
		source.add(at(n), testInfo(n, 1, n))
	}
	source.remove(at(51), 3)
	return source
}

// flaky fails in the ways of an unreliable connection.
func flaky(answers ...func(w http.ResponseWriter, r *http.Request, text []byte)) func(w http.ResponseWriter, r *http.Request, text []byte) bool {
	n := 0
	return func(w http.ResponseWriter, r *http.Request, text []byte) bool {
		n++
		if n > len(answers) {
			return false
		}
		answers[n-1](w, r, text)
		return true
	}
}

// TestBegin: a mirror starts with the source's own index, and follows from there.
func TestBegin(t *testing.T) {
	t.Parallel()
	source := filled(t)
	var ranges []string
	cut := func(w http.ResponseWriter, r *http.Request, text []byte) {
		ranges = append(ranges, r.Header.Get("Range"))
		from := 0
		if header := r.Header.Get("Range"); header != "" {
			if _, err := fmt.Sscanf(header, "bytes=%d-", &from); err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(text)-1, len(text)))
			w.Header().Set("Content-Length", fmt.Sprint(len(text)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		}
		_, _ = w.Write(text[from : from+len(text)/4])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	source.publishIndex(flaky(
		func(w http.ResponseWriter, r *http.Request, text []byte) {
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		func(w http.ResponseWriter, r *http.Request, text []byte) { w.WriteHeader(http.StatusBadGateway) },
		cut, cut,
		func(w http.ResponseWriter, r *http.Request, text []byte) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<html>please sign in</html>"))
		},
	))
	own, _ := begin(t, source)
	if len(ranges) != 2 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") {
		t.Errorf("it asked for %q, want to go on where it was cut", ranges)
	}
	if !slices.Equal(own.list(), source.list()) {
		t.Errorf("the mirror has\n%s", strings.Join(own.list(), "\n"))
	}
	if own.index.Instance() == source.index.Instance() {
		t.Error("the two instances have one name")
	}
	source.add(at(60), testInfo(60, 1, 60))
	source.remove(at(61), 4)
	f := follow(t, own, source, nil)
	f.same(source)
	if f.status.resyncs != 0 {
		t.Error("it started anew")
	}
}

// signal closes a channel as soon as a text is written.
type signal struct {
	text string
	seen chan struct{}
	once sync.Once
}

func (s *signal) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.text)) {
		s.once.Do(func() { close(s.seen) })
	}
	return len(p), nil
}

// TestBeginWhileDownloading: the index is built while it is still being downloaded.
func TestBeginWhileDownloading(t *testing.T) {
	t.Parallel()
	refused := &signal{text: "skipped a narinfo", seen: make(chan struct{})}
	texts := []string{evilInfo(5000, "docs/precious.txt")} // logged when it is read
	for n := range 1000 {
		texts = append(texts, string(testInfo(n, 1, n).Text))
	}
	copied := copyWith(t, "", texts...)
	sum := sha256.Sum256(copied)
	source := hostile.New()
	t.Cleanup(source.Close)
	source.Answer(peer.IndexPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		w.Header().Set("Content-Length", fmt.Sprint(len(copied)))
		some := len(copied) * 3 / 4
		_, _ = w.Write(copied[:some])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-refused.seen:
			_, _ = w.Write(copied[some:])
		case <-r.Context().Done():
		}
	})
	base, err := url.Parse(source.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	b := bootstrap.New(database, peer.New(base, peer.Self{}), slog.New(slog.NewTextHandler(refused, nil)))
	if err := b.Run(ctx); err != nil {
		t.Fatalf("no row was made before the end: %v", err)
	}
	if got := listOf(t, database); len(got) != 1000 {
		t.Errorf("it has %d items", len(got))
	}
}

// TestBeginDamaged: an index that was damaged in transit is not used.
func TestBeginDamaged(t *testing.T) {
	t.Parallel()
	source := filled(t)
	asked := 0
	answer := flaky(
		func(w http.ResponseWriter, r *http.Request, text []byte) {
			flipped := slices.Clone(text)
			flipped[len(text)/2] ^= 4
			_, _ = w.Write(flipped)
		},
		func(w http.ResponseWriter, r *http.Request, text []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(text)/2))
			_, _ = w.Write(text[:len(text)/2]) // which looks whole
		},
		func(w http.ResponseWriter, r *http.Request, text []byte) {
			_, _ = w.Write(text[:len(text)/2])
			_ = http.NewResponseController(w).Flush() // in chunks, with an end
		},
	)
	source.publishIndex(func(w http.ResponseWriter, r *http.Request, text []byte) bool {
		asked++
		return answer(w, r, text)
	})
	own, log := begin(t, source)
	if !slices.Equal(own.list(), source.list()) {
		t.Errorf("the mirror has\n%s", strings.Join(own.list(), "\n"))
	}
	if n := strings.Count(log.String(), "damaged"); n != 1 || asked != 4 {
		t.Errorf("%d requests, want 4; damage logged %d times, want once:\n%s", asked, n, log)
	}
}

// TestBeginFromDump: a mirror starts from the dump of a source without an index, or with an
// unusable or newer one.
func TestBeginFromDump(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w http.ResponseWriter, r *http.Request, text []byte) bool{
		"original": func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			http.NotFound(w, r)
			return true
		},
		"no digest": func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			w.Header().Del(peer.DigestHeader)
			return false
		},
		"other tables": func(w http.ResponseWriter, r *http.Request, text []byte) bool {
			// It has the same header, and a table of another name.
			other := bytes.ReplaceAll(text, []byte("TABLE uses"), []byte("TABLE used"))
			sum := sha256.Sum256(other)
			w.Header().Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
			_, _ = w.Write(other)
			return true
		},
		"newer": func(w http.ResponseWriter, r *http.Request, text []byte) bool {
			newer := slices.Clone(text)
			newer[63]++
			sum := sha256.Sum256(newer)
			w.Header().Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
			_, _ = w.Write(newer)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := filled(t)
			source.publishIndex(change)
			source.dump(true)
			own, _ := begin(t, source)
			if !slices.Equal(own.list(), source.list()) {
				t.Errorf("the mirror has\n%s", strings.Join(own.list(), "\n"))
			}
			source.add(at(60), testInfo(60, 1, 60))
			f := follow(t, own, source, nil)
			f.same(source)
			if f.status.resyncs != 0 {
				t.Error("it started anew")
			}
		})
	}
}

// TestBeginRejectedDump: while the source publishes a rejected dump, an unusable index is
// not downloaded again either.
func TestBeginRejectedDump(t *testing.T) {
	t.Parallel()
	source := filled(t)
	asked := 0
	source.publishIndex(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		asked++
		w.Header().Del(peer.DigestHeader)
		return false
	})
	source.publish([]byte("no database"))
	sum := sha256.Sum256([]byte("no database"))
	source.digest = "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	b := bootstrap.New(database, peer.New(base, peer.Self{}), slog.New(slog.DiscardHandler))
	for range 3 {
		if err := b.Try(t.Context()); !errors.Is(err, health.ErrBadDump) {
			t.Errorf("%v, want health.ErrBadDump", err)
		}
	}
	if asked != 1 {
		t.Errorf("the index was downloaded %d times", asked)
	}
	source.digest = ""
	source.dump(true)
	if err := b.Try(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBeginBesideImport: a database that another process makes meanwhile is not replaced.
func TestBeginBesideImport(t *testing.T) {
	t.Parallel()
	source := filled(t)
	base, err := url.Parse(source.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	source.publishIndex(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		x, err := index.Open(t.Context(), database, index.Options{})
		if err != nil {
			t.Error(err)
			return false
		}
		entry := x.Prepare(testInfo(1000, 1, 1))
		entry.AddedAt = at(1)
		if err := errors.Join(x.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(entry, nil) }), x.Close()); err != nil {
			t.Error(err)
		}
		return false
	})
	b := bootstrap.New(database, peer.New(base, peer.Self{}), slog.New(slog.DiscardHandler))
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	leftNothing(t, sourcedump.Downloads(database))
	// This holds between two attempts too, after a part was downloaded.
	if err := errors.Join(os.WriteFile(sourcedump.Downloads(database)+".index", nil, 0o600), os.WriteFile(sourcedump.Downloads(database)+".index.json", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	leftNothing(t, sourcedump.Downloads(database))
	source.dump(true)
	own := openInstance(t, database)
	f := follow(t, own, source, nil)
	until(t, "the source to be merged", func() bool { return len(own.list()) == len(source.list())+1 })
	until(t, "the mirror to be up to date", func() bool { return f.Status().State == health.Following })
}
