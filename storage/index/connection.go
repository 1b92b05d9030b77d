package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/pace"
)

const (
	// lockTimeout is how long a connection waits for the lock of another process. An
	// importer holds the write lock for a fraction of a second, but many importers can
	// queue up.
	lockTimeout = 60 * time.Second
	// firstLockPause is the average pause before the first retry. The pause doubles up to
	// longestLockPause. An attempt takes about 20 µs. The longer the pause, the more
	// processes overtake this one.
	firstLockPause   = time.Millisecond
	longestLockPause = 10 * time.Millisecond
)

// connection is a connection with its prepared statements. One goroutine uses it at a time.
//
// It calls the driver directly: for a point look-up, database/sql would cost as much as
// SQLite itself. Statements run without a context, which would cost a goroutine each. They
// are short, and long scans read in steps. Only waiting for a lock of another process takes
// long. SQLite's own wait (busy_timeout) can't be interrupted, so it is disabled, and
// retryBusy waits instead.
type connection struct {
	// conn is nil if pool.do has to open it with the data source reopen.
	conn       driver.Conn
	reopen     string
	statements map[string]*statement

	// ctx ends waits for a lock. It is the context of the current caller.
	ctx context.Context
	// sharesLog means that the connection uses the index of the log read-only; see
	// reading.go.
	sharesLog bool
	// changed reports whether the file has changed since it was opened, for a connection
	// that takes no locks. It is nil for other connections.
	changed func() error

	// failure is the first error of a statement in a transaction, and makes all later ones
	// fail. SQLite may roll back by itself, for example if the disk is full; later
	// statements would then commit on their own.
	transaction bool
	failure     error
}

// statement is a prepared statement with reusable argument and row buffers.
type statement struct {
	driver.Stmt
	args []driver.NamedValue
	row  []driver.Value
}

// connect opens a connection. ctx bounds its waits until the next caller sets another
// context.
func connect(ctx context.Context, dataSource string) (*connection, error) {
	connector, err := sqlite.NewConnector(dataSource)
	if err != nil {
		return nil, err
	}
	c := &connection{statements: make(map[string]*statement), ctx: ctx, sharesLog: strings.Contains(dataSource, sharedLog)}
	// The pragmas of the data source may have to wait. Switching to the write-ahead log
	// fails at once if another process does so too, or is closing the database.
	err = c.retryBusy(func() (err error) {
		c.conn, err = connector.Connect(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// retryBusy calls f, and retries while it fails because another process holds a lock or is
// changing the log.
func (c *connection) retryBusy(f func() error) error {
	err := f()
	if err == nil || !c.isBusy(err) || c.transaction { // a transaction holds its locks already
		return err
	}
	pause := firstLockPause
	for end := time.Now().Add(lockTimeout); c.isBusy(err) && time.Now().Before(end); err = f() {
		// Randomize the pause so that processes don't collide repeatedly.
		if ended := pace.Sleep(c.ctx, pause/2+rand.N(pause)); ended != nil {
			return fmt.Errorf("%w while another process held the lock", ended)
		}
		pause = min(2*pause, longestLockPause)
	}
	return err
}

// isBusy reports whether another connection holds a lock or is changing the log.
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

// script runs any number of SQL statements without preparing them.
func (c *connection) script(text string) error {
	return c.execContext(context.Background(), text)
}

// begin starts a write transaction.
func (c *connection) begin() error {
	c.transaction, c.failure = false, nil
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	c.transaction = true
	return nil
}

// rollback rolls back a transaction. SQLite may have done so already.
func (c *connection) rollback() error {
	c.transaction, c.failure = false, nil
	return c.exec("ROLLBACK")
}

// failed records the error of a statement.
func (c *connection) failed(err error) error {
	if c.changed != nil {
		if changed := c.changed(); changed != nil {
			err = changed // the actual cause
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

// insert runs a statement that returns no rows, and returns the id of the inserted row.
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

// rows runs a statement and calls f for each row until f returns false or an error. f may
// keep slices of the row, but not the row itself, and must not run the same statement.
func (c *connection) rows(text string, args []driver.Value, f func(row []driver.Value) (bool, error)) (err error) {
	s, err := c.prepare(text, args)
	if err != nil {
		return err
	}
	// The first step takes the lock, and is part of the query.
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

// first runs a statement and returns its first row, or nil. The row is valid until the
// statement runs again.
func (c *connection) first(text string, args ...driver.Value) (row []driver.Value, err error) {
	err = c.rows(text, args, func(found []driver.Value) (bool, error) {
		row = found
		return false, nil
	})
	return row, err
}

// integer runs a statement and returns the integer in its first row.
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
		return 0, fmt.Errorf("%q: got %T, want an integer", text, row[0])
	}
	return n, nil
}

// blob returns the value of a BLOB column. The driver may return nil for an empty one.
func blob(value driver.Value) []byte {
	b, _ := value.([]byte)
	return b
}

// textValue returns the value of a TEXT column. STRICT tables check types only on writes:
// in a damaged page, any column but the rowid may have any type.
func textValue(value driver.Value) (string, error) {
	s, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrDamaged, noInteger)
	}
	return s, nil
}

// edgeOf returns the edge in a target column and a referrer column.
func edgeOf(target, referrer driver.Value) (edge, error) {
	t, ok1 := target.(int64)
	r, ok2 := referrer.(int64)
	if !ok1 || !ok2 {
		return edge{}, fmt.Errorf("%w: a reference: %s", ErrDamaged, noInteger)
	}
	return edge{t, r}, nil
}

// pool is a pool of read connections. It lends the one that was used last. In the driver's build of
// SQLite, all page caches share one limit, and take pages from each other (pcache1.c, mode 2). Once
// the limit is reached, a cache that is below its own limit frees its pages after each statement.
// Connections that are used in turn read twice as many pages.
type pool struct {
	free chan struct{} // one element for each idle connection

	mu   sync.Mutex
	idle []*connection
}

func openPool(ctx context.Context, dataSource string, size int) (*pool, error) {
	p := &pool{free: make(chan struct{}, size)}
	for range size {
		c, err := connect(ctx, dataSource)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.give(c)
	}
	return p, nil
}

// size is the number of connections.
func (p *pool) size() int { return cap(p.free) }

// take lends a connection, after waiting for one until the context ends.
func (p *pool) take(ctx context.Context) (*connection, error) {
	select {
	case <-p.free:
	default:
		select {
		case <-p.free:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return c, nil
}

// give returns a connection that take has lent, or another in its place.
func (p *pool) give(c *connection) {
	p.mu.Lock()
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	p.free <- struct{}{}
}

// close closes the connections, which must all be idle. A nil pool has none.
func (p *pool) close() (err error) {
	if p == nil {
		return nil
	}
	for _, c := range p.idle {
		<-p.free
		err = errors.Join(err, c.close())
	}
	p.idle = nil
	return err
}

// do calls f with a connection, after waiting for one until the context ends.
func (p *pool) do(ctx context.Context, f func(*connection) error) error {
	c, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer func() { p.give(c) }()
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
