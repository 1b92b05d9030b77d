package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Unwritable returns an error if this user can't read and write one of the files, or create
// files in one of the directories. The message has a command that corrects all of them. It
// skips names that don't exist.
func Unwritable(names ...string) error {
	var failed []string
	var failure error
	var first unix.Stat_t
	for _, name := range names {
		var stat unix.Stat_t
		if unix.Stat(name, &stat) != nil {
			continue
		}
		mode := uint32(unix.R_OK | unix.W_OK)
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			mode = unix.W_OK | unix.X_OK
		}
		err := unix.Faccessat(unix.AT_FDCWD, name, mode, unix.AT_EACCESS)
		if err == nil {
			continue
		}
		if failed = append(failed, name); failure == nil {
			failure, first = err, stat
		}
	}
	if failure == nil || !errors.Is(failure, fs.ErrPermission) {
		return failure
	}
	self := userName(uint32(os.Geteuid()))
	groups, _ := os.Getgroups()
	advice := fmt.Sprintf("run 'chown %s %s'", self, strings.Join(failed, " "))
	if int(first.Uid) == os.Geteuid() {
		advice = "run 'chmod u+rwX " + strings.Join(failed, " ") + "'"
	} else if first.Mode&0o020 != 0 && int(first.Gid) != os.Getegid() && !slices.Contains(groups, int(first.Gid)) {
		advice = fmt.Sprintf("add this user to its group %s, or %s", groupName(first.Gid), advice)
	}
	return fmt.Errorf("user %s: %w for %s, which belongs to %s: %s", self, failure, failed[0], userName(first.Uid), advice)
}

// userName returns the name of a user, or the number.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if found, err := user.LookupId(id); err == nil {
		return found.Username
	}
	return id
}

// groupName returns the name of a group, or the number.
func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if found, err := user.LookupGroupId(id); err == nil {
		return found.Name
	}
	return id
}
