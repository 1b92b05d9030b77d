package bytestore

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// OwnerName is the name of the file that records which instance may write to a byte store
// and delete from it; see package owner. An instance knows only its own uses and
// withdrawals: if two deleted from one storage, clients of each would miss nars that the
// other has deleted.
const OwnerName = "nar-herder-owner"

// IdentityName is the name of the file with a byte store's random identity. Instances that
// share a storage read the same one.
const IdentityName = "nar-herder-storage"

// ExportName is the name of the file that marks the directory of an export.
const ExportName = "nar-herder-export"

// ReadNote reads the content of [IdentityName] or [OwnerName]. The error is
// [fs.ErrNotExist] if the file doesn't exist.
func ReadNote(ctx context.Context, store Store, name string) (string, error) {
	const most = 16 << 10
	reader, _, err := store.Open(ctx, name, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	text, err := io.ReadAll(io.LimitReader(reader, most))
	if err != nil {
		return "", err
	}
	note := strings.TrimSpace(string(text))
	if note == "" || len(text) == most {
		return "", fmt.Errorf("%s in storage %s was not written by this program: remove it", name, store)
	}
	return note, nil
}

// WriteNote writes [IdentityName] or [OwnerName]; commit is [Staged.Commit] or
// [Staged.CommitNew].
func WriteNote(ctx context.Context, store Store, name, note string, commit func(Staged, context.Context) error) error {
	text := note + "\n"
	staged, err := store.Stage(ctx, name, strings.NewReader(text), int64(len(text)))
	if err == nil {
		defer staged.Abort()
		if err = commit(staged, ctx); err == nil {
			err = store.Sync(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("write %s in storage %s: %w", name, store, err)
	}
	return nil
}

// QuarantineFolder is the folder to which damaged files are moved, each under its own
// name. Narinfos can't refer to it.
const QuarantineFolder = "quarantine/"

// IsQuarantined reports whether the name is in [QuarantineFolder].
func IsQuarantined(name string) bool { return strings.HasPrefix(name, QuarantineFolder) }

// IsPrivate reports whether a name must not be copied to another byte store: the store's
// identity, its owner, and quarantined files.
func IsPrivate(name string) bool {
	return name == IdentityName || name == OwnerName || IsQuarantined(name)
}
