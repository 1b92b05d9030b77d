package index

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// withSignature returns the narinfo of the Nth item with files of the given sizes, of which
// the first few are signed.
func withSignature(t testing.TB, n, signed int, sizes ...int64) *narinfo.Narinfo {
	t.Helper()
	text := string(testNarinfo(n, 1, nil, sizes...).Text)
	at := 0
	for range signed + 1 {
		at += strings.Index(text[at:]+"URL:", "URL:") + 1
	}
	info, err := narinfo.Parse([]byte(text[:at-1] + "Signature: 1;host;AAAA\n" + text[at-1:]))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func setDropped(t testing.TB, x *Index, n int, dropped uint64, at time.Time) {
	t.Helper()
	update(t, x, func(tx *Tx) error { return tx.SetDropped(testPath(n).Hash, dropped, at) })
}

func wantText(t testing.TB, x *Index, n int, want string) {
	t.Helper()
	text, err := x.Text(t.Context(), testPath(n).Hash)
	if err != nil || string(text) != want {
		t.Errorf("the text is %q, %v; want %q", text, err, want)
	}
	text, _, _, err = x.TextAndCached(t.Context(), testPath(n).Hash)
	if err != nil || string(text) != want {
		t.Errorf("the text with cached files is %q, %v", text, err)
	}
}

func wantDropped(t testing.TB, x *Index, n int, dropped uint64, after time.Time) {
	t.Helper()
	item, err := x.Item(t.Context(), testPath(n).Hash)
	if err != nil || item.Dropped != dropped || !item.DropAfter.Equal(after) {
		t.Errorf("dropped %b after %v, %v; want %b after %v", item.Dropped, item.DropAfter, err, dropped, after)
	}
}

func TestDropped(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	info := withSignature(t, 1, 0, 10, 20)
	put(t, x, info)
	put(t, x, testNarinfo(2, 1, nil, 30))
	w := watch(t, x)
	at := time.UnixMilli(1_700_000_000_000).UTC()
	due := at.Add(narinfo.UnadvertisedTTL + dropReserve)
	setDropped(t, x, 1, 0b10, at)
	cut, _, _ := strings.Cut(string(info.Text), "URL: nar/c1")
	wantText(t, x, 1, cut)
	wantDropped(t, x, 1, 0b10, due)
	if item, err := x.Item(t.Context(), testPath(1).Hash); err != nil || !bytes.Equal(item.Text, info.Text) || string(item.Announced()) != cut {
		t.Errorf("the row: %+v, %v", item, err)
	}
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != Added {
		t.Errorf("changes: %+v", changes)
	}
	page, err := x.ChangesAfter(t.Context(), 0, 100)
	if last := page.Changes[len(page.Changes)-1]; err != nil || string(last.Text) != cut {
		t.Errorf("a mirror gets %q, %v", last.Text, err)
	}
	// Dropping it again changes nothing.
	setDropped(t, x, 1, 0b10, at.Add(time.Hour))
	wantDropped(t, x, 1, 0b10, due)
	if changes := poll(t, w); len(changes) != 0 {
		t.Errorf("changes: %+v", changes)
	}
	if pending, err := x.DroppedPending(t.Context()); err != nil || pending != (DroppedPending{1, due, due}) {
		t.Errorf("pending: %+v, %v", pending, err)
	}
	for later, want := range map[time.Duration]int{-1: 0, 0: 1, time.Hour: 1} {
		var cursor DroppedCursor
		items, more, err := x.DroppedPage(t.Context(), due.Add(later), &cursor, 1)
		if err != nil || len(items) != want || more != (want == 1) {
			t.Errorf("after %v: %d items, %v, %v", later, len(items), more, err)
		}
		if items, _, err = x.DroppedPage(t.Context(), due.Add(later), &cursor, 1); err != nil || len(items) != 0 {
			t.Errorf("after %v, again: %d items, %v", later, len(items), err)
		}
	}
	// Its file is deleted.
	update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(1).Hash, 0b01, nil, time.Time{}) })
	wantDropped(t, x, 1, 0b10, time.Time{})
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != StorageChanged {
		t.Errorf("changes: %+v", changes)
	}
	if lacking, err := x.CountLacking(t.Context()); err != nil || lacking != 0 {
		t.Errorf("%d items lack files, %v", lacking, err)
	}
	// It is stored again.
	update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(1).Hash, 0b11, nil, time.Time{}) })
	wantDropped(t, x, 1, 0, time.Time{})
	wantText(t, x, 1, string(info.Text))
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != Added {
		t.Errorf("changes: %+v", changes)
	}
	wantSound(t, x)
}

func TestDroppedSigned(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	info := withSignature(t, 1, 2, 10, 20)
	put(t, x, info)
	w := watch(t, x)
	setDropped(t, x, 1, 0b01, testTime)
	wantText(t, x, 1, string(info.Text))
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != StorageChanged {
		t.Errorf("mirrors are notified although they get the same text: %+v", changes)
	}
	wantDropped(t, x, 1, 0b01, testTime.Truncate(time.Millisecond).Add(narinfo.UnadvertisedTTL+dropReserve))
}

func TestSetDroppedRefuses(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10, 20))
	for dropped, want := range map[uint64]error{0b11: ErrAllDropped, 0b100: nil, 1 << 63: nil} {
		err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetDropped(testPath(1).Hash, dropped, testTime) })
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%b: %v, want %v", dropped, err, want)
		}
		entry := x.Prepare(testNarinfo(2, 1, nil, 10, 20))
		entry.Dropped = dropped
		if err := x.Update(t.Context(), func(tx *Tx) error { return tx.Put(entry, nil) }); err == nil {
			t.Errorf("%b: an item was added without a file", dropped)
		}
	}
	wantTotals(t, x, Totals{1, 2, 30})
}

// TestPutDropped: files stay dropped by name when the narinfo changes.
func TestPutDropped(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	info := testNarinfo(1, 1, nil, 10, 20, 30)
	put(t, x, info)
	setDropped(t, x, 1, 0b010, testTime)
	due := testTime.Truncate(time.Millisecond).Add(narinfo.UnadvertisedTTL + dropReserve)
	// The files in another order.
	other := strings.Replace(string(info.Text), "URL: nar/c1/", "URL: nar/cX/", 1)
	other = strings.Replace(other, "URL: nar/c0/", "URL: nar/c1/", 1)
	other = strings.Replace(other, "URL: nar/cX/", "URL: nar/c0/", 1)
	reordered, err := narinfo.Parse([]byte(other))
	if err != nil {
		t.Fatal(err)
	}
	putEntry := func(n *narinfo.Narinfo, stored, dropped uint64) {
		t.Helper()
		update(t, x, func(tx *Tx) error {
			old, err := tx.Item(n.StorePath.Hash)
			if err != nil {
				return err
			}
			entry := x.Prepare(n)
			entry.AddedAt, entry.Stored, entry.Dropped = testTime, stored, dropped
			return tx.Put(entry, old)
		})
	}
	putEntry(reordered, 0b110, 0)
	wantDropped(t, x, 1, 0b001, time.Time{})
	// Still stored, which the entry says.
	putEntry(reordered, 0b111, 0b001)
	if item, err := x.Item(t.Context(), testPath(1).Hash); err != nil || item.DropAfter.IsZero() {
		t.Errorf("%+v, %v", item, err)
	}
	put(t, x, info)
	setDropped(t, x, 1, 0b010, testTime)
	putEntry(info, 0b111, 0b010)
	wantDropped(t, x, 1, 0b010, due)
	// An import brings it.
	putEntry(info, 0b111, 0)
	wantDropped(t, x, 1, 0, time.Time{})
	// No other file is left.
	setDropped(t, x, 1, 0b001, testTime)
	putEntry(testNarinfo(1, 2, nil, 10), 0, 0)
	wantDropped(t, x, 1, 0, time.Time{})
	// It has another nar.
	put(t, x, info)
	setDropped(t, x, 1, 0b001, testTime)
	changed, err := narinfo.Parse(bytes.Replace(info.Text, []byte("sha256:0"), []byte("sha256:1"), 1))
	if err != nil {
		t.Fatal(err)
	}
	putEntry(changed, 0b110, 0)
	wantDropped(t, x, 1, 0, time.Time{})
	wantSound(t, x)
}

func TestCopyDropped(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range listStep + 10 {
		put(t, x, testNarinfo(n, 1, nil, 10, 20))
	}
	signed := withSignature(t, 2, 1, 10, 20, 30)
	put(t, x, signed)
	update(t, x, func(tx *Tx) error {
		for n := range listStep + 10 {
			if n == 0 {
				continue
			}
			dropped := uint64(0b01)
			if n == 2 {
				dropped = 0b101
			}
			if err := tx.SetDropped(testPath(n).Hash, dropped, testTime); err != nil {
				return err
			}
		}
		return nil
	})
	path := filepath.Join(t.TempDir(), "copy.db")
	content, err := x.Copy(t.Context(), path, testTime, 10)
	if err != nil {
		t.Fatal(err)
	}
	all := copied(t, path)
	if len(all) != listStep+10 {
		t.Fatalf("%d items", len(all))
	}
	for _, item := range all {
		original, err := x.Item(t.Context(), item.Hash)
		if err != nil {
			t.Fatal(err)
		}
		if want := original.Announced(); !bytes.Equal(item.Text, want) || item.Dropped != 0 {
			t.Errorf("%s: dropped %b, text %q, want %q", item.Hash, item.Dropped, item.Text, want)
		}
	}
	last := content.Changes[len(content.Changes)-1]
	if want := testNarinfo(listStep+9, 1, nil, 10, 20).WithoutFiles(1); !bytes.Equal(last.Text, want) {
		t.Errorf("the last change has %q, want %q", last.Text, want)
	}
}

// TestLackingDropped: dropped files are not missing.
func TestLackingDropped(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		stored, dropped uint64
		lacks           bool
	}{
		{0b011, 0, false}, {0b010, 0, true}, {0, 0, true}, {0, 0b01, true}, {0, 0b10, true}, {0b10, 0b01, false}, {0b01, 0b10, false},
		{0b110, 0b001, false}, {0b100, 0b001, true},
	} {
		x := openTest(t)
		info := testNarinfo(1, 1, nil, 10, 20)
		if test.stored > 0b11 {
			info = testNarinfo(1, 1, nil, 10, 20, 30)
		}
		update(t, x, func(tx *Tx) error {
			if err := putIn(tx, x, info, test.stored, nil); err != nil {
				return err
			}
			return tx.SetDropped(testPath(1).Hash, test.dropped, testTime)
		})
		before := int64(-1)
		found, _, err := x.Lacking(t.Context(), &before, 10)
		count, countErr := x.CountLacking(t.Context())
		if lacks := len(found) > 0; err != nil || countErr != nil || lacks != test.lacks || count > 0 != test.lacks {
			t.Errorf("stored %b, dropped %b: lacks %v, %d, want %v; %v, %v", test.stored, test.dropped, lacks, count, test.lacks, err, countErr)
		}
	}
}

// TestBoundDropped: a deletion that a wrong clock has put off for years is near again.
func TestBoundDropped(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10, 20))
	now := testTime.Add(time.Hour)
	setDropped(t, x, 1, 0b10, now.AddDate(10, 0, 0))
	if bounded, err := x.BoundTimes(t.Context(), now); err != nil || bounded != 1 {
		t.Errorf("%d, %v", bounded, err)
	}
	item, err := x.Item(t.Context(), testPath(1).Hash)
	if err != nil || item.DropAfter.Before(now.Add(narinfo.UnadvertisedTTL)) || item.DropAfter.After(now.Add(narinfo.UnadvertisedTTL+time.Hour)) {
		t.Errorf("%v, %v", item.DropAfter, err)
	}
}
