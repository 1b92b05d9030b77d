package bootstrap

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// farmText returns a narinfo as long as a build farm's, with references to earlier items.
func farmText(random *rand.Rand, before []string) (base string, text []byte) {
	draw := func(alphabet string, n int) string {
		text := make([]byte, n)
		for i := range text {
			text[i] = alphabet[random.IntN(len(alphabet))]
		}
		return string(text)
	}
	const base32, hex = "0123456789abcdfghijklmnpqrsvwxyz", "0123456789ABCDEF"
	name := draw("abcdeio", 4+random.IntN(12)) + fmt.Sprintf("-%d.%d", random.IntN(10), random.IntN(30))
	base = draw(base32, 32) + "-" + name
	references := []string{base}
	for range min(len(before), int(8+random.ExpFloat64()*15)) {
		references = append(references, before[len(before)-1-int(float64(len(before))*random.Float64()*random.Float64())])
	}
	slices.Sort(references)
	signature := fmt.Sprintf("(signature \n (data \n  (flags rfc6979)\n  (hash sha256 #%s#)\n  )\n (sig-val \n  (ecdsa \n   (r #0%s#)\n   (s #0%s#)\n   )\n  )\n (public-key \n  (ecc \n   (curve Ed25519)\n   (q #%s#)\n   )\n  )\n )\n",
		draw(hex, 64), draw(hex, 63), draw(hex, 63), strings.Repeat("8D156F295D24B0D9", 4))
	return base, fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: sha256:%s\nNarSize: %d\nReferences: %s\nSystem: x86_64-linux\nDeriver: %s-%s.drv\nSignature: 1;farm.example.org;%s\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\n",
		base, "0"+draw(base32, 51), random.IntN(1<<30), strings.Join(slices.Compact(references), " "), draw(base32, 32), name,
		base64.StdEncoding.EncodeToString([]byte(signature)), base, random.IntN(1<<28))
}

// BenchmarkFromIndex builds indexes from a copy with 100,000 items.
func BenchmarkFromIndex(b *testing.B) {
	const items = 100_000
	directory := b.TempDir()
	x, err := index.Open(b.Context(), filepath.Join(directory, "source.db"), index.Options{Bulk: true})
	if err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	bases := make([]string, 0, items)
	for len(bases) < items {
		err := x.Update(b.Context(), func(tx *index.Tx) error {
			for range 5000 {
				base, text := farmText(random, bases)
				bases = append(bases, base)
				n, err := narinfo.Parse(text)
				if err != nil {
					return err
				}
				entry := x.Prepare(n)
				entry.AddedAt, entry.Unlogged = time.Unix(int64(len(bases)), 0), true
				if err := tx.Put(entry, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	copied := filepath.Join(directory, "copy.db")
	if _, err := x.Copy(b.Context(), copied, time.Now(), 0); err != nil {
		b.Fatal(err)
	}
	if err := x.Close(); err != nil {
		b.Fatal(err)
	}
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	builds := 0
	for b.Loop() {
		build := &build{log: slog.New(slog.DiscardHandler), doing: func(string) {}, now: time.Now(), fallback: time.Now()}
		if err := build.fromIndex(b.Context(), filepath.Join(directory, "built.db"), os.DirFS(directory), filepath.Base(copied)); err != nil {
			b.Fatal(err)
		}
		builds++
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(builds*items), "µs/item")
	b.ReportMetric(float64(cpu)/1000/float64(builds*items), "cpu-µs/item")
	b.ReportMetric(0, "ns/op")
}

// TestLongRows: rows that are prepared ahead are bounded in bytes.
func TestLongRows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		read := 0
		rows := func(yield func(int, error) bool) {
			for read = range 2000 {
				if !yield(read, nil) {
					return
				}
			}
		}
		hold, odd := make(chan struct{}), errors.New("odd")
		done := make(chan error)
		go func() {
			b := &build{log: slog.New(slog.DiscardHandler), doing: func(string) {}, count: 1 << 30}
			done <- run(t.Context(), b, nil, rows, func(int) int { return 1 << 20 }, func(int) (index.Row, error) {
				<-hold
				return index.Row{}, odd
			})
		}()
		synctest.Wait()
		if most := (lotsAhead + runtime.GOMAXPROCS(0) + 3) * lotBytes >> 20; read > most {
			t.Errorf("%d MiB of rows were read ahead, want %d at the most", read, most)
		}
		close(hold)
		if err := <-done; err != nil || read != 1999 {
			t.Errorf("%d rows, %v", read+1, err)
		}
	})
}
