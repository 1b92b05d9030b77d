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

// passedListeners returns the sockets that systemd passes: those for HTTP, and those for HTTPS.
func passedListeners() (plain, secret []net.Listener, err error) {
	for _, file := range activation.Files(true) {
		listener, listenErr := net.FileListener(file)
		switch {
		case listenErr != nil:
			err = errors.New("systemd passed a socket that is not a stream socket: use ListenStream")
		case file.Name() == socketOfTLS:
			secret = append(secret, listener)
		default:
			plain = append(plain, listener)
		}
		_ = file.Close() // the listener has a copy
	}
	return plain, secret, err
}

// listenOn opens a socket for each address of the host, or the one at unix:PATH with the given
// permissions. Errors name the options --host and --port, with the prefix.
func listenOn(ctx context.Context, prefix, host string, port portValue, permissions fs.FileMode) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	if host == "" {
		return nil, usagef("--%shost is empty (an unset variable?): give an address, such as 127.0.0.1, or 0.0.0.0 or :: for all", prefix)
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
			return nil, fmt.Errorf("--%shost=%s: %w: give an address, a host name that resolves, or unix:PATH", prefix, host, err)
		}
	}
	return listenAll(ctx, prefix, host, addresses, port)
}

// listenAll listens on the addresses of a host. If there are others, it skips addresses that
// this machine does not have, such as ::1 without IPv6.
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
		if port == 0 { // use the same one for the other addresses
			port = portValue(listener.Addr().(*net.TCPAddr).Port)
		}
		listeners = append(listeners, listener)
	}
	if len(listeners) > 0 {
		err = nil
	}
	return listeners, err
}

// listenUnix listens on a socket in the file system. It replaces a stale socket, but not one
// that a process listens on.
func listenUnix(ctx context.Context, prefix, path string, permissions fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			conn.Close()
		}
		// Any other error may come from a busy listener.
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("--%shost=unix:%s: another process listens there: stop it, or give another path", prefix, path)
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
	// All users may connect to the public socket, as the web server in front usually has
	// another user. The permissions of its directory can restrict that.
	if err := os.Chmod(path, permissions); err != nil {
		listener.Close()
		return nil, fmt.Errorf("--%shost=unix:%s: %w", prefix, path, err)
	}
	return listener, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		if listener != nil {
			_ = listener.Close() // the server may have closed it already
		}
	}
}
