package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"time"

	"nar-herder/narinfo"
)

// ErrDamaged means that the database differs from what was written to it. The error is a
// [Damage] if it concerns one item.
var ErrDamaged = errors.New("the database is damaged")

// Damage is a damaged row of the database, usually of an item.
type Damage struct {
	// Hash is the hash of the item, if it is known: from the request or the database.
	Hash narinfo.PathHash
	// Dictionary is set if a dictionary is damaged, not an item.
	Dictionary int64
	// Change is set if a change in the log is damaged, not an item.
	Change int64
	// Cached is the type of a cached file if its row is damaged, not the narinfo.
	Cached string
	Reason string

	id     int64 // of the item's row; 0 if unknown
	orphan int64 // id of a narinfo without an item
}

func (d *Damage) Error() string {
	if d.Dictionary != 0 {
		return fmt.Sprintf("%v: dictionary %d: %s: see 'nar-herder help check'", ErrDamaged, d.Dictionary, d.Reason)
	}
	if d.Change != 0 {
		return fmt.Sprintf("%v: change %d: %s: see 'nar-herder help check'", ErrDamaged, d.Change, d.Reason)
	}
	return fmt.Sprintf("%v: the narinfo of %s: %s: see 'nar-herder help check'", ErrDamaged, d.Hash, d.Reason)
}

// Position is the [Item.Position], or 0 if it is unknown.
func (d *Damage) Position() int64 { return d.id }

// Unwrap returns [ErrDamaged].
func (d *Damage) Unwrap() error { return ErrDamaged }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumOf returns the checksum column of a narinfo: the CRC-32C of the path hash and the
// text. It detects all changes of a few bits, and other changes, such as decompression with
// a damaged dictionary, with a probability of 1 - 2⁻³². Since it includes the hash, a text
// can't be served for another item. It is signed so that SQLite stores it in four bytes.
func checksumOf(hash narinfo.PathHash, text []byte) int64 {
	return int64(int32(crc32.Update(crc32.Checksum(hash[:], castagnoli), castagnoli, text)))
}

// checksumOfCached returns the checksum column of a cached file.
func checksumOfCached(hash narinfo.PathHash, kind string, size int64) int64 {
	return checksumOf(hash, fmt.Appendf(nil, "%s %d", kind, size))
}

// checksumOfDictionary returns the checksum column of a dictionary.
func checksumOfDictionary(content []byte) int64 {
	return int64(int32(crc32.Checksum(content, castagnoli)))
}

const (
	differs   = "it differs from what was written"
	noInteger = "a column has a value of another type"
)

// verified decompresses a text, and returns it if it matches the checksum column. The
// column is NULL in rows of an older program that had the database open during the
// migration; such a text must be a valid narinfo of the hash.
func (c *codec) verified(hash narinfo.PathHash, dictionary, stored, checksum driver.Value) (text []byte, reason string) {
	id, ok := dictionary.(int64)
	if !ok {
		return nil, noInteger
	}
	text, err := c.decompress(id, blob(stored))
	if err != nil {
		return nil, err.Error()
	}
	switch want := checksum.(type) {
	case int64:
		if checksumOf(hash, text) != want {
			return nil, differs
		}
	case nil:
		if n, err := narinfo.Parse(text); err != nil || n.StorePath.Hash != hash {
			return nil, differs
		}
	default:
		return nil, noInteger
	}
	return text, ""
}

// damaged counts a damage and returns it as an error.
func (x *Index) damaged(hash narinfo.PathHash, id int64, reason string) error {
	x.damages.add()
	return &Damage{Hash: hash, Reason: reason, id: id}
}

// damages counts detected damage.
type damages struct {
	count, last atomic.Int64
}

func (d *damages) add() {
	d.last.Store(time.Now().Unix())
	d.count.Add(1)
}

// Damages returns how often damage was detected since the database was opened, and when
// last. It counts an item each time.
func (x *Index) Damages() (count int64, last time.Time) {
	return x.damages.count.Load(), time.Unix(x.damages.last.Load(), 0)
}

// addChecksums fills the checksum columns, within the transaction of a migration.
func (c *connection) addChecksums(ctx context.Context) error {
	// All earlier versions had only one dictionary.
	err := c.exec("UPDATE dictionaries SET content = ? WHERE id = ?", builtinDictionary, int64(builtinID))
	if err != nil {
		return err
	}
	type dictionary struct{ id, checksum driver.Value }
	var all []dictionary
	err = c.rows("SELECT id, content FROM dictionaries", nil, func(row []driver.Value) (bool, error) {
		all = append(all, dictionary{row[0], checksumOfDictionary(blob(row[1]))})
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := c.exec("UPDATE dictionaries SET checksum = ? WHERE id = ?", d.checksum, d.id); err != nil {
			return err
		}
	}
	if err := c.addCachedChecksums(); err != nil {
		return err
	}
	codec, err := openCodec(c, false)
	if err != nil {
		return err
	}
	defer codec.close()
	type sum struct{ id, checksum int64 }
	for last := int64(-1); ; {
		var sums []sum
		err := c.rows("SELECT id, hash, dictionary, text FROM narinfos WHERE id > ? ORDER BY id LIMIT ?", []driver.Value{last, int64(checksumsStep)},
			func(row []driver.Value) (bool, error) {
				last = row[0].(int64)
				hash, err := hashOf(row[1])
				if err != nil {
					sums = append(sums, sum{last, 0}) // matches a text with a probability of 2⁻³²
					return true, nil
				}
				text, reason := codec.verified(hash, row[2], row[3], nil)
				checksum := checksumOf(hash, text)
				if reason != "" {
					checksum = ^checksum // matches no known text
				}
				sums = append(sums, sum{last, checksum})
				return true, nil
			})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || len(sums) == 0 {
			return err
		}
		for _, s := range sums {
			if err := c.exec("UPDATE narinfos SET checksum = ? WHERE id = ?", s.checksum, s.id); err != nil {
				return err
			}
		}
	}
}

// addCachedChecksums is addChecksums for cached files.
func (c *connection) addCachedChecksums() error {
	type row struct{ checksum, item, kind driver.Value }
	var all []row
	err := c.rows("SELECT n.hash, c.type, c.size, c.item FROM cached_files c JOIN narinfos n ON n.id = c.item", nil, func(found []driver.Value) (bool, error) {
		if hash, err := hashOf(found[0]); err == nil {
			kind, _ := found[1].(string)
			all = append(all, row{checksumOfCached(hash, kind, number(found[2])), found[3], found[1]})
		}
		return true, nil
	})
	for _, r := range all {
		if err == nil {
			err = c.exec("UPDATE cached_files SET checksum = ? WHERE item = ? AND type = ?", r.checksum, r.item, r.kind)
		}
	}
	return err
}

// checksumsStep is how many rows addChecksums updates at a time.
const checksumsStep = 1000
