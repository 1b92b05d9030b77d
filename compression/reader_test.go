package compression

import (
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// The programs of these formats, by the compression's name in a narinfo.
var programs = map[string]string{Gzip: "gzip", Bzip2: "bzip2", Xz: "xz", Lzip: "lzip", Zstd: "zstd"}

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

// sample is data that compresses a little like a nar: runs, text, noise.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < n {
		switch r.IntN(4) {
		case 0:
			b = append(b, bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(400))...)
		case 1:
			for range r.IntN(50) {
				b = append(b, byte(r.Uint32()))
			}
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

func decode(name string, r io.Reader) ([]byte, error) {
	z, err := NewReader(name, r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

func TestReaderUnknown(t *testing.T) {
	_, err := NewReader("brotli", strings.NewReader("x"))
	var unknown ErrUnknown
	if !errors.As(err, &unknown) || unknown.Name != "brotli" || !strings.Contains(err.Error(), "none, gzip, bzip2, xz, lzip, zstd") {
		t.Errorf("got %v", err)
	}
	if Known("brotli") || !Known("lzip") {
		t.Error("Known is wrong")
	}
}

func TestReaderPrograms(t *testing.T) {
	data := sample(300000)
	for name, program := range programs {
		t.Run(name, func(t *testing.T) {
			for _, in := range [][]byte{nil, data[:1], data[:100], data} {
				z := filter(t, in, program, "-c")
				for kind, r := range map[string]io.Reader{
					"whole": bytes.NewReader(z), "halves": iotest.HalfReader(bytes.NewReader(z)),
					"bytes": iotest.OneByteReader(bytes.NewReader(z)), "eof": iotest.DataErrReader(bytes.NewReader(z)),
				} {
					got, err := decode(name, r)
					if err != nil || !bytes.Equal(got, in) {
						t.Errorf("%d bytes, %s: %d bytes read, %v", len(in), kind, len(got), err)
					}
				}
				twice, err := decode(name, io.MultiReader(bytes.NewReader(z), bytes.NewReader(z)))
				if err != nil || !bytes.Equal(twice, append(append([]byte{}, in...), in...)) {
					t.Errorf("two of %d bytes: %d bytes read, %v", len(in), len(twice), err)
				}
				r, err := NewReader(name, bytes.NewReader(z))
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				n, err := r.(io.WriterTo).WriteTo(&out)
				if err != nil || n != int64(len(in)) || !bytes.Equal(out.Bytes(), in) {
					t.Errorf("WriteTo: %d bytes, %v", n, err)
				}
			}
		})
	}
}

func TestReaderDamage(t *testing.T) {
	data := sample(3000)
	for name, program := range programs {
		t.Run(name, func(t *testing.T) {
			z := filter(t, data, program, "-c")
			for n := range len(z) {
				got, err := decode(name, bytes.NewReader(z[:n]))
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("cut at %d of %d: %d bytes, %v", n, len(z), len(got), err)
				}
			}
			for _, garbage := range []string{"x", "garbage and more garbage", "\x00\x00\x00", z1(z)} {
				if _, err := decode(name, io.MultiReader(bytes.NewReader(z), strings.NewReader(garbage))); err == nil {
					t.Errorf("garbage %q after the end was accepted", garbage)
				}
			}
			for i := range z {
				bad := bytes.Clone(z)
				bad[i] ^= 0x10
				if got, err := decode(name, bytes.NewReader(bad)); err == nil && !bytes.Equal(got, data) {
					t.Errorf("byte %d damaged: wrong data without an error", i)
				}
			}
			broken := errors.New("broken")
			_, err := decode(name, io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(broken)))
			if !errors.Is(err, broken) {
				t.Errorf("the source's error became %v", err)
			}
		})
	}
}

// z1 is the first half of a stream.
func z1(z []byte) string { return string(z[:len(z)/2]) }

func TestReaderClosed(t *testing.T) {
	data := sample(100)
	for name, program := range programs {
		r, err := NewReader(name, bytes.NewReader(filter(t, data, program, "-c")))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := r.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := r.Read(make([]byte, 1)); err != ErrClosed {
			t.Errorf("%s: Read after Close: %v", name, err)
		}
	}
}

// TestZstdWindowReused: the next reader reuses the window of a closed one.
func TestZstdWindowReused(t *testing.T) {
	const readers, window = 16, 128 << 20
	z := filter(t, sample(100000), "zstd", "-c", "--long=27")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range readers {
		r, err := NewReader(Zstd, bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	runtime.ReadMemStats(&after)
	// A garbage collection, which a new window may start, frees an idle one.
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > readers/2*window {
		t.Errorf("%d readers have allocated %d MiB", readers, allocated>>20)
	}
}

// TestZstdWindowFits: a reader that reuses a decoder uses no more than Memory.
func TestZstdWindowFits(t *testing.T) {
	data := sample(2 << 20)
	skippable := append([]byte("\x50\x2a\x4d\x18\x64\x00\x00\x00"), make([]byte, 100)...)
	small := filter(t, data, "zstd", "-c", "-1", "--zstd=wlog=17")
	large := filter(t, data, "zstd", "-c", "-1", "--long=23")
	largest := filter(t, data, "zstd", "-c", "--long=27")
	begin := func(z []byte) io.ReadCloser {
		r, err := NewReader(Zstd, bytes.NewReader(z))
		if err == nil {
			_, err = io.CopyN(io.Discard, r, 1<<20)
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for what, test := range map[string]struct{ first, second, third []byte }{
		"of one class":               {large, small, small},
		"behind a skippable frame":   {largest, append(bytes.Clone(skippable), small...), small},
		"after that":                 {append(bytes.Clone(skippable), largest...), small, append(bytes.Clone(skippable), small...)},
		"a larger frame, then small": {append(filter(t, data[:1<<20-1], "zstd", "-c", "-1", "--zstd=wlog=17"), largest...), small, small},
	} {
		drainPool()
		before := held()
		begin(test.first).Close()
		second := begin(test.second)
		second.Close()
		readers := []io.ReadCloser{begin(test.third), begin(test.second)}
		if now, most := held()-before, 2*Memory(Zstd, small[:HeadBytes], -1); now > most {
			t.Errorf("%s: two readers hold %d KiB, want at most %d", what, now>>10, most>>10)
		}
		for _, r := range readers {
			r.Close()
		}
	}
}

// TestZstdIdleIsGarbage: one garbage collection frees the idle decoders of closed readers.
func TestZstdIdleIsGarbage(t *testing.T) {
	data := sample(2 << 20)
	drainPool()
	before := held()
	for log := 17; log <= 27; log++ {
		r, err := NewReader(Zstd, bytes.NewReader(filter(t, data, "zstd", "-c", "-1", fmt.Sprintf("--long=%d", log))))
		if err == nil {
			_, err = io.CopyN(io.Discard, r, 1<<20)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	runtime.GC()
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	if idle := int64(after.HeapAlloc) - before; idle > 2<<20 {
		t.Errorf("%d MiB are held", idle>>20)
	}
}

// Streams that need more memory than allowed are refused before it is allocated.
func TestReaderMemory(t *testing.T) {
	data := sample(3000)
	t.Run("zstd", func(t *testing.T) {
		for arg, ok := range map[string]bool{"--long=27": true, "--long=28": false} {
			_, err := decode(Zstd, bytes.NewReader(filter(t, data, "zstd", "-c", arg)))
			if (err == nil) != ok {
				t.Errorf("%s: %v", arg, err)
			}
		}
	})
	t.Run("xz", func(t *testing.T) {
		for arg, ok := range map[string]bool{"dict=64MiB": true, "dict=65MiB": false, "dict=1GiB": false} {
			z := filter(t, data, "xz", "-c", "--lzma2=preset=1,"+arg)
			_, err := decode(Xz, bytes.NewReader(z))
			if ok && err != nil || !ok && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v", arg, err)
			}
		}
		blocks := filter(t, sample(10000), "xz", "-c", "-T2", "--block-size=2000", "--check=sha256", "--lzma2=dict=4KiB")
		for n := 0; n < len(blocks); n += 3 {
			if _, err := decode(Xz, bytes.NewReader(blocks[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("blocks cut at %d of %d: %v", n, len(blocks), err)
			}
		}
		padded := append(append(bytes.Clone(blocks), 0, 0, 0, 0), blocks...)
		if got, err := decode(Xz, bytes.NewReader(padded)); err != nil || len(got) != 20000 {
			t.Errorf("padding between streams: %d bytes, %v", len(got), err)
		}
	})
	t.Run("lzip", func(t *testing.T) {
		z := filter(t, data, "lzip", "-c")
		z[5] = 29
		if _, err := decode(Lzip, bytes.NewReader(z)); err == nil {
			t.Error("a dictionary of 512 MiB was accepted")
		}
	})
}

// nixBase32 returns the text of a hash in a narinfo: 5 bits per digit, the last of the hash
// first.
func nixBase32(b []byte) string {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	var s strings.Builder
	for i := (len(b)*8+4)/5 - 1; i >= 0; i-- {
		bit := i * 5
		v := uint(b[bit/8]) >> (bit % 8)
		if bit/8+1 < len(b) {
			v |= uint(b[bit/8+1]) << (8 - bit%8)
		}
		s.WriteByte(digits[v&31])
	}
	return s.String()
}

// Every published nar decodes to the nar of its signed narinfo.
func TestReaderPublished(t *testing.T) {
	narHash := regexp.MustCompile(`(?m)^NarHash: sha256:(\w+)$`)
	seen := 0
	for _, set := range []string{"published", "published-multi"} {
		for _, name := range []string{Lzip, Gzip, Zstd} {
			files, _ := filepath.Glob(filepath.Join("..", "testdata", set, "nar", name, "*"))
			for _, file := range files {
				hash, _, _ := strings.Cut(filepath.Base(file), "-")
				info, err := os.ReadFile(filepath.Join("..", "testdata", set, hash+".narinfo"))
				if err != nil {
					t.Fatal(err)
				}
				want := narHash.FindSubmatch(info)
				if want == nil {
					t.Fatalf("%s has no NarHash", hash)
				}
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				z, err := NewReader(name, f)
				if err != nil {
					t.Fatal(err)
				}
				h := sha256.New()
				_, err = io.Copy(h, z)
				if got := nixBase32(h.Sum(nil)); err != nil || got != string(want[1]) {
					t.Errorf("%s: %s, want %s, %v", file, got, want[1], err)
				}
				z.Close()
				f.Close()
				seen++
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d nars found", seen)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(uint8(0), []byte("\x1f\x8b\b\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(uint8(1), []byte("BZh9\x17rE8P\x90\x00\x00\x00\x00"))
	f.Add(uint8(2), []byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x00\x00\x00\x00\x1c\xdfD!\x1f\xb6\xf3}\x01\x00\x00\x00\x00\x04YZ"))
	f.Add(uint8(4), []byte("(\xb5/\xfd$\x00\x01\x00\x00\x99\xe9\xd8Q"))
	for i, name := range readable {
		files, _ := filepath.Glob("../testdata/published*/nar/" + name + "/*")
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && len(b) < 5000 {
				f.Add(uint8(i-1), b)
			}
		}
	}
	f.Add(uint8(2), new(xzFile).stream().block(hugeDict, 1, plainChunk("x")).end(nil).Bytes())
	f.Add(uint8(4), []byte("\x50\x2a\x4d\x18\x01\x00\x00\x00\x00(\xb5/\xfd\x00\xa0\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		name := readable[1+int(which)%(len(readable)-1)]
		memory := Memory(name, data[:min(len(data), HeadBytes)], -1)
		if memory < 0 || memory > MaxMemory(name) {
			t.Errorf("Memory says %d", memory)
		}
		checkReader(t, name, data)
	})
}

// checkReader reads arbitrary data, and compares the result with that of other decoders.
func checkReader(t *testing.T, name string, data []byte) {
	const limit = 1 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := readSome(NewReader(name, bytes.NewReader(data)))
	runtime.ReadMemStats(&after)
	// The dictionaries of all blocks of xz, or one window of the others and the output.
	if took := after.TotalAlloc - before.TotalAlloc; took > 2<<30 || name != Xz && took > 400<<20 {
		t.Errorf("%d MiB were allocated", took>>20)
	}
	if err != nil || len(got) == limit {
		return
	}
	// The decoders without the guards.
	var plain io.Reader
	switch name {
	case Bzip2:
		plain = bzip2.NewReader(bytes.NewReader(data))
	case Xz:
		plain, err = xz.NewReader(bytes.NewReader(data))
	case Zstd:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
		}
		plain = d
	default:
		return
	}
	if err != nil {
		t.Fatalf("a plain decoder: %v", err)
	}
	if want, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, a plain decoder gives %d: %v", len(got), len(want), err)
	}
}

// readSome reads up to a mebibyte.
func readSome(z io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(io.LimitReader(z, 1<<20))
}

// FuzzXzFile makes xz files with correct checksums, of arbitrary blocks. Each byte of plan is
// a block: the lower six bits are the code of its dictionary, the next bit means that its
// chunk has the next bytes of chunks instead of plain data, and the last bit ends the stream
// after it.
func FuzzXzFile(f *testing.F) {
	f.Add([]byte{smallDict, 1, 0x80 | 2}, []byte(nil), []byte(nil))
	f.Add([]byte{0x80 | smallDict, hugeDict}, []byte(nil), []byte(nil))
	f.Add([]byte{0x80 | smallDict, hugeDict}, []byte(nil), []byte{0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0})
	f.Add([]byte{0x40 | smallDict, hugeDict}, []byte{0xe0, 0, 3, 0, 20, 93, 0, 48, 0, 0, 0, 0, 0, 0}, []byte(nil))
	f.Add([]byte{0x40, 0x40}, []byte{0xe0, 0, 0, 0, 4, 134, 0, 0, 0, 0, 0, 0}, []byte(nil))
	f.Fuzz(func(t *testing.T, plan, chunks, count []byte) {
		if len(plan) > 100 || len(chunks) > 1<<16 {
			return
		}
		file := new(xzFile).stream()
		for i, p := range plan {
			if i > 0 && plan[i-1]&0x80 != 0 {
				file.stream()
			}
			if p&0x40 != 0 {
				n := min(len(chunks), 64)
				file.block(p&0x3f, 0, chunks[:n])
				chunks = chunks[n:]
			} else {
				file.block(p&0x3f, 9, plainChunk("some data"))
			}
			if p&0x80 != 0 {
				if len(count) == 0 || i == len(plan)-1 {
					file.end(nil)
				} else {
					file.end(count)
				}
			}
		}
		checkReader(t, Xz, file.Bytes())
	})
}
