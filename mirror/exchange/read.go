package exchange

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Database is a database of the original that is being read. Its methods may be
// called from several goroutines at once, and take turns.
type Database struct{}

// Open opens a database of the original for reading. Nothing is changed in it.
func Open(ctx context.Context, path string) (*Database, error) { return nil, errors.ErrUnsupported }

// Close ends the reading.
func (d *Database) Close() error { return errors.ErrUnsupported }

// Count is the number of narinfos.
func (d *Database) Count(ctx context.Context) (int64, error) { return 0, errors.ErrUnsupported }

// Items goes through the narinfos in the order of their ids, from behind afterID
// on; [FromStart] for all. Between pages nothing is held. An error that is a
// [RowError] is about one row, and those who go on get the next one; any other
// ends it.
func (d *Database) Items(ctx context.Context, afterID int64) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) { yield(Item{}, errors.ErrUnsupported) }
}

// Changes goes through the log in the order in which the instance wrote it. Its
// errors are as those of [Database.Items].
func (d *Database) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return d.ChangesAfter(ctx, FromStart)
}

// ChangesAfter is [Database.Changes] from behind an id on.
func (d *Database) ChangesAfter(ctx context.Context, id int64) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) { yield(Change{}, errors.ErrUnsupported) }
}

// LastAdded is the time of the item that was added last; zero when not known.
func (d *Database) LastAdded(ctx context.Context) (time.Time, error) {
	return time.Time{}, errors.ErrUnsupported
}

// NewestChange is the time of the newest change in the log; zero without any.
func (d *Database) NewestChange(ctx context.Context) (time.Time, error) {
	return time.Time{}, errors.ErrUnsupported
}

// Check reads all of the database, and looks whether it is whole and has
// narinfos.
func (d *Database) Check(ctx context.Context) error { return errors.ErrUnsupported }

// Info is what [Writer.SetInfo] has set; empty for a database that the original
// has written.
func (d *Database) Info(ctx context.Context) (map[string]string, error) {
	return nil, errors.ErrUnsupported
}
