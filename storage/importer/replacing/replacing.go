// Package replacing records the files that an import is replacing, whose nar is unknown until
// it has ended, and resolves the records of imports that failed or were killed.
package replacing

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

const (
	// prefix begins the keys of the settings that hold the records.
	prefix = "storage.replacing/"
	// resolveAfter is the age at which a record is resolved. In a younger one, the process may
	// still be running, or a slow object store may still replace the file.
	resolveAfter = 5 * time.Minute
)

// Record identifies an import that replaces files: the time when the replacement began, and a
// random text.
type Record string

// NewRecord makes a record of an import.
func NewRecord(now time.Time) Record {
	return Record(now.UTC().Format(time.RFC3339) + " " + rand.Text())
}

// RecordOf returns the record of a file, "" for none.
func RecordOf(tx *index.Tx, name string) (Record, error) {
	noted, err := tx.Setting(prefix + name)
	return Record(noted), err
}

// Set records that the import is replacing a file.
func (r Record) Set(tx *index.Tx, name string) error { return tx.SetSetting(prefix+name, string(r)) }

// Forget deletes the record of a file.
func Forget(tx *index.Tx, name string) error { return tx.SetSetting(prefix+name, "") }

// IsUnknown reports whether it is unknown which nar the named file is.
func IsUnknown(ctx context.Context, x *index.Index, name string) (bool, error) {
	noted, err := x.Setting(ctx, prefix+name)
	return noted != "", err
}

// ErrUnknown says that a file may be of either nar.
var ErrUnknown = errors.New("an import ended while it replaced this file, so it may be the old or the new nar: import the nar again, or run 'nar-herder check --repair'")

// Resolve identifies the files that an addition was replacing some minutes ago,
// when it failed or its process was killed. It compares them with their rows' NarHash, and
// makes the row claim a file that is its nar. Others stay unclaimed. The error is about files
// that could not be read: the next call tries them again.
func Resolve(ctx context.Context, s *storage.Storage, decode narcheck.Decoder) error {
	if !s.HasBytes() {
		return nil
	}
	noted, err := s.Index().Settings(ctx, prefix)
	if err != nil {
		return err
	}
	var failures []error
	for key, value := range noted {
		stamp, _, _ := strings.Cut(value, " ")
		begun, err := time.Parse(time.RFC3339, stamp)
		if err == nil && s.Now().Sub(begun).Abs() < resolveAfter {
			continue
		}
		name := strings.TrimPrefix(key, prefix)
		if err := resolve(ctx, s, name, decode); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failures = append(failures, fmt.Errorf("find out which nar %s is: %w", name, err))
			continue
		}
		err = s.Index().Reclaim(ctx, func(tx *index.Tx) error {
			if now, err := tx.Setting(key); err != nil || now != value {
				return err
			}
			return tx.SetSetting(key, "")
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}

// resolve makes the row claim the named file if that is its nar. After an error, that is still
// unknown.
func resolve(ctx context.Context, s *storage.Storage, name string, decode narcheck.Decoder) error {
	item, n, err := s.FileUnder(ctx, name)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // removed since
	} else if err != nil {
		return err
	}
	if item.HasStored(n) {
		return nil // imported or repaired since
	}
	exists, err := s.HasUnrecorded(ctx, item, n)
	if err == nil && exists {
		err = s.Adopt(ctx, item, n, decode)
		if err == nil {
			s.Log().Info("a nar that an import failed to replace is served again", "file", name)
			return nil
		}
	}
	if err == nil || errors.Is(err, narcheck.ErrWrongNar) || errors.Is(err, narcheck.ErrUnreadable) {
		s.Log().Warn("an import ended while it replaced a nar, and the stored file is not the nar of its narinfo: import it again, or run 'nar-herder check --repair'", "file", name, "error", err)
		return nil
	}
	if errors.Is(err, storage.ErrNotWanted) {
		return nil // the item has changed since
	}
	return err
}
