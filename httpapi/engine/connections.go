package engine

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"nar-herder/internal/eventloop"
)

// count returns how many connections have not ended.
func (e *Engine) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.open.members)
}

// size returns how many connections are open and were not closed to make room.
func (e *Engine) size() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open.size()
}

// closeAll cuts all connections. Each is counted until its coroutine has ended.
func (e *Engine) closeAll() {
	e.mu.Lock()
	all := make([]*connection, 0, len(e.open.members))
	for connection := range e.open.members {
		all = append(all, connection)
	}
	e.mu.Unlock()
	for _, connection := range all {
		_ = connection.Conn.Close() // fails if the client was first
	}
}

// Serve answers the clients of a listener until it is closed.
func (e *Engine) Serve(l net.Listener) error {
	for {
		accepted, err := e.accept(l)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		var connection *connection
		err = e.waitOut(func() (err error) {
			connection, err = e.wrap(accepted)
			return err
		})
		if err != nil {
			if !errors.Is(err, errRefused) {
				e.log.Error("can't serve a connection", "error", err)
			}
			_ = accepted.Close()
			continue
		}
		serve := func() {
			if connection.tls == nil || connection.handshake() {
				_ = e.Server.ServeConn(connection) // errors are the client's
			}
		}
		if connection.loop != nil {
			connection.loop.Serve(serve)
		} else {
			go serve()
		}
	}
}

func (e *Engine) accept(l net.Listener) (accepted net.Conn, err error) {
	err = e.waitOut(func() (err error) {
		accepted, err = l.Accept()
		return err
	})
	return accepted, err
}

// waitOut retries while file descriptors or memory are short, so that the server survives
// that. It closes a connection for its file descriptor, or else waits.
func (e *Engine) waitOut(try func() error) error {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := try()
		lacking := lacksDescriptors(err) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
		if !lacking && !errors.Is(err, syscall.ECONNABORTED) {
			return err
		}
		if lacking && !(lacksDescriptors(err) && e.makeRoom()) {
			e.log.Error("can't accept a connection; raise the limit of open files if this continues", "error", err, "retry", delay)
			time.Sleep(delay)
		}
	}
}

func lacksDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// wrap takes a connection over. The error is errRefused if there is no room for it.
func (e *Engine) wrap(accepted net.Conn) (*connection, error) {
	client := e.limitedClient(accepted.RemoteAddr())
	if !e.admit(client) {
		return nil, errRefused
	}
	secret, isSecret := accepted.(toEncrypt)
	if isSecret {
		accepted = secret.Conn
	}
	connection := &connection{Conn: accepted, engine: e}
	loop, err := eventloop.Take(accepted)
	switch {
	case err == nil:
		connection.Conn, connection.loop = loop, loop
		connection.raw, _ = loop.SyscallConn() // never fails
	case !errors.Is(err, errors.ErrUnsupported):
		return nil, err
	}
	connection.tryWrite = connection.writeOnce
	if isSecret {
		connection.tls = tls.Server(transport{connection}, secret.config)
	}
	e.add(connection, client)
	return connection, nil
}

// ServeConn serves one connection until it ends.
func (e *Engine) ServeConn(accepted net.Conn) error {
	connection, err := e.wrap(accepted)
	if err != nil {
		return err
	}
	return e.Server.ServeConn(connection)
}
