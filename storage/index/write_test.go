package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

func TestPutAndRead(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		narinfo *narinfo.Narinfo
		stored  uint64
		sizes   []int64
		totals  Totals
	}{
		{"all stored", testNarinfo(1, 1, []int{1, 2}, 10, 20, 30), 0b111, nil, Totals{1, 3, 60}},
		{"some stored", testNarinfo(1, 1, []int{2}, 10, 20, 30), 0b101, nil, Totals{1, 2, 40}},
		{"none stored", testNarinfo(1, 1, nil, 10), 0, nil, Totals{1, 0, 0}},
		{"without FileSize", testNarinfo(1, 1, nil, -1, -1), 0b10, []int64{-1, 77}, Totals{1, 1, 77}},
		{"empty file", testNarinfo(1, 1, nil, 0), 1, nil, Totals{1, 1, 0}},
		{"large file", testNarinfo(1, 1, nil, 1<<50), 1, nil, Totals{1, 1, 1 << 50}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := openTest(t)
			hash := test.narinfo.StorePath.Hash
			if _, err := x.Item(t.Context(), hash); err != ErrNotFound {
				t.Errorf("Item before: %v, want ErrNotFound", err)
			}
			if _, err := x.Text(t.Context(), hash); err != ErrNotFound {
				t.Errorf("Text before: %v, want ErrNotFound", err)
			}
			update(t, x, func(tx *Tx) error { return putIn(tx, x, test.narinfo, test.stored, test.sizes) })
			item, err := x.Item(t.Context(), hash)
			if err != nil {
				t.Fatal(err)
			}
			text, err := x.Text(t.Context(), hash)
			if err != nil || !bytes.Equal(text, test.narinfo.Text) || !bytes.Equal(item.Text, text) {
				t.Errorf("text is %q and %q, %v", text, item.Text, err)
			}
			if item.Hash != hash || !item.AddedAt.Equal(testTime.Truncate(time.Second)) || item.Stored != test.stored || !slices.Equal(item.Sizes, test.sizes) {
				t.Errorf("item is %+v", item)
			}
			for n := range 70 {
				if got, want := item.HasStored(n), n < 64 && test.stored>>n&1 == 1; got != want {
					t.Errorf("HasStored(%d) is %v", n, got)
				}
			}
			if all := items(t, x); len(all) != 1 || all[0].Hash != hash || !bytes.Equal(all[0].Text, text) {
				t.Errorf("Items gives %v", all)
			}
			wantTotals(t, x, test.totals)
			update(t, x, func(tx *Tx) error { return tx.Remove(hash, testTime) })
			if _, err := x.Text(t.Context(), hash); err != ErrNotFound {
				t.Errorf("Text after removal: %v, want ErrNotFound", err)
			}
			wantTotals(t, x, Totals{})
			wantSound(t, x)
		})
	}
}

// TestTextIsTheCallers: a caller may modify a text.
func TestTextIsTheCallers(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 1)
	put(t, x, n)
	for range 3 {
		text, err := x.Text(t.Context(), n.StorePath.Hash)
		if err != nil || !bytes.Equal(text, n.Text) {
			t.Fatalf("%q, %v", text, err)
		}
		clear(text[:cap(text)])
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	first := testNarinfo(1, 1, []int{2, 3}, 10, 20)
	put(t, x, testNarinfo(0, 1, []int{1}, 5))
	put(t, x, first)
	update(t, x, func(tx *Tx) error { return tx.AddTags(first.StorePath.Hash, []Tag{{"k", "v"}}) })
	put(t, x, testNarinfo(9, 1, []int{1}, 5))

	second := testNarinfo(1, 2, []int{3, 4}, 1000)
	update(t, x, func(tx *Tx) error {
		old, err := tx.Item(second.StorePath.Hash)
		if err != nil {
			return err
		}
		entry := x.Prepare(second)
		entry.AddedAt, entry.Stored = testTime.Add(time.Hour), 1
		return tx.Put(entry, old)
	})
	item, err := x.Item(t.Context(), second.StorePath.Hash)
	if err != nil || !bytes.Equal(item.Text, second.Text) || !item.AddedAt.Equal(testTime.Truncate(time.Second)) {
		t.Errorf("item is %+v, %v; want the new text and the old time", item, err)
	}
	wantTotals(t, x, Totals{3, 3, 1010})
	for target, want := range map[int][]int{1: {0, 9}, 2: {}, 3: {1}, 4: {1}} {
		if got := referrers(t, x, target, 10); !slices.Equal(got, want) {
			t.Errorf("referrers of %d are %v, want %v", target, got, want)
		}
	}
	if tags, err := x.Tags(t.Context(), second.StorePath.Hash); err != nil || len(tags) != 1 {
		t.Errorf("tags are %v, %v; want them to stay", tags, err)
	}
	// It keeps its position.
	if all := items(t, x); len(all) != 3 || all[1].Hash != second.StorePath.Hash {
		t.Errorf("Items gives %v", all)
	}
	wantSound(t, x)
}

func TestSetStored(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 10, 20)
	put(t, x, n)
	hash := n.StorePath.Hash
	for _, test := range []struct {
		stored uint64
		totals Totals
	}{{0b01, Totals{1, 1, 10}}, {0, Totals{1, 0, 0}}, {0b10, Totals{1, 1, 20}}, {0b11, Totals{1, 2, 30}}} {
		update(t, x, func(tx *Tx) error { return tx.SetStored(hash, test.stored, nil, time.Time{}) })
		wantTotals(t, x, test.totals)
		if item, err := x.Item(t.Context(), hash); err != nil || item.Stored != test.stored || !bytes.Equal(item.Text, n.Text) {
			t.Errorf("item is %+v, %v", item, err)
		}
	}
	err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetStored(testPath(2).Hash, 1, nil, time.Time{}) })
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("SetStored of an unknown item: %v, want ErrNotFound", err)
	}
	// A file of unknown size can't be counted.
	unsized := testNarinfo(3, 1, nil, -1)
	for _, sizes := range [][]int64{nil, {}, {-1}} {
		err := x.Update(t.Context(), func(tx *Tx) error { return putIn(tx, x, unsized, 1, sizes) })
		if err == nil {
			t.Errorf("stored without a size: sizes %v were accepted", sizes)
		}
	}
	wantTotals(t, x, Totals{1, 2, 30})
	wantSound(t, x)
}

func TestTags(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	odd := Tag{"a=b c", "'; DROP TABLE items; --\x00ü"}
	tags := [][]Tag{
		{},
		{{"job", "1"}},
		{{"job", "2"}, {"job", "1"}},
		{{"job", "1"}, {"unit", "1"}, odd},
		{{"", ""}},
	}
	for n := range tags {
		put(t, x, testNarinfo(n, 1, nil, 1))
		for range 2 { // the second time is not an error
			update(t, x, func(tx *Tx) error { return tx.AddTags(testPath(n).Hash, tags[n]) })
		}
		want := slices.Clone(tags[n])
		slices.SortFunc(want, func(a, b Tag) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
		if got, err := x.Tags(t.Context(), testPath(n).Hash); err != nil || !slices.Equal(got, want) {
			t.Errorf("tags of %d are %q, %v; want %q", n, got, err, want)
		}
	}
	for _, test := range []struct {
		tags []Tag
		want []int
	}{
		{nil, []int{0, 1, 2, 3, 4}},
		{[]Tag{{"job", "1"}}, []int{1, 2, 3}},
		{[]Tag{{"job", "1"}, {"job", "1"}}, []int{1, 2, 3}},
		{[]Tag{{"job", "1"}, {"job", "2"}}, []int{2}},
		{[]Tag{{"unit", "1"}, {"job", "2"}}, []int{}},
		{[]Tag{{"job", "3"}}, []int{}},
		{[]Tag{odd}, []int{3}},
		{[]Tag{{"", ""}}, []int{4}},
		{[]Tag{{"JOB", "1"}}, []int{}},
	} {
		got := []int{}
		for _, item := range items(t, x, test.tags...) {
			got = append(got, numbers(t, []narinfo.PathHash{item.Hash}, len(tags))...)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("items with %q are %v, want %v", test.tags, got, test.want)
		}
	}
	if err := x.Update(t.Context(), func(tx *Tx) error { return tx.AddTags(testPath(99).Hash, tags[1]) }); err == nil {
		t.Error("an unknown item was given tags")
	}
	if tags, err := x.Tags(t.Context(), testPath(99).Hash); err != nil || len(tags) != 0 {
		t.Errorf("tags of an unknown item are %v, %v", tags, err)
	}
	// An item that is added again has none.
	update(t, x, func(tx *Tx) error { return tx.Remove(testPath(3).Hash, testTime) })
	put(t, x, testNarinfo(3, 1, nil, 1))
	if tags, err := x.Tags(t.Context(), testPath(3).Hash); err != nil || len(tags) != 0 {
		t.Errorf("tags of an item that was removed are %v, %v", tags, err)
	}
	wantSound(t, x)
}

// TestRolledBack: a failed transaction changes nothing, neither in the database nor in
// memory.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(0, 1, []int{1}, 10))
	watcher := watch(t, x)
	failure := errors.New("no")
	doAll := func(tx *Tx) error {
		// It would merge with more than one run.
		for n := 1; n < 50; n++ {
			if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n - 1, 100 + n}, 10), 1, nil); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.AddTags(testPath(0).Hash, []Tag{{"new", "tag"}}),
			putIn(tx, x, testNarinfo(0, 2, []int{2}, 99), 1, nil),
			tx.SetStored(testPath(1).Hash, 0, nil, time.Time{}),
			tx.Remove(testPath(2).Hash, testTime))
	}
	for name, fail := range map[string]func(*Tx) error{
		"error":    func(tx *Tx) error { return errors.Join(doAll(tx), failure) },
		"panic":    func(tx *Tx) error { _ = doAll(tx); panic(failure) },
		"bad SQL":  func(tx *Tx) error { return errors.Join(doAll(tx), tx.conn.exec("INSERT INTO items VALUES (1)")) },
		"rollback": func(tx *Tx) error { return errors.Join(doAll(tx), tx.conn.exec("ROLLBACK"), failure) },
	} {
		err := func() (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = p.(error)
				}
			}()
			return x.Update(t.Context(), fail)
		}()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		wantTotals(t, x, Totals{1, 1, 10})
		if item, err := x.Item(t.Context(), testPath(0).Hash); err != nil || !bytes.Contains(item.Text, []byte("Version: 1")) {
			t.Errorf("%s: item is %+v, %v", name, item, err)
		}
		if got := referrers(t, x, 0, 50); len(got) != 0 {
			t.Errorf("%s: referrers are %v", name, got)
		}
		if changes, complete, err := watcher.Poll(); err != nil || !complete || len(changes) != 0 {
			t.Errorf("%s: changes are %v, %v, %v", name, changes, complete, err)
		}
		missing, err := x.MissingReferences(t.Context(), testNarinfo(60, 1, []int{0, 1, 2}, 1))
		if err != nil || len(missing) != 2 {
			t.Errorf("%s: missing are %v, %v", name, missing, err)
		}
	}
	// The same transaction succeeds afterwards.
	update(t, x, doAll)
	if got := referrers(t, x, 0, 50); len(got) != 48 {
		t.Errorf("referrers are %v, want all but 0 and 2", got)
	}
	wantTotals(t, x, Totals{49, 48, 470 + 99})
	wantSound(t, x)
}

// TestSharedFirstBits: of two items with the same key, the second is refused, and not found
// instead of the first.
func TestSharedFirstBits(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, []int{1}, 1)
	put(t, x, n)
	twin := n.StorePath
	twin.Hash[15] ^= 1
	other, err := narinfo.Parse(bytes.ReplaceAll(n.Text, []byte(n.StorePath.BaseName()), []byte(twin.BaseName())))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Update(t.Context(), func(tx *Tx) error { return putIn(tx, x, other, 1, nil) }); err == nil {
		t.Error("the twin was accepted")
	} else if !bytes.Contains([]byte(err.Error()), []byte(twin.Hash.String())) {
		t.Errorf("the error %q does not name the item", err)
	}
	if _, err := x.Text(t.Context(), twin.Hash); err != ErrNotFound {
		t.Errorf("Text of the twin: %v, want ErrNotFound", err)
	}
	if _, err := x.Item(t.Context(), twin.Hash); err != ErrNotFound {
		t.Errorf("Item of the twin: %v, want ErrNotFound", err)
	}
	for what, change := range map[string]func(*Tx) error{
		"remove": func(tx *Tx) error { return tx.Remove(twin.Hash, testTime) },
		"store":  func(tx *Tx) error { return tx.SetStored(twin.Hash, 0, nil, time.Time{}) },
		"tag":    func(tx *Tx) error { return tx.AddTags(twin.Hash, []Tag{{"k", "v"}}) },
	} {
		if err := x.Update(t.Context(), change); err == nil {
			t.Errorf("%s: the twin is known", what)
		}
	}
	if tags, err := x.Tags(t.Context(), n.StorePath.Hash); err != nil || len(tags) != 0 {
		t.Errorf("tags are %v, %v", tags, err)
	}
	if missing, err := x.MissingReferences(t.Context(), other); err != nil || len(missing) != 1 {
		t.Errorf("missing are %v, %v; want the twin", missing, err)
	}
	wantTotals(t, x, Totals{1, 1, 1})
}

func TestUpdateCancelled(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Update(ctx, func(*Tx) error { return fmt.Errorf("called") }); !errors.Is(err, context.Canceled) {
		t.Errorf("Update: %v, want context.Canceled", err)
	}
	put(t, x, testNarinfo(1, 1, nil, 1))
}

func TestMissing(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := 0; n < 200; n += 2 {
		put(t, x, testNarinfo(n, 1, nil, 1))
	}
	var paths, want []narinfo.StorePath
	for n := range 200 {
		paths = append(paths, testPath(n))
		if n%2 == 1 {
			want = append(want, testPath(n))
		}
	}
	update(t, x, func(tx *Tx) error {
		got, err := tx.Missing(paths)
		if !slices.Equal(got, want) {
			t.Errorf("%d are missing, want %d", len(got), len(want))
		}
		none, noneErr := tx.Missing(nil)
		if len(none) != 0 {
			t.Errorf("of none, %v are missing", none)
		}
		return errors.Join(err, noneErr)
	})
}

// TestPutRefused: a database error is not mistaken for a collision of keys.
func TestPutRefused(t *testing.T) {
	t.Parallel()
	const collision = "first 64 bits"
	x := openTest(t)
	first, second := testNarinfo(1, 1, nil, 10), testNarinfo(2, 1, nil, 10)
	twin := *second
	twin.StorePath.Hash = first.StorePath.Hash
	twin.StorePath.Hash[len(twin.StorePath.Hash)-1]++
	update(t, x, func(tx *Tx) error { return putIn(tx, x, first, 0, nil) })
	err := x.Update(t.Context(), func(tx *Tx) error { return tx.Put(x.Prepare(&twin), nil) })
	if err == nil || !strings.Contains(err.Error(), collision) {
		t.Errorf("a twin: %v", err)
	}
	done, err := x.write(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = x.writer.script("CREATE TEMP TRIGGER refuse BEFORE INSERT ON main.items BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END")
	done()
	if err != nil {
		t.Fatal(err)
	}
	err = x.Update(t.Context(), func(tx *Tx) error { return tx.Put(x.Prepare(second), nil) })
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") || strings.Contains(err.Error(), collision) {
		t.Errorf("another failure: %v", err)
	}
}
