package convert

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// BenchmarkConvert converts databases of NAR_HERDER_ITEMS narinfos, both ways.
func BenchmarkConvert(b *testing.B) {
	items, err := strconv.Atoi(os.Getenv("NAR_HERDER_ITEMS"))
	if err != nil {
		items = 20_000
	}
	from := filepath.Join(b.TempDir(), "from.db")
	makeOriginal(b, from, items)
	for b.Loop() {
		dir := b.TempDir()
		start := time.Now()
		if _, err := Convert(b.Context(), from, filepath.Join(dir, "index.db"), Options{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(items)/time.Since(start).Seconds(), "to-index/s")
		start = time.Now()
		if _, err := Convert(b.Context(), filepath.Join(dir, "index.db"), filepath.Join(dir, "back.db"), Options{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(items)/time.Since(start).Seconds(), "to-original/s")
	}
}
