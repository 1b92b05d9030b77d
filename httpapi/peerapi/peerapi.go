// Package peerapi answers what other instances ask: which nars are stored here, what has changed,
// and dumps of the index.
package peerapi

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Items is what the API asks of the storage.
type Items interface {
	// Item returns all that is known of an item, or [storage.ErrNotFound].
	Item(ctx context.Context, hash narinfo.PathHash) (*storage.Item, error)
	// ItemsAt is Item for many, in the order of hashes, with nil for
	// [storage.ErrNotFound].
	ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*storage.Item, error)
	// LookFor looks for the item's Nth file: nil when it is there and whole,
	// [storage.ErrNotStored] when it certainly is not.
	LookFor(ctx context.Context, item *storage.Item, n int) error
	// Concurrency is how many calls of LookFor at a time suit the storage.
	Concurrency() int
}

// Identity is who answers.
type Identity interface {
	// Instance is the random name of this instance.
	Instance() string
	// StorageName is the random name of its storage. Where that has none yet, it is
	// an error.
	StorageName(ctx context.Context) (string, error)
	// IsOurs says whether this instance decides what goes from its storage. Else
	// it vouches for nothing there.
	IsOurs(ctx context.Context) bool
}

// ChangeLog is what others follow.
type ChangeLog interface {
	// ChangesAfter returns changes by their numbers; see [index.Index.ChangesAfter].
	ChangesAfter(ctx context.Context, after int64, limit int) (index.Page, error)
	// ChangesFrom returns changes by their time; see [index.Index.ChangesFrom].
	ChangesFrom(ctx context.Context, place *index.TimePlace, limit int) (told []index.Told, more bool, err error)
}

// Options of [New]. What is nil is left out of answers.
type Options struct {
	Items    Items
	Identity Identity
	DependsOn func() peer.Statement // on whom this instance relies
	Changes  ChangeLog
	Chain    func() []string // the instances that this one mirrors, itself or through others
	// Dumps are what other instances begin with. While there are none and DumpsExpected is
	// set, this server is about to make the first.
	Dumps         Dumps
	DumpsExpected bool
	AccelRedirect bool // leave the sending of files to the nginx in front
	Sender        *content.Sender

	Proxies engine.Proxies
	Faults  *respond.Faults
	// Live is the context of answers, and Streaming that of those without an end.
	Live, Streaming context.Context
}

// API answers other instances. It is made by [New].
type API struct {
	options Options
	// lookups bounds how many files are looked for at a time, for all clients, and limiter
	// how often a client may ask for that.
	lookups chan struct{}
	limiter *limiter
	// news wakes those who follow the changes, and streams counts them.
	news    news
	streams streams
}

// New makes an API.
func New(options Options) *API {
	return &API{options: options, lookups: make(chan struct{}, max(1, options.Items.Concurrency())), limiter: newLimiter()}
}

// HasChanged reports whether a file could not be opened because the item was
// removed or replaced after its row was read: then row and bytes only seem to
// disagree, and the request is to be answered anew. That ends, as the row is read
// again each time, and no request is for a row that changes all the time.
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
