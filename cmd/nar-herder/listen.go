package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// listen opens the sockets: those of systemd where it gives any, or one for
// each address of the host.
func listen(ctx context.Context, host string, port portValue) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	given, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the sockets that systemd passed: %w", err)
	}
	for _, listener := range given {
		if listener == nil {
			return given, errors.New("systemd passed a socket that is none for streams: use ListenStream")
		}
	}
	if len(given) > 0 {
		return given, nil
	}
	return listenOn(ctx, "", host, port, 0o666)
}

// listenOn opens a socket for each address of the host, or the one at unix:PATH with
// these permissions. Errors name the options --host and --port with the prefix before
// their names.
func listenOn(ctx context.Context, prefix, host string, port portValue, permissions fs.FileMode) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	if host == "" {
		return nil, usagef("--%shost is empty, as from a variable that is not set: name an address, such as 127.0.0.1, or 0.0.0.0 or :: for all", prefix)
	}
	if path, ok := strings.CutPrefix(host, "unix:"); ok {
		listener, err := listenUnix(ctx, prefix, path, permissions)
		if err != nil {
			return nil, err
		}
		return []net.Listener{listener}, nil
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	addresses := []string{host}
	if net.ParseIP(host) == nil {
		if addresses, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return nil, fmt.Errorf("--%shost=%s: %w: name an address, a host name that has one, or unix:PATH", prefix, host, err)
		}
	}
	return listenAll(ctx, prefix, host, addresses, port)
}

// listenAll listens on the addresses of a host. It skips an address that this machine
// does not have, such as ::1 without IPv6, if there are others.
func listenAll(ctx context.Context, prefix, host string, addresses []string, port portValue) (listeners []net.Listener, err error) {
	var config net.ListenConfig
	for _, address := range addresses {
		listener, listenErr := config.Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if listenErr != nil {
			err = fmt.Errorf("listen on --%shost=%s --%sport=%d: %w", prefix, host, prefix, port, listenErr)
			if errors.Is(listenErr, syscall.EADDRNOTAVAIL) || errors.Is(listenErr, syscall.EAFNOSUPPORT) {
				continue
			}
			return listeners, err
		}
		if port == 0 { // the same for all
			port = portValue(listener.Addr().(*net.TCPAddr).Port)
		}
		listeners = append(listeners, listener)
	}
	if len(listeners) > 0 {
		err = nil
	}
	return listeners, err
}

// listenUnix listens on a socket in the file system. One that a process left
// when it died is replaced; one that somebody listens on is not.
func listenUnix(ctx context.Context, prefix, path string, permissions fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			conn.Close()
		}
		// Another error may be that of a busy one.
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("--%shost=unix:%s: another process listens there, it seems: stop it, or name another path", prefix, path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("--%shost=unix:%s: remove the socket of an earlier run: %w", prefix, path, err)
		}
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("--%shost=unix:%s: %w", prefix, path, err)
	}
	// The permissions of the directory decide which users can connect to the public
	// socket. The web server in front is usually another user.
	if err := os.Chmod(path, permissions); err != nil {
		listener.Close()
		return nil, fmt.Errorf("--%shost=unix:%s: %w", prefix, path, err)
	}
	return listener, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		if listener != nil {
			_ = listener.Close() // again, where the server has done so
		}
	}
}
