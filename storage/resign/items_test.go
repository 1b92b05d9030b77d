package resign

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

func newSigner(t testing.TB) *Signer {
	t.Helper()
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{Key: key, Host: "farm.example"}
}

// newStorage makes a storage with unsigned items.
func newStorage(t testing.TB, count int) *storage.Storage {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{Bulk: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	for begin := 0; begin < count; begin += 1000 {
		update(t, x, func(tx *index.Tx) error {
			for i := begin; i < min(begin+1000, count); i++ {
				if err := tx.Put(entry(t, x, i, "x86_64-linux"), nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return storage.New(x, nil, storage.Options{})
}

func update(t testing.TB, x *index.Index, f func(*index.Tx) error) {
	t.Helper()
	if err := x.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func hashOf(t testing.TB, i int) narinfo.PathHash {
	t.Helper()
	sum := sha256.Sum256(fmt.Append(nil, i))
	hash, err := narinfo.ParsePathHash(narinfo.EncodeBase32(sum[:20]))
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// entry returns the row of the Ith item, with two stored files that were verified.
func entry(t testing.TB, x *index.Index, i int, system string) *index.Entry {
	t.Helper()
	base := hashOf(t, i).String() + "-item"
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: 100\nReferences: %s\nSystem: %s\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: 40\nURL: nar/zstd/%[5]s\nCompression: zstd\nFileSize: 50\n",
		base, narinfo.NarHash(sha256.Sum256([]byte(base))), base, system, base)
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	e := x.Prepare(n)
	e.AddedAt, e.Stored, e.VerifiedAt = time.Unix(1_700_000_000, 0), 2, time.Unix(1_700_000_500, 0)
	return e
}

// sign signs all items, and returns the results by hash.
func sign(t *testing.T, s *Signer, store *storage.Storage, items iter.Seq2[*index.Item, error]) map[narinfo.PathHash]Result {
	t.Helper()
	results := make(map[narinfo.PathHash]Result)
	if err := s.Items(t.Context(), store, items, false, func(r Result) {
		if _, known := results[r.Hash]; known {
			t.Errorf("%s is reported twice", r.Hash)
		}
		results[r.Hash] = r
	}); err != nil {
		t.Fatal(err)
	}
	return results
}

// outcomes counts outcomes.
func outcomes(results map[narinfo.PathHash]Result) map[Outcome]int {
	counts := make(map[Outcome]int)
	for _, r := range results {
		counts[r.Outcome]++
	}
	return counts
}

// TestItems: all rows get a valid signature, keep everything else, and are logged as additions.
func TestItems(t *testing.T) {
	const count = batchItems + 3
	store, s := newStorage(t, count), newSigner(t)
	x := store.Index()
	before, err := x.ChangesAfter(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if counts := outcomes(sign(t, s, store, x.Items(t.Context()))); !maps.Equal(counts, map[Outcome]int{Signed: count}) {
		t.Fatalf("%v", counts)
	}
	keys, err := signing.ParseKeys([]byte(s.Key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	for item, err := range store.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if err := item.Narinfo.CheckSignature(keys); err != nil {
			t.Error(err)
		}
		if item.Stored != 2 || item.VerifiedAt.Unix() != 1_700_000_500 || item.AddedAt.Unix() != 1_700_000_000 || Host(item.Narinfo) != "farm.example" {
			t.Errorf("%+v", item.Item)
		}
	}
	after, err := x.ChangesAfter(t.Context(), before.Last, 1<<20)
	if err != nil || len(after.Changes) == 0 || after.Last != before.Last+count {
		t.Errorf("%d changes, the last is %d, was %d; %v", len(after.Changes), after.Last, before.Last, err)
	}
	for _, change := range after.Changes {
		if change.Kind != index.Added || !strings.Contains(string(change.Text), "Signature: 1;farm.example;") {
			t.Errorf("%+v", change)
		}
	}
	totals, err := store.Totals(t.Context())
	if want := (index.Totals{Items: count, StoredNars: count, StoredSize: 50 * count}); err != nil || totals != want {
		t.Errorf("%+v, %v", totals, err)
	}
	if counts := outcomes(sign(t, s, store, x.Items(t.Context()))); !maps.Equal(counts, map[Outcome]int{Current: count}) {
		t.Errorf("%v", counts)
	}
	// By another key.
	other := newSigner(t)
	if counts := outcomes(sign(t, other, store, x.Items(t.Context()))); !maps.Equal(counts, map[Outcome]int{Kept: count}) {
		t.Errorf("%v", counts)
	}
	other.Replace = true
	if counts := outcomes(sign(t, other, store, x.Items(t.Context()))); !maps.Equal(counts, map[Outcome]int{Replaced: count}) {
		t.Errorf("%v", counts)
	}
}

// TestItemsChanged: items that change between reading and writing are not overwritten.
func TestItemsChanged(t *testing.T) {
	store, s := newStorage(t, 6), newSigner(t)
	x := store.Index()
	forever := hashOf(t, 5)
	changes := 0
	changing := func(yield func(*index.Item, error) bool) {
		for item, err := range x.Items(t.Context()) {
			if err != nil || !yield(item, err) {
				return
			}
		}
		now := time.Now()
		update(t, x, func(tx *index.Tx) error {
			row, err := tx.Item(hashOf(t, 1))
			if err == nil {
				err = tx.Put(entry(t, x, 1, "riscv64-linux"), row)
			}
			_, withdrawErr := tx.Withdraw(hashOf(t, 2), now)
			return errors.Join(err, withdrawErr, tx.Remove(hashOf(t, 3), now), tx.SetMirrored(hashOf(t, 4), true))
		})
	}
	// An index in which one item never stops to change is simulated by its rows.
	results := make(map[narinfo.PathHash]Result)
	p := &pass{Signer: s, store: store, index: x, report: func(r Result) { results[r.Hash] = r }}
	if err := p.run(t.Context(), func(yield func(*index.Item, error) bool) {
		changing(func(item *index.Item, err error) bool {
			if item.Hash == forever {
				stale := *item
				stale.Text = entry(t, x, 5, "stale").Narinfo.Text
				item = &stale
				changes++
			}
			return yield(item, err)
		})
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.again, forever) || !slices.Contains(p.again, hashOf(t, 1)) || len(p.again) != 2 || changes != 1 {
		t.Errorf("again: %v", p.again)
	}
	if counts := outcomes(results); !maps.Equal(counts, map[Outcome]int{Signed: 1, Withdrawn: 1, Removed: 1, OfSource: 1}) {
		t.Errorf("%v", counts)
	}
	results = sign(t, s, store, x.Items(t.Context()))
	if counts := outcomes(results); !maps.Equal(counts, map[Outcome]int{Signed: 2, Current: 1, Withdrawn: 1, OfSource: 1}) {
		t.Errorf("%v", counts)
	}
	s.Mirrored = true
	results = sign(t, s, store, x.Items(t.Context()))
	if counts := outcomes(results); !maps.Equal(counts, map[Outcome]int{Signed: 1, Current: 3, Withdrawn: 1}) {
		t.Errorf("%v", counts)
	}
	if item, err := store.Item(t.Context(), hashOf(t, 4)); err != nil || item.Mirrored || item.Narinfo.CheckSignature(nil) != nil {
		t.Errorf("%+v, %v", item, err)
	}
	for i, want := range map[int]string{1: "riscv64-linux", 5: "x86_64-linux"} {
		item, err := store.Item(t.Context(), hashOf(t, i))
		if err != nil || item.Narinfo.System != want || item.Narinfo.CheckSignature(nil) != nil {
			t.Errorf("%+v, %v", item.Narinfo, err)
		}
	}
}

// TestItemsRetry: Items reads items again that have changed.
func TestItemsRetry(t *testing.T) {
	store, s := newStorage(t, 3), newSigner(t)
	x := store.Index()
	results := sign(t, s, store, func(yield func(*index.Item, error) bool) {
		for item, err := range x.Items(t.Context()) {
			if item.Hash == hashOf(t, 1) {
				update(t, x, func(tx *index.Tx) error { return tx.Put(entry(t, x, 1, "riscv64-linux"), item) })
			}
			if !yield(item, err) {
				return
			}
		}
	})
	if counts := outcomes(results); !maps.Equal(counts, map[Outcome]int{Signed: 3}) {
		t.Errorf("%v", counts)
	}
}

// TestItemsFaults: damage concerns one item, and other errors end the run with what was done.
func TestItemsFaults(t *testing.T) {
	store, s := newStorage(t, 3), newSigner(t)
	x := store.Index()
	fault := errors.New("the disk is gone")
	with := func(err error) iter.Seq2[*index.Item, error] {
		return func(yield func(*index.Item, error) bool) {
			if !yield(nil, err) {
				return
			}
			for item, err := range x.Items(t.Context()) {
				if !yield(item, err) {
					return
				}
			}
		}
	}
	if err := s.Items(t.Context(), store, with(fault), false, func(Result) {}); !errors.Is(err, fault) {
		t.Errorf("%v", err)
	}
	damage := &index.Damage{Hash: hashOf(t, 9), Reason: "wrong checksum"}
	results := sign(t, s, store, with(damage))
	if counts := outcomes(results); !maps.Equal(counts, map[Outcome]int{Signed: 3, Failed: 1}) || !errors.Is(results[hashOf(t, 9)].Err, index.ErrDamaged) {
		t.Errorf("%v", results)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newSigner(t).Items(ctx, store, x.Items(t.Context()), false, func(Result) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := newSigner(t).Items(ctx, store, x.Items(t.Context()), true, func(Result) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("dry run: %v", err)
	}
	dry := newSigner(t)
	dry.Replace = true
	counts := make(map[Outcome]int)
	if err := dry.Items(t.Context(), store, x.Items(t.Context()), true, func(r Result) { counts[r.Outcome]++ }); err != nil || !maps.Equal(counts, map[Outcome]int{Replaced: 3}) {
		t.Errorf("%v, %v", counts, err)
	}
	if counts := outcomes(sign(t, s, store, x.Items(t.Context()))); !maps.Equal(counts, map[Outcome]int{Current: 3}) {
		t.Errorf("after a dry run: %v", counts)
	}
}

// BenchmarkItems signs items of an index.
func BenchmarkItems(b *testing.B) {
	const count = 20_000
	store := newStorage(b, count)
	b.ReportAllocs()
	for b.Loop() {
		s := newSigner(b)
		s.Replace = true
		if err := s.Items(b.Context(), store, store.Index().Items(b.Context()), false, func(r Result) {
			if r.Err != nil {
				b.Error(r.Err)
			}
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(count*b.N)/b.Elapsed().Seconds(), "items/s")
}
