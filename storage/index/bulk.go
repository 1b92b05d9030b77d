package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
)

// A Builder writes the rows of the two large tables itself, in the file format of SQLite
// (https://www.sqlite.org/fileformat2.html), while no connection has the file open. Ids
// only grow, so that pages are written once, one after the other. SQLite takes several times
// as long, to bind each value, run a statement, and look for the row's place.

const (
	// lockPage is the number of the page that SQLite never uses, as locks are taken on its bytes.
	lockPage = 1<<30/pageSize + 1
	// pagesTogether is how many pages are written together.
	pagesTogether = 32
)

// pageFile writes pages at the end of a database.
type pageFile struct {
	file  *os.File
	last  uint32 // the number of the last page
	ready []byte // pages that wait to be written, with the last one
}

// openPages begins behind the last page of a database.
func openPages(path string) (*pageFile, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Size()%pageSize != 0 {
		err = fmt.Errorf("%s has %d bytes, which are no pages", path, info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &pageFile{file: file, last: uint32(info.Size() / pageSize)}, nil
}

// next is the number of the page that is added next.
func (f *pageFile) next() uint32 { return after(f.last) }

// after is the number of the page that is added after another.
func after(page uint32) uint32 {
	if page+1 == lockPage {
		return page + 2
	}
	return page + 1
}

// add appends a page, which has the number that next has returned.
func (f *pageFile) add(page []byte) error {
	if f.next() != f.last+1 {
		f.ready = append(f.ready, make([]byte, pageSize)...)
	}
	f.last = f.next()
	f.ready = append(f.ready, page...)
	if len(f.ready) < pagesTogether*pageSize {
		return nil
	}
	return f.flush()
}

func (f *pageFile) flush() error {
	_, err := f.file.WriteAt(f.ready, int64(f.last)*pageSize-int64(len(f.ready)))
	f.ready = f.ready[:0]
	return err
}

// replace writes a page that is in the file already.
func (f *pageFile) replace(number uint32, page []byte) error {
	_, err := f.file.WriteAt(page, int64(number-1)*pageSize)
	return err
}

// finish writes what waits, and the number of pages where SQLite looks for it, and closes
// the file.
func (f *pageFile) finish() error {
	const countOffset = 28
	_, err := f.file.WriteAt(binary.BigEndian.AppendUint32(nil, f.last), countOffset)
	return errors.Join(f.flush(), err, f.file.Close())
}

// tableWriter writes the rows of a table, which was empty, in the order of their ids.
type tableWriter struct {
	pages *pageFile
	root  uint32 // the number of the table's first page

	leaf  [pageSize]byte // that is being filled: cells at its end, the first one last
	count int            // of cells
	start int            // where they begin
	last  int64          // id of the last row
	above [][]child      // the pages that have no page above them yet, of each level, from the leaves up

	maxChildren int // the constant but in tests
}

// child is a page of a tree, and the greatest id in it.
type child struct {
	page uint32
	id   int64
}

const (
	leafHeader, interiorHeader = 8, 12
	// maxChildren is how many pages are below one: so many fit, whatever their ids are.
	maxChildren = (pageSize - interiorHeader) / (2 + 4 + 9)
	// mostInLeaf is the longest record that a leaf has the whole of, and leastInLeaf what it
	// has at least of a longer one.
	mostInLeaf  = pageSize - 35
	leastInLeaf = (pageSize-12)*32/255 - 23
)

func newTableWriter(pages *pageFile, root int64) *tableWriter {
	return &tableWriter{pages: pages, root: uint32(root), start: pageSize, maxChildren: maxChildren}
}

// add writes a row, whose record was made with appendRecord.
func (w *tableWriter) add(id int64, record []byte) error {
	inLeaf, link := len(record), 0
	if len(record) > mostInLeaf {
		link = 4
		if inLeaf = leastInLeaf + (len(record)-leastInLeaf)%(pageSize-link); inLeaf > mostInLeaf {
			inLeaf = leastInLeaf
		}
	}
	size := varintSize(uint64(len(record))) + varintSize(uint64(id)) + inLeaf + link
	if leafHeader+2*(w.count+1)+size > w.start {
		if err := w.endLeaf(); err != nil {
			return err
		}
	}
	w.start -= size
	binary.BigEndian.PutUint16(w.leaf[leafHeader+2*w.count:], uint16(w.start))
	w.count++
	w.last = id
	cell := appendVarint(appendVarint(w.leaf[w.start:w.start], uint64(len(record))), uint64(id))
	cell = append(cell, record[:inLeaf]...)
	if link == 0 {
		return nil
	}
	binary.BigEndian.AppendUint32(cell, w.pages.next())
	var page [pageSize]byte
	for rest := record[inLeaf:]; len(rest) > 0; {
		n := copy(page[link:], rest)
		clear(page[link+n:])
		rest = rest[n:]
		next := uint32(0)
		if len(rest) > 0 {
			next = after(w.pages.next())
		}
		binary.BigEndian.PutUint32(page[:], next)
		if err := w.pages.add(page[:]); err != nil {
			return err
		}
	}
	return nil
}

// finishLeaf makes the leaf a page.
func (w *tableWriter) finishLeaf() []byte {
	w.leaf[0] = 13
	binary.BigEndian.PutUint16(w.leaf[3:], uint16(w.count))
	binary.BigEndian.PutUint16(w.leaf[5:], uint16(w.start))
	return w.leaf[:]
}

// endLeaf writes the leaf, and begins another.
func (w *tableWriter) endLeaf() error {
	if err := w.addPage(0, w.finishLeaf(), w.last); err != nil {
		return err
	}
	clear(w.leaf[:])
	w.count, w.start = 0, pageSize
	return nil
}

// addPage writes a page, whose number goes into a page of the level above it.
func (w *tableWriter) addPage(level int, page []byte, id int64) error {
	if level == len(w.above) {
		w.above = append(w.above, nil)
	}
	children := append(w.above[level], child{w.pages.next(), id})
	if err := w.pages.add(page); err != nil {
		return err
	}
	// Two are left, as there must not be a page with only one below it.
	if len(children) == w.maxChildren+2 {
		full := children[:w.maxChildren]
		if err := w.addPage(level+1, interiorPage(full), full[len(full)-1].id); err != nil {
			return err
		}
		children = children[:copy(children, children[len(full):])]
	}
	w.above[level] = children
	return nil
}

// interiorPage makes the page above others.
func interiorPage(children []child) []byte {
	page := make([]byte, pageSize)
	last := len(children) - 1
	start := pageSize
	for i, c := range children[:last] {
		start -= 4 + varintSize(uint64(c.id))
		appendVarint(binary.BigEndian.AppendUint32(page[start:start], c.page), uint64(c.id))
		binary.BigEndian.PutUint16(page[interiorHeader+2*i:], uint16(start))
	}
	page[0] = 5
	binary.BigEndian.PutUint16(page[3:], uint16(last))
	binary.BigEndian.PutUint16(page[5:], uint16(start))
	binary.BigEndian.PutUint32(page[8:], children[last].page)
	return page
}

// finish writes the last page of each level, the topmost one in the place of the table's
// first page.
func (w *tableWriter) finish() error {
	if len(w.above) == 0 {
		return w.pages.replace(w.root, w.finishLeaf())
	}
	if err := w.endLeaf(); err != nil {
		return err
	}
	for level := 0; ; level++ {
		children := w.above[level]
		page := interiorPage(children)
		if level == len(w.above)-1 {
			return w.pages.replace(w.root, page)
		}
		if err := w.addPage(level+1, page, children[len(children)-1].id); err != nil {
			return err
		}
	}
}

// appendRecord appends a row in the form in which a table has it. Its values are nil, which
// the column of the id is as well, int64 or []byte.
func appendRecord(record []byte, values ...any) []byte {
	start := len(record)
	record = append(record, 0)
	for _, value := range values {
		switch value := value.(type) {
		case nil:
			record = append(record, 0)
		case int64:
			kind, _ := integerType(value)
			record = append(record, kind)
		case []byte:
			record = appendVarint(record, uint64(12+2*len(value)))
		}
	}
	record[start] = byte(len(record) - start) // below 128: a varint of a byte
	for _, value := range values {
		switch value := value.(type) {
		case int64:
			_, size := integerType(value)
			for shift := 8 * (size - 1); shift >= 0; shift -= 8 {
				record = append(record, byte(value>>shift))
			}
		case []byte:
			record = append(record, value...)
		}
	}
	return record
}

// integerType is the serial type of an integer, and how many bytes that has.
func integerType(n int64) (kind byte, size int) {
	if n == 0 || n == 1 {
		return 8 + byte(n), 0
	}
	switch bits := bits.Len64(uint64(n^n>>63)) + 1; {
	case bits <= 32:
		size = (bits + 7) / 8
		return byte(size), size
	case bits <= 48:
		return 5, 6
	default:
		return 6, 8
	}
}

// varintSize is how many bytes appendVarint appends.
func varintSize(n uint64) int { return max(1, (bits.Len64(n)+6)/7) }

// appendVarint appends a number below 2^56, as sizes and ids are.
func appendVarint(to []byte, n uint64) []byte {
	for shift := 7 * (varintSize(n) - 1); shift > 0; shift -= 7 {
		to = append(to, 0x80|byte(n>>shift))
	}
	return append(to, byte(n&0x7f))
}
