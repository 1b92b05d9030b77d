package search

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzSearch compares the results of any query with those of a slice.
func FuzzSearch(f *testing.F) {
	x := openIndex(f, filepath.Join(f.TempDir(), "index.db"))
	s := newTest(f, x)
	var items []model
	names := random(rand.New(rand.NewPCG(1, 1)), 120)
	put(f, x, 0, names...)
	for n, name := range names {
		items = append(items, model{n, name})
	}
	// Some are in the file, others in memory.
	follow(f, s)
	put(f, x, len(names), "na-1", "late-2.0")
	items = append(items, model{len(names), "na-1"}, model{len(names) + 1, "late-2.0"})
	follow(f, s)
	if s.table == nil || s.recent.items == 0 {
		f.Fatal("not all parts of the index are used")
	}
	for _, text := range []string{
		"", "a", "lib 1", "n-1", "python@1", "N A", "% _ ' \" *", "a\x00", "/gnu/store/", testHash(3).String(), testHash(4).String()[:6],
		"/gnu/store/" + testHash(5).String() + "-x/y", strings.Repeat("a ", 128), strings.Repeat("x", 300), "\xff", " ",
	} {
		f.Add(text, uint8(3))
	}
	f.Fuzz(func(t *testing.T, text string, limit uint8) {
		q, err := ParseQuery(text)
		if (err != nil) != (len(text) > MaxQuery) {
			t.Fatalf("%q: %v", text, err)
		}
		if err == nil && q.IsEmpty() != (len(strings.Fields(text)) == 0 || strings.TrimSpace(text) == "/gnu/store/") {
			t.Fatalf("%q: empty %v", text, q.IsEmpty())
		}
		if err == nil {
			wantLikeNaive(t, s, items, text, 1+int(limit))
		}
	})
}

// FuzzOrder: the order of names is total, and only equal names are equal.
func FuzzOrder(f *testing.F) {
	f.Add("python-3.9", "python-3.10", "python-3.10-doc")
	f.Add("a-1.2", "a-1.2.1", "a-1.2a")
	f.Add("a-01", "a-1", "a-1-1")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		compare := func(a, b string) int { return compareNames([]byte(a), []byte(b)) }
		if (compare(a, b) == 0) != (a == b) {
			t.Errorf("%q and %q: %d", a, b, compare(a, b))
		}
		if compare(a, b) != -compare(b, a) {
			t.Errorf("%q and %q: %d and %d", a, b, compare(a, b), compare(b, a))
		}
		if compare(a, b) < 0 && compare(b, c) < 0 && compare(a, c) >= 0 {
			t.Errorf("%q, %q and %q are in a circle", a, b, c)
		}
	})
}

// FuzzTable: any content of a block is read without a panic.
func FuzzTable(f *testing.F) {
	f.Add([]byte("a\nb\n"), []byte{1, 6, 2, 12}, []byte{5, 0, 0, 0, 0, 0})
	f.Add([]byte("a"), []byte{1}, []byte{})
	f.Add([]byte("a\n"), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1}, []byte{1})
	f.Add([]byte("a\n"), []byte{2, 13}, []byte{0x85, 1, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 5})
	f.Add([]byte("a\n"), []byte{1, 17}, append(bytes.Repeat([]byte{0x80}, 11), 1, 9, 9, 9, 9, 9))
	f.Fuzz(func(t *testing.T, text, counts, postings []byte) {
		e := entries{text: text, counts: counts}
		for {
			more, err := e.next()
			if err != nil || !more {
				return
			}
			found, err := e.unpack(nil, postings)
			for _, start := range []uint64{0, 0x0102} {
				const shift = 24
				wanted := slices.ContainsFunc(found, func(p posting) bool { return p.start>>shift == start })
				if (wanted || err != nil) && !e.hasStart(start, shift, postings) {
					t.Errorf("%q of %x has no start %#x, want %v (%v)", e.name, postings, start, wanted, err)
				}
			}
			if err != nil {
				return
			}
		}
	})
}
