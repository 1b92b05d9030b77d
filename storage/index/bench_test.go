package index

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"nar-herder/narinfo"
)

// benchmarkIndex creates an index of narinfos that are as long as those of a build farm.
func benchmarkIndex(b *testing.B, count int) (*Index, []*narinfo.Narinfo) {
	b.Helper()
	x := openTest(b)
	parsed := make([]*narinfo.Narinfo, count)
	for i, text := range sampleNarinfos(b, count) {
		n, err := narinfo.Parse(text)
		if err != nil {
			b.Fatal(err)
		}
		parsed[i] = n
	}
	return x, parsed
}

// BenchmarkText looks up texts in random order.
func BenchmarkText(b *testing.B) {
	x, parsed := benchmarkIndex(b, 10_000)
	update(b, x, func(tx *Tx) error {
		for _, n := range parsed {
			if err := putIn(tx, x, n, 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	b.Run("known", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := x.Text(context.Background(), parsed[rand.IntN(len(parsed))].StorePath.Hash); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("unknown", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := x.Text(context.Background(), testPath(i).Hash); err != ErrNotFound {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPut writes narinfos in transactions of several sizes.
func BenchmarkPut(b *testing.B) {
	for _, batch := range []int{1, 100, 5000} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			x, parsed := benchmarkIndex(b, 5000)
			b.ResetTimer()
			for done := 0; done < b.N; done += batch {
				update(b, x, func(tx *Tx) error {
					for i := done; i < min(b.N, done+batch); i++ {
						if err := putIn(tx, x, parsed[i%len(parsed)], 1, nil); err != nil {
							return err
						}
					}
					return nil
				})
			}
		})
	}
}

// BenchmarkEachAt looks up 250 items that are unknown, and 250 that are known, in random order.
func BenchmarkEachAt(b *testing.B) {
	x, parsed := benchmarkIndex(b, 10_000)
	update(b, x, func(tx *Tx) error {
		for _, n := range parsed {
			if err := putIn(tx, x, n, 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	for _, name := range []string{"unknown", "known"} {
		b.Run(name, func(b *testing.B) {
			hashes := make([]narinfo.PathHash, 250)
			for b.Loop() {
				for i := range hashes {
					hashes[i] = parsed[rand.IntN(len(parsed))].StorePath.Hash
					if name == "unknown" {
						hashes[i] = testPath(rand.Int()).Hash
					}
				}
				if err := x.EachAt(context.Background(), hashes, func(int, *Item, error) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
