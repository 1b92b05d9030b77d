package scrub_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/httpapi"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/scrub"
)

// nar is an item with one nar.
type nar struct {
	info *narinfo.Narinfo
	file []byte
}

func (n *nar) hash() narinfo.PathHash { return n.info.StorePath.Hash }
func (n *nar) name() string           { return n.info.Files[0].URL }

// makeNars makes items with random nars of up to that size, in all compressions.
func makeNars(t testing.TB, random *rand.Rand, count, size int) (nars []*nar) {
	t.Helper()
	kinds := []string{"none", "lzip", "zstd", "gzip"}
	for number := range count {
		content := make([]byte, 64+random.IntN(size))
		for i := range content {
			content[i] = byte('a' + random.IntN(8))
		}
		kind := kinds[number%len(kinds)]
		var file bytes.Buffer
		w, err := compression.NewWriter(kind, 1, &file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(content)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		base := fmt.Sprintf("%032d-item", number)
		info, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: \nURL: nar/%s/%s\nCompression: %s\nFileSize: %d\n",
			base, narinfo.NarHash(sha256.Sum256(content)), len(content), kind, base, kind, file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		nars = append(nars, &nar{info, file.Bytes()})
	}
	return nars
}

// place is a storage with its directory.
type place struct {
	*storage.Storage
	directory string
}

func (p *place) path(n *nar) string { return filepath.Join(p.directory, n.name()) }

// newPlace makes a storage with the nars, added at the time. wrap may wrap its byte store.
func newPlace(t testing.TB, nars []*nar, options storage.Options, wrap func(bytestore.Store) bytestore.Store) *place {
	t.Helper()
	top := t.TempDir()
	p := &place{directory: filepath.Join(top, "store")}
	for _, n := range nars {
		if err := os.MkdirAll(filepath.Dir(p.path(n)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.path(n), n.file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(p.directory, 0o755); err != nil {
		t.Fatal(err)
	}
	local, err := directory.Open(p.directory)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(top, "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), local.Close()); err != nil {
			t.Error(err)
		}
	})
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		for _, n := range nars {
			entry := x.Prepare(n.info)
			entry.AddedAt, entry.Stored = begin, 1
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var store bytestore.Store = local
	if wrap != nil {
		store = wrap(local)
	}
	p.Storage = storage.New(x, store, options)
	return p
}

// begin is when tests begin.
var begin = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)

// serve serves a storage until the test ends, and returns its URL.
func (p *place) serve(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := p.Index().Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	negative := time.Hour
	server := httpapi.New(p.Storage, httpapi.Options{
		Identity: p.Storage, Decompress: compression.NewReaderWithin, AnswerCache: 16 << 20, NegativeTTL: &negative,
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { server.Follow(ctx, changes) })
	running.Go(func() {
		if err := server.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		changes.Close()
	})
	return "http://" + listener.Addr().String()
}

// peerSource is a [check.Source] of another instance.
type peerSource struct{ *peer.Peer }

func (p peerSource) Fetch(ctx context.Context, item *storage.Item, n int) (io.ReadCloser, error) {
	body, _, err := p.OpenFile(ctx, item, n, 0, -1, nil)
	return body, err
}

func sourceAt(t testing.TB, address string) check.Source {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return peerSource{peer.New(u, peer.Self{Instance: "tested", AllowPrivateRedirects: true})}
}

func decode(_ context.Context, kind string, compressed io.Reader, _ int64) (io.ReadCloser, error) {
	reader, err := compression.NewReader(kind, compressed)
	return narcheck.MarkUnreadable(reader, err, compression.Refused)
}

// outcome is what a client got.
type outcome int

const (
	good      outcome = iota
	hidden            // no narinfo
	missing           // 404 for the nar
	failed            // 5xx
	cut               // an incomplete answer
	malformed         // complete, but it can't be decompressed
	wrong             // a wrong nar with a clean end
)

// get requests a narinfo and its nar, and verifies that as clients do.
func get(client *http.Client, server string, n *nar) outcome {
	answer, err := client.Get(server + "/" + n.hash().String() + ".narinfo")
	if err != nil {
		return failed
	}
	_, err = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	switch {
	case err != nil || answer.StatusCode >= 500:
		return failed
	case answer.StatusCode == http.StatusNotFound:
		return hidden
	}
	if answer, err = client.Get(server + "/" + n.name()); err != nil {
		return cut
	}
	body, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	switch {
	case answer.StatusCode >= 500:
		return failed
	case answer.StatusCode == http.StatusNotFound:
		return missing
	case err != nil:
		return cut
	}
	reader, err := compression.NewReader(n.info.Files[0].Compression, bytes.NewReader(body))
	if err != nil {
		return malformed
	}
	defer reader.Close()
	content, err := io.ReadAll(reader)
	switch {
	case err != nil:
		return malformed
	case sha256.Sum256(content) != n.info.NarHash:
		return wrong
	}
	return good
}

// getAll requests all nars in random order, and counts the outcomes.
func getAll(server string, nars []*nar) (counts [wrong + 1]int) {
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	for _, i := range rand.Perm(len(nars)) {
		counts[get(client, server, nars[i])]++
	}
	return counts
}

// damage damages files in several ways, and returns how.
func (p *place) damage(t testing.TB, random *rand.Rand, nars []*nar, count int) (how map[*nar]string) {
	t.Helper()
	write := func(n *nar, content []byte, kind string) {
		if err := os.WriteFile(p.path(n), content, 0o644); err != nil {
			t.Fatal(err)
		}
		how[n] = kind
	}
	how = make(map[*nar]string)
	order := random.Perm(len(nars))
	for len(how) < count {
		n := nars[order[0]]
		order = order[1:]
		switch kind := []string{"flipped", "truncated", "emptied", "swapped"}[len(how)%4]; kind {
		case "flipped":
			content := bytes.Clone(n.file)
			content[len(content)/4+random.IntN(len(content)/2)] ^= 1 << random.IntN(8)
			write(n, content, kind)
		case "truncated":
			write(n, n.file[:random.IntN(len(n.file))], kind)
		case "emptied":
			write(n, nil, kind)
		case "swapped":
			other := nars[order[0]]
			order = order[1:]
			if len(how)+2 > count {
				write(n, nil, "emptied")
				continue
			}
			write(n, other.file, kind)
			write(other, n.file, kind)
		}
	}
	return how
}

// TestServedScrub damages 1 % of 2,000 nars. One pass finds and repairs all of them from a
// mirror, while clients request all nars.
func TestServedScrub(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const count, damaged = 2000, 20
	nars := makeNars(t, random, count, 8<<10)
	mirror := newPlace(t, nars, storage.Options{}, nil)
	p := newPlace(t, nars, storage.Options{}, nil)
	how := p.damage(t, random, nars, damaged)
	server := p.serve(t)

	before := getAll(server, nars)
	if before[wrong] != 0 || before[good] != count-damaged {
		t.Errorf("before: %v", before)
	}
	log := new(testlog.Buffer)
	s := scrub.New(p.Storage, scrub.Options{
		Interval: time.Hour, Decode: decode, Sources: []check.Source{sourceAt(t, mirror.serve(t))},
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	s.Hurry()
	s.TakeTurns(new(sync.Mutex))
	var done atomic.Bool
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for !done.Load() {
				if during := getAll(server, nars); during[wrong]+during[hidden]+during[missing]+during[cut] != 0 {
					t.Errorf("during: %v", during)
				}
			}
		})
	}
	if err := s.Pass(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	done.Store(true)
	clients.Wait()
	if after := getAll(server, nars); after[good] != count {
		t.Errorf("after: %v\n%s", after, log)
	}
	for n, kind := range how {
		content, err := os.ReadFile(p.path(n))
		if err != nil || !bytes.Equal(content, n.file) {
			t.Errorf("%s, %s: not repaired: %v", n.name(), kind, err)
		}
		if quarantined, err := os.ReadFile(filepath.Join(p.directory, bytestore.QuarantineFolder, n.name())); err != nil || bytes.Equal(quarantined, n.file) {
			t.Errorf("%s, %s: not in quarantine: %v", n.name(), kind, err)
		}
		if strings.Count(log.String(), n.name()+" ") == 0 {
			t.Errorf("the log has no line on %s", n.name())
		}
	}
	if lines := strings.Count(log.String(), "the scrub has found damage"); lines != damaged {
		t.Errorf("%d lines in the log: %s", lines, log)
	}
	sums, err := p.Index().Verification(t.Context())
	if err != nil || sums.Never != 0 || time.Since(sums.Oldest) > time.Minute {
		t.Errorf("Verification is %+v, %v", sums, err)
	}
	if warnings := s.Warnings(); warnings != nil {
		t.Errorf("warnings: %q", warnings)
	}
}
