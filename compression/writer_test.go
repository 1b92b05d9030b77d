package compression

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func encode(t testing.TB, name string, level int, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := NewWriter(name, level, &out)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := z.Write(data); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWriterPrograms(t *testing.T) {
	for _, name := range []string{Zstd, Gzip, Lzip} {
		t.Run(name, func(t *testing.T) {
			r := levelRanges[name]
			for level := r.min; level <= r.max; level++ {
				for _, n := range []int{0, 1000, 30000} {
					data := sample(n)
					z := encode(t, name, level, data)
					if got := filter(t, z, programs[name], "-dc"); !bytes.Equal(got, data) {
						t.Errorf("level %d: the program makes %d bytes of %d", level, len(got), n)
					}
					if got, err := decode(name, bytes.NewReader(z)); err != nil || !bytes.Equal(got, data) {
						t.Errorf("level %d: %d of %d bytes, %v", level, len(got), n, err)
					}
				}
			}
		})
	}
	data := sample(1000)
	if got := encode(t, None, 0, data); !bytes.Equal(got, data) {
		t.Error("none changes the data")
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, name := range []string{Bzip2, Xz, "brotli", ""} {
		var unknown ErrUnknown
		if _, err := NewWriter(name, 1, io.Discard); !errors.As(err, &unknown) || !strings.Contains(err.Error(), "none, zstd, gzip, lzip") {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, r := range levelRanges {
		for _, level := range []int{-1, r.min - 1, r.max + 1} {
			var bad ErrLevel
			if _, err := NewWriter(name, level, io.Discard); !errors.As(err, &bad) {
				t.Errorf("%s at level %d: %v", name, level, err)
			}
		}
	}
}

func TestParseSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"zstd": {Zstd, 3}, "gzip": {Gzip, 6}, "lzip": {Lzip, 6},
		"zstd:1": {Zstd, 1}, "zstd:19": {Zstd, 19}, "zstd:22": {Zstd, 22},
		"gzip:1": {Gzip, 1}, "gzip:9": {Gzip, 9}, "lzip:0": {Lzip, 0}, "lzip:9": {Lzip, 9},
	} {
		got, err := ParseSpec(text)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if again, err := ParseSpec(got.String()); err != nil || again != got {
			t.Errorf("%s: %s does not come back", text, got)
		}
		if !strings.Contains(text, ":") && DefaultLevel(text) != want.Level {
			t.Errorf("DefaultLevel(%s) = %d", text, DefaultLevel(text))
		}
	}
	for text, part := range map[string]string{
		"":         "zstd, lzip, gzip",
		"xz":       "zstd, lzip, gzip",
		"none":     "zstd, lzip, gzip",
		"Zstd:3":   "zstd, lzip, gzip",
		"zstd:":    "1 to 22",
		"zstd:0":   "1 to 22",
		"zstd:23":  "1 to 22",
		"zstd:-1":  "1 to 22",
		"zstd:+3":  "1 to 22",
		"zstd:3 ":  "1 to 22",
		"zstd:3:4": "1 to 22",
		"gzip:0":   "1 to 9",
		"gzip:10":  "1 to 9",
		"lzip:10":  "0 to 9",
		"lzip:999": "0 to 9",
		"lzip:six": "0 to 9",
	} {
		if s, err := ParseSpec(text); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	}
}

// corpus is nars of sources and of a program.
func corpus(b *testing.B) []byte {
	b.Helper()
	var all []byte
	for _, pattern := range []string{"*-gosrc-*", "*-gofmt-bin-*"} {
		files, _ := filepath.Glob(filepath.Join("..", "testdata", "published", "nar", "lzip", pattern))
		if len(files) == 0 {
			b.Fatalf("no %s in testdata", pattern)
		}
		f, err := os.Open(files[0])
		if err != nil {
			b.Fatal(err)
		}
		data, err := decode(Lzip, f)
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, data...)
	}
	return all
}

func BenchmarkDecode(b *testing.B) {
	data := corpus(b)
	for _, name := range []string{None, Gzip, Bzip2, Xz, Lzip, Zstd} {
		b.Run(name, func(b *testing.B) {
			z := data
			if program := programs[name]; program != "" {
				args := []string{"-c"}
				if name == Xz || name == Lzip {
					args = append(args, "-2") // the time is not measured
				}
				z = filter(b, data, program, args...)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, err := NewReader(name, bytes.NewReader(z))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	data := corpus(b)
	for _, s := range []Spec{{Zstd, 1}, {Zstd, 3}, {Zstd, 9}, {Zstd, 19}, {Gzip, 6}, {Lzip, 0}, {Lzip, 6}, {Lzip, 9}} {
		b.Run(fmt.Sprintf("%s-%d", s.Name, s.Level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				b.ReportMetric(float64(len(encode(b, s.Name, s.Level, data))), "bytes")
			}
		})
	}
}
