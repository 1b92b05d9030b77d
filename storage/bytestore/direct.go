package bytestore

import "context"

type directKey struct{}

// Direct returns a context with which Open reads from the store itself, and neither uses nor
// fills a cache in front of it: for readers that verify the stored bytes.
func Direct(ctx context.Context) context.Context { return context.WithValue(ctx, directKey{}, true) }

// IsDirect reports whether the context is one of [Direct].
func IsDirect(ctx context.Context) bool { return ctx.Value(directKey{}) != nil }

type trustKey struct{}

// TrustOwners returns a context with which StageFile also shares, and Flush also accepts, files
// that their owner can still write to: the caller knows that the owner only replaces them by
// others. They may have other names, and keep their owner, group and mode.
func TrustOwners(ctx context.Context) context.Context {
	return context.WithValue(ctx, trustKey{}, true)
}

// TrustsOwners reports whether the context is one of [TrustOwners].
func TrustsOwners(ctx context.Context) bool { return ctx.Value(trustKey{}) != nil }
