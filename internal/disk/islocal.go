package disk

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// localTypes are file systems on disks or memory of this machine, by their numbers in
// statfs(2).
var localTypes = []int64{
	unix.BTRFS_SUPER_MAGIC, unix.EXT4_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.RAMFS_MAGIC, unix.TMPFS_MAGIC, unix.XFS_SUPER_MAGIC,
	0x2fc12fc1, // ZFS
	0xca451a4e, // bcachefs
}

// IsLocal reports whether a file is certainly on a file system of this machine, not on one
// that depends on another machine or process, such as NFS or FUSE.
func IsLocal(file *os.File) bool {
	var stat unix.Statfs_t
	for {
		err := unix.Fstatfs(int(file.Fd()), &stat)
		if err != unix.EINTR {
			return err == nil && slices.Contains(localTypes, int64(stat.Type))
		}
	}
}
