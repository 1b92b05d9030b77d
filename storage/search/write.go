package search

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/storage/index"
)

// recent are items in memory that are not in the file. The zero value is empty.
type recent struct {
	names  []recentName
	byName map[string]int
	items  int
	// newest identify the last items, also after they were merged into the file.
	newest []sample
}

type recentName struct {
	name     string
	postings []posting // the newest last
}

// samples is how many of the newest items a file identifies.
const samples = 16

// add adds an item that is newer than all others.
func (r *recent) add(named index.Named) {
	name := lower(named.Name)
	i, known := r.byName[name]
	if !known {
		if r.byName == nil {
			r.byName = make(map[string]int)
		}
		i = len(r.names)
		r.byName[name] = i
		r.names = append(r.names, recentName{name: name})
	}
	r.names[i].postings = append(r.names[i].postings, posting{named.Position, hashStart(named.Hash)})
	r.items++
	r.newest = append(r.newest[max(0, len(r.newest)-samples+1):], sample{named.Position, named.Hash.String()})
}

// kept returns the recent items that keep selects.
func (r *recent) kept(keep func(position int64) bool) recent {
	kept := recent{newest: r.newest, byName: make(map[string]int)}
	for _, n := range r.names {
		n.postings = slices.DeleteFunc(slices.Clone(n.postings), func(p posting) bool { return !keep(p.position) })
		if len(n.postings) > 0 {
			kept.byName[n.name] = len(kept.names)
			kept.names = append(kept.names, n)
			kept.items += len(n.postings)
		}
	}
	return kept
}

// openUnfinished creates and locks the file, or truncates the one of a killed process.
func openUnfinished(name string, mode fs.FileMode) (_ *os.File, err error) {
	if err := mustBeOurs(name); err != nil {
		return nil, err
	}
	file, err := disk.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, mode, disk.GroupWrites)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s, which another process may be writing: %w", name, err)
	}
	opened, err1 := file.Stat()
	named, err2 := os.Stat(name)
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(opened, named) {
		return nil, fmt.Errorf("another process has just written %s", name)
	}
	return file, file.Truncate(0)
}

// writer writes the blocks of a file.
type writer struct {
	out    *bufio.Writer
	limits *limits
	meta   meta

	text, counts, packed []byte // of the block

	name  []byte
	count int   // items of the name in the block
	from  int   // where its postings begin
	last  int64 // position of its last item
}

// add adds items of a name, the newest first. Names are added in order, and all items of a name
// from the newest to the oldest.
func (w *writer) add(name []byte, postings []posting) error {
	if string(name) != string(w.name) {
		w.endName()
		if err := w.flush(w.limits.blockText, w.limits.blockPostings); err != nil {
			return err
		}
		w.name = append(w.name[:0], name...)
	}
	for _, p := range postings {
		if len(w.packed)-w.from >= w.limits.blockPostings {
			w.endName()
			if err := w.flush(0, 0); err != nil {
				return err
			}
		}
		distance := w.last - p.position
		if w.count == 0 {
			distance = p.position
		}
		w.packed = binary.AppendUvarint(w.packed, uint64(distance))
		w.packed = append(w.packed, byte(p.start>>32))
		w.packed = binary.BigEndian.AppendUint32(w.packed, uint32(p.start))
		w.last = p.position
		w.count++
		w.meta.Items++
	}
	return nil
}

// endName ends the postings of a name in this block.
func (w *writer) endName() {
	if w.count > 0 {
		w.text = append(append(w.text, w.name...), '\n')
		w.counts = binary.AppendUvarint(w.counts, uint64(w.count))
		w.counts = binary.AppendUvarint(w.counts, uint64(len(w.packed)-w.from))
	}
	w.count, w.from, w.last = 0, len(w.packed), 0
}

// flush writes the block if it has that many bytes of text or postings.
func (w *writer) flush(text, postings int) error {
	if len(w.text) == 0 || len(w.text) < text && len(w.packed) < postings {
		return nil
	}
	names := crc32.Update(crc32.Checksum(w.text, castagnoli), castagnoli, w.counts)
	w.meta.Blocks = append(w.meta.Blocks, block{
		Text: len(w.text), Counts: len(w.counts), Postings: len(w.packed),
		NamesSum: names, PostingsSum: crc32.Checksum(w.packed, castagnoli),
	})
	for _, part := range []*[]byte{&w.text, &w.counts, &w.packed} {
		if _, err := w.out.Write(*part); err != nil {
			return err
		}
		*part = (*part)[:0]
	}
	w.from = 0
	return nil
}

// end writes the last block and the description.
func (w *writer) end() error {
	w.endName()
	if err := w.flush(0, 0); err != nil {
		return err
	}
	text, err := json.Marshal(&w.meta)
	if err != nil {
		return err
	}
	trailer := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	trailer = binary.BigEndian.AppendUint32(trailer, crc32.Checksum(text, castagnoli))
	for _, part := range [][]byte{text, trailer, []byte(magic)} {
		if _, err := w.out.Write(part); err != nil {
			return err
		}
	}
	return w.out.Flush()
}

// writeTo writes the table and the recent items to a file, and opens it.
func (s *Index) writeTo(ctx context.Context, file *os.File, keep func(position int64) bool) (*table, error) {
	w := &writer{
		out:    bufio.NewWriterSize(&disk.Writer{W: file, Directory: filepath.Dir(s.path)}, 64<<10),
		limits: &s.limits,
		meta:   meta{Format: format, Instance: s.index.Instance(), Covered: s.covered, Newest: s.recent.newest},
	}
	if _, err := w.out.WriteString(magic); err != nil {
		return nil, err
	}
	work := s.newWork(ctx)
	add := func(name []byte, postings []posting) error {
		if keep != nil {
			postings = slices.DeleteFunc(postings, func(p posting) bool { return !keep(p.position) })
		}
		if err := work.rest(); err != nil {
			return err
		}
		return w.add(name, postings)
	}
	names := slices.Clone(s.recent.names)
	slices.SortFunc(names, func(a, b recentName) int { return strings.Compare(a.name, b.name) })
	// addUpTo adds the recent names that are not after a name.
	addUpTo := func(name []byte) error {
		for len(names) > 0 && (name == nil || names[0].name <= string(name)) {
			newest := slices.Clone(names[0].postings)
			slices.Reverse(newest)
			if err := add([]byte(names[0].name), newest); err != nil {
				return err
			}
			names = names[1:]
		}
		return nil
	}
	if s.table != nil {
		err := s.table.each(ctx, func(name []byte, postings []posting) error {
			if err := addUpTo(name); err != nil {
				return err
			}
			return add(name, postings)
		})
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(addUpTo(nil), ctx.Err()); err != nil {
		return nil, err
	}
	if err := w.end(); err != nil {
		return nil, err
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	// A table of its own, since the file stays locked while it is open.
	read, err := os.Open(file.Name())
	if err != nil {
		return nil, err
	}
	t := &table{file: read}
	if err := t.readMeta(); err != nil {
		return nil, errors.Join(err, read.Close())
	}
	return t, nil
}
