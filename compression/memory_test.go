package compression

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// held returns the live memory of the process, in bytes.
func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// compressed compresses data with all kinds of windows, except with the programs of some
// compressions.
func compressed(t *testing.T, data []byte, except []string, yield func(name string, args []string, z []byte)) {
	for _, c := range [][]string{
		{Gzip}, {Bzip2, "-1"}, {Bzip2, "-9"},
		{Xz, "-0"}, {Xz, "--lzma2=preset=0,dict=64MiB"},
		{Lzip, "-0"}, {Lzip, "-0", "-s1MiB"}, {Lzip, "-0", "-s32MiB"},
		{Zstd, "-1"}, {Zstd, "-3"}, {Zstd, "-1", "--long=24"}, {Zstd, "-1", "--long=27"},
	} {
		if slices.Contains(except, c[0]) {
			continue
		}
		yield(c[0], c[1:], filter(t, data, programs[c[0]], append(c[1:], "-c")...))
	}
}

// TestMemory compares Memory with the allocated memory, at several positions in the data.
func TestMemory(t *testing.T) {
	defer drainPool() // idle decoders don't count
	for _, size := range []int{1000, 300 << 10, 17 << 20} {
		data := sample(min(size, 1<<20))
		for len(data) < size {
			data = append(data, data[:min(len(data), size-len(data))]...)
		}
		var except []string
		if size > 1<<20 {
			except = []string{Gzip, Bzip2} // as much as for less data, and slow to make
		}
		compressed(t, data, except, func(name string, args []string, z []byte) {
			drainPool()
			limit := Memory(name, z[:min(len(z), HeadBytes)], int64(size))
			piece := make([]byte, 64<<10)
			before := held()
			r, err := NewReaderWithin(name, bytes.NewReader(z), limit)
			if err != nil {
				t.Fatal(name, args, err)
			}
			var most int64
			for at, next := 0, 0; err != io.EOF; {
				var n int
				if n, err = r.Read(piece); err != nil && err != io.EOF {
					t.Fatalf("%s %s, %d bytes: %v", name, args, size, err)
				}
				if at += n; at >= next || err == io.EOF {
					most = max(most, held()-before)
					next = max(4*at, 1)
				}
			}
			r.Close()
			runtime.KeepAlive(z)
			if most > limit {
				t.Errorf("%s %s: %d bytes of data hold %d bytes, Memory says %d", name, args, size, most, limit)
			}
			if limit > MaxMemory(name) {
				t.Errorf("%s %s: Memory says %d, above MaxMemory, %d", name, args, limit, MaxMemory(name))
			}
			if size > 16<<20 && most < limit/2 {
				t.Errorf("%s %s: Memory says %d, although only %d bytes are held", name, args, limit, most)
			}
		})
	}
}

func drainPool() {
	for range 2 {
		runtime.GC()
	}
}

// TestMemoryWithin: a second stream that needs more than the first is refused before its
// window is allocated.
func TestMemoryWithin(t *testing.T) {
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	compressed(t, data, []string{Gzip, Bzip2}, func(name string, args []string, small []byte) {
		first := encodeTiny(t, name)
		file := append(bytes.Clone(first), small...)
		limit := Memory(name, first[:min(len(first), HeadBytes)], 10)
		if limit >= Memory(name, small[:HeadBytes], int64(len(data))) {
			return // the second needs no more
		}
		before := held()
		r, err := NewReaderWithin(name, bytes.NewReader(file), limit)
		if err == nil {
			_, err = io.ReadAll(struct{ io.Reader }{r})
			r.Close()
		}
		if !errors.Is(err, ErrTooLarge) || !Refused(err) {
			t.Errorf("%s %s: a larger stream behind a small one: %v", name, args, err)
		}
		if now := held() - before; now > 3*limit {
			t.Errorf("%s %s: %d bytes are held, %d were allowed", name, args, now, limit)
		}
		r, err = NewReaderWithin(name, bytes.NewReader(file), MaxMemory(name))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got[10:], data) {
			t.Errorf("%s %s: with all memory: %d bytes, %v", name, args, len(got), err)
		}
	})
}

// encodeTiny makes a stream of ten bytes with the smallest window.
func encodeTiny(t *testing.T, name string) []byte {
	args := map[string][]string{Xz: {"--lzma2=preset=0,dict=4KiB"}, Lzip: {"-s4KiB"}, Zstd: {"-1"}}[name]
	return filter(t, []byte("ten bytes!"), programs[name], append(args, "-c")...)
}

// TestMemoryOfDamaged: Memory is within its bounds for any head.
func TestMemoryOfDamaged(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, name := range readable {
		files, _ := filepath.Glob("../testdata/published*/nar/" + name + "/*")
		heads := [][]byte{nil, make([]byte, HeadBytes)}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			heads = append(heads, b[:min(len(b), HeadBytes)])
		}
		for range 2000 {
			head := bytes.Clone(heads[random.IntN(len(heads))])
			for range random.IntN(4) {
				if len(head) > 0 {
					head[random.IntN(len(head))] = byte(random.Uint32())
				}
			}
			head = head[:len(head)-random.IntN(len(head)+1)/2]
			for _, size := range []int64{-1, 0, 1, 1 << 40} {
				if m := Memory(name, head, size); m < 0 || m > MaxMemory(name) {
					t.Fatalf("%s, head %x, size %d: %d", name, head, size, m)
				}
			}
		}
	}
	if Memory("brotli", nil, -1) != 0 {
		t.Error("an unknown compression takes memory")
	}
}

// TestXzTooLarge: a refused dictionary is not allocated.
func TestXzTooLarge(t *testing.T) {
	z := filter(t, sample(3000), "xz", "-c", "--lzma2=preset=0,dict=1GiB")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decode(Xz, bytes.NewReader(z)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 10<<20 {
		t.Errorf("%d bytes were allocated", took)
	}
}
