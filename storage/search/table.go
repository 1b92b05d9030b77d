package search

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"nar-herder/narinfo"
)

// A file has the magic, blocks, a description of them in JSON, its length and its CRC-32C in four
// bytes each, and the magic again. A block has, in this order,
//
//   - the text: names, sorted, each with a line feed;
//   - the counts: for each name the number of its items and the length of their postings, as
//     varints;
//   - the postings: for each name its items, the newest first. An item is its distance in
//     position to the previous one of the name, as a varint, and the first characters of its
//     hash in five bytes. The first one's distance is its position.
//
// A name with very many items is repeated in the next block.
const (
	magic      = "NarHSrch"
	format     = 1
	trailerLen = 4 + 4 + len(magic)
	// startLen is how many bytes a posting has of a hash.
	startLen = 5
	// unfinished is the suffix of the file while it is written.
	unfinished = ".unfinished"
)

// errDamaged means that the file must be replaced.
var errDamaged = errors.New("damaged")

func damaged(text string) error { return fmt.Errorf("%w: %s", errDamaged, text) }

// castagnoli is the polynomial that processors compute.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// posting is an item of a name.
type posting struct {
	position int64
	start    uint64 // of the hash: its first eight characters
}

// hashStart returns the first eight characters of a hash as a number of 40 bits.
func hashStart(hash narinfo.PathHash) uint64 {
	return uint64(hash[19])<<32 | uint64(binary.LittleEndian.Uint32(hash[15:]))
}

// sample identifies an item.
type sample struct {
	Position int64  `json:"position"`
	Hash     string `json:"hash"`
}

// meta is the description at the end of a file.
type meta struct {
	Format   int    `json:"format"`
	Instance string `json:"instance"`
	// Covered is the position of the last item that was read.
	Covered int64 `json:"covered"`
	Items   int64 `json:"items"`
	// Newest are some of the last items.
	Newest []sample `json:"newest"`
	Blocks []block  `json:"blocks"`
}

// block is the location of a block. The blocks follow each other.
type block struct {
	offset   int64
	Text     int `json:"t"`
	Counts   int `json:"c"`
	Postings int `json:"p"`
	// The checksums are of text and counts, and of the postings.
	NamesSum    uint32 `json:"n"`
	PostingsSum uint32 `json:"s"`
}

// table is an open file, which never changes.
type table struct {
	file *os.File
	size int64
	meta meta
	// kept are the texts and counts of blocks that searches have read, nil for others.
	kept []atomic.Pointer[[]byte]
}

// openTable opens a file. The error is errDamaged if it is not a complete file of this format.
func openTable(path string) (_ *table, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t := &table{file: file}
	if err := t.readMeta(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return t, nil
}

func (t *table) readMeta() error {
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	t.size = info.Size()
	if !info.Mode().IsRegular() || t.size < int64(trailerLen) {
		return damaged("it is too short")
	}
	trailer := make([]byte, trailerLen)
	if err := t.readAt(trailer, t.size-int64(trailerLen)); err != nil {
		return err
	}
	length := int64(binary.BigEndian.Uint32(trailer))
	end := t.size - int64(trailerLen) - length
	if string(trailer[8:]) != magic || end < int64(len(magic)) {
		return damaged("it is incomplete")
	}
	text := make([]byte, length)
	if err := t.readAt(text, end); err != nil {
		return err
	}
	if crc32.Checksum(text, castagnoli) != binary.BigEndian.Uint32(trailer[4:]) {
		return damaged("wrong checksum")
	}
	if err := json.Unmarshal(text, &t.meta); err != nil || t.meta.Format != format {
		return damaged("another format")
	}
	offset := int64(len(magic))
	for i := range t.meta.Blocks {
		b := &t.meta.Blocks[i]
		if b.Text < 0 || b.Counts < 0 || b.Postings < 0 || int64(b.Text)+int64(b.Counts)+int64(b.Postings) > end-offset {
			return damaged("a block has the wrong length")
		}
		b.offset = offset
		offset += int64(b.Text) + int64(b.Counts) + int64(b.Postings)
	}
	if offset != end {
		return damaged("the blocks have the wrong length")
	}
	t.kept = make([]atomic.Pointer[[]byte], len(t.meta.Blocks))
	return nil
}

// readAt fills the buffer.
func (t *table) readAt(buffer []byte, offset int64) error {
	_, err := t.file.ReadAt(buffer, offset)
	if err == io.EOF {
		return damaged("it is truncated")
	}
	if err != nil {
		return fmt.Errorf("%w: read it: %w", errDamaged, err)
	}
	return nil
}

// mustBeOurs returns an error if a file exists and was not begun by this package, so that no other
// file is overwritten.
func mustBeOurs(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	begin := make([]byte, len(magic))
	n, err := io.ReadFull(file, begin)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	if err == nil && string(begin[:n]) != magic[:n] {
		err = fmt.Errorf("%s is not a search index: move it, as the server needs this name", path)
	}
	return errors.Join(err, file.Close())
}

// names reads the text and the counts of a block. The buffer is reused if it is large enough.
func (t *table) names(number int, buffer []byte) (text, counts, grown []byte, err error) {
	b := t.meta.Blocks[number]
	if buffer, err = t.part(buffer, b.offset, b.Text+b.Counts, b.NamesSum); err != nil {
		return nil, nil, buffer, err
	}
	return buffer[:b.Text], buffer[b.Text:], buffer, nil
}

// keepNames is names, and keeps what it has read.
func (t *table) keepNames(number int) (text, counts []byte, err error) {
	both := t.kept[number].Load()
	if both == nil {
		_, _, read, err := t.names(number, nil)
		if err != nil {
			return nil, nil, err
		}
		both = &read
		t.kept[number].Store(both)
	}
	length := t.meta.Blocks[number].Text
	return (*both)[:length], (*both)[length:], nil
}

// postings reads the postings of a block.
func (t *table) postings(number int, buffer []byte) ([]byte, error) {
	b := t.meta.Blocks[number]
	return t.part(buffer, b.offset+int64(b.Text)+int64(b.Counts), b.Postings, b.PostingsSum)
}

func (t *table) part(buffer []byte, offset int64, length int, sum uint32) ([]byte, error) {
	if cap(buffer) < length {
		buffer = make([]byte, length)
	}
	buffer = buffer[:length]
	if err := t.readAt(buffer, offset); err != nil {
		return buffer, err
	}
	if crc32.Checksum(buffer, castagnoli) != sum {
		return buffer, damaged("a block has a wrong checksum")
	}
	return buffer, nil
}

// entry is a name in a block.
type entry struct {
	name     []byte
	count    int
	from, to int // its postings within those of the block
}

// entries iterates over the names of a block.
type entries struct {
	text, counts []byte
	entry
}

// next reads the next entry. It returns false at the end.
func (e *entries) next() (bool, error) {
	if len(e.text) == 0 {
		return false, nil
	}
	end := bytes.IndexByte(e.text, '\n')
	count, n := binary.Uvarint(e.counts)
	if end < 0 || n <= 0 {
		return false, damaged("a name is incomplete")
	}
	length, m := binary.Uvarint(e.counts[n:])
	if m <= 0 || length > 1<<40 || count > length {
		return false, damaged("a name has no items")
	}
	e.name, e.text, e.counts = e.text[:end], e.text[end+1:], e.counts[n+m:]
	e.count, e.from, e.to = int(count), e.to, e.to+int(length)
	return true, nil
}

// unpack appends the postings of an entry, the newest first. all are the postings of its block.
func (e *entry) unpack(found []posting, all []byte) ([]posting, error) {
	if e.to > len(all) {
		return found, damaged("a name has too many items")
	}
	packed := all[e.from:e.to]
	for position := int64(0); len(packed) > 0; {
		distance, n := binary.Uvarint(packed)
		if n <= 0 || len(packed) < n+startLen {
			return found, damaged("an item is incomplete")
		}
		if position == 0 {
			position = int64(distance)
		} else {
			position -= int64(distance)
		}
		start := uint64(packed[n])<<32 | uint64(binary.BigEndian.Uint32(packed[n+1:]))
		found = append(found, posting{position, start})
		packed = packed[n+startLen:]
	}
	return found, nil
}

// hasStart returns false only if unpack returns no error and no posting with a start that was shifted
// to the right. It is faster.
func (e *entry) hasStart(start uint64, shift int, all []byte) bool {
	if e.to > len(all) {
		return true
	}
	for packed := all[e.from:e.to]; len(packed) > 0; {
		n := 1 // length of the distance, a varint
		for n < len(packed) && packed[n-1] >= 0x80 {
			n++
		}
		if n >= binary.MaxVarintLen64 || len(packed) < n+startLen {
			return true
		}
		if (uint64(packed[n])<<32|uint64(binary.BigEndian.Uint32(packed[n+1:])))>>shift == start {
			return true
		}
		packed = packed[n+startLen:]
	}
	return false
}

// each calls f with each name and its postings, the newest first, which are valid until f
// returns.
func (t *table) each(ctx context.Context, f func(name []byte, postings []posting) error) error {
	var names, buffer []byte
	var found []posting
	for number := range t.meta.Blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		var e entries
		var err error
		if e.text, e.counts, names, err = t.names(number, names); err != nil {
			return err
		}
		if buffer, err = t.postings(number, buffer); err != nil {
			return err
		}
		for {
			more, err := e.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if found, err = e.unpack(found[:0], buffer); err != nil {
				return err
			}
			if err := f(e.name, found); err != nil {
				return err
			}
		}
	}
	return nil
}
