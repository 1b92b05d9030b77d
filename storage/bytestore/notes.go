package bytestore

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// OwnerName is where a byte store keeps which instance may write to it and delete from
// it; see package owner. What an instance knows of its own uses and withdrawals is in its
// index and its memory, so two that delete from one storage would take nars from each
// other's clients.
const OwnerName = "nar-herder-owner"

// IdentityName is where a byte store keeps its random name. Instances that share
// a storage find the same one there.
const IdentityName = "nar-herder-storage"

// ExportName is the file that marks the directory of an export.
const ExportName = "nar-herder-export"

// ReadNote reads what a byte store has under [IdentityName] or [OwnerName]. Where
// that is nothing, the error is [fs.ErrNotExist].
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
		return "", fmt.Errorf("%s in storage %s is not what this program writes there: remove it", name, store)
	}
	return note, nil
}

// WriteNote writes one of them, shown by [Staged.Commit] or [Staged.CommitNew].
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

// QuarantineFolder is where files that are wrong are set aside, each under its
// own name. No narinfo names files there.
const QuarantineFolder = "quarantine/"

// IsQuarantined reports whether the name is in [QuarantineFolder].
func IsQuarantined(name string) bool { return strings.HasPrefix(name, QuarantineFolder) }

// KeptApart says that what lies under a name is about one byte store alone, and
// does not belong into another that gets its nars: the name of the store, which
// tells others whether two instances share one, the note of whose it is, and
// what was found to be wrong there.
func KeptApart(name string) bool {
	return name == IdentityName || name == OwnerName || IsQuarantined(name)
}
