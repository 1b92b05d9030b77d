package bytestore

import "context"

type directKey struct{}

// Direct returns a context with which Open reads from the store itself, and neither uses nor
// fills a cache in front of it: for readers that verify the stored bytes.
func Direct(ctx context.Context) context.Context { return context.WithValue(ctx, directKey{}, true) }

// IsDirect reports whether the context is one of [Direct].
func IsDirect(ctx context.Context) bool { return ctx.Value(directKey{}) != nil }
