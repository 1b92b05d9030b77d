package lzip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

func compress(t testing.TB, data []byte, level, workers int) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := NewWriter(&out, level, workers)
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

// hardCases are edge cases of the encoders.
func hardCases() map[string][]byte {
	r := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 30000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	return map[string][]byte{
		"nothing":       nil,
		"a byte":        {0},
		"two bytes":     {7, 7},
		"three bytes":   {1, 2, 3},
		"five bytes":    []byte("aaaaa"),
		"zeros":         make([]byte, 100000),
		"noise":         noise,
		"noise twice":   append(bytes.Clone(noise), noise...),
		"period of 3":   bytes.Repeat([]byte("abc"), 20000),
		"period of 257": bytes.Repeat(noise[:257], 300),
		"sample":        sample(100000),
	}
}

func TestWriterRoundTrip(t *testing.T) {
	for name, data := range hardCases() {
		for level := MinLevel; level <= MaxLevel; level++ {
			if len(data) > 1000 && level%3 != 0 {
				continue
			}
			z := compress(t, data, level, 1)
			got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s at level %d: %d of %d bytes read, %v", name, level, len(got), len(data), err)
			}
		}
	}
}

func TestWriterPrograms(t *testing.T) {
	for name, data := range hardCases() {
		for _, level := range []int{0, 7} {
			z := compress(t, data, level, 2)
			for _, program := range []string{"lzip", "plzip"} {
				if got := filter(t, z, program, "-dc"); !bytes.Equal(got, data) {
					t.Errorf("%s at level %d: %s gives %d of %d bytes", name, level, program, len(got), len(data))
				}
			}
		}
	}
}

// Data of several members give the same output with any concurrency and sizes of writes.
func TestWriterMembers(t *testing.T) {
	data := sample(2<<20 + 12345)
	want := compress(t, data, 0, 1)
	if members := countMembers(t, want); members != 3 {
		t.Errorf("%d members", members)
	}
	if got := filter(t, want, "lzip", "-dc"); !bytes.Equal(got, data) {
		t.Error("the program reads something else")
	}
	for _, workers := range []int{2, 8} {
		if !bytes.Equal(compress(t, data, 0, workers), want) {
			t.Errorf("%d workers give something else", workers)
		}
	}
	var out bytes.Buffer
	z, err := NewWriter(&out, 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 1+len(rest)%77777)
		if _, err := z.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := z.Close(); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("small writes give something else, %v", err)
	}

	// If a member is just full, no empty one follows.
	full := compress(t, data[:2<<20], 0, 1)
	if members := countMembers(t, full); members != 2 {
		t.Errorf("%d members of full ones", members)
	}
}

func countMembers(t *testing.T, file []byte) int64 {
	t.Helper()
	z := NewReader(bytes.NewReader(file))
	if _, err := io.Copy(io.Discard, z); err != nil {
		t.Error(err)
	}
	return z.members
}

func TestWriterDictionaryFitsData(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 4097, 30000, 100000} {
		z := compress(t, make([]byte, n), 9, 1)
		size, ok := decodeDictSize(z[5])
		if !ok || int(size) < n || int(size) > max(MinDictSize, n+n/8) {
			t.Errorf("%d bytes: a dictionary of %d", n, size)
		}
	}
}

func TestWriterErrors(t *testing.T) {
	for _, level := range []int{-1, 10} {
		if _, err := NewWriter(io.Discard, level, 1); err == nil {
			t.Errorf("level %d was accepted", level)
		}
	}
	broken := errors.New("broken")
	z, err := NewWriter(writerFunc(func([]byte) (int, error) { return 0, broken }), 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(z, bytes.NewReader(make([]byte, 10<<20))); err != broken {
		t.Errorf("Write: %v", err)
	}
	if err := z.Close(); err != broken {
		t.Errorf("Close: %v", err)
	}
	if err := z.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := z.Write([]byte("x")); err == nil {
		t.Error("Write after Close gave no error")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Sizes of the levels compared with the program's.
func TestWriterSizes(t *testing.T) {
	data, err := io.ReadAll(NewReader(bytes.NewReader(published(t, "*-gofmt-bin-*"))))
	if err != nil {
		t.Fatal(err)
	}
	data = data[:600<<10]
	for _, level := range []int{0, 1, 6, 9} {
		ours := len(compress(t, data, level, 1))
		theirs := len(filter(t, data, "lzip", "-c", fmt.Sprint("-", level)))
		t.Logf("level %d: %d bytes, the program %d", level, ours, theirs)
		if float64(ours) > 1.03*float64(theirs) {
			t.Errorf("level %d: %d bytes, more than 3 %% above the program's %d", level, ours, theirs)
		}
	}
}

func FuzzWriter(f *testing.F) {
	for _, data := range hardCases() {
		if len(data) < 1000 {
			f.Add(data, uint8(6))
		}
	}
	f.Add(sample(3000), uint8(0))
	f.Add(sample(3000), uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, level uint8) {
		z := compress(t, data, int(level)%(MaxLevel+1), 1)
		got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d of %d bytes read, %v", len(got), len(data), err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	data, err := io.ReadAll(NewReader(bytes.NewReader(published(b, "*-gofmt-bin-*"))))
	if err != nil {
		b.Fatal(err)
	}
	for _, level := range []int{0, 1, 6, 9} {
		b.Run(fmt.Sprint("level", level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				b.ReportMetric(float64(len(compress(b, data, level, 1))), "bytes")
			}
		})
	}
}
