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

// ErrSame means that source and target are the same storage.
var ErrSame = errors.New("both are the same storage")

// probePrefix begins the names of the files that detect whether two stores are the same.
// They are in the directory of nars, as only that may be mounted twice.
const probePrefix = "nar/nar-herder-copy-"

func isProbe(name string) bool { return strings.HasPrefix(name, probePrefix) }

// refuseSame returns an error if a file that is written to the target appears in the
// source. Identities can't tell: two stores without one may be the same, and two with the
// same one may be a store and an administrator's unfinished copy of it.
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
	// Also if the context has ended.
	longer, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	if err := c.To.Remove(longer, probe); err != nil {
		return fmt.Errorf("%w: remove the probe file from the target: %w", ErrStore, err)
	}
	switch {
	case seen == nil:
		return fmt.Errorf("%w: a file written to %s appears in %s: name another target", ErrSame, c.To, c.From)
	case !errors.Is(seen, fs.ErrNotExist):
		return fmt.Errorf("%w: read the source: %w", ErrStore, seen)
	}
	return nil
}

// SharedIdentity returns the random identity that both stores have, or "" if they have
// different ones. If one is a copy of the other, instances would take them for one store.
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
