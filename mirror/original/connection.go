package original

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/pace"
)

// connection is a connection to a database file. It uses the driver directly: database/sql
// would guess types from the declarations of columns, and cost more than SQLite itself when
// millions of rows are written.
type connection struct {
	driver.Conn
	statements map[string]*statement
}

// statement is a prepared statement with reused arguments.
type statement struct {
	driver.Stmt
	args []driver.NamedValue
}

// connect opens the file at an absolute path. The parameters are the driver's
// and SQLite's.
func connect(ctx context.Context, path string, parameters ...string) (*connection, error) {
	source := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + strings.Join(parameters, "&")
	connector, err := sqlite.NewConnector(source)
	if err != nil {
		return nil, err
	}
	// The pragmas may wait for a lock, and the driver ignores the context meanwhile.
	var conn driver.Conn
	err = waiting(ctx, func() (err error) {
		conn, err = connector.Connect(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	c := &connection{conn, make(map[string]*statement)}
	if err := c.script(ctx, fmt.Sprintf("PRAGMA busy_timeout = %d", busyTimeout.Milliseconds())); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *connection) close() error {
	var err error
	for _, s := range c.statements {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, c.Conn.Close())
}

// script runs SQL text of any number of statements. It stops when the context
// ends.
func (c *connection) script(ctx context.Context, text string) error {
	_, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, text, nil)
	return interrupted(ctx, err)
}

// exec runs a statement that returns no rows; it is prepared once.
func (c *connection) exec(text string, args ...driver.Value) error {
	s := c.statements[text]
	if s == nil {
		prepared, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(context.Background(), text)
		if err != nil {
			return fmt.Errorf("prepare %q: %w", text, err)
		}
		s = &statement{prepared, make([]driver.NamedValue, len(args))}
		for i := range s.args {
			s.args[i].Ordinal = i + 1
		}
		c.statements[text] = s
	}
	for i, value := range args {
		s.args[i].Value = value
	}
	_, err := s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
	return err
}

// rows runs a query and calls f for each row, until that returns false or an error. The slice
// is reused, and its values are f's to keep.
func (c *connection) rows(ctx context.Context, text string, args []driver.Value, f func(row []driver.Value) (bool, error)) (err error) {
	named := make([]driver.NamedValue, len(args))
	for i, value := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: value}
	}
	var rows driver.Rows
	err = waiting(ctx, func() (err error) {
		rows, err = c.Conn.(driver.QueryerContext).QueryContext(ctx, text, named)
		return err
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(row); err == io.EOF {
			return nil
		} else if err != nil {
			return interrupted(ctx, err)
		}
		if more, err := f(row); err != nil || !more {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// first returns the first value of a query's first row, nil without one.
func (c *connection) first(ctx context.Context, text string, args ...driver.Value) (value driver.Value, err error) {
	err = c.rows(ctx, text, args, func(row []driver.Value) (bool, error) {
		value = row[0]
		return false, nil
	})
	return value, err
}

// interrupted returns the context's error if SQLite was interrupted because of it.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// waiting retries f while it fails because another process has a lock or changes the
// write-ahead log: a connection that can't write to the log's index must retry by itself.
func waiting(ctx context.Context, f func() error) error {
	end := time.Now().Add(busyTimeout)
	err := f()
	for ; (primaryCode(err) == sqlite3.SQLITE_BUSY || isLogChanging(err)) && time.Now().Before(end); err = f() {
		if err := pace.Sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// isLogChanging reports whether a connection that can't write to the log's index has read a
// header or a transaction that was being written.
func isLogChanging(err error) bool {
	var failure *sqlite.Error
	return errors.As(err, &failure) && (failure.Code() == sqlite3.SQLITE_READONLY_RECOVERY || failure.Code() == sqlite3.SQLITE_READONLY_CANTINIT)
}

// primaryCode returns SQLite's primary code of an error; 0 for other errors.
func primaryCode(err error) int {
	var failure *sqlite.Error
	if errors.As(err, &failure) {
		return failure.Code() & 0xff
	}
	return 0
}

// describe adds the attempted action and the next step to an error.
func describe(tried string, err error) error {
	switch primaryCode(err) {
	case sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %s: the file is something else, or incomplete: fetch it again, or name another", ErrNotDatabase, tried)
	case sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("%w: %s: %w: the file is damaged: fetch it again, or restore a copy", ErrNotDatabase, tried, err)
	case sqlite3.SQLITE_BUSY:
		return fmt.Errorf("%w: %s: %w: stop the other program that has it open", ErrInUse, tried, err)
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%s: %w: free some space and try again", tried, err)
	}
	return fmt.Errorf("%s: %w", tried, err)
}
