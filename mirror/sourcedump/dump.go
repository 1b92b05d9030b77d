package sourcedump

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"nar-herder/internal/rowsum"
	"nar-herder/mirror/health"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
)

// Dump is a downloaded dump.
type Dump struct {
	db *original.Database
	// name is that of the download, and database that of the file that is read, which
	// differs if the download is compressed.
	name, database string
	// Verified reports whether the file matches the source's digest of it.
	Verified bool
	Modified time.Time
	Tag      string
	// Sum is the dump's own sum of its items, see [original.SumKey]; "" if it has none.
	Sum string
	// Damaged lists the items that the dump lacks, see [original.DamagedKey].
	Damaged string
}

// Entry is an item of a dump, or the error of a row that can't be read.
type Entry struct {
	original.Item
	Err error
}

// Open opens a dump. One that isn't verified is checked, after checking is called.
func Open(ctx context.Context, database string, verified bool, checking func()) (*Dump, error) {
	d := &Dump{database: database, Verified: verified}
	return d, d.open(ctx, checking)
}

func (d *Dump) open(ctx context.Context, checking func()) (err error) {
	if d.db, err = original.Open(ctx, d.database); err != nil {
		return bad(err)
	}
	if !d.Verified {
		checking()
		if err := d.db.Check(ctx); err != nil {
			return bad(err)
		}
	}
	info, err := d.db.Info(ctx)
	if err != nil {
		return bad(err)
	}
	d.Sum = info[original.SumKey]
	d.Damaged, err = d.db.Damaged(ctx)
	return bad(err)
}

// Close closes the dump and keeps its files.
func (d *Dump) Close() error {
	if d.db == nil {
		return nil
	}
	return d.db.Close()
}

// Count returns the number of items.
func (d *Dump) Count(ctx context.Context) (int64, error) {
	count, err := d.db.Count(ctx)
	return count, bad(err)
}

// hasSum reports whether the dump's items are compared with its sum.
func (d *Dump) hasSum() bool { return d.Verified && d.Sum != "" }

// Entries iterates over the items. It ends with an error if the dump can't be read or its
// items don't match its sum.
func (d *Dump) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var sum rowsum.Sum
		for item, err := range d.db.Items(ctx, original.FromStart) {
			var row *original.RowError
			if err != nil && !errors.As(err, &row) {
				yield(Entry{}, bad(err))
				return
			}
			if err == nil {
				original.AddTo(&sum, item)
			}
			if !yield(Entry{item, err}, nil) {
				return
			}
		}
		if d.hasSum() && sum.String() != d.Sum {
			yield(Entry{}, fmt.Errorf("%w: the sum of its items is %s, and not %.80q", health.ErrBadDump, &sum, d.Sum))
		}
	}
}

// CheckSum compares the items with the dump's sum.
func (d *Dump) CheckSum(ctx context.Context) error {
	if !d.hasSum() {
		return nil
	}
	for _, err := range d.Entries(ctx) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Admit parses an item's narinfo. With keys, one of them must have signed it. If keys is nil,
// and the dump has no sum, any key must have. A narinfo that is refused is returned as well.
func (d *Dump) Admit(e Entry, keys *signing.Keys) (*narinfo.Narinfo, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	n, err := storage.Admit(e.Text)
	if err == nil && (keys != nil || !d.hasSum()) {
		err = storage.Authorize(n, keys)
	}
	return n, err
}

// IsDamage reports whether an error of [Dump.Admit] may be due to damage of the file.
func (d *Dump) IsDamage(err error) bool {
	reason := storage.Reason(err)
	return reason == "" || reason == storage.BadSignature && !d.Verified
}

// MaxLoggedBad bounds the wrong items that are logged one by one, and is allowed in any
// dump.
const MaxLoggedBad = 20

// TooManyBad reports whether so many items are wrong that the others can't be trusted: more
// than 1 % of all.
func TooManyBad(bad, count int64) bool { return bad > max(MaxLoggedBad, count/100) }

// bad marks an error of reading a dump as [health.ErrBadDump], unless it is a fault of this
// machine or the end of the context.
func bad(err error) error {
	if err == nil || health.IsLocal(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", health.ErrBadDump, err)
}
