package original

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
)

// TestTagMemory: the tags of a page are bounded in bytes. It measures the memory of the
// process, so it does not run in parallel.
func TestTagMemory(t *testing.T) {
	const items, tags, most = 40, maxTags, 64 << 20 // 320 MB in all
	for name, table := range map[string]string{
		"tags": fmt.Sprintf(`INSERT INTO tags VALUES (1, '%0*d', '%0*d');
			WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < %d) INSERT INTO narinfo_tags SELECT narinfos.id, 1 FROM r, narinfos`, maxTag, 1, maxTag, 2, tags),
		"cached": fmt.Sprintf(`WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < %d)
			INSERT INTO cached_narinfo_files SELECT NULL, narinfos.id, 5, '%0*d' FROM r, narinfos`, tags, maxTag, 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "made.db")
			execute(t, path, tables, fmt.Sprintf(`WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < %d)
				INSERT INTO narinfos SELECT n, 'p' || n, 'h', 1, NULL, NULL, 't', '2024-01-02 03:04:05' FROM r`, items), table)
			d, err := Open(t.Context(), path)
			must(t, err)
			defer d.Close()
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			before := m.HeapAlloc
			count := 0
			for item, err := range d.Items(t.Context(), FromStart) {
				if count++; count == 1 {
					runtime.GC()
					runtime.ReadMemStats(&m)
				}
				if err == nil && len(item.Tags)+len(item.Cached) == tags {
					t.Error("everything is read")
				}
			}
			if count < items {
				t.Errorf("%d items", count)
			}
			if m.HeapAlloc > before+most {
				t.Errorf("%d MiB are held", (m.HeapAlloc-before)>>20)
			}
		})
	}
}
