// Package peerapi answers requests of other instances: which nars are stored here, what has
// changed, and dumps of the index.
package peerapi

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Items is the storage, as the API uses it.
type Items interface {
	// Item returns an item, or [storage.ErrNotFound].
	Item(ctx context.Context, hash narinfo.PathHash) (*storage.Item, error)
	// ItemsAt is Item for many, in the order of hashes, with nil for
	// [storage.ErrNotFound].
	ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*storage.Item, error)
	// LookFor returns nil if the item's Nth file is stored with its recorded size, and
	// [storage.ErrNotStored] if it is certainly missing.
	LookFor(ctx context.Context, item *storage.Item, n int) error
	// Concurrency is how many calls of LookFor at a time suit the storage.
	Concurrency() int
}

// Identity identifies this instance.
type Identity interface {
	// Instance is the random name of this instance.
	Instance() string
	// StorageName returns the random name of the storage, or an error if it has none yet.
	StorageName(ctx context.Context) (string, error)
	// IsOurs reports whether this instance owns the storage. Otherwise it doesn't vouch
	// for anything there.
	IsOurs(ctx context.Context) bool
}

// ChangeLog is the log of changes that other instances follow.
type ChangeLog interface {
	// ChangesAfter returns changes by number; see [index.Index.ChangesAfter].
	ChangesAfter(ctx context.Context, after int64, limit int) (index.Page, error)
	// ChangesFrom returns changes by time; see [index.Index.ChangesFrom].
	ChangesFrom(ctx context.Context, place *index.TimeCursor, limit int) (changes []index.MirrorChange, more bool, err error)
}

// Options of [New]. Nil fields are left out of answers.
type Options struct {
	Items     Items
	Identity  Identity
	DependsOn func() peer.Statement // on which instances this one depends
	Changes   ChangeLog
	Chain     func() []string // the instances that this one mirrors, directly or through others
	// Dumps are copies of the index for new mirrors. DumpsExpected says that the server will
	// make the first one soon.
	Dumps         Dumps
	DumpsExpected bool
	AccelRedirect bool // the nginx in front sends files
	Sender        *content.Sender

	Proxies clients.Proxies
	Faults  *respond.Faults
	// Live is the context of answers, and Streaming that of those without an end.
	Live, Streaming context.Context
}

// API answers other instances. Use [New] to make one.
type API struct {
	options Options
	// lookups bounds how many files are looked up at a time, for all clients, and limiter
	// how many items a client may request.
	lookups chan struct{}
	limiter *limiter
	// news wakes streams of changes, and streams counts them.
	news    news
	streams streams
}

// New makes an API.
func New(options Options) *API {
	return &API{options: options, lookups: make(chan struct{}, max(1, options.Items.Concurrency())), limiter: newLimiter()}
}

// HasChanged reports whether a file could not be opened because the item was
// removed or replaced after its row was read. The request must then be answered again.
func HasChanged(ctx context.Context, items Items, item *storage.Item, err error) bool {
	if !errors.Is(err, storage.ErrMismatch) {
		return false
	}
	now, err := items.Item(ctx, item.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return true
	}
	return err == nil && (!bytes.Equal(now.Text, item.Text) || now.Stored != item.Stored || !slices.Equal(now.Sizes, item.Sizes))
}
