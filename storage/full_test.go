package storage_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/mirror/apply"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// TestFullStorage: an import that doesn't fit.
func TestFullStorage(t *testing.T) {
	t.Parallel()
	const count, each = 12, 200 << 10
	var items []fake
	for n := range count {
		items = append(items, fake{n: n, content: strings.Repeat(fmt.Sprintf("%02d", n), each/2)})
	}
	disk := testfs.Small(t, 1<<20)
	ballast := filepath.Join(disk, "ballast")
	write(t, ballast, strings.Repeat("x", 300<<10))
	p := place{filepath.Join(t.TempDir(), "db"), disk}
	s := p.openTest(t)
	source := laid(t, items...)
	results := importAll(t, s, importer.Options{}, source)
	added := 0
	for _, f := range items {
		r := results[f.hash().String()+".narinfo"]
		switch {
		case r.Outcome == importer.Added:
			added++
			wantServed(t, s, f)
		case !errors.Is(r.Err, syscall.ENOSPC):
			t.Errorf("item %d: %v, want ENOSPC", f.n, r.Err)
		case !has(filepath.Join(source, f.name()), f.content):
			t.Errorf("the nar of item %d was removed, although it was not imported", f.n)
		}
	}
	if added == 0 || added == count {
		t.Errorf("%d of %d items were added", added, count)
	}
	wantFindings(t, s, "stranger ballast")

	// With more room, the others are imported.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	more := importAll(t, s, importer.Options{}, source)
	var summary importer.Summary
	for _, r := range more {
		summary.Count(r)
	}
	if summary.Outcomes[importer.Known] != added || summary.Outcomes[importer.Added] == 0 {
		t.Errorf("with more room: %v", &summary)
	}
	wantFindings(t, s)
}

// TestFullDatabase: the bytes fit, but the rows don't.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1200<<10)
	ballast := filepath.Join(disk, "ballast")
	write(t, ballast, strings.Repeat("x", 300<<10))
	p := newPlace(t)
	p.database = filepath.Join(disk, "db")
	s := p.openTest(t)
	known := fake{n: 1_000_000, content: "known before"}
	importAll(t, s, importer.Options{}, laid(t, known))
	free := testfs.Fill(t, disk)
	items := many(30, func(f *fake) {
		// This takes more than the room in the log, because it can't be compressed.
		for range 300 {
			f.note += rand.Text()
		}
	})
	source := laid(t, items...)
	results := importAll(t, s, importer.Options{}, source)
	failed := 0
	for _, f := range items {
		switch r := results[f.hash().String()+".narinfo"]; {
		case r.Outcome == importer.Added:
			wantServed(t, s, f)
		case !errors.Is(r.Err, index.ErrFull):
			t.Errorf("item %d: %v, %v; want ErrFull", f.n, r.Outcome, r.Err)
		case !has(filepath.Join(source, f.name()), f.content):
			t.Errorf("the nar of item %d was removed, although it was not imported", f.n)
		default:
			failed++
		}
	}
	if failed == 0 {
		t.Error("none failed")
	}
	for _, finding := range findings(t, s) {
		if !strings.HasPrefix(finding, "stranger ") {
			t.Errorf("check finds %q", finding)
		}
	}
	wantServed(t, s, known)
	// A removal that can't be written leaves the item unchanged.
	if _, err := s.Remove(t.Context(), known.hash()); err != nil {
		if !errors.Is(err, index.ErrFull) {
			t.Errorf("remove: %v, want ErrFull", err)
		}
		wantServed(t, s, known)
	}
	free()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := importStrictly(s, []string{source}, importer.Options{}); err != nil {
		t.Errorf("with more room: %v", err)
	}
	for _, f := range items {
		wantServed(t, s, f)
	}
	wantFindings(t, s)
}

// useReserve fills the file system of an index, and uses up the reserve, like a removal by
// another process.
func useReserve(t *testing.T, x *index.Index) {
	t.Helper()
	if state, err := x.KeepReserve(); state != index.ReserveKept || err != nil {
		t.Fatalf("the reserve is %d, %v", state, err)
	}
	testfs.Fill(t, x.Directory())
	if err := os.Truncate(x.Path()+".reserve", 0); err != nil {
		t.Fatal(err)
	}
	if state, err := x.Reserve(); state != index.ReserveUsed || err != nil {
		t.Fatalf("the reserve is %d, %v", state, err)
	}
}

// TestRemoveFullDatabase: removals find room in the reserve, and additions don't.
func TestRemoveFullDatabase(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.database = filepath.Join(testfs.Small(t, 8<<20), "db")
	s, x := p.openAt(t, nil)
	lost, mirrored := fake{n: 1, content: "lost"}, fake{n: 2, content: "mirrored"}
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, lost, fake{n: 4, content: "there"})), "2 added")
	added := []apply.Change{{At: time.Now(), Narinfo: mirrored.parsed()}}
	if _, err := apply.Changes(t.Context(), s, added, apply.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.store, lost.name())); err != nil {
		t.Fatal(err)
	}
	useReserve(t, x)
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if r := check.New(s).Repairer(check.RepairOptions{}).Repair(t.Context(), finding); r.Outcome != check.Unclaimed {
			t.Errorf("repair of %v: %v, %v", finding, r.Outcome, r.Err)
		}
	}
	if now, err := s.Item(t.Context(), lost.hash()); err != nil || now.HasStored(0) {
		t.Errorf("%v, %v: the lost file is still claimed", now, err)
	}
	removed := apply.Change{At: time.Now(), Hash: mirrored.hash()}
	sums, err := apply.Changes(t.Context(), s, []apply.Change{removed}, apply.Options{})
	if err != nil || sums.Withdrawn != 1 {
		t.Errorf("follow a removal: %+v, %v", sums, err)
	}
	more := apply.Change{At: time.Now(), Narinfo: fake{n: 3, content: "more"}.parsed()}
	if _, err := apply.Changes(t.Context(), s, []apply.Change{removed, more}, apply.Options{}); !errors.Is(err, index.ErrFull) {
		t.Errorf("follow an addition: %v, want ErrFull", err)
	}
}

// TestFollowTwice: if a removal makes room and is repeated, nothing is counted twice.
func TestFollowTwice(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.database = filepath.Join(testfs.Small(t, 8<<20), "db")
	s, x := p.openAt(t, nil)
	mirrored := fake{n: 1, content: "mirrored"}
	if _, err := apply.Changes(t.Context(), s, []apply.Change{{At: time.Now(), Narinfo: mirrored.parsed()}}, apply.Options{}); err != nil {
		t.Fatal(err)
	}
	if state, err := x.KeepReserve(); state != index.ReserveKept || err != nil {
		t.Fatalf("the reserve is %d, %v", state, err)
	}
	testfs.Fill(t, x.Directory())
	removed := []apply.Change{{At: time.Now(), Hash: mirrored.hash()}}
	// What is left in the log and its page is not enough for this.
	calls, large := 0, strings.Repeat("x", 300<<10)
	options := apply.Options{Within: func(tx *index.Tx) error { calls++; return tx.SetSetting("a test", large) }}
	sums, err := apply.Changes(t.Context(), s, removed, options)
	if err != nil || sums != (apply.Sums{Withdrawn: 1}) || calls != 2 {
		t.Errorf("%+v, %v, after %d calls", sums, err, calls)
	}
}
