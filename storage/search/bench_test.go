package search

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"nar-herder/storage/index"
)

// BenchmarkFind searches a million items with 200,000 names, and with a name each.
func BenchmarkFind(b *testing.B) {
	for _, names := range []int{200_000, 1_000_000} {
		s := New(openIndex(b, filepath.Join(b.TempDir(), "index.db")), nil)
		r := rand.New(rand.NewPCG(1, 1))
		parts := []string{"python", "lib", "emacs", "rust", "xml", "http", "core", "data", "net", "kit", "tool", "parser", "async", "server"}
		for n := range 1_000_000 {
			n, m := n, n%names
			part := func(divisor int) string { return parts[m/divisor%len(parts)] }
			name := fmt.Sprintf("%s-%s%s-%d.%d.%d", part(1), part(14), part(196), m/2744%30, m/80_000%20, m%7)
			s.recent.add(index.Named{Name: name, Hash: testHash(int(r.Uint32())), Position: int64(n + 1)})
		}
		s.covered = 1_000_000
		s.limits.rest = 0
		if err := s.write(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		b.Logf("%d names: %d bytes", names, s.table.size)
		for _, text := range []string{"python", "e", "-. . - .", "python-xmlkit-3.2.1", "no-such", "server data 2", "abcdf"} {
			q := query(b, text)
			b.Run(fmt.Sprintf("%d/%s", names, text), func(b *testing.B) {
				for b.Loop() {
					if _, err := s.find(b.Context(), &q, nil, 50); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
