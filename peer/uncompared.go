package peer

import "context"

// uncomparedKey is a key of a context.
type uncomparedKey struct{}

// Uncompared returns a context for opening files of other instances. The caller compares
// their content with the NarHash.
func Uncompared(ctx context.Context) context.Context {
	return context.WithValue(ctx, uncomparedKey{}, true)
}

// IsUncompared reports whether the context is one of [Uncompared].
func IsUncompared(ctx context.Context) bool { return ctx.Value(uncomparedKey{}) != nil }
