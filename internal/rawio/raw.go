//go:build !race

package rawio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// most bounds the bytes of a call, and so its time to some 50 µs.
const most = 256 << 10

func read(fd uintptr, p []byte) (int, error)  { return call(syscall.SYS_READ, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return call(syscall.SYS_WRITE, fd, p) }

func call(number, fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), most)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func sendfile(to, from uintptr, offset *int64, n int) (int, error) {
	sent, _, errno := syscall.RawSyscall6(syscall.SYS_SENDFILE, to, from, uintptr(unsafe.Pointer(offset)), uintptr(min(n, most)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sent), nil
}

func writeMore(fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), most)), moreFlags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func poll(epoll int, events []unix.EpollEvent) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
