package redact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestFault: no address, host or file of the server's network is public.
func TestFault(t *testing.T) {
	t.Parallel()
	tcp := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 80}, Err: err}
	}
	redirected := func(err error) error { return &url.Error{Op: "Get", URL: "http://inside.example/x?token=y", Err: err} }
	for want, err := range map[string]error{
		"connection refused": tcp(os.NewSyscallError("connect", syscall.ECONNREFUSED)),
		"probe: timeout":     fmt.Errorf("probe: %w", redirected(tcp(os.ErrDeadlineExceeded))),
		"no such host":       redirected(tcp(&net.DNSError{Err: "no such host", Name: "inside.example", Server: "10.0.0.53:53", IsNotFound: true})),
		"the name of its host can't be resolved now": &net.DNSError{Err: "read udp 10.1.2.3:4->10.0.0.53:53: refused", Name: "inside.example", Server: "10.0.0.53:53", IsTemporary: true},
		"the connection failed":                      tcp(&net.AddrError{Err: "mismatch", Addr: "10.1.2.3"}),
		"no such file or directory: is it mounted?":  fmt.Errorf("%w: is it mounted?", &fs.PathError{Op: "stat", Path: "/srv/inside", Err: syscall.ENOENT}),
		"it answers 503 Service Unavailable":         errors.New("it answers 503 Service Unavailable"),
		"context deadline exceeded":                  redirected(context.DeadlineExceeded),
	} {
		if got := Fault(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	// Errors of package net itself.
	if _, err := net.DialTimeout("tcp", "127.0.0.1:1", time.Second); err == nil || Fault(err) != "connection refused" {
		t.Errorf("%v", err)
	}
}
