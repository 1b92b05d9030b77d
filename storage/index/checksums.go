package index

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"nar-herder/narinfo"
)

// Checksum is the checksum of a file of an item. It is valid only for a file with this size
// and change time.
type Checksum struct {
	Hash narinfo.PathHash
	// File identifies the file among the item's. The caller chooses it.
	File    string
	Size    int64
	Changed time.Time
	// Sum is the first half of the SHA-256.
	Sum [16]byte
}

// Checksums returns the known checksums of an item's files. An unknown item has none.
func (x *Index) Checksums(ctx context.Context, hash narinfo.PathHash) (sums []Checksum, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows("SELECT c.file, c.size, c.changed, c.sum FROM items i JOIN checksums c ON c.item = i.id WHERE i.key = ?", []driver.Value{keyOf(hash)},
			func(row []driver.Value) (bool, error) {
				file, err := textValue(row[0])
				if err != nil {
					return false, err
				}
				sum := Checksum{Hash: hash, File: file, Size: number(row[1]), Changed: time.Unix(0, number(row[2]))}
				if n := copy(sum.Sum[:], blob(row[3])); n != len(sum.Sum) {
					return false, fmt.Errorf("a checksum has %d bytes, want %d", n, len(sum.Sum))
				}
				sums = append(sums, sum)
				return true, nil
			})
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("look up the checksums of %s in %s", hash, x.path), err)
	}
	return sums, nil
}

// PutChecksum records a checksum, replacing an earlier one of the file. The error is
// [ErrNotFound] if there is no such item.
func (tx *Tx) PutChecksum(sum Checksum) error {
	id, err := tx.id(sum.Hash)
	if err != nil {
		return err
	}
	return tx.conn.exec(`INSERT INTO checksums (item, file, size, changed, sum) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET size = excluded.size, changed = excluded.changed, sum = excluded.sum`,
		id, sum.File, sum.Size, sum.Changed.UnixNano(), sum.Sum[:])
}
