package redact

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"syscall"
)

// Public is an error with a text for everybody, which [Fault] returns.
type Public string

func (p Public) Error() string { return string(p) }

// Fault returns the text of a failed request or read for everybody: that of a [Public] error, or of
// a known cause. Other errors may contain addresses, name servers, redirections, names of files, or
// text of a server. The caller names the server.
func Fault(err error) string {
	var public Public
	var lookup *net.DNSError
	var certificate *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var failure net.Error
	var number syscall.Errno
	switch {
	case errors.As(err, &public):
		return string(public)
	case errors.As(err, &lookup) && lookup.IsNotFound:
		return "no such host"
	case lookup != nil:
		return "the name of its host can't be resolved now"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate has expired, or is not valid yet"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "its certificate is of an unknown authority"
	case errors.As(err, new(x509.HostnameError)):
		return "its certificate is for another host"
	case errors.As(err, &certificate):
		return "its certificate can't be verified"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &failure) && failure.Timeout():
		return "timeout"
	case errors.As(err, &number):
		return number.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	}
	return "see the log"
}
