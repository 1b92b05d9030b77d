//go:build race

package rawio

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// With package syscall, the race detector knows that a write to one end happens before the
// read from the other.

func read(fd uintptr, p []byte) (int, error)  { return syscall.Read(int(fd), p) }
func write(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }

func sendfile(to, from uintptr, offset *int64, n int) (int, error) {
	return unix.Sendfile(int(to), int(from), offset, n)
}

func writeMore(fd uintptr, p []byte) (int, error) {
	return unix.SendmsgN(int(fd), p, nil, nil, moreFlags)
}

func poll(epoll int, events []unix.EpollEvent) (int, error) { return unix.EpollWait(epoll, events, 0) }
