package index

import (
	"context"
	"database/sql/driver"
	"time"

	"nar-herder/narinfo"
)

// Origin returns the number of an upstream for [Entry.Origin], and records the upstream if it
// is new. url must not have a password.
func (tx *Tx) Origin(url string) (int64, error) {
	row, err := tx.conn.first("INSERT INTO origins (url) VALUES (?) ON CONFLICT DO UPDATE SET url = url RETURNING id", url)
	if err != nil {
		return 0, err
	}
	return number(row[0]), nil
}

// SetOrigin records the upstream that an item came from, or 0, and when it must be queried
// again. It is not a change: nobody is notified.
func (tx *Tx) SetOrigin(hash narinfo.PathHash, origin int64, freshUntil time.Time) error {
	return tx.conn.exec("UPDATE items SET origin = ?, fresh_until = ? WHERE key = ?", origin, timeColumn(freshUntil), keyOf(hash))
}

// OriginOf returns the upstream that an item came from; 0 for none.
func (tx *Tx) OriginOf(hash narinfo.PathHash) (int64, error) {
	return tx.conn.integer("SELECT coalesce((SELECT origin FROM items WHERE key = ?), 0)", keyOf(hash))
}

// Origins returns the URLs of all upstreams that items came from, by their numbers.
func (x *Index) Origins(ctx context.Context) (origins map[int64]string, err error) {
	origins = make(map[int64]string)
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows("SELECT id, url FROM origins", nil, func(row []driver.Value) (bool, error) {
			url, err := textValue(row[1])
			origins[number(row[0])] = url
			return true, err
		})
	})
	if err != nil {
		return nil, describe("list the upstreams in "+x.path, err)
	}
	return origins, nil
}

// OriginCounts returns how many items came from each upstream, by their URLs.
func (x *Index) OriginCounts(ctx context.Context) (counts map[string]int64, err error) {
	counts = make(map[string]int64)
	const query = "SELECT o.url, c.items FROM (SELECT origin, count(*) AS items FROM items WHERE origin != 0 GROUP BY origin) c JOIN origins o ON o.id = c.origin"
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(query, nil, func(row []driver.Value) (bool, error) {
			url, err := textValue(row[0])
			counts[url] = number(row[1])
			return true, err
		})
	})
	if err != nil {
		return nil, describe("count the items of upstreams in "+x.path, err)
	}
	return counts, nil
}
