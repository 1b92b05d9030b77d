package storage

import (
	"bytes"
	"errors"
	"time"

	"nar-herder/storage/index"
)

// RecordVerified records that all stored files of an item were compared with its NarHash, not
// before the given time. It does nothing if the row has changed since the item was read.
func RecordVerified(tx *index.Tx, item *Item, at time.Time) error {
	row, err := tx.Item(item.Hash)
	if errors.Is(err, ErrNotFound) || errors.Is(err, index.ErrDamaged) {
		return nil
	} else if err != nil {
		return err
	}
	if row.Stored != item.Stored || !bytes.Equal(row.Text, item.Text) {
		return nil
	}
	return tx.SetVerified(item.Hash, at)
}
