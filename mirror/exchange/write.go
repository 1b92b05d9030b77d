package exchange

import (
	"context"
	"errors"
)

// Writer makes a database with the original's schema. It is used by one
// goroutine. After an error of any method, only Abort is of use.
type Writer struct{}

// Create begins a database in a new file; one that exists is an error. Until
// Finish, what is in the file is of no use: write it beside the place where it
// is to be, and rename it.
func Create(ctx context.Context, path string) (*Writer, error) { return nil, errors.ErrUnsupported }

// Add writes an item: its narinfo is read for the columns beside the text. Of
// items with the same hash, the last one counts.
func (w *Writer) Add(item Item) error { return errors.ErrUnsupported }

// AddChange appends a row to the log.
func (w *Writer) AddChange(change Change) error { return errors.ErrUnsupported }

// SetInfo keeps a value for [Database.Info], in a table that the original knows
// nothing of.
func (w *Writer) SetInfo(key, value string) error { return errors.ErrUnsupported }

// Finish makes the indexes, and the file safe on the disk. It ends the Writer.
func (w *Writer) Finish(ctx context.Context) error { return errors.ErrUnsupported }

// Abort ends the Writer and removes the file. After Finish it does nothing.
func (w *Writer) Abort() error { return errors.ErrUnsupported }
