package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/pace"
)

const (
	// lockTimeout is how long a connection waits for a lock that another process
	// holds. Importers hold the write lock for a fraction of a second at a time,
	// but many can queue up.
	lockTimeout = 60 * time.Second
	// firstLockPause is about how long it waits before it tries again for the first
	// time. The pause doubles up to longestLockPause. A try takes some 20 µs. The
	// longer the pause, the more others get the lock that came later.
	firstLockPause   = time.Millisecond
	longestLockPause = 10 * time.Millisecond
)

// connection is one connection with its statements, each prepared at its first
// use. It is used by one goroutine at a time.
//
// It speaks to the driver itself: for a point look-up, which is what a server
// of narinfos does all day, database/sql costs as much as SQLite. Statements
// run without a context, which would cost a goroutine each; all of them are
// short, and long passes read in steps. What can take long is a lock that another
// process holds. SQLite's own wait for it (busy_timeout) can't be interrupted, so
// it is off, and waiting is done here.
type connection struct {
	// conn is nil for one that is to be opened, of reopen, when it is lent next.
	conn       driver.Conn
	reopen     string
	statements map[string]*statement

	// ctx ends waits for a lock. It is that of the caller that uses the connection
	// at present.
	ctx context.Context
	// sharesLog says that it uses the index of the log without writing to it; see
	// reading.go.
	sharesLog bool
	// changed says that the file is not as it was when it was opened, for a
	// connection that takes no locks; nil for others.
	changed func() error

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

// connect opens a connection. The context is good for its waits until it is given
// to another caller.
func connect(ctx context.Context, dataSource string) (*connection, error) {
	connector, err := sqlite.NewConnector(dataSource)
	if err != nil {
		return nil, err
	}
	c := &connection{statements: make(map[string]*statement), ctx: ctx, sharesLog: strings.Contains(dataSource, sharedLog)}
	// The pragmas of the data source may have to wait, and the step to the
	// write-ahead log fails at once when another process takes it, or is just
	// closing the database.
	err = c.retryBusy(func() (err error) {
		c.conn, err = connector.Connect(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// waiting calls f, and again as long as it fails because another process has a
// lock, or is changing the log.
func (c *connection) retryBusy(f func() error) error {
	err := f()
	if err == nil || !c.isBusy(err) || c.transaction { // which has the locks that it needs
		return err
	}
	pause := firstLockPause
	for end := time.Now().Add(lockTimeout); c.isBusy(err) && time.Now().Before(end); err = f() {
		// At random, so that processes don't get in each other's way again and
		// again.
		if ended := pace.Sleep(c.ctx, pause/2+rand.N(pause)); ended != nil {
			return fmt.Errorf("%w while another process had it locked", ended)
		}
		pause = min(2*pause, longestLockPause)
	}
	return err
}

// isBusy says whether the error is that another connection has a lock, or is changing
// the log.
func (c *connection) isBusy(err error) bool {
	var failure *sqlite.Error
	return errors.As(err, &failure) && (failure.Code()&0xff == sqlite3.SQLITE_BUSY || c.sharesLog && isLogChanging(failure.Code()))
}

func (c *connection) close() error {
	if c.conn == nil {
		return nil
	}
	var err error
	for _, s := range c.statements {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, c.conn.Close())
}

// script runs SQL text of any number of statements, none of them kept.
func (c *connection) script(text string) error {
	return c.execContext(context.Background(), text)
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
	if c.changed != nil {
		if changed := c.changed(); changed != nil {
			err = changed // which is the reason
		}
	}
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
		var prepared driver.Stmt
		err := c.retryBusy(func() (err error) {
			prepared, err = c.conn.(driver.ConnPrepareContext).PrepareContext(context.Background(), text)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("prepare %q: %w", text, c.failed(err))
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
	var result driver.Result
	err = c.retryBusy(func() (err error) {
		result, err = s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
		return err
	})
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
	// A lock is taken by the first step, which is part of the query.
	var rows driver.Rows
	err = c.retryBusy(func() (err error) {
		rows, err = s.Stmt.(driver.StmtQueryContext).QueryContext(context.Background(), s.args)
		return err
	})
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

// words is a column of text. STRICT tables only bind what is written: a damaged page may
// have any type but for a rowid.
func textValue(value driver.Value) (string, error) {
	s, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrDamaged, noInteger)
	}
	return s, nil
}

// edgeOf is a column with a target and one with who refers to it.
func edgeOf(target, referrer driver.Value) (edge, error) {
	t, ok1 := target.(int64)
	r, ok2 := referrer.(int64)
	if !ok1 || !ok2 {
		return edge{}, fmt.Errorf("%w: a reference: %s", ErrDamaged, noInteger)
	}
	return edge{t, r}, nil
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
	if c.conn == nil {
		opened, err := connect(ctx, c.reopen)
		if err != nil {
			return err
		}
		c = opened
	}
	c.ctx = ctx
	return f(c)
}
