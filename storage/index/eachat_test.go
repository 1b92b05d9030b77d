package index

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// TestEachAt: only one item is in memory at a time, and a damaged one doesn't end the
// iteration. The test can't run in parallel, because it measures the memory of the process.
func TestEachAt(t *testing.T) {
	const count, each = 48, 1 << 20
	x := openTest(t)
	var hashes []narinfo.PathHash
	for n := range count {
		text := string(testNarinfo(n, 1, nil, 10).Text) + strings.Repeat("# "+strings.Repeat("x", 1021)+"\n", each/1024)
		info, err := narinfo.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		put(t, x, info)
		hashes = append(hashes, info.StorePath.Hash)
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("UPDATE narinfos SET checksum = checksum + 1 WHERE id = 2") })
	hashes = append(hashes, testPath(count).Hash)
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, seen := held(), ""
	err := x.EachAt(t.Context(), hashes, func(i int, item *Item, err error) error {
		switch {
		case err != nil:
			seen += fmt.Sprint(i, " is damaged ")
		case item == nil:
			seen += fmt.Sprint(i, " is missing ")
		case item.Hash != hashes[i]:
			t.Errorf("%d is %s", i, item.Hash)
		}
		if i == count-1 {
			if now := held(); now > before+count*each/2 {
				t.Errorf("%d MiB are in use", (now-before)>>20)
			}
		}
		return nil
	})
	if want := fmt.Sprint("1 is damaged ", count, " is missing "); err != nil || seen != want {
		t.Errorf("%q, %v", seen, err)
	}
}
