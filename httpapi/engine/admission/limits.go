// Package admission admits connections within limits, and closes others to make room for
// them.
package admission

import (
	"math"

	"golang.org/x/sys/unix"
)

// Limits bound the resources of all clients together. Zero selects the default of each.
type Limits struct {
	// Connections is how many may be open, at most half of the file descriptors. The
	// default is a third of them, or mostConnections if that is less: each connection may
	// need another descriptor for a file, and one for another instance or bucket.
	Connections int
	// PerAddress is how many connections one client address may have: by default, a
	// quarter. Trusted proxies and Unix domain sockets are exempt.
	PerAddress int
	// Unread is the memory for pipelined requests of clients that don't read their
	// answers, in bytes: by default 64 MiB.
	Unread int64
}

const (
	// mostConnections bounds the default. A connection takes some 30 KB.
	mostConnections = 16 << 10
	defaultUnread   = 64 << 20
)

// Descriptors returns how many file descriptors the process may open. (Package os raises
// the soft limit to the hard one at the start.)
func Descriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024
	}
	return int(min(limit.Cur, math.MaxInt32))
}

// within returns the limits with defaults for a number of file descriptors.
func (l Limits) within(descriptors int) Limits {
	if l.Connections <= 0 {
		l.Connections = min(descriptors/3, mostConnections)
	}
	l.Connections = max(1, min(l.Connections, descriptors/2))
	if l.PerAddress <= 0 {
		l.PerAddress = l.Connections / 4
	}
	l.PerAddress = max(1, min(l.PerAddress, l.Connections))
	if l.Unread <= 0 {
		l.Unread = defaultUnread
	}
	return l
}
