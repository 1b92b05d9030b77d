package peer

import "context"

// uncomparedKey is a key of a context.
type uncomparedKey struct{}

// Uncompared returns a context in which files of other instances are opened without comparing
// them with the NarHash. The caller must do that.
func Uncompared(ctx context.Context) context.Context {
	return context.WithValue(ctx, uncomparedKey{}, true)
}

// IsUncompared reports whether the context is one of [Uncompared].
func IsUncompared(ctx context.Context) bool { return ctx.Value(uncomparedKey{}) != nil }
