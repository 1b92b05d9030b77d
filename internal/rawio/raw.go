//go:build !race

package rawio

import (
	"syscall"
	"unsafe"
)

// most bounds a call, to some 50 µs.
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
