//go:build race

package rawio

import "syscall"

// The race detector takes what one end has written to have happened before the other
// end reads it, where both are by package syscall.

func read(fd uintptr, p []byte) (int, error)  { return syscall.Read(int(fd), p) }
func write(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }
