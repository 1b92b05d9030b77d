package health

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage/index"
)

// TestPublicError: the health report describes faults of the source, but not those of this
// machine.
func TestPublicError(t *testing.T) {
	t.Parallel()
	const database = "/var/lib/nar-herder/nar_herder.db"
	const downloads = database + ".mirror"
	for _, test := range []struct {
		err   error
		local bool
	}{
		{fmt.Errorf("look at http://x/dump: %w", download.ErrNotReady), false},
		{fmt.Errorf("ask http://x: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}), false},
		{&RefusedError{"it has shrunk"}, false},
		{errors.New("ask http://x: it answers 500 secret"), false},
		{fmt.Errorf("ask http://x: %w: it is about \"secret\"", peer.ErrAnswer), false},
		{&peer.LostError{LogState: peer.LogState{Instance: "secret"}}, false},
		{fmt.Errorf("download http://x/dump: %w", &fs.PathError{Op: "write", Path: downloads, Err: syscall.EIO}), true},
		{fmt.Errorf("download http://x/dump: %w of /var", disk.ErrNoRoom), true},
		{fmt.Errorf("update %s: %w", database, index.ErrFull), true},
		{fmt.Errorf("the setting in %s makes no sense", database), true},
		{fmt.Errorf("finish %s.new", downloads), true},
	} {
		got := Public(test.err, database)
		if test.local != (got == localFault) || strings.Contains(got, "http://") || strings.Contains(got, "secret") {
			t.Errorf("%v is reported as %q", test.err, got)
		}
	}
	if got := Public(fmt.Errorf("open the dump: %w: %s.dump is damaged", ErrBadDump, downloads), database); strings.Contains(got, "/var") || !strings.Contains(got, "no sense") {
		t.Errorf("an invalid dump is reported as %q", got)
	}
}
