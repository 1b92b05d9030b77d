package redact

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
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
		"timeout":            fmt.Errorf("probe: %w", redirected(tcp(os.ErrDeadlineExceeded))),
		"no such host":       redirected(tcp(&net.DNSError{Err: "no such host", Name: "inside.example", Server: "10.0.0.53:53", IsNotFound: true})),
		"the name of its host can't be resolved now":       &net.DNSError{Err: "read udp 10.1.2.3:4->10.0.0.53:53: refused", Name: "inside.example", Server: "10.0.0.53:53", IsTemporary: true},
		"no such file or directory":                        &fs.PathError{Op: "stat", Path: "/srv/inside", Err: syscall.ENOENT},
		"permission denied":                                fmt.Errorf("open nar/x in file:///srv/inside: %w", syscall.EACCES),
		"the directory is empty":                           fmt.Errorf("ask /srv/inside: %w: %w", Public("the directory is empty"), &fs.PathError{Op: "stat", Path: "/srv/inside", Err: syscall.ENOENT}),
		"its certificate has expired, or is not valid yet": &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time"}},
		"its certificate is of an unknown authority":       &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}},
		"its certificate can't be verified":                &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.TooManyIntermediates}},
		"its certificate is for another host":              redirected(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"inside.example"}}, Host: "x.example"}}),
		"the connection was closed":                        fmt.Errorf("ask 10.1.2.3: %w", io.ErrUnexpectedEOF),
		"see the log":                                      errors.Join(errors.New("it redirects to http://10.1.2.3/"), &net.AddrError{Err: "mismatch", Addr: "10.1.2.3"}),
	} {
		if got := Fault(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	// Errors of package net itself.
	if got := Fault(redirected(context.DeadlineExceeded)); got != "timeout" {
		t.Errorf("a deadline: %q", got)
	}
	if _, err := net.DialTimeout("tcp", "127.0.0.1:1", time.Second); err == nil || Fault(err) != "connection refused" {
		t.Errorf("%v", err)
	}
}
