package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"
	"time"

	"nar-herder/narinfo"
)

// Listed is an item to sort by name and hash.
type Listed struct {
	narinfo.StorePath
	// WithdrawnAt and DeleteAfter are as in [Item], in whole seconds.
	WithdrawnAt, DeleteAfter time.Time
}

// Sorter sorts items by name in bounded memory. SQLite keeps the rest in temporary files.
type Sorter struct{ conn *connection }

// sorterCache is the page cache of a [Sorter] in bytes. SQLite's own sorter takes the same
// again.
const sorterCache = 16 << 20

// NewSorter returns an empty sorter. The caller must close it.
func NewSorter(ctx context.Context) (*Sorter, error) { return newSorter(ctx, sorterCache) }

func newSorter(ctx context.Context, cacheBytes int) (*Sorter, error) {
	// A database without a name is temporary.
	conn, err := connect(ctx, "file:?_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=temp_store(file)&_pragma=cache_size(-"+strconv.Itoa(cacheBytes>>10)+")")
	if err != nil {
		return nil, fmt.Errorf("make a temporary database: %w", err)
	}
	if err := conn.script("CREATE TABLE items (name TEXT, hash BLOB, withdrawn INTEGER, deletable INTEGER) STRICT; BEGIN"); err != nil {
		return nil, errors.Join(fmt.Errorf("make a temporary database: %w", err), conn.close())
	}
	return &Sorter{conn}, nil
}

// noTime encodes the zero time in a [Sorter].
const noTime = math.MinInt64

// Add adds an item.
func (s *Sorter) Add(item Listed) error {
	at := func(t time.Time) int64 {
		if t.IsZero() {
			return noTime
		}
		return t.Unix()
	}
	err := s.conn.exec("INSERT INTO items VALUES (?, ?, ?, ?)", item.Name, item.Hash[:], at(item.WithdrawnAt), at(item.DeleteAfter))
	if err != nil {
		return fmt.Errorf("write to a temporary database: %w", err)
	}
	return nil
}

// Sorted iterates over all added items, sorted.
func (s *Sorter) Sorted(ctx context.Context) iter.Seq2[Listed, error] {
	return func(yield func(Listed, error) bool) {
		rows, err := s.conn.conn.(driver.QueryerContext).QueryContext(ctx, "SELECT name, hash, withdrawn, deletable FROM items ORDER BY name, hash", nil)
		if err == nil {
			defer rows.Close()
		}
		row := make([]driver.Value, 4)
		for err == nil {
			if err = rows.Next(row); err == nil {
				var item Listed
				if item, err = listedFrom(row); err == nil && !yield(item, nil) {
					return
				}
			}
			err = errors.Join(err, ctx.Err())
		}
		if !errors.Is(err, io.EOF) {
			yield(Listed{}, fmt.Errorf("sort the items: %w", err))
		}
	}
}

func listedFrom(row []driver.Value) (item Listed, err error) {
	at := func(column driver.Value) (t time.Time) {
		if seconds, ok := column.(int64); ok && seconds != noTime {
			t = time.Unix(seconds, 0).UTC()
		}
		return t
	}
	item.Name, _ = row[0].(string)
	item.Hash, err = hashOf(row[1])
	item.WithdrawnAt, item.DeleteAfter = at(row[2]), at(row[3])
	return item, err
}

// Close removes the temporary files.
func (s *Sorter) Close() error { return s.conn.close() }
