package scrub_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/index"
	"nar-herder/storage/scrub"
)

// clock is a clock that tests advance.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: begin.Add(24 * time.Hour)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// source is a [check.Source] for tests.
type source struct {
	nars []*nar
	err  error // instead of a nar
}

func (s *source) String() string { return "the source" }

func (s *source) find(hash narinfo.PathHash) *nar {
	for _, n := range s.nars {
		if n.hash() == hash {
			return n
		}
	}
	return nil
}

func (s *source) Fetch(_ context.Context, item *storage.Item, _ int) (io.ReadCloser, error) {
	n := s.find(item.Hash)
	switch {
	case s.err != nil:
		return nil, s.err
	case n == nil:
		return nil, storage.ErrNotStored
	}
	return io.NopCloser(bytes.NewReader(n.file)), nil
}

func (s *source) Narinfo(_ context.Context, hash narinfo.PathHash) ([]byte, error) {
	if n := s.find(hash); n != nil && s.err == nil {
		return n.info.Text, nil
	}
	return nil, storage.ErrNotFound
}

// tested is a storage with its scrubber.
type tested struct {
	*place
	*scrub.Scrubber
	nars  []*nar
	clock *clock
	log   *testlog.Buffer
}

const interval = 90 * 24 * time.Hour

func newTested(t testing.TB, count int, options storage.Options, wrap func(bytestore.Store) bytestore.Store, sources ...check.Source) *tested {
	t.Helper()
	s := &tested{nars: makeNars(t, rand.New(rand.NewPCG(1, uint64(count))), count, 2000), clock: newClock()}
	options.Now = s.clock.Now
	s.place = newPlace(t, s.nars, options, wrap)
	s.restart(sources...)
	return s
}

// restart makes a new scrubber.
func (s *tested) restart(sources ...check.Source) {
	s.log = new(testlog.Buffer)
	s.Scrubber = scrub.New(s.Storage, scrub.Options{
		Interval: interval, Decode: decode, Sources: sources, Now: s.clock.Now, Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	s.Hurry()
}

// pass runs a pass, and advances the clock by the longest pause of an item.
func (s *tested) pass(t testing.TB, warnings ...string) {
	t.Helper()
	if err := s.Pass(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, s.log)
	}
	s.warn(t, warnings...)
	s.clock.advance(24 * time.Hour)
}

// warn compares the warnings of the health with parts of their texts.
func (s *tested) warn(t testing.TB, want ...string) {
	t.Helper()
	got := s.Warnings()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !strings.Contains(got[i], want[i]) {
			t.Errorf("warnings: %q, want %q\n%s", got, want, s.log)
			return
		}
	}
}

// metric returns the value of a metric.
func (s *tested) metric(t testing.TB, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.Scrubber)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	name, kind, _ := strings.Cut(name, " ")
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == name && (kind == "" || metric.GetLabel()[0].GetValue() == kind) {
				return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func (s *tested) write(t testing.TB, n *nar, content []byte) {
	t.Helper()
	if err := os.WriteFile(s.path(n), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// flip flips a bit in the middle of a file.
func (s *tested) flip(t testing.TB, n *nar) {
	t.Helper()
	content := bytes.Clone(n.file)
	content[len(content)/2] ^= 1
	s.write(t, n, content)
}

func (s *tested) item(t testing.TB, n *nar) *storage.Item {
	t.Helper()
	item, err := s.Storage.Item(t.Context(), n.hash())
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func (s *tested) outcome(server string, n *nar) outcome {
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	return get(client, server, n)
}

// until waits until a client gets the outcome: the server notices changes of the index after
// a moment.
func (s *tested) until(t testing.TB, server string, n *nar, want outcome) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if got := s.outcome(server, n); got == want {
			return
		} else if time.Now().After(end) {
			t.Errorf("a client got outcome %d of %s, want %d", got, n.name(), want)
			return
		}
	}
}

// TestSourceDown: while a source doesn't answer, wrong nars are not served, and their items are
// kept. They are repaired once it answers.
func TestSourceDown(t *testing.T) {
	t.Parallel()
	down := &source{err: syscall.ECONNREFUSED}
	s := newTested(t, 40, storage.Options{}, nil, down)
	server := s.serve(t)
	for _, n := range s.nars[:4] { // one of each compression
		s.flip(t, n)
	}
	s.write(t, s.nars[4], nil)
	if err := os.Remove(s.path(s.nars[5])); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also after a restart
		s.pass(t, "of 6 items")
		for i, n := range s.nars[:6] {
			if item := s.item(t, n); item.Stored != 1 {
				t.Errorf("%d: the index has lost its nar", i)
			}
			s.until(t, server, n, failed)
		}
		s.restart(down)
	}
	down.err, down.nars = nil, s.nars
	s.pass(t)
	for _, n := range s.nars {
		s.until(t, server, n, good)
	}
	if n := s.metric(t, "narherder_scrub_repaired_total"); n != 6 {
		t.Errorf("repaired %v", n)
	}
}

// TestNoSource: an item whose only nar is lost is hidden from clients, until a source or the
// storage has it again.
func TestNoSource(t *testing.T) {
	t.Parallel()
	none := new(source)
	s := newTested(t, 9, storage.Options{}, nil, none)
	server := s.serve(t)
	for _, n := range s.nars[:4] {
		s.flip(t, n)
	}
	hiddenFile := s.path(s.nars[4])
	if err := os.Rename(hiddenFile, hiddenFile+".away"); err != nil {
		t.Fatal(err)
	}
	s.pass(t, "of 5 items are lost")
	for _, n := range s.nars[:5] {
		s.until(t, server, n, hidden)
	}
	if n := s.metric(t, "narherder_scrub_unrepaired_items"); n != 5 {
		t.Errorf("unrepaired: %v", n)
	}
	answer, err := http.Get(server + "/" + s.nars[0].hash().String() + ".narinfo")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if control := answer.Header.Get("Cache-Control"); control != "max-age=120" {
		t.Errorf("Cache-Control is %q", control)
	}
	s.restart(none)
	if err := os.Rename(hiddenFile+".away", hiddenFile); err != nil {
		t.Fatal(err)
	}
	s.pass(t, "of 4 items are lost")
	s.until(t, server, s.nars[4], good)
	none.nars = s.nars
	s.pass(t)
	for _, n := range s.nars {
		s.until(t, server, n, good)
	}
}

// TestUnmounted: if many nars are missing, at most a few are unclaimed, and all are served again when
// they are back.
func TestUnmounted(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"nar", "nar/lzip"} { // all, or a quarter
		t.Run(folder, func(t *testing.T) {
			t.Parallel()
			s := newTested(t, 400, storage.Options{}, nil)
			was := filepath.Join(s.directory, folder)
			if err := os.Rename(was, was+".away"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				err := s.Pass(t.Context())
				if err == nil {
					t.Fatal("the pass has ended without an error")
				}
				if warnings := s.Warnings(); !strings.Contains(warnings[len(warnings)-1], "has stopped, as too much is missing") {
					t.Errorf("warnings: %q", warnings)
				}
				s.clock.advance(25 * time.Hour)
			}
			unclaimed := 0
			for _, n := range s.nars {
				if item := s.item(t, n); item.Stored != 1 {
					unclaimed++
				}
			}
			if most := map[string]int{"nar": 0, "nar/lzip": 20}[folder]; unclaimed > most {
				t.Errorf("unclaimed %d nars", unclaimed)
			}
			if lines := strings.Count(s.log.String(), "\n"); lines != 3+unclaimed {
				t.Errorf("%d lines in the log: %s", lines, s.log)
			}
			if err := os.Rename(was+".away", was); err != nil {
				t.Fatal(err)
			}
			s.pass(t)
			if sums, err := s.Index().Verification(t.Context()); err != nil || sums.Never != 0 {
				t.Errorf("%+v, %v", sums, err)
			}
		})
	}
}

// TestUnmountedLater: a few nars are due in each pass, and a tenth of all is not mounted.
func TestUnmountedLater(t *testing.T) {
	t.Parallel()
	s := newTested(t, 400, storage.Options{}, nil)
	err := s.Index().Update(t.Context(), func(tx *index.Tx) error {
		for i, n := range s.nars {
			if err := tx.SetVerified(n.hash(), s.clock.Now().Add(time.Duration(i)*time.Minute-interval)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(s.nars); i += 10 {
		if err := os.Rename(s.path(s.nars[i]), s.path(s.nars[i])+".away"); err != nil {
			t.Fatal(err)
		}
	}
	for range 40 {
		s.clock.advance(10 * time.Minute)
		err = s.Pass(t.Context())
	}
	if err == nil {
		t.Error("the last pass has ended without an error")
	}
	if lost, err := s.Index().CountLost(t.Context()); err != nil || lost > 20 {
		t.Errorf("%d items are lost, %v", lost, err)
	}
}

// TestTooMany: with many damaged nars, as of a faulty memory, the scrub stops after a hundred, and
// later passes don't continue.
func TestTooMany(t *testing.T) {
	t.Parallel()
	s := newTested(t, 300, storage.Options{}, nil)
	for _, n := range s.nars[50:] {
		s.flip(t, n)
	}
	for range 3 {
		if err := s.Pass(t.Context()); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Fatal(err)
		}
		s.clock.advance(25 * time.Hour)
	}
	lost, err := s.Index().CountLost(t.Context())
	if err != nil || lost != 100 {
		t.Errorf("%d items are lost, %v", lost, err)
	}
	s.warn(t, "of 100 items are lost", "has stopped")
	for _, n := range s.nars {
		s.write(t, n, n.file)
	}
	s.pass(t)
}

// faulty is a byte store with faults.
type faulty struct {
	bytestore.Store
	open func(name string, reader io.ReadCloser) io.ReadCloser
}

func (f *faulty) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	reader, info, err := f.Store.Open(ctx, name, offset, length)
	if err == nil && offset == 0 && length < 0 && strings.HasPrefix(name, "nar/") {
		reader = f.open(name, reader)
	}
	return reader, info, err
}

// newFaulty returns a wrapper for newTested.
func newFaulty(open func(name string, reader io.ReadCloser) io.ReadCloser) func(bytestore.Store) bytestore.Store {
	return func(s bytestore.Store) bytestore.Store { return &faulty{s, open} }
}

type failing struct {
	io.ReadCloser
	err error
}

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestDiskErrors: nars that can't be read are neither verified nor damaged. They are tried again
// later, and others meanwhile. Bytes that the store itself finds damaged are repaired.
func TestDiskErrors(t *testing.T) {
	t.Parallel()
	var reads, broken int
	failure := error(syscall.EIO)
	s := newTested(t, 8, storage.Options{}, newFaulty(func(name string, reader io.ReadCloser) io.ReadCloser {
		if reads++; strings.Contains(name, "3-item") {
			broken++
			return failing{reader, failure}
		}
		return reader
	}))
	for range 5 {
		if err := s.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.warn(t, "of 1 item are damaged")
	}
	if broken != 1 || reads != 8 {
		t.Errorf("read it %d times, and %d in all", broken, reads)
	}
	s.clock.advance(11 * time.Minute)
	s.pass(t, "of 1 item are damaged")
	if broken != 2 || reads != 9 {
		t.Errorf("read it %d times, and %d in all", broken, reads)
	}
	if item := s.item(t, s.nars[3]); item.Stored != 1 || !item.VerifiedAt.IsZero() {
		t.Errorf("stored: %d, verified at %v", item.Stored, item.VerifiedAt)
	}
	if n := s.metric(t, "narherder_scrub_findings_total unknown"); n != 2 {
		t.Errorf("%v unknown findings", n)
	}
	failure = fmt.Errorf("bucket: %w", bytestore.ErrDamaged)
	s.pass(t, "of 1 item are lost")
}

// TestReadWrongOnce: a nar that is wrong only when it is first read, as with a faulty memory, stays.
func TestReadWrongOnce(t *testing.T) {
	t.Parallel()
	for _, from := range [][]check.Source{nil, {&source{err: syscall.ECONNREFUSED}}} {
		var once sync.Once
		s := newTested(t, 5, storage.Options{}, newFaulty(func(name string, reader io.ReadCloser) io.ReadCloser {
			once.Do(func() {
				reader.Close()
				reader = io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20)))
			})
			return reader
		}), from...)
		s.pass(t)
		if n := s.metric(t, "narherder_scrub_findings_total corrupt"); n != 1 {
			t.Errorf("%v findings", n)
		}
		for _, n := range s.nars {
			if item := s.item(t, n); item.Stored != 1 || item.VerifiedAt.IsZero() {
				t.Errorf("%s: %+v\n%s", n.name(), item.Item, s.log)
			}
		}
	}
}

// TestChangesMeanwhile removes, withdraws and replaces items while their nars are read. None of
// that is damage, and none is recorded as verified.
func TestChangesMeanwhile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(tx *index.Tx, s *tested, n *nar) error{
		"removed": func(tx *index.Tx, s *tested, n *nar) error {
			return errors.Join(os.Remove(s.path(n)), tx.Remove(n.hash(), begin))
		},
		"withdrawn": func(tx *index.Tx, s *tested, n *nar) error {
			_, err := tx.Withdraw(n.hash(), begin)
			return err
		},
		"unstored": func(tx *index.Tx, s *tested, n *nar) error {
			return errors.Join(os.Remove(s.path(n)), tx.SetStored(n.hash(), 0, nil, time.Time{}))
		},
		"replaced": func(tx *index.Tx, s *tested, n *nar) error {
			info, err := narinfo.Parse(bytes.Replace(n.info.Text, []byte("References: \n"), []byte("References: \nDeriver: \n"), 1))
			if err != nil {
				return err
			}
			old, err := tx.Item(n.hash())
			if err != nil {
				return err
			}
			entry := s.Index().Prepare(info)
			entry.AddedAt, entry.Stored = begin, 1
			return tx.Put(entry, old)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s *tested
			s = newTested(t, 3, storage.Options{}, newFaulty(func(file string, reader io.ReadCloser) io.ReadCloser {
				n := s.nars[1]
				if file != n.name() {
					return reader
				}
				if err := s.Index().Update(t.Context(), func(tx *index.Tx) error { return change(tx, s, n) }); err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
				if name == "unstored" || name == "removed" {
					return failing{reader, io.EOF} // as of a truncated file
				}
				return reader
			}))
			if err := s.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.warn(t)
			if name != "removed" && name != "withdrawn" {
				if item := s.item(t, s.nars[1]); !item.VerifiedAt.IsZero() {
					t.Error("it counts as verified")
				}
			}
			if strings.Contains(s.log.String(), "damage") {
				t.Errorf("the log says %s", s.log)
			}
		})
	}
}

// TestNotOwner: an instance that doesn't own the storage reports damage and changes nothing.
func TestNotOwner(t *testing.T) {
	t.Parallel()
	for _, options := range []storage.Options{
		{ReadOnly: true}, {MayWrite: func(context.Context) error { return storage.ErrNotOwner }},
	} {
		s := newTested(t, 6, options, nil)
		good := &source{nars: s.nars}
		s.restart(good)
		s.flip(t, s.nars[0])
		if err := os.Remove(s.path(s.nars[1])); err != nil { // as its owner does
			t.Fatal(err)
		}
		before, err := os.ReadFile(s.path(s.nars[0]))
		if err != nil {
			t.Fatal(err)
		}
		s.pass(t, "of 1 item are damaged")
		after, err := os.ReadFile(s.path(s.nars[0]))
		if err != nil || !bytes.Equal(before, after) {
			t.Errorf("it was changed: %v", err)
		}
		if _, err := os.Stat(s.path(s.nars[1])); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it was fetched: %v", err)
		}
		if at := s.item(t, s.nars[1]).VerifiedAt; !at.IsZero() {
			t.Errorf("it was verified at %v without a file", at)
		}
	}
}

// TestResumes stops passes in the middle. Later ones read only what was not verified before.
func TestResumes(t *testing.T) {
	t.Parallel()
	const count = 300
	var stop context.CancelFunc
	reads := make(map[string]int)
	stopAt := 50
	s := newTested(t, count, storage.Options{}, newFaulty(func(name string, reader io.ReadCloser) io.ReadCloser {
		if reads[name]++; len(reads) == stopAt {
			stop()
		}
		return reader
	}))
	stopped := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stop = cancel
		return s.Pass(ctx)
	}
	for stopAt < count {
		if err := stopped(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		stopAt += 70
		s.restart()
	}
	s.pass(t)
	again := 0
	for _, times := range reads {
		again += times - 1
	}
	if len(reads) != count || again > 5 {
		t.Errorf("read %d nars, and %d again", len(reads), again)
	}
	clear(reads)
	s.pass(t)
	s.clock.advance(interval - 3*24*time.Hour)
	s.pass(t)
	if len(reads) != 0 {
		t.Errorf("read %d nars before they were due", len(reads))
	}
	s.clock.advance(24 * time.Hour)
	s.pass(t)
	if len(reads) != count {
		t.Errorf("read %d nars", len(reads))
	}
	if oldest := s.metric(t, "narherder_scrub_oldest_verification_timestamp_seconds"); oldest < float64(begin.Add(interval).Unix()) {
		t.Errorf("oldest: %v", oldest)
	}
}

// TestClockSetBack: a clock that was wrong for a while neither makes the scrub read again and
// again, nor stops it for ever.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	reads := 0
	s := newTested(t, 10, storage.Options{}, newFaulty(func(_ string, reader io.ReadCloser) io.ReadCloser {
		reads++
		return reader
	}))
	s.clock.advance(50 * 365 * 24 * time.Hour)
	s.pass(t)
	s.clock.advance(-50 * 365 * 24 * time.Hour)
	for range 3 {
		s.pass(t)
	}
	if reads != 20 {
		t.Errorf("%d reads, want each nar twice", reads)
	}
	s.clock.advance(-200 * 24 * time.Hour) // before the items were added
	s.pass(t)
	if reads != 20 {
		t.Errorf("%d reads with a clock that is behind", reads)
	}
}

// TestIndexFull: if times can't be recorded, the pass ends with an error, and the next one records
// them.
func TestIndexFull(t *testing.T) {
	t.Parallel()
	s := newTested(t, 10, storage.Options{}, nil)
	database := filepath.Join(filepath.Dir(s.directory), "index.db")
	x, err := index.Open(t.Context(), database, index.Options{Access: index.Read})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	readOnly := scrub.New(storage.New(x, s.ByteStore(), storage.Options{Now: s.clock.Now}), scrub.Options{Interval: interval, Decode: decode, Now: s.clock.Now})
	readOnly.Hurry()
	for range 2 {
		if err := readOnly.Pass(t.Context()); !errors.Is(err, index.ErrReadOnly) {
			t.Errorf("%v", err)
		}
	}
	if warnings := readOnly.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "has stopped") {
		t.Errorf("warnings: %q", warnings)
	}
	s.pass(t)
}

// TestFailedRemoved: an item that was not repaired and is removed then no longer counts.
func TestFailedRemoved(t *testing.T) {
	t.Parallel()
	s := newTested(t, 40, storage.Options{}, nil, &source{err: syscall.ECONNREFUSED})
	s.flip(t, s.nars[0])
	s.flip(t, s.nars[1])
	s.pass(t, "of 2 items are damaged")
	if _, err := s.Remove(t.Context(), s.nars[0].hash()); err != nil {
		t.Fatal(err)
	}
	s.pass(t, "of 1 item are damaged")
	s.pass(t, "of 1 item are damaged")
}

// TestTexts finds a damaged narinfo in the index, and restores it from a source.
func TestTexts(t *testing.T) {
	t.Parallel()
	there := new(source)
	s := newTested(t, 5, storage.Options{}, nil, there)
	db, err := sql.Open("sqlite", filepath.Join(filepath.Dir(s.directory), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE narinfos SET text = zeroblob(length(text)) WHERE id = 2")
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s.pass(t, "in 1 place")
	there.nars = s.nars
	s.pass(t, "in 1 place") // not due yet
	s.clock.advance(interval)
	s.pass(t)
	if text, err := s.Index().Text(t.Context(), s.nars[1].hash()); err != nil || !bytes.Equal(text, s.nars[1].info.Text) {
		t.Errorf("%s, %v", text, err)
	}
	if n := s.metric(t, "narherder_scrub_findings_total damaged"); n != 2 {
		t.Errorf("%v findings", n)
	}
}

// TestOfUpstream: an item that came from an upstream stays visible when its nar is lost, since
// that can be fetched again.
func TestOfUpstream(t *testing.T) {
	t.Parallel()
	s := newTested(t, 2, storage.Options{}, nil, new(source))
	n := s.nars[0]
	err := s.Storage.Index().Update(t.Context(), func(tx *index.Tx) error {
		origin, err := tx.Origin("http://upstream.example")
		if err != nil {
			return err
		}
		return tx.SetOrigin(n.hash(), origin, s.clock.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
	s.flip(t, n)
	if err := s.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if item := s.item(t, n); item.Stored != 0 {
		t.Errorf("stored %b", item.Stored)
	}
	if text, err := s.Storage.Text(t.Context(), n.hash()); err != nil || !bytes.Equal(text, n.info.Text) {
		t.Errorf("%q, %v", text, err)
	}
}

// TestVerifying: the item that is being verified is known, and none between passes.
func TestVerifying(t *testing.T) {
	t.Parallel()
	s := newTested(t, 4, storage.Options{}, nil)
	var seen []narinfo.PathHash
	s.Scrubber = scrub.New(s.Storage, scrub.Options{Interval: interval, Now: s.clock.Now, Decode: func(ctx context.Context, kind string, r io.Reader, size int64) (io.ReadCloser, error) {
		seen = append(seen, s.Verifying().Hash)
		return decode(ctx, kind, r, size)
	}})
	s.Hurry()
	if s.Verifying() != nil {
		t.Error("an item is verified before the pass")
	}
	s.pass(t)
	if want := []narinfo.PathHash{s.nars[0].hash(), s.nars[1].hash(), s.nars[2].hash(), s.nars[3].hash()}; !slices.Equal(seen, want) || s.Verifying() != nil {
		t.Errorf("items %v, and %v after the pass", seen, s.Verifying())
	}
}
