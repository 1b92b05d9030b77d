//go:build race

package rawio

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// The race detector takes what one end has written to have happened before the other
// end reads it, where both are by package syscall.

func read(fd uintptr, p []byte) (int, error)  { return syscall.Read(int(fd), p) }
func write(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }

func sendfile(to, from uintptr, offset *int64, n int) (int, error) {
	return unix.Sendfile(int(to), int(from), offset, n)
}

func writeMore(fd uintptr, p []byte) (int, error) {
	return unix.SendmsgN(int(fd), p, nil, nil, moreFlags)
}

func poll(epoll int, events []unix.EpollEvent) (int, error) { return unix.EpollWait(epoll, events, 0) }
