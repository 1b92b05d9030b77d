package compression

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
)

// xzFile builds an xz file with correct checksums and arbitrary contents.
type xzFile struct {
	bytes.Buffer
	records [][2]uint64 // of the stream: unpadded and uncompressed sizes of the blocks
}

func (f *xzFile) crc(b []byte) {
	_ = binary.Write(f, binary.LittleEndian, crc32.ChecksumIEEE(b))
}

// stream begins a stream without checks.
func (f *xzFile) stream() *xzFile {
	f.WriteString("\xfd7zXZ\x00\x00\x00")
	f.crc([]byte{0, 0})
	f.records = nil
	return f
}

// block adds a block with the code of a dictionary size, and LZMA2 chunks with size bytes of
// data.
func (f *xzFile) block(dict byte, size uint64, chunks []byte) *xzFile {
	head := []byte{2, 0, 0x21, 1, dict, 0, 0, 0}
	f.Write(head)
	f.crc(head)
	f.Write(chunks)
	f.Write(make([]byte, -len(chunks)&3))
	f.records = append(f.records, [2]uint64{uint64(12 + len(chunks)), size})
	return f
}

// end ends a stream. spelled is the number of blocks, or nil for the usual form of it.
func (f *xzFile) end(spelled []byte) *xzFile {
	if spelled == nil {
		spelled = binary.AppendUvarint(nil, uint64(len(f.records)))
	}
	index := append([]byte{0}, spelled...)
	for _, r := range f.records {
		index = binary.AppendUvarint(binary.AppendUvarint(index, r[0]), r[1])
	}
	index = append(index, make([]byte, -len(index)&3)...)
	f.Write(index)
	f.crc(index)
	foot := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4)), 0, 0)
	f.crc(foot)
	f.Write(foot)
	f.WriteString("YZ")
	return f
}

const (
	smallDict = 0  // 4 KiB
	hugeDict  = 40 // 4 GiB
)

// plainChunk is a chunk of uncompressed data and the end of the block.
func plainChunk(data string) []byte {
	return append(append([]byte{1, byte((len(data) - 1) >> 8), byte(len(data) - 1)}, data...), 0)
}

// TestHostile decodes files that need far more memory than is available, in all ways of the
// formats. The limit is 128 MiB for each stream.
func TestHostile(t *testing.T) {
	data := "some data"
	second := new(xzFile).block(hugeDict, uint64(len(data)), plainChunk(data)).Bytes()
	// LZMA2 made by the program, with one compressed chunk and the end.
	lzma2 := filter(t, bytes.Repeat([]byte("abcd"), 1000), "xz", "-c", "--format=raw", "--lzma2=dict=4KiB")
	// The chunk claims to extend behind its data, up to the end of the file: the rest must
	// be neither read as its data nor parsed as the end of the block and another one.
	covered := bytes.Clone(lzma2)
	rest := append(make([]byte, -len(lzma2)&3), second...)
	binary.BigEndian.PutUint16(covered[3:], uint16(len(lzma2)-6-1-1+1+len(rest)))
	hidden := new(xzFile).stream().block(smallDict, 4000, covered)
	hidden.Write(second)
	hidden.Write(make([]byte, 100))

	// So few symbols that they decode to the same with other properties: lc 8 and lp 4
	// have 6 MiB of probabilities.
	literals := filter(t, bytes.Repeat([]byte("a"), 250), "xz", "-c", "--format=raw", "--lzma2=dict=4KiB")
	literals[5] = (2*5+4)*9 + 8
	many := new(xzFile).stream()
	for range 100 {
		many.block(smallDict, 250, literals)
	}

	idle := new(xzFile).stream() // a dictionary of 64 MiB for each byte
	for range 1000 {
		idle.block(28, 1, plainChunk("x"))
	}

	lz := filter(t, []byte(data), "lzip", "-c", "-s4KiB")
	hugeLz := bytes.Clone(lz)
	hugeLz[5] = 29 // 512 MiB

	// A frame of 4 GiB in one segment, and one with a window of 1 GiB, each with an empty last block.
	segment := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, 0xff, 0xff, 0xff, 0xff, 1, 0, 0)
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0}
	small := filter(t, []byte(data), "zstd", "-c")
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 0}

	for _, test := range []struct {
		what, kind string
		file       []byte
		// tooLarge is whether the error must be ErrTooLarge.
		tooLarge bool
	}{
		{"a dictionary of 4 GiB", Xz, new(xzFile).stream().block(hugeDict, 9, plainChunk(data)).end(nil).Bytes(), true},
		{"one in a second block", Xz, new(xzFile).stream().block(smallDict, 9, plainChunk(data)).block(hugeDict, 9, plainChunk(data)).end(nil).Bytes(), true},
		{"one in a second stream", Xz, new(xzFile).stream().block(smallDict, 9, plainChunk(data)).end(nil).stream().block(hugeDict, 9, plainChunk(data)).end(nil).Bytes(), true},
		{"one behind an oddly spelled number", Xz, new(xzFile).stream().block(smallDict, 9, plainChunk(data)).end([]byte{0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0}).stream().block(hugeDict, 9, plainChunk(data)).end(nil).Bytes(), false},
		{"one that hides in a chunk", Xz, hidden.Bytes(), false},
		{"many large tables", Xz, many.end(nil).Bytes(), false},
		{"a dictionary for each byte", Xz, idle.end(nil).Bytes(), true},
		{"a dictionary of 512 MiB", Lzip, hugeLz, false},
		{"one in a second member", Lzip, append(bytes.Clone(lz), hugeLz...), false},
		{"a frame of 4 GiB", Zstd, segment, true},
		{"a window of 1 GiB", Zstd, window, true},
		{"one in a second frame", Zstd, append(bytes.Clone(small), window...), true},
		{"one behind a skippable frame", Zstd, append(append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, small...), segment...), true},
		{"a skippable frame of 4 GiB", Zstd, append(skippable, small...), false},
		{"a name without an end", Gzip, append([]byte{31, 139, 8, 8, 0, 0, 0, 0, 0, 3}, bytes.Repeat([]byte("x"), 1<<20)...), false},
		{"an extra field", Gzip, append([]byte{31, 139, 8, 4, 0, 0, 0, 0, 0, 3, 0xff, 0xff}, bytes.Repeat([]byte("x"), 1<<10)...), false},
		{"many blocks", Bzip2, bytes.Repeat([]byte("BZh9"), 100), false},
	} {
		t.Run(test.kind+"/"+test.what, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole": bytes.NewReader(test.file), "bytes": iotest.OneByteReader(bytes.NewReader(test.file)),
				"an error with data": iotest.DataErrReader(bytes.NewReader(test.file)),
			} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				got, err := decode(test.kind, r)
				runtime.ReadMemStats(&after)
				most := uint64(200 << 20)
				if test.kind == Xz && test.tooLarge {
					most = 2 << 30 // in total, not at a time
				}
				if took := after.TotalAlloc - before.TotalAlloc; took > most {
					t.Errorf("%s: %d MiB were allocated for %d bytes", name, took>>20, len(test.file))
				}
				if err == nil || test.tooLarge && !errors.Is(err, ErrTooLarge) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
	good := new(xzFile).stream().block(smallDict, 9, plainChunk(data)).block(1, 4000, lzma2).end(nil).Bytes()
	if got, err := decode(Xz, bytes.NewReader(good)); err != nil || len(got) != 4009 {
		t.Errorf("a good file: %d bytes, %v", len(got), err)
	}
}
