package index

import (
	"context"
	"database/sql/driver"
	"errors"
)

// Setting returns the value of a setting, or "" if it is not set.
func (x *Index) Setting(ctx context.Context, name string) (value string, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		value, err = c.setting(name)
		return err
	})
	if err != nil {
		return "", describe("read the setting "+name+" in "+x.path, err)
	}
	return value, nil
}

// Settings returns the settings with the prefix, by name.
func (x *Index) Settings(ctx context.Context, prefix string) (values map[string]string, err error) {
	values = make(map[string]string)
	err = x.readers.do(ctx, func(c *connection) error {
		// Every name with the prefix sorts before this bound.
		return c.rows("SELECT key, value FROM settings WHERE key >= ? AND key < ?", []driver.Value{prefix, prefix + "\U0010ffff"}, func(row []driver.Value) (bool, error) {
			name, _ := row[0].(string)
			values[name], _ = row[1].(string)
			return true, nil
		})
	})
	if err != nil {
		return nil, describe("read the settings "+prefix+"… in "+x.path, err)
	}
	return values, nil
}

// Setting is [Index.Setting] within this transaction.
func (tx *Tx) Setting(name string) (string, error) { return tx.conn.setting(name) }

func (c *connection) setting(name string) (string, error) {
	row, err := c.first("SELECT value FROM settings WHERE key = ?", name)
	if err != nil || row == nil {
		return "", err
	}
	value, _ := row[0].(string)
	return value, nil
}

// EraseSetting is [Tx.SetSetting] in a transaction of its own that leaves no trace of the
// old value in the database: SQLite only marks replaced data as free. The write-ahead log
// may contain the value until the last process closes the database.
func (x *Index) EraseSetting(ctx context.Context, name, value string) (err error) {
	return x.Update(ctx, func(tx *Tx) (err error) {
		defer func() { err = errors.Join(err, tx.conn.script("PRAGMA secure_delete = off")) }()
		if err := tx.conn.script("PRAGMA secure_delete = on"); err != nil {
			return err
		}
		type setting struct{ key, value driver.Value }
		var all []setting
		err = tx.conn.rows("SELECT key, value FROM settings", nil, func(row []driver.Value) (bool, error) {
			all = append(all, setting{row[0], row[1]})
			return true, nil
		})
		if err != nil {
			return err
		}
		// Delete all rows: free parts of pages may contain old values, and SQLite clears
		// pages when the table becomes empty.
		if err := tx.conn.exec("DELETE FROM settings"); err != nil {
			return err
		}
		for _, s := range all {
			if s.key == name {
				continue
			}
			if err := tx.conn.exec("INSERT INTO settings VALUES (?, ?)", s.key, s.value); err != nil {
				return err
			}
		}
		return tx.SetSetting(name, value)
	})
}

// SetSetting stores a setting. The value "" deletes it.
func (tx *Tx) SetSetting(name, value string) error {
	if value == "" {
		return tx.conn.exec("DELETE FROM settings WHERE key = ?", name)
	}
	return tx.conn.exec("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", driver.Value(name), value)
}
