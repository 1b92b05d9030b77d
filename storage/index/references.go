package index

import (
	"cmp"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"

	"nar-herder/narinfo"
)

// The reverse references form a table of some two hundred million edges in the largest
// build farm. A row per edge would make imports a hundred times slower, and the database
// half as large again. So edges are stored in runs: a transaction writes its edges as one
// sorted run of packed chunks, and several runs of similar size are merged into one. A
// look-up searches every run, a few dozen at most.
//
// Runs are immutable. An edge is valid only if the referrer's list of references has the
// target, which each look-up checks. So removals and replacements only leave unused bytes.

// edge means that the item with the id referrer refers to the item with the key target.
type edge struct{ target, referrer int64 }

func (e edge) compare(o edge) int {
	return cmp.Or(cmp.Compare(e.target, o.target), cmp.Compare(e.referrer, o.referrer))
}

const (
	// runsPerLevel is how many runs of a level are merged into one. Each edge is written
	// about log(all edges) to this base times.
	runsPerLevel = 8
	// maxRun limits the edges of a merge, and so the time that it locks the database: about
	// two seconds.
	maxRun = 32 << 20
	// chunkBytes limits the packed edges of a row. The key is the whole row, and should fit
	// into a quarter of a page.
	chunkBytes = 1600
)

// refer adds the edges of an item to the transaction.
func (tx *Tx) refer(id int64, n *narinfo.Narinfo) {
	for _, reference := range n.References {
		tx.edges = append(tx.edges, edge{keyOf(reference.Hash), id})
	}
}

// flushEdges writes the edges of the transaction as a new run, and merges runs.
func (tx *Tx) flushEdges() error {
	if len(tx.edges) == 0 {
		return nil
	}
	edges := slices.Compact(sortEdges(tx.edges))
	tx.edges = nil
	w := newRun(tx.conn)
	for _, e := range edges {
		if err := w.add(e); err != nil {
			return err
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	return tx.mergeRuns()
}

// runLevel returns the level of a run with that many edges.
func runLevel(edges int64) int64 {
	return int64((bits.Len64(uint64(edges)) - 1) / (bits.Len(runsPerLevel) - 1))
}

// mergeRuns merges full levels, from the lowest up.
func (tx *Tx) mergeRuns() error {
	for {
		row, err := tx.conn.first(`SELECT level FROM runs GROUP BY level
			HAVING count(*) >= ? AND sum(edges) <= ? ORDER BY level LIMIT 1`, int64(runsPerLevel), int64(maxRun))
		if err != nil || row == nil {
			return err
		}
		var ids []int64
		err = tx.conn.rows("SELECT id FROM runs WHERE level = ? ORDER BY id", []driver.Value{row[0]}, func(row []driver.Value) (bool, error) {
			ids = append(ids, row[0].(int64))
			return true, nil
		})
		if err != nil {
			return err
		}
		if err := tx.merge(ids); err != nil {
			return err
		}
	}
}

// merge replaces runs by a run with their edges.
func (tx *Tx) merge(ids []int64) error {
	readers := make([]*runReader, 0, len(ids))
	for _, id := range ids {
		r := &runReader{conn: tx.conn, run: id}
		if err := r.next(); err != nil {
			return err
		}
		readers = append(readers, r)
	}
	w := newRun(tx.conn)
	for last, first := (edge{}), true; ; {
		var least *runReader
		for _, r := range readers {
			if !r.ended && (least == nil || r.edge.compare(least.edge) < 0) {
				least = r
			}
		}
		if least == nil {
			break
		}
		if e := least.edge; first || e != last {
			if err := w.add(e); err != nil {
				return err
			}
			last, first = e, false
		}
		if err := least.next(); err != nil {
			return err
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	for _, id := range ids {
		err := errors.Join(
			tx.conn.exec("DELETE FROM referrers WHERE run = ?", id),
			tx.conn.exec("DELETE FROM runs WHERE id = ?", id))
		if err != nil {
			return err
		}
	}
	return nil
}

// runWriter writes a run from sorted edges.
type runWriter struct {
	conn   *connection
	run    int64
	edges  int64
	first  edge // of the chunk
	last   edge
	packed []byte // nil between chunks
}

func newRun(conn *connection) *runWriter { return &runWriter{conn: conn} }

func (w *runWriter) add(e edge) error {
	if w.run == 0 {
		id, err := w.conn.insert("INSERT INTO runs (level, edges) VALUES (0, 0)")
		if err != nil {
			return err
		}
		w.run = id
	}
	w.edges++
	if w.packed == nil {
		w.packed = make([]byte, 0, chunkBytes+20)
		w.first, w.last = e, e
		return nil
	}
	w.packed = appendEdge(w.packed, w.last, e)
	w.last = e
	if len(w.packed) >= chunkBytes {
		return w.flush()
	}
	return nil
}

func (w *runWriter) flush() error {
	if w.packed == nil {
		return nil
	}
	err := w.conn.exec("INSERT INTO referrers VALUES (?, ?, ?, ?)", w.run, w.first.target, w.first.referrer, w.packed)
	w.packed = nil
	return err
}

func (w *runWriter) end() error {
	if w.run == 0 {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.conn.exec("UPDATE runs SET level = ?, edges = ? WHERE id = ?", runLevel(w.edges), w.edges, w.run)
}

// appendEdge encodes an edge as a difference to the previous one: the distance of the
// targets, then the referrer, or the distance of the referrers if the target is the same.
func appendEdge(packed []byte, last, e edge) []byte {
	// Unsigned subtraction of sorted numbers gives the distance, also on overflow.
	distance := uint64(e.target) - uint64(last.target)
	packed = binary.AppendUvarint(packed, distance)
	if distance == 0 {
		return binary.AppendUvarint(packed, uint64(e.referrer-last.referrer))
	}
	return binary.AppendUvarint(packed, uint64(e.referrer))
}

// unpackEdges returns the edges of a chunk.
func unpackEdges(edges []edge, first edge, packed []byte) ([]edge, error) {
	edges = append(edges, first)
	for last := first; len(packed) > 0; {
		e, length := nextEdge(packed, last)
		if length == 0 {
			return nil, errors.New("a chunk of referrers in the database is damaged")
		}
		packed, last = packed[length:], e
		edges = append(edges, e)
	}
	return edges, nil
}

// nextEdge decodes an edge of appendEdge, and returns its length, 0 if it is damaged.
func nextEdge(packed []byte, last edge) (e edge, length int) {
	distance, n := binary.Uvarint(packed)
	if n <= 0 {
		return edge{}, 0
	}
	referrer, m := binary.Uvarint(packed[n:])
	if m <= 0 {
		return edge{}, 0
	}
	if distance == 0 {
		referrer += uint64(last.referrer)
	}
	return edge{int64(uint64(last.target) + distance), int64(referrer)}, n + m
}

// runReader iterates over the edges of a run.
type runReader struct {
	conn  *connection
	run   int64
	edge  edge // the current one
	ended bool

	edges []edge // read so far, from the current one on
	chunk edge   // first edge of the last chunk that was read
	begun bool
}

// chunksAtOnce limits the memory of a merge.
const chunksAtOnce = 32

func (r *runReader) next() error {
	if len(r.edges) > 1 {
		r.edges = r.edges[1:]
		r.edge = r.edges[0]
		return nil
	}
	r.edges = nil
	query, args := "SELECT target, referrer, edges FROM referrers WHERE run = ? ORDER BY target, referrer LIMIT ?",
		[]driver.Value{r.run, int64(chunksAtOnce)}
	if r.begun {
		query = "SELECT target, referrer, edges FROM referrers WHERE run = ? AND (target, referrer) > (?, ?) ORDER BY target, referrer LIMIT ?"
		args = []driver.Value{r.run, r.chunk.target, r.chunk.referrer, int64(chunksAtOnce)}
	}
	err := r.conn.rows(query, args, func(row []driver.Value) (_ bool, err error) {
		if r.chunk, err = edgeOf(row[0], row[1]); err != nil {
			return false, err
		}
		r.edges, err = unpackEdges(r.edges, r.chunk, blob(row[2]))
		return true, err
	})
	r.begun = true
	if len(r.edges) == 0 {
		r.ended = true
		return err
	}
	r.edge = r.edges[0]
	return err
}

// Referrers returns the hashes of the items that refer to the path, in insertion order. An
// item may refer to itself. The path need not be an item.
func (x *Index) Referrers(ctx context.Context, hash narinfo.PathHash) (referrers []narinfo.PathHash, err error) {
	target := keyOf(hash)
	err = x.readers.do(ctx, func(c *connection) (err error) {
		// Use one snapshot: merges delete runs.
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.exec("COMMIT")) }()
		ids, err := c.referrersOf(target)
		if err != nil {
			return err
		}
		for _, id := range ids {
			row, err := c.first("SELECT hash, refs FROM narinfos WHERE id = ?", id)
			if err != nil {
				return err
			}
			if row == nil || !refersTo(blob(row[1]), target) {
				continue // a former reference
			}
			referrer, err := hashOf(row[0])
			if err != nil {
				return err
			}
			referrers = append(referrers, referrer)
		}
		return nil
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("read the referrers of %s in %s", hash, x.path), err)
	}
	return referrers, nil
}

// referrersOf returns the ids of the items that refer to the target, or once did.
func (c *connection) referrersOf(target int64) (found []int64, err error) {
	var runs []int64
	err = c.rows("SELECT id FROM runs", nil, func(row []driver.Value) (bool, error) {
		runs = append(runs, row[0].(int64))
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	gather := func(row []driver.Value) (bool, error) {
		first, err := edgeOf(row[0], row[1])
		if err != nil {
			return false, err
		}
		edges, err := unpackEdges(nil, first, blob(row[2]))
		for _, e := range edges {
			if e.target == target {
				found = append(found, e.referrer)
			}
		}
		return true, err
	}
	for _, run := range runs {
		// The chunk that begins before the target may contain it.
		err := errors.Join(
			c.rows("SELECT target, referrer, edges FROM referrers WHERE run = ? AND target < ? ORDER BY target DESC, referrer DESC LIMIT 1",
				[]driver.Value{run, target}, gather),
			c.rows("SELECT target, referrer, edges FROM referrers WHERE run = ? AND target = ?",
				[]driver.Value{run, target}, gather))
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// refersTo reports whether a list of references has the target.
func refersTo(references []byte, target int64) bool {
	for ; len(references) >= 8; references = references[8:] {
		if int64(binary.BigEndian.Uint64(references)) == target {
			return true
		}
	}
	return false
}

// Referring iterates over the items, not withdrawn, that refer to any target other than
// themselves. It reads the references of all items, so it suits a number of targets for
// which [Index.Referrers] would be slow.
func (x *Index) Referring(ctx context.Context, targets map[narinfo.PathHash]struct{}) iter.Seq2[narinfo.PathHash, error] {
	return func(yield func(narinfo.PathHash, error) bool) {
		keys := make(map[int64]struct{}, len(targets))
		for hash := range targets {
			keys[keyOf(hash)] = struct{}{}
		}
		const query = "SELECT id, hash, refs FROM narinfos WHERE id > ? AND withdrawn_at IS NULL ORDER BY id LIMIT ?"
		for last := int64(-1); ; {
			var found []narinfo.PathHash
			read := 0
			err := x.readers.do(ctx, func(c *connection) error {
				return c.rows(query, []driver.Value{last, int64(referringStep)}, func(row []driver.Value) (bool, error) {
					read++
					last = row[0].(int64)
					hash, err := hashOf(row[1])
					if err == nil && refersToAny(blob(row[2]), keys, keyOf(hash)) {
						found = append(found, hash)
					}
					return true, err
				})
			})
			if err != nil {
				yield(narinfo.PathHash{}, describe("read the references in "+x.path, err))
				return
			}
			for _, hash := range found {
				if !yield(hash, nil) {
					return
				}
			}
			if read < referringStep {
				return
			}
		}
	}
}

// referringStep is how many rows a scan of all references reads at a time.
const referringStep = 5000

// refersToAny reports whether a list of references has any of the targets except the item
// itself.
func refersToAny(references []byte, targets map[int64]struct{}, itself int64) bool {
	for ; len(references) >= 8; references = references[8:] {
		key := int64(binary.BigEndian.Uint64(references))
		if _, has := targets[key]; has && key != itself {
			return true
		}
	}
	return false
}

// MissingReferences returns the references of the narinfo that have no narinfo in the
// index.
func (x *Index) MissingReferences(ctx context.Context, n *narinfo.Narinfo) (missing []narinfo.StorePath, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		missing, err = c.missing(n.References, notWithdrawn)
		return err
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("look for the references of %s in %s", n.StorePath, x.path), err)
	}
	return missing, nil
}

// HiddenReferences returns the references that clients can't get: those of
// [Index.MissingReferences] and lost ones.
func (x *Index) HiddenReferences(ctx context.Context, n *narinfo.Narinfo) (hidden []narinfo.StorePath, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		hidden, err = c.missing(n.References, notWithdrawn+" AND n.lost_at IS NULL")
		return err
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("look for the references of %s in %s", n.StorePath, x.path), err)
	}
	return hidden, nil
}

const notWithdrawn = "n.withdrawn_at IS NULL"

// missing returns the paths that are not items under a condition.
func (c *connection) missing(paths []narinfo.StorePath, condition string) (missing []narinfo.StorePath, err error) {
	query := "SELECT n.hash FROM items i JOIN narinfos n ON n.id = i.id WHERE " + condition + " AND i.key" + inKeys
	present := make(map[string]bool, len(paths))
	for step := range slices.Chunk(paths, keysAtOnce) {
		keys := make([]int64, len(step))
		for i, path := range step {
			keys[i] = keyOf(path.Hash)
		}
		err := c.rowsIn(query, keys, func(row []driver.Value) (bool, error) {
			present[string(blob(row[0]))] = true
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, path := range paths {
		if !present[string(path.Hash[:])] {
			missing = append(missing, path)
		}
	}
	return missing, nil
}
