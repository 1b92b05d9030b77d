// Package httpapi turns requests into answers: narinfos, nars, and what belongs
// to them, over HTTP/1.1.
//
// A request goes from here to the storage and from there to the bytes, and
// nothing on that way writes to the database.
package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/compression/decoders"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/health"
	"nar-herder/httpapi/itemcache"
	"nar-herder/httpapi/peerapi"
	"nar-herder/httpapi/respond"
	"nar-herder/httpapi/verify"
	"nar-herder/internal/eventloop"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/checksums"
	"nar-herder/storage/index"
)

// Items is what the server asks of the storage.
type Items interface {
	// Text returns a narinfo byte for byte, or [storage.ErrNotFound].
	Text(ctx context.Context, hash narinfo.PathHash) ([]byte, error)
	// Item returns all that is known of an item, or [storage.ErrNotFound].
	Item(ctx context.Context, hash narinfo.PathHash) (*storage.Item, error)
	// ItemsAt is Item for many, in the order of hashes, with nil for
	// [storage.ErrNotFound].
	ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*storage.Item, error)
	// OpenFile opens the item's Nth file, which then has its recorded size, or says
	// [storage.ErrNotStored].
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error)
	// LookFor looks for the item's Nth file: nil when it is there and whole,
	// [storage.ErrNotStored] when it certainly is not.
	LookFor(ctx context.Context, item *storage.Item, n int) error
	// Concurrency is how many calls of LookFor at a time suit the storage.
	Concurrency() int
	// Totals are sums for the metrics.
	Totals(ctx context.Context) (index.Totals, error)
}

// CachedNars are nars in compressions that were made of those in the storage.
type CachedNars interface {
	// Text returns a narinfo with blocks below it for the files that are
	// ready, and their types, or [storage.ErrNotFound].
	Text(ctx context.Context, hash narinfo.PathHash) (text []byte, types []string, err error)
	// TTL is what a narinfo that names files of the types advertises; nil for
	// nothing.
	TTL(types []string) *time.Duration
	// Files returns all files of an item, also those that its narinfo does not
	// name, or no longer.
	Files(ctx context.Context, hash narinfo.PathHash) ([]index.CachedFile, error)
	// Open opens a file, which then has its recorded size, or says
	// [storage.ErrNotStored].
	Open(ctx context.Context, item *storage.Item, file index.CachedFile, offset, length int64) (io.ReadCloser, bytestore.Info, error)
}

// Elsewhere are instances that have nars which are not stored here. via is what
// the request has come through.
type Elsewhere interface {
	// OpenFile opens the item's Nth file, or says [storage.ErrNotStored] when
	// nobody has it. size is that of the whole file, -1 when it is not known. The bytes
	// may be other than the nar's with a context of [peer.Uncompared].
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	// Locate returns the file's URL, "" for one that clients must not see, and the
	// file's checksum as of [peer.SumOf].
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error)
}

// Uses counts requests for nars.
type Uses interface {
	// Used counts a request for an item's nar: for a cached one of the given
	// type, or for another with "".
	Used(hash narinfo.PathHash, kind string)
}

// Checksums knows the checksums of files that are on this machine.
type Checksums interface {
	// Checksums returns those of an item's files that are known.
	Checksums(ctx context.Context, hash narinfo.PathHash) ([]index.Checksum, error)
	// Want asks for the checksum of a file. Forget is called when it is known.
	Want(hash narinfo.PathHash, file string, open checksums.Opener)
}

// Options of [New].
type Options struct {
	// Checksums make the entity tags of files on this machine the same on all instances
	// that have the same bytes; nil to tell files apart by their time. Files of a bucket
	// are always told apart by that, which all of its front ends see alike.
	Checksums Checksums

	// Cached are further files of the items; nil for none.
	Cached CachedNars

	// Uses counts requests for nars; nil for nobody.
	Uses Uses

	// Identity is sent to other instances; nil for none, which then can't be sure
	// of what this one says.
	Identity peerapi.Identity

	// ReliesOn is what other instances receive with the answer whether nars are stored
	// here: on whom this one relies. Nil makes no statement.
	ReliesOn func() peer.Statement

	// Elsewhere has nars that are not stored here; nil for nobody. They are
	// streamed through, or clients are redirected there with RedirectElsewhere.
	Elsewhere         Elsewhere
	RedirectElsewhere bool

	// Presigned makes URLs to which clients are redirected for stored nars; nil to
	// send those from here.
	Presigned interface {
		Presign(ctx context.Context, name string, lifetime time.Duration) (string, error)
	}

	// Dumps are what other instances begin with; nil for none. While there are none
	// and DumpsExpected is set, this server is about to make the first.
	Dumps         peerapi.Dumps
	DumpsExpected bool

	// Health are the parts that /health and the metric narherder_healthy are about.
	Health []health.Part

	// Changes are sent to mirrors of this instance, with Identity; nil for
	// nobody. For a stream of them, Follow must run.
	Changes peerapi.ChangeLog

	// Chain are the instances that this one mirrors, itself or through others; nil
	// for none.
	Chain func() []string

	// Mirror is how this instance does as a mirror of another, for the health; nil
	// where it is none.
	Mirror func() any

	// Decompress opens a nar in the compression that narinfos call by name, for a
	// client. It is given as much memory as the nar's first bytes ask for, and fails
	// with a [compression.ErrTooLarge] when it needs more; see
	// [compression.NewReaderWithin].
	Decompress func(name string, r io.Reader, memory int64) (io.ReadCloser, error)
	// Decoders is the memory for that, which background work may share; nil for 512 MiB.
	Decoders *compression.Budget

	// TTLs are what narinfos advertise, and NegativeTTL is for items that are not known. Nil
	// advertises nothing.
	narinfo.TTLs
	NegativeTTL *time.Duration

	// AccelRedirect leaves the sending of files to the nginx in front, as the
	// original Nar Herder does.
	AccelRedirect bool

	// AnswerCache bounds the memory for narinfos that are ready to be sent, in
	// bytes; items with requested nars may take an eighth of it more. With
	// 0, none is kept. Unless Follow runs, it must be 0.
	AnswerCache int64

	// SigningKey is the public key to hand out, as text; nil for none.
	SigningKey []byte

	// HideMetrics answers 404 at /metrics and /health, but not at /health/ready and
	// /health/live. [health.Control] serves all of them.
	HideMetrics bool

	// TrustedProxies may say for whom they ask.
	TrustedProxies engine.Proxies

	// Limits are those of its connections, unless Starting has them.
	Limits engine.Limits

	// Starting has answered until now, and its connections are taken over; nil for
	// none.
	Starting *health.Starting

	// Version of the program, for the metrics.
	Version string

	// Log takes faults, and single requests at level DEBUG.
	Log *slog.Logger
}

// Server answers requests. It is made by [New].
type Server struct {
	items   Items
	options Options
	log     *slog.Logger
	// answers are the bodies of narinfos, and nars the items with nars that were
	// asked for. Follow keeps them true.
	answers *itemcache.Cache[madeAnswer]
	nars    *itemcache.Cache[*nars]
	metrics *metrics
	faults  respond.Faults
	health  *health.Health
	// checker compares nars with their hashes, and has the decoders for them.
	checker *verify.Checker

	cacheControls cacheControls

	// peers answers what other instances ask.
	peers *peerapi.API
	// sender answers with files.
	sender *content.Sender

	answered atomic.Int64

	engine *engine.Engine
	// pool bounds queries of the index.
	pool *eventloop.Pool
	// stopping is set when each answer is to be the last of its connection.
	stopping atomic.Bool
	// live is the context of what is read for answers: it ends when the server
	// does. The client's request is none for that, as the engine uses it again once
	// it is answered. streaming is that of answers without an end, and ends when the
	// server begins to stop.
	live, streaming context.Context
	end, endStreams context.CancelFunc
}

// New makes a server of the items.
func New(items Items, options Options) *Server {
	s := &Server{
		items: items, options: options, log: options.Log,
		answers: itemcache.New(options.AnswerCache, func(a madeAnswer) int64 { return int64(cap(a.body)) }),
		// A parsed narinfo takes about as much again as its text.
		nars:   itemcache.New(options.AnswerCache/8, func(n *nars) int64 { return 2*int64(cap(n.Text)) + 1000 }),
		pool:   eventloop.NewPool(max(4, 2*runtime.GOMAXPROCS(0))), // as many as the index has readers
		sender: content.NewSender(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.health = health.New(options.Health, options.Mirror, s.log)
	s.cacheControls = newCacheControls(&options)
	if options.Starting != nil {
		s.engine = options.Starting.Engine
	} else {
		s.engine = engine.New(s.handle, s.handleBadRequest, options.Limits, options.TrustedProxies, s.log)
	}
	s.metrics = newMetrics(s)
	s.faults = respond.Faults{Log: s.log, Count: s.metrics.faults}
	s.live, s.end = context.WithCancel(context.Background())
	s.streaming, s.endStreams = context.WithCancel(s.live)
	s.checker = verify.New(verify.Options{
		// One processor is left for what answers at once.
		Decoders: decoders.New(max(1, runtime.GOMAXPROCS(0)-1), options.Decoders), Wait: decoders.Wait,
		Live: s.live, Streaming: s.streaming,
		Cut: s.cutRemote, Corrupt: s.metrics.corrupt, Log: s.log,
	})
	s.peers = peerapi.New(peerapi.Options{
		Items: items, Identity: options.Identity, ReliesOn: options.ReliesOn, Changes: options.Changes, Chain: options.Chain,
		Dumps: options.Dumps, DumpsExpected: options.DumpsExpected, AccelRedirect: options.AccelRedirect, Sender: s.sender,
		Proxies: options.TrustedProxies, Faults: &s.faults, Live: s.live, Streaming: s.streaming,
	})
	return s
}

// Answered is how many requests were answered since the start.
func (s *Server) Answered() int64 { return s.answered.Load() }

// Health is that of /health, for others to serve it as well.
func (s *Server) Health() *health.Health { return s.health }

// Processors is held by decoders that compute, for others that compute as much.
func (s *Server) Processors() sync.Locker { return s.checker.Options.Decoders.Processors }

// Registry holds the server's metrics, for others to add theirs.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.registry }

// Serve answers requests from all listeners until the context ends, and closes
// them. Then it gives answers in flight a moment, cuts the rest, and returns
// nil, at most two seconds later unless a look at the health hangs. An error is a
// listener's.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if s.options.Starting != nil {
		s.options.Starting.AnswerBy(s.handle, s.handleBadRequest)
	}
	var checks sync.WaitGroup
	checks.Go(func() { s.health.Run(s.live) })
	defer checks.Wait() // what it looks at is closed afterwards
	ended := make(chan error, len(listeners))
	for _, listener := range listeners {
		go func() { ended <- s.engine.Serve(listener) }()
	}
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-ended:
		if failure == nil {
			failure = errors.New("a listener was closed")
		}
	}
	for _, listener := range listeners {
		_ = listener.Close() // also one that the engine has not come to yet
	}
	s.endStreams()
	defer s.end()
	s.engine.Stop(func() { s.stopping.Store(true) }, s.end)
	return failure
}
