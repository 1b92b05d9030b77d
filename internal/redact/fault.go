package redact

import (
	"errors"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"syscall"
)

// Fault returns the text of a failed request or read for everybody: without the addresses, name
// servers and redirections that the errors of package net name, and without names of files. The
// caller names the server.
func Fault(err error) string {
	text := err.Error()
	var request *url.Error
	if errors.As(err, &request) {
		text = strings.ReplaceAll(text, request.Error(), request.Err.Error())
	}
	var file *fs.PathError
	if errors.As(err, &file) {
		text = strings.ReplaceAll(text, file.Error(), file.Err.Error())
	}
	var operation *net.OpError
	if errors.As(err, &operation) {
		text = strings.ReplaceAll(text, operation.Error(), cause(operation))
	}
	var lookup *net.DNSError
	if errors.As(err, &lookup) {
		text = strings.ReplaceAll(text, lookup.Error(), cause(lookup))
	}
	return Text(text)
}

// cause says why an operation of package net has failed.
func cause(err net.Error) string {
	var lookup *net.DNSError
	var number syscall.Errno
	switch isLookup := errors.As(err, &lookup); {
	case isLookup && lookup.IsNotFound:
		return "no such host"
	case isLookup:
		return "the name of its host can't be resolved now"
	case err.Timeout():
		return "timeout"
	case errors.As(err, &number):
		return number.Error()
	}
	return "the connection failed"
}
