package httpapi

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/internal/eventloop"
)

// connections are those of a server that are open.
type connections struct {
	log             *slog.Logger
	progressTimeout time.Duration
	limits          Limits
	proxies         Proxies

	mu   sync.Mutex
	open group
	// clients are the groups of the addresses that Limits.PerAddress is for.
	clients map[netip.Prefix]*group
	// noneIdle is when idle connections were last looked for in vain.
	noneIdle time.Time
	// logged is when it was last logged that connections are closed to make room.
	logged time.Time

	// unread is the memory for requests that were read ahead, in bytes.
	unread atomic.Int64
	// closed counts connections that were closed, by why.
	closed [closeReasons]atomic.Int64

	// draining makes connections end once their clients are quiet; see drain.
	draining  atomic.Bool
	quietTime time.Duration // but in tests, the constant

	// ending makes each answer the last of its connection.
	ending atomic.Bool

	// sending is how many bodies are being sent from files.
	sending atomic.Int32
}

func newConnections(limits Limits, proxies Proxies, log *slog.Logger, progressTimeout time.Duration) *connections {
	within := limits.orDefaults()
	if within.Connections < limits.Connections {
		log.Warn("--max-connections is more than half of the limit of open files, and is lowered to that: raise the limit", "connections", within.Connections)
	}
	return &connections{
		log: log, progressTimeout: progressTimeout, limits: within, proxies: proxies, quietTime: quietTime,
		open: newGroup(), clients: make(map[netip.Prefix]*group),
	}
}

// count is how many have not ended.
func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open.members)
}

// size is how many are open and were not closed to make room.
func (c *connections) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open.size()
}

// closeAll cuts them, whatever they are doing. Each is counted until its coroutine has
// noticed.
func (c *connections) closeAll() {
	c.mu.Lock()
	all := make([]*connection, 0, len(c.open.members))
	for connection := range c.open.members {
		all = append(all, connection)
	}
	c.mu.Unlock()
	for _, connection := range all {
		_ = connection.Conn.Close() // or the client was first
	}
}

// serve has the engine answer the clients of a listener until that is closed.
func (c *connections) serve(engine *fasthttp.Server, l net.Listener) error {
	for {
		accepted, err := c.accept(l)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		var connection *connection
		err = c.waitOut(func() (err error) {
			connection, err = c.wrap(accepted)
			return err
		})
		if err != nil {
			if !errors.Is(err, errRefused) {
				c.log.Error("can't serve a connection", "error", err)
			}
			_ = accepted.Close()
			continue
		}
		serve := func() { _ = engine.ServeConn(connection) } // what goes wrong is the client's
		if connection.loop != nil {
			connection.loop.Serve(serve)
		} else {
			go serve()
		}
	}
}

// accept accepts a connection.
func (c *connections) accept(l net.Listener) (accepted net.Conn, err error) {
	err = c.waitOut(func() (err error) {
		accepted, err = l.Accept()
		return err
	})
	return accepted, err
}

// waitOut closes other connections when file descriptors are short, and tries again; it
// waits where there is none to close, or memory is short: a server that gave up then would
// be gone for good.
func (c *connections) waitOut(try func() error) error {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := try()
		lacking := lacksDescriptors(err) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
		if !lacking && !errors.Is(err, syscall.ECONNABORTED) {
			return err
		}
		if lacking && !(lacksDescriptors(err) && c.makeRoom()) {
			c.log.Error("can't accept a connection; raise the limit of open files if this goes on", "error", err, "retry", delay)
			time.Sleep(delay)
		}
	}
}

func lacksDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// wrap takes a connection over. The error is errRefused where there is no room for it.
func (c *connections) wrap(accepted net.Conn) (*connection, error) {
	client := c.limitedClient(accepted.RemoteAddr())
	if !c.admit(client) {
		return nil, errRefused
	}
	connection := &connection{Conn: accepted, connections: c}
	loop, err := eventloop.Take(accepted)
	switch {
	case err == nil:
		connection.Conn, connection.loop = loop, loop
		connection.raw, _ = loop.SyscallConn() // it has one
	case !errors.Is(err, errors.ErrUnsupported):
		return nil, err
	}
	connection.tryWrite = connection.writeOnce
	c.add(connection, client)
	return connection, nil
}
