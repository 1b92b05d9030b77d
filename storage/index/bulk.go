package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
)

// A Builder writes the rows of the two large tables, and the index of their keys, itself, in
// the file format of SQLite (https://www.sqlite.org/fileformat2.html), while no connection
// has the file open. All come in order, so that pages are written once, one after the other.
// SQLite takes several times as long, to bind each value, run a statement, and look for the
// row's place.

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

// treeWriter writes the rows of a table, or the entries of an index, in their order. It was
// empty before.
type treeWriter struct {
	pages *pageFile
	root  uint32 // the number of the tree's first page
	index bool   // and not a table

	leaf  [pageSize]byte // that is being filled: cells at its end, the first one last
	count int            // of cells
	start int            // where they begin
	last  int64          // id of the last row of a table
	above []level        // from the leaves up

	maxChildren int // that a page has, if so many fit; fewer in tests
}

// level has the pages of a level that have no page above them yet.
type level struct {
	pages []child
	size  int // what they take in the page above them
}

// child is a page of a tree, and what comes between it and the next one: the last id in it,
// or an entry of an index, in the form in which the page above has it.
type child struct {
	page    uint32
	divider []byte
}

const (
	leafHeader, interiorHeader = 8, 12
	cellPointer, pagePointer   = 2, 4
	// mostInLeaf is the longest record that a leaf of a table has the whole of, and
	// leastInLeaf what it has at least of a longer one. mostInIndex is for an index.
	mostInLeaf  = pageSize - 35
	leastInLeaf = (pageSize-12)*32/255 - 23
	mostInIndex = (pageSize-12)*64/255 - 23
)

func newTreeWriter(pages *pageFile, root int64, index bool) *treeWriter {
	return &treeWriter{pages: pages, root: uint32(root), index: index, start: pageSize, maxChildren: pageSize}
}

// addRow adds a row of a table, whose record was made with appendRecord.
func (w *treeWriter) addRow(id int64, record []byte) error {
	inLeaf, link := len(record), 0
	if len(record) > mostInLeaf {
		link = pagePointer
		if inLeaf = leastInLeaf + (len(record)-leastInLeaf)%(pageSize-link); inLeaf > mostInLeaf {
			inLeaf = leastInLeaf
		}
	}
	cell, err := w.newCell(varintSize(uint64(len(record))) + varintSize(uint64(id)) + inLeaf + link)
	if err != nil {
		return err
	}
	w.last = id
	cell = append(appendVarint(appendVarint(cell, uint64(len(record))), uint64(id)), record[:inLeaf]...)
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

// addEntry adds an entry of an index, whose record was made with appendRecord.
func (w *treeWriter) addEntry(record []byte) error {
	if len(record) > mostInIndex {
		return fmt.Errorf("an entry of %d bytes in an index", len(record))
	}
	cell, err := w.newCell(varintSize(uint64(len(record))) + len(record))
	if err != nil {
		return err
	}
	_ = append(appendVarint(cell, uint64(len(record))), record...)
	return nil
}

// newCell makes room for a cell in a leaf, to be appended to.
func (w *treeWriter) newCell(size int) ([]byte, error) {
	if leafHeader+cellPointer*(w.count+1)+size > w.start {
		if err := w.endLeaf(); err != nil {
			return nil, err
		}
	}
	w.start -= size
	binary.BigEndian.PutUint16(w.leaf[leafHeader+cellPointer*w.count:], uint16(w.start))
	w.count++
	return w.leaf[w.start:w.start], nil
}

// lastCell is the last cell of the leaf.
func (w *treeWriter) lastCell() []byte {
	end := pageSize
	if w.count > 1 {
		end = int(binary.BigEndian.Uint16(w.leaf[leafHeader+cellPointer*(w.count-2):]))
	}
	return w.leaf[w.start:end]
}

// endLeaf writes the full leaf, and begins another.
func (w *treeWriter) endLeaf() error {
	divider := appendVarint(nil, uint64(w.last))
	if w.index { // an entry between two pages is in neither of them
		divider = bytes.Clone(w.lastCell())
		w.start += len(divider)
		w.count--
	}
	err := w.addPage(0, w.finishLeaf(), divider)
	clear(w.leaf[:])
	w.count, w.start = 0, pageSize
	return err
}

// finishLeaf makes the leaf a page.
func (w *treeWriter) finishLeaf() []byte {
	kind := byte(13)
	if w.index {
		kind = 10
	}
	finishPage(w.leaf[:], kind, w.count, w.start)
	return w.leaf[:]
}

func finishPage(page []byte, kind byte, count, start int) {
	page[0] = kind
	binary.BigEndian.PutUint16(page[3:], uint16(count))
	binary.BigEndian.PutUint16(page[5:], uint16(start))
}

// addPage writes a page, whose number goes into a page of the level above it.
func (w *treeWriter) addPage(n int, page, divider []byte) error {
	if n == len(w.above) {
		w.above = append(w.above, level{})
	}
	l := w.above[n]
	if size := l.size + cellPointer + pagePointer + len(divider); size > pageSize-interiorHeader || len(l.pages) == w.maxChildren {
		// Two are left for the next page, as there must not be one with only one below it.
		full := l.pages[:len(l.pages)-2]
		if err := w.addPage(n+1, w.interiorPage(full), full[len(full)-1].divider); err != nil {
			return err
		}
		left := l.pages[len(full):]
		l = level{}
		for _, c := range left {
			l.add(c)
		}
	}
	l.add(child{w.pages.next(), divider})
	w.above[n] = l
	return w.pages.add(page)
}

func (l *level) add(c child) {
	l.pages = append(l.pages, c)
	l.size += cellPointer + pagePointer + len(c.divider)
}

// interiorPage makes the page above others.
func (w *treeWriter) interiorPage(children []child) []byte {
	page := make([]byte, pageSize)
	last := len(children) - 1
	start := pageSize
	for i, c := range children[:last] {
		start -= pagePointer + len(c.divider)
		_ = append(binary.BigEndian.AppendUint32(page[start:start], c.page), c.divider...)
		binary.BigEndian.PutUint16(page[interiorHeader+cellPointer*i:], uint16(start))
	}
	kind := byte(5)
	if w.index {
		kind = 2
	}
	finishPage(page, kind, last, start)
	binary.BigEndian.PutUint32(page[8:], children[last].page)
	return page
}

// finish writes the last page of each level, the topmost one in the place of the tree's
// first page.
func (w *treeWriter) finish() error {
	page := w.finishLeaf()
	for n := 0; n < len(w.above); n++ {
		if err := w.addPage(n, page, nil); err != nil { // what would come after it does not
			return err
		}
		page = w.interiorPage(w.above[n].pages)
	}
	return w.pages.replace(w.root, page)
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
