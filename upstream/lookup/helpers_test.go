package lookup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// patience is the timeout of waits in tests.
const patience = 20 * time.Second

// numbered returns the hash of an item.
func numbered(n int) (hash narinfo.PathHash) {
	binary.BigEndian.PutUint64(hash[:], uint64(n)*0x9e3779b97f4a7c15) // indexed by the first bytes
	return hash
}

func numberedTo(count int) []narinfo.PathHash {
	hashes := make([]narinfo.PathHash, count)
	for n := range hashes {
		hashes[n] = numbered(n)
	}
	return hashes
}

// text returns the narinfo of an item with a nar of n bytes.
func text(hash narinfo.PathHash, n int) []byte {
	base := hash.String() + "-item"
	return fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: %d\nReferences: \nURL: nar/lzip/%[1]s\nCompression: lzip\nFileSize: %[3]d\n", base, n%10, n)
}

// bed is a finder with a storage and a stub of the upstreams.
type bed struct {
	*Finder
	t       testing.TB
	storage *storage.Storage
	index   *index.Index
	dir     string
	log     *testlog.Buffer

	mu     sync.Mutex
	offset time.Duration // of the clock
	asked  [][]narinfo.PathHash
	vias   [][]string
	answer func(narinfo.PathHash) upstream.Answer
	hold   chan struct{} // closed to let answers pass; nil for none
}

var theUpstream = func() *upstream.Upstream {
	u, _ := url.Parse("http://user:secret@upstream.example")
	return upstream.New(upstream.Options{URLs: []*url.URL{u}}).Upstreams()[0]
}()

// found is the answer for an item that the upstream has.
func found(text []byte, maxAge time.Duration) upstream.Answer {
	n, err := narinfo.Parse(text)
	if err != nil {
		panic(err)
	}
	return upstream.Answer{Narinfo: n, Upstream: theUpstream, MaxAge: maxAge}
}

func missing(maxAge time.Duration) upstream.Answer {
	return upstream.Answer{MaxAge: maxAge, Err: storage.ErrNotFound}
}

// has answers that the upstream has all items.
func has(hash narinfo.PathHash) upstream.Answer { return found(text(hash, 100), time.Hour) }

func (b *bed) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, upstream.Answer)) {
	b.mu.Lock()
	b.asked, b.vias = append(b.asked, hashes), append(b.vias, via)
	answer, hold := b.answer, b.hold
	b.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			answer = func(narinfo.PathHash) upstream.Answer { return upstream.Answer{MaxAge: -1, Err: upstream.ErrUnknown} }
		}
	}
	for _, hash := range hashes {
		deliver(hash, answer(hash))
	}
}

// questions returns how many times the upstreams were asked, and about how many items in all.
func (b *bed) questions() (calls, items int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, hashes := range b.asked {
		items += len(hashes)
	}
	return len(b.asked), items
}

func (b *bed) set(answer func(narinfo.PathHash) upstream.Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// later moves the clock.
func (b *bed) later(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offset += d
}

func (b *bed) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.offset)
}

func newBed(t testing.TB, options Options) *bed { return openBed(t, t.TempDir(), options) }

func openBed(t testing.TB, dir string, options Options) *bed {
	t.Helper()
	b := &bed{t: t, dir: dir, log: new(testlog.Buffer), answer: has}
	var err error
	if b.index, err = index.Open(t.Context(), filepath.Join(dir, "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.index.Close() })
	nars := filepath.Join(dir, "storage")
	if err := os.MkdirAll(nars, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := directory.Open(nars)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	b.storage = storage.New(b.index, files, storage.Options{Now: b.now, Log: log})
	options.Log = log
	b.Finder = New(b.storage, b, options)
	t.Cleanup(b.Close)
	return b
}

// write writes what was found.
func (b *bed) write() {
	b.t.Helper()
	if err := b.writeAll(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// run runs the finder until the test ends.
func (b *bed) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bed) ask(hash narinfo.PathHash) (Answer, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	return b.LookUp(ctx, hash, Asker{})
}

// wants checks the answer for an item: its text, and for how long it may be cached.
func (b *bed) wants(hash narinfo.PathHash, text []byte, ttl time.Duration) {
	b.t.Helper()
	answer, err := b.ask(hash)
	if err != nil || !bytes.Equal(answer.Text, text) {
		b.t.Errorf("got %q, %v, want %q", answer.Text, err, text)
	}
	b.wantsTTL(answer.Until, ttl)
}

// lacks checks that the answer for an item is an error, and for how long it may be cached.
func (b *bed) lacks(hash narinfo.PathHash, want error, ttl time.Duration) {
	b.t.Helper()
	answer, err := b.ask(hash)
	if !errors.Is(err, want) || answer.Text != nil {
		b.t.Errorf("got %q, %v, want %v", answer.Text, err, want)
	}
	b.wantsTTL(answer.Until, ttl)
}

func (b *bed) wantsTTL(until time.Time, ttl time.Duration) {
	b.t.Helper()
	if ttl < 0 {
		if !until.IsZero() {
			b.t.Errorf("expires at %v, want no time", until)
		}
		return
	}
	if left := until.Sub(b.now()); left > ttl+time.Second || left < ttl-2*time.Second {
		b.t.Errorf("expires in %v, want %v", left, ttl)
	}
}

// wantsAsked checks how many items were asked for until now.
func (b *bed) wantsAsked(want int) {
	b.t.Helper()
	if _, items := b.questions(); items != want {
		b.t.Errorf("asked for %d items, want %d", items, want)
	}
}

// put writes an item with a stored nar to the index.
func (b *bed) put(text []byte, origin int64, freshUntil time.Time, stored uint64) {
	b.t.Helper()
	n, err := narinfo.Parse(text)
	if err != nil {
		b.t.Fatal(err)
	}
	entry := b.index.Prepare(n)
	entry.AddedAt, entry.Origin, entry.FreshUntil, entry.Stored = b.now(), origin, freshUntil, stored
	err = b.index.Update(b.t.Context(), func(tx *index.Tx) error {
		old, err := tx.Item(n.StorePath.Hash)
		if errors.Is(err, index.ErrNotFound) {
			old = nil
		} else if err != nil {
			return err
		}
		return tx.Put(entry, old)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) row(hash narinfo.PathHash) *index.Item {
	b.t.Helper()
	row, err := b.index.Item(b.t.Context(), hash)
	if err != nil {
		b.t.Fatal(err)
	}
	return row
}

// Prefetch asks for items, without waiting. Those that the index has are not asked for.
func (f *Finder) Prefetch(hashes []narinfo.PathHash, asker Asker) {
	via := asker.via()
	if batch := f.beginAll(nil, hashes, via); len(batch) > 0 {
		go f.ask(batch, via, asker)
	}
}
