package transfer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"nar-herder/internal/linger"
	"nar-herder/storage/bytestore"
)

// ErrSame says that source and target are one.
var ErrSame = errors.New("both are the same storage")

// probePrefix begins the names of the files that tell whether two stores are
// one. They lie where nars lie, as that may be what is mounted twice.
const probePrefix = "nar/nar-herder-copy-"

func isProbe(name string) bool { return strings.HasPrefix(name, probePrefix) }

// refuseSame makes sure that what is written to the target does not come into
// the source, whatever the two are called. Their identities don't tell: two
// stores without one may be the same, and two with the same one may be a store
// and a copy of it that an administrator has begun by other means.
func (c *Copy) refuseSame(ctx context.Context) error {
	if c.DryRun {
		return nil
	}
	probe := probePrefix + rand.Text()
	staged, err := c.To.Stage(ctx, probe, strings.NewReader("probe\n"), 6)
	if err != nil {
		return fmt.Errorf("%w: write to the target: %w", ErrStore, err)
	}
	defer staged.Abort()
	if err := staged.Commit(ctx); err != nil {
		return fmt.Errorf("%w: write to the target: %w", ErrStore, err)
	}
	_, seen := c.From.Stat(ctx, probe)
	// Also when the context has ended.
	longer, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	if err := c.To.Remove(longer, probe); err != nil {
		return fmt.Errorf("%w: remove what was written to the target to try it: %w", ErrStore, err)
	}
	switch {
	case seen == nil:
		return fmt.Errorf("%w: what is written to %s appears in %s: name another to copy to", ErrSame, c.To, c.From)
	case !errors.Is(seen, fs.ErrNotExist):
		return fmt.Errorf("%w: read the source: %w", ErrStore, seen)
	}
	return nil
}

// SharedIdentity returns the random name that both stores have, although they
// are two: then one is a copy of the other, and others take them for one. It is
// "" when they have not the same.
func (c *Copy) SharedIdentity(ctx context.Context) (string, error) {
	var names [2]string
	for i, store := range []bytestore.Store{c.From, c.To} {
		name, err := bytestore.ReadNote(ctx, store, bytestore.IdentityName)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		} else if err != nil {
			return "", err
		}
		names[i] = name
	}
	if names[0] != names[1] {
		return "", nil
	}
	return names[0], nil
}
