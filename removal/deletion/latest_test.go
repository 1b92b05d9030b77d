package deletion

import (
	"fmt"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// TestLatest: the newest items are kept, the newest first.
func TestLatest(t *testing.T) {
	t.Parallel()
	var l Latest
	added := 0
	for _, count := range []int{0, 1, 3, 25, 2} {
		var items []*storage.Item
		for range count {
			base := fmt.Sprintf("%032d-item", added)
			item, err := storage.NewItem(&index.Item{Text: fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 1\nReferences: \nURL: nar/x\nCompression: none\n", base, 0)})
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, item)
			added++
		}
		at := time.Unix(int64(added), 0)
		l.Add(at, items...)
		got := l.Items()
		if len(got) != min(added, maxLatest) {
			t.Errorf("%d of %d", len(got), added)
		}
		for i, one := range got {
			path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-item", added-1-i))
			if err != nil || one.Path != path || i < count && !one.At.Equal(at) {
				t.Errorf("%d: %+v, %v", i, one, err)
			}
		}
	}
}
