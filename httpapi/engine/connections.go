package engine

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/httpapi/engine/admission"
	"nar-herder/internal/eventloop"
)

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
			if !errors.Is(err, admission.ErrRefused) {
				e.unserved.Log(e.log, slog.LevelWarn, time.Now(), "can't serve a connection, which was closed", "error", err)
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
	waited := false
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := try()
		lacking := lacksDescriptors(err) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
		if !lacking && !errors.Is(err, syscall.ECONNABORTED) {
			if waited && err == nil {
				e.unaccepted.Over(e.log, "connections are accepted again")
			}
			return err
		}
		if lacking && !(lacksDescriptors(err) && e.open.MakeRoom()) {
			e.unaccepted.Log(e.log, slog.LevelError, time.Now(), "can't accept a connection: raise the limit of open files if this continues", "error", err, "retry_in", delay)
			waited = true
			time.Sleep(delay)
		}
	}
}

func lacksDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// wrap takes a connection over. The error is admission.ErrRefused if there is no room for it.
func (e *Engine) wrap(accepted net.Conn) (*connection, error) {
	client := e.open.ClientOf(accepted.RemoteAddr())
	if !e.open.Admit(client) {
		return nil, admission.ErrRefused
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
	e.open.Add(&connection.member, connection, client)
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

// Waiting implements [admission.Conn].
func (c *connection) Waiting() (since time.Time, ok bool) {
	if c.loop == nil {
		return time.Time{}, false
	}
	return c.loop.Waiting()
}

// HasInput implements [admission.Conn].
func (c *connection) HasInput() (has bool) {
	if c.raw == nil {
		return false
	}
	_ = c.raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		has = err == nil && n > 0
	})
	return has
}

// Cut implements [admission.Conn]. The connection is counted until its coroutine has ended.
func (c *connection) Cut() {
	_ = c.Conn.Close() // fails if the client was first
}
