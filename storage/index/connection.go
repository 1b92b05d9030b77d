package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// connection is one connection with its statements, each prepared at its first
// use. It is used by one goroutine at a time.
//
// It speaks to the driver itself: for a point look-up, which is what a server
// of narinfos does all day, database/sql costs as much as SQLite. Statements
// run without a context, which would cost a goroutine each; all of them are
// short, and long passes read in steps.
type connection struct {
	conn       driver.Conn
	statements map[string]*statement

	// In a transaction, failure is the first error of a statement, and that of
	// all that follow. SQLite may end a transaction by itself, as it does when
	// the disk is full; what came after it would be committed on its own.
	transaction bool
	failure     error
}

// statement is a prepared statement with its reused argument and row buffers.
type statement struct {
	driver.Stmt
	args []driver.NamedValue
	row  []driver.Value
}

func connect(ctx context.Context, dataSource string) (*connection, error) {
	connector, err := sqlite.NewConnector(dataSource)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(busyTimeout * time.Millisecond); ; {
		conn, err := connector.Connect(ctx)
		if err == nil {
			return &connection{conn: conn, statements: make(map[string]*statement)}, nil
		}
		// The step to the write-ahead log does not wait for others that take
		// it, or that are just closing the database, whatever busy_timeout is.
		if !isBusy(err) || time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isBusy says whether the error is that another connection has a lock.
func isBusy(err error) bool {
	var failure *sqlite.Error
	return errors.As(err, &failure) && failure.Code()&0xff == sqlite3.SQLITE_BUSY
}

func (c *connection) close() error {
	var err error
	for _, s := range c.statements {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, c.conn.Close())
}

// script runs SQL text of any number of statements, none of them kept.
func (c *connection) script(text string) error {
	_, err := c.conn.(driver.ExecerContext).ExecContext(context.Background(), text, nil)
	return err
}

// begin starts a transaction that writes.
func (c *connection) begin() error {
	c.transaction, c.failure = false, nil
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	c.transaction = true
	return nil
}

// rollback undoes a transaction, of which SQLite may have done so already.
func (c *connection) rollback() error {
	c.transaction, c.failure = false, nil
	return c.exec("ROLLBACK")
}

// failed notes the error of a statement.
func (c *connection) failed(err error) error {
	if c.transaction && c.failure == nil {
		c.failure = err
	}
	return err
}

func (c *connection) prepare(text string, args []driver.Value) (*statement, error) {
	if c.failure != nil {
		return nil, c.failure
	}
	s := c.statements[text]
	if s == nil {
		prepared, err := c.conn.(driver.ConnPrepareContext).PrepareContext(context.Background(), text)
		if err != nil {
			return nil, fmt.Errorf("prepare %q: %w", text, err)
		}
		s = &statement{Stmt: prepared, args: make([]driver.NamedValue, len(args))}
		for i := range s.args {
			s.args[i].Ordinal = i + 1
		}
		c.statements[text] = s
	}
	if len(args) != len(s.args) {
		return nil, fmt.Errorf("%d arguments for %d parameters of %q", len(args), len(s.args), text)
	}
	for i, value := range args {
		s.args[i].Value = value
	}
	return s, nil
}

// exec runs a statement that returns no rows.
func (c *connection) exec(text string, args ...driver.Value) error {
	_, err := c.insert(text, args...)
	return err
}

// insert runs a statement that returns no rows, and returns the id of the row
// it inserted.
func (c *connection) insert(text string, args ...driver.Value) (id int64, err error) {
	s, err := c.prepare(text, args)
	if err != nil {
		return 0, err
	}
	result, err := s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
	if err != nil {
		return 0, c.failed(err)
	}
	return result.LastInsertId()
}

// rows runs a statement and calls f for each row until it returns false or an
// error. Slices in the row are f's to keep; the row itself is reused, so f must
// not run the same statement.
func (c *connection) rows(text string, args []driver.Value, f func(row []driver.Value) (bool, error)) (err error) {
	s, err := c.prepare(text, args)
	if err != nil {
		return err
	}
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(context.Background(), s.args)
	if err != nil {
		return c.failed(err)
	}
	defer func() {
		if closeErr := rows.Close(); err == nil && closeErr != nil {
			err = c.failed(closeErr)
		}
	}()
	if s.row == nil {
		s.row = make([]driver.Value, len(rows.Columns()))
	}
	for {
		if err := rows.Next(s.row); err == io.EOF {
			return nil
		} else if err != nil {
			return c.failed(err)
		}
		if more, err := f(s.row); err != nil || !more {
			return err
		}
	}
}

// first runs a statement and returns its first row, nil without one. The row
// is good until the statement runs again.
func (c *connection) first(text string, args ...driver.Value) (row []driver.Value, err error) {
	err = c.rows(text, args, func(found []driver.Value) (bool, error) {
		row = found
		return false, nil
	})
	return row, err
}

// integer runs a statement whose first row is one integer.
func (c *connection) integer(text string, args ...driver.Value) (int64, error) {
	row, err := c.first(text, args...)
	if err != nil {
		return 0, err
	}
	if row == nil {
		return 0, fmt.Errorf("%q: no row", text)
	}
	n, ok := row[0].(int64)
	if !ok {
		return 0, fmt.Errorf("%q: %T where an integer was expected", text, row[0])
	}
	return n, nil
}

// blob is the value of a BLOB column; an empty one may come as nil.
func blob(value driver.Value) []byte {
	b, _ := value.([]byte)
	return b
}

// pool lends connections for reading.
type pool chan *connection

func openPool(ctx context.Context, dataSource string, size int) (pool, error) {
	p := make(pool, size)
	for range size {
		c, err := connect(ctx, dataSource)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p <- c
	}
	return p, nil
}

// close ends the connections, none of which may be lent.
func (p pool) close() error {
	var err error
	for len(p) > 0 {
		err = errors.Join(err, (<-p).close())
	}
	return err
}

// do lends a connection to f, waiting for one until the context ends.
func (p pool) do(ctx context.Context, f func(*connection) error) error {
	var c *connection
	select {
	case c = <-p:
	default:
		select {
		case c = <-p:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { p <- c }()
	return f(c)
}
