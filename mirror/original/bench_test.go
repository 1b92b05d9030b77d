package original

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// generated returns the narinfo of the Nth of many items, as guix publish writes it, with
// ten references.
func generated(n int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	hash := func(size int) string {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return narinfo.EncodeBase32(b)
	}
	item := hash(20) + fmt.Sprintf("-package-%d", n)
	text := "StorePath: /gnu/store/" + item + "\nNarHash: sha256:" + hash(32) + "\nNarSize: 123456\nReferences:"
	for range 10 {
		text += " " + hash(20) + "-library-1.2.3"
	}
	text += "\nSystem: x86_64-linux\nDeriver: " + hash(20) + "-package.drv\nSignature: 1;example.org;" + hash(400)
	for _, c := range []string{"lzip", "zstd"} {
		text += "\nURL: nar/" + c + "/" + item + "\nCompression: " + c + "\nFileSize: " + strconv.Itoa(1000+n)
	}
	return []byte(text + "\n")
}

// BenchmarkWriter writes databases of NAR_HERDER_ITEMS narinfos, and reads them.
func BenchmarkWriter(b *testing.B) {
	items, err := strconv.Atoi(os.Getenv("NAR_HERDER_ITEMS"))
	if err != nil {
		items = 20_000
	}
	texts := make([][]byte, items)
	for i := range texts {
		texts[i] = generated(i)
	}
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "dump.db")
		start := time.Now()
		w, err := Create(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		for _, text := range texts {
			if err := w.Add(Item{Text: text, AddedAt: start, Tags: []Tag{{"a", "b"}}}); err != nil {
				b.Fatal(err)
			}
		}
		added := time.Since(start)
		if err := w.Finish(b.Context()); err != nil {
			b.Fatal(err)
		}
		written := time.Since(start)
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		d, err := Open(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		for _, err := range d.Items(b.Context(), FromStart) {
			if err != nil {
				b.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(items)/added.Seconds(), "added/s")
		b.ReportMetric(float64(items)/written.Seconds(), "written/s")
		b.ReportMetric(float64(items)/time.Since(start).Seconds(), "read/s")
		b.ReportMetric(float64(info.Size())/float64(items), "B/item")
	}
}
