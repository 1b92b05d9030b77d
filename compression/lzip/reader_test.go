package lzip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/ulikunitz/xz/lzma"
)

// filter runs a program over data. It skips the test if the program is missing, unless
// everything must be tested.
func filter(t testing.TB, data []byte, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed: %v", program, err)
		}
		t.Skipf("%s is not here", program)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(data)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, errs.String())
	}
	return out.Bytes()
}

// sample is data that uses all symbols of LZMA: text, runs, records that differ in a byte,
// near and far copies, noise.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 0, n+400)
	for len(b) < n {
		switch r.IntN(6) {
		case 0:
			b = append(b, bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(400))...)
		case 1:
			for range r.IntN(50) {
				b = append(b, byte(r.Uint32()))
			}
		case 2:
			for range r.IntN(30) {
				b = append(b, "record "...)
				b = append(b, byte(r.IntN(4)), 59)
			}
		case 3:
			from := max(0, len(b)-1-r.IntN(300))
			b = append(b, b[from:min(len(b), from+r.IntN(100))]...)
		default:
			if len(b) > 0 {
				from := r.IntN(len(b))
				b = append(b, b[from:min(len(b), from+r.IntN(300))]...)
			}
			b = append(b, "text and "...)
		}
	}
	return b[:n]
}

// published is the content of one of the lzip files in testdata.
func published(t testing.TB, pattern string) []byte {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join("..", "..", "testdata", "published", "nar", "lzip", pattern))
	if len(files) == 0 {
		t.Fatalf("no %s in testdata", pattern)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReaderPrograms(t *testing.T) {
	data := sample(500000)
	for _, program := range []string{"lzip", "plzip"} {
		for _, args := range [][]string{{"-0"}, {"-1"}, {"-6"}, {"-9"}, {"-6", "-s4KiB"}, {"-6", "-s70000"}, {"-5", "-m273", "-s32KiB"}} {
			for _, in := range [][]byte{nil, data[:1], data[:1000], data} {
				z := filter(t, in, program, append(args, "-c")...)
				got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
				if err != nil || !bytes.Equal(got, in) {
					t.Errorf("%s %v: %d of %d bytes read, %v", program, args, len(got), len(in), err)
				}
			}
		}
	}
}

func TestReaderSources(t *testing.T) {
	data := sample(200000)
	z := filter(t, data, "lzip", "-c", "-s64KiB")
	z = append(z, filter(t, data[:500], "lzip", "-c")...)
	want := append(bytes.Clone(data), data[:500]...)
	for name, r := range map[string]io.Reader{
		"one byte": iotest.OneByteReader(bytes.NewReader(z)),
		"half":     iotest.HalfReader(bytes.NewReader(z)),
		"eof":      iotest.DataErrReader(bytes.NewReader(z)),
	} {
		if err := iotest.TestReader(NewReader(r), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var out bytes.Buffer
	if n, err := NewReader(bytes.NewReader(z)).WriteTo(&out); err != nil || n != int64(len(want)) || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("WriteTo: %d bytes, %v", n, err)
	}
}

func TestReaderReset(t *testing.T) {
	z := NewReader(strings.NewReader("nothing"))
	if _, err := io.ReadAll(z); !errors.Is(err, ErrHeader) {
		t.Errorf("got %v", err)
	}
	for _, n := range []int{300000, 10, 0, 70000} {
		data := sample(n)
		z.Reset(bytes.NewReader(filter(t, data, "lzip", "-c", "-s100000")))
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %d read, %v", n, len(got), err)
		}
	}
}

func TestReaderMembers(t *testing.T) {
	data := sample(50000)
	one, empty := filter(t, data, "lzip", "-c"), filter(t, nil, "lzip", "-c")
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  int
		err   error
	}{
		{"one", [][]byte{one}, 1, nil},
		{"three", [][]byte{one, one, one}, 3, nil},
		{"empty", [][]byte{empty}, 0, nil},
		{"empty between", [][]byte{empty, one, empty, one, empty}, 2, nil},
		{"nothing", nil, 0, io.ErrUnexpectedEOF},
		{"zeros after", [][]byte{one, make([]byte, 10)}, 1, ErrTrailing},
		{"many zeros after", [][]byte{one, make([]byte, 100)}, 1, ErrTrailing},
		{"text after", [][]byte{one, []byte("LZOP and more")}, 1, ErrTrailing},
		{"one byte after", [][]byte{one, []byte("x")}, 1, ErrTrailing},
		{"start of a header after", [][]byte{one, []byte("LZ")}, 1, io.ErrUnexpectedEOF},
		{"bad version after", [][]byte{one, []byte("LZIP\x02\x14")}, 1, ErrHeader},
		{"text", [][]byte{[]byte("not lzip at all, but long enough for that")}, 0, ErrHeader},
		{"text and one", [][]byte{[]byte("x"), one}, 0, ErrHeader},
	} {
		file := bytes.Join(c.parts, nil)
		got, err := io.ReadAll(NewReader(bytes.NewReader(file)))
		if !errors.Is(err, c.err) || !bytes.Equal(got, bytes.Repeat(data, c.want)) {
			t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
		}
	}
}

func TestReaderTruncated(t *testing.T) {
	z := filter(t, sample(2000), "lzip", "-c")
	z = append(z, z...)
	for n := range len(z) {
		_, err := io.ReadAll(NewReader(bytes.NewReader(z[:n])))
		if n == len(z)/2 {
			if err != nil {
				t.Errorf("cut between members: %v", err)
			}
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// Every flipped bit is detected, except those that only enlarge the dictionary.
func TestReaderFlippedBits(t *testing.T) {
	data := sample(1500)
	z := filter(t, data, "lzip", "-c", "-s64KiB")
	r := NewReader(nil)
	for i := range z {
		for bit := range 8 {
			bad := bytes.Clone(z)
			bad[i] ^= 1 << bit
			r.Reset(bytes.NewReader(bad))
			got, err := io.ReadAll(r)
			if err == nil && (i != 5 || !bytes.Equal(got, data)) {
				t.Errorf("bit %d of byte %d: no error", bit, i)
			}
		}
	}
}

func TestReaderTrailer(t *testing.T) {
	z := filter(t, sample(1000), "lzip", "-c")
	for i := len(z) - trailerSize; i < len(z); i++ {
		bad := bytes.Clone(z)
		bad[i]++
		if _, err := io.ReadAll(NewReader(bytes.NewReader(bad))); !errors.Is(err, ErrChecksum) {
			t.Errorf("byte %d from the end: %v", len(z)-i, err)
		}
	}
}

func TestReaderDictSize(t *testing.T) {
	for c := range 256 {
		size, ok := decodeDictSize(byte(c))
		if !ok {
			continue
		}
		if size < MinDictSize || size > MaxDictSize || size%posStates != 0 {
			t.Errorf("code %#02x: %d bytes", c, size)
		}
		if _, coded := encodeDictSize(size); coded != size {
			t.Errorf("%d bytes are coded as %d", size, coded)
		}
	}
	z := filter(t, sample(100), "lzip", "-c")
	for _, c := range []byte{0, 11, 30, 31, 12 | 1<<5, 0xff} {
		z[5] = c
		if _, err := io.ReadAll(NewReader(bytes.NewReader(z))); !errors.Is(err, ErrHeader) {
			t.Errorf("code %#02x: %v", c, err)
		}
	}

	// The largest dictionary takes no more memory than the data.
	z[5] = 29
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := io.ReadAll(NewReader(bytes.NewReader(z))); err != nil {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("100 bytes with a dictionary of 512 MiB took %d bytes", n)
	}
	limited := NewReader(bytes.NewReader(z))
	limited.LimitDict(1 << 20)
	if _, err := io.ReadAll(limited); !errors.Is(err, ErrHeader) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// TestReaderSeveral reads plzip's files of several members, and detects damage within them and
// impossible sizes in trailers.
func TestReaderSeveral(t *testing.T) {
	data := sample(1 << 20)
	z := filter(t, data, "plzip", "-c", "-0", "-B100KiB")
	var out bytes.Buffer
	if n, err := io.Copy(&out, NewReader(bytes.NewReader(z))); err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("%d bytes, %v", n, err)
	}
	z[len(z)/2] ^= 1
	if n, err := io.Copy(io.Discard, NewReader(bytes.NewReader(z))); err == nil || err == io.EOF || n == 0 {
		t.Errorf("damage in the middle: %d bytes, %v", n, err)
	}
	one := filter(t, sample(1000), "lzip", "-c")
	for _, size := range []uint64{0, 999, 1001, 60 << 20, 1 << 40, 1<<64 - 1} {
		bad := bytes.Clone(one)
		binary.LittleEndian.PutUint64(bad[len(bad)-16:], size)
		if _, err := io.Copy(io.Discard, NewReader(bytes.NewReader(append(bad, one...)))); !errors.Is(err, ErrChecksum) {
			t.Errorf("data size %d: %v", size, err)
		}
	}
}

// wrap makes a member of a raw LZMA stream, for streams that programs don't make.
func wrap(stream []byte, dict byte, data []byte) []byte {
	b := append([]byte("LZIP\x01"), dict)
	b = append(b, stream...)
	return trailer{crc32.ChecksumIEEE(data), uint64(len(data)), uint64(len(b) + trailerSize)}.append(b)
}

// FuzzReader compares with another LZMA decoder, which reads the classic header, made here.
func FuzzReader(f *testing.F) {
	for _, set := range []string{"published", "published-multi"} {
		files, _ := filepath.Glob(filepath.Join("..", "..", "testdata", set, "nar", "lzip", "*"))
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && len(b) < 10000 {
				f.Add(b)
				f.Add(append(b, b...))
			}
		}
	}
	f.Add(wrap(make([]byte, 20), 12, nil))
	f.Add(wrap([]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 12, nil))

	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		got, err := io.ReadAll(io.LimitReader(NewReader(iotest.HalfReader(bytes.NewReader(b))), limit))
		if len(got) == limit {
			return
		}
		whole := NewReader(bytes.NewReader(b))
		again, err2 := io.ReadAll(whole)
		if (err == nil) != (err2 == nil) || err == nil && !bytes.Equal(got, again) {
			t.Fatalf("halves give %d bytes, %v; the whole %d, %v", len(got), err, len(again), err2)
		}

		if len(b) < minMemberSize || string(b[:5]) != "LZIP\x01" || b[6] != 0 {
			return
		}
		dict, ok := decodeDictSize(b[5])
		if !ok || dict > 1<<24 {
			return
		}
		if err == nil && whole.members != 1 {
			return // unsupported by the other decoder
		}
		header := []byte{(2*5+0)*9 + 3}
		header = binary.LittleEndian.AppendUint32(header, dict)
		header = append(header, bytes.Repeat([]byte{0xff}, 8)...)
		// Without the trailer, which the other decoder could read as a part of the
		// stream.
		stream := b[6 : len(b)-trailerSize]
		other, otherErr := lzma.NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(stream)))
		var want []byte
		if otherErr == nil {
			want, otherErr = io.ReadAll(io.LimitReader(other, limit))
		}
		if err == nil && (otherErr != nil || !bytes.Equal(got, want)) {
			t.Fatalf("%d bytes; the other decoder %d, %v", len(got), len(want), otherErr)
		}
		// The other decoder doesn't read lzip's framing. Within a frame, the same
		// bytes must result.
		if err != nil && otherErr == nil {
			w := wrap(stream, b[5], want)
			if got, err := io.ReadAll(NewReader(bytes.NewReader(w))); errors.Is(err, ErrData) && len(got) < len(want) {
				t.Fatalf("the other decoder makes %d bytes of it; here %d, %v", len(want), len(got), err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, pattern := range map[string]string{"source": "*-gosrc-*", "binary": "*-gofmt-bin-*"} {
		z := published(b, pattern)
		n, err := io.Copy(io.Discard, NewReader(bytes.NewReader(z)))
		if err != nil {
			b.Fatal(err)
		}
		r := NewReader(nil)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				r.Reset(bytes.NewReader(z))
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
