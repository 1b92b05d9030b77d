// Package httpapi answers HTTP/1.1 requests for narinfos, nars and related files.
//
// A request is routed in route.go, looks up its item in the storage, and sends the bytes.
// Nothing on this path writes to the database.
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
	"nar-herder/httpapi/cachecontrol"
	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/content"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/health"
	"nar-herder/httpapi/itemcache"
	"nar-herder/httpapi/measured"
	"nar-herder/httpapi/metrics"
	"nar-herder/httpapi/page"
	"nar-herder/httpapi/peerapi"
	"nar-herder/httpapi/prepared"
	"nar-herder/httpapi/respond"
	"nar-herder/httpapi/verify"
	"nar-herder/internal/eventloop"
	"nar-herder/internal/logonce"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/checksums"
	"nar-herder/storage/index"
	"nar-herder/upstream/lookup"
)

// Items is the storage, as the server uses it.
type Items interface {
	// TextUntil returns a narinfo byte for byte, or [storage.ErrNotFound], and when the answer
	// of its upstream expires. That is the zero time for an item that is not of an upstream.
	TextUntil(ctx context.Context, hash narinfo.PathHash) (text []byte, freshUntil time.Time, err error)
	// Item returns an item, or [storage.ErrNotFound].
	Item(ctx context.Context, hash narinfo.PathHash) (*storage.Item, error)
	// ItemsAt is Item for many, in the order of hashes, with nil for
	// [storage.ErrNotFound].
	ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*storage.Item, error)
	// OpenFile opens the item's Nth file and checks its size. The error is
	// [storage.ErrNotStored] if the file is certainly missing.
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error)
	// LookFor returns nil if the item's Nth file is stored with its recorded size, and
	// [storage.ErrNotStored] if it is certainly missing.
	LookFor(ctx context.Context, item *storage.Item, n int) error
	// Concurrency is how many calls of LookFor at a time suit the storage.
	Concurrency() int
	// Totals returns sums for the metrics.
	Totals(ctx context.Context) (index.Totals, error)
}

// CachedNars are stored nars in further compressions.
type CachedNars interface {
	// Text is [Items.TextUntil] with a block for each file that is ready, and the types of
	// these files.
	Text(ctx context.Context, hash narinfo.PathHash) (text []byte, types []string, freshUntil time.Time, err error)
	// TTL returns the advertised TTL of a narinfo with files of the types; nil for none.
	TTL(types []string) *time.Duration
	// Files returns all files of an item, including those that its narinfo doesn't name.
	Files(ctx context.Context, hash narinfo.PathHash) ([]index.CachedFile, error)
	// Open opens a file and checks its size. The error is [storage.ErrNotStored] if
	// the file is certainly missing.
	Open(ctx context.Context, item *storage.Item, file index.CachedFile, offset, length int64) (io.ReadCloser, bytestore.Info, error)
}

// Remote fetches nars that are not stored here from other instances. via are the
// instances that have forwarded the request.
type Remote interface {
	// OpenFile opens the item's Nth file. The error is [storage.ErrNotStored] if no
	// instance has it. size is the size of the whole file, -1 if unknown. The bytes are
	// unverified if the context is one of [peer.Uncompared].
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	// Locate returns the file's URL and its checksum, see [peer.SumOf]. The URL is ""
	// if clients must not see it.
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error)
}

// Upstreams have items that are not in the index. [lookup.Finder] implements it.
type Upstreams interface {
	// LookUp returns the narinfo of an item that the index lacks, or whose answer has expired.
	// The error is [storage.ErrNotFound], [lookup.ErrBusy] or [upstream.ErrUnknown].
	LookUp(ctx context.Context, hash narinfo.PathHash, asker lookup.Asker) (lookup.Answer, error)
	// IsPending reports whether LookUp has begun for an item that the index lacks.
	IsPending(hash narinfo.PathHash) bool
	// Add looks an item up, and waits until the index has it.
	Add(ctx context.Context, hash narinfo.PathHash, asker lookup.Asker) (lookup.Answer, error)
}

// Uses counts requests for nars.
type Uses interface {
	// Used counts a request for an item's nar. kind is the type of a cached nar, or "".
	Used(hash narinfo.PathHash, kind string)
}

// Checksums keeps the checksums of local files.
type Checksums interface {
	// Checksums returns the known checksums of an item's files.
	Checksums(ctx context.Context, hash narinfo.PathHash) ([]index.Checksum, error)
	// Want computes the checksum of a file in the background, and calls
	// [Server.Forget] then.
	Want(hash narinfo.PathHash, file string, open checksums.Opener)
}

// Options of [New].
type Options struct {
	// Checksums give local files the same entity tag on all instances; nil to make tags
	// of the modification time. Files in a bucket always have tags of the latter kind,
	// as all front ends see the same time.
	Checksums Checksums

	// Cached are nars in further compressions; nil for none.
	Cached CachedNars

	// Uses counts requests for nars; nil disables counting.
	Uses Uses

	// Identity is sent to other instances; nil for none. Without it, they don't trust
	// the answers.
	Identity peerapi.Identity

	// DependsOn returns on which instances this one depends, for other instances. Nil
	// makes no statement.
	DependsOn func() peer.Statement

	// Remote has nars that are not stored here; nil for none. They are streamed, or
	// with RedirectRemote, clients are redirected to them.
	Remote         Remote
	RedirectRemote bool

	// Upstreams have items that are not in the index; nil for none.
	Upstreams Upstreams

	// Presigned makes URLs to which clients are redirected for stored nars; nil to
	// stream them.
	Presigned interface {
		Presign(ctx context.Context, name string, lifetime time.Duration) (string, error)
	}

	// Dumps are copies of the index for new mirrors; nil for none. DumpsExpected says
	// that the server will make the first one soon.
	Dumps         peerapi.Dumps
	DumpsExpected bool

	// Health are the parts that /health and the metric narherder_healthy report.
	Health []health.Part

	// Changes are sent to mirrors of this instance, with Identity; nil for none. Streams
	// of changes need Follow to run.
	Changes peerapi.ChangeLog

	// Chain returns the instances that this one mirrors, directly or through others;
	// nil for none.
	Chain func() []string

	// Mirror returns the state of mirroring for /health; nil if this is not a mirror.
	Mirror func() any

	// Decompress opens a nar in a compression for a client, as
	// [compression.NewReaderWithin] does.
	Decompress func(name string, r io.Reader, memory int64) (io.ReadCloser, error)
	// Decoders is the memory for Decompress, shared with background work; nil for 512 MiB.
	Decoders *compression.Budget

	// TTLs are advertised with narinfos, and NegativeTTL with a 404. Nil advertises none.
	narinfo.TTLs
	NegativeTTL *time.Duration

	// AccelRedirect makes the nginx in front send files, as the original Nar Herder does.
	AccelRedirect bool

	// AnswerCache bounds the memory for prepared narinfos, in bytes; items with
	// requested nars may take an eighth of it more. 0 disables the cache, and is
	// required unless Follow runs.
	AnswerCache int64

	// SigningKeys are public keys as texts: the first is at /signing-key.pub, the second at
	// /signing-key-2.pub. A client can authorize only one key from a file.
	SigningKeys page.Keys

	// Pages are those for browsers; nil for none.
	Pages *page.Site

	// HideMetrics answers 404 at /metrics and /health, but not at /health/ready and
	// /health/live. [health.Control] serves all of them.
	HideMetrics bool

	// TrustedProxies name their clients in X-Forwarded-For.
	TrustedProxies clients.Proxies

	// Limits bound connections, unless Starting is set.
	Limits admission.Limits

	// Starting has answered until now; the server takes its connections over. Nil for none.
	Starting *health.Starting

	// Version of the program, for the metrics.
	Version string

	// AccessLog receives answers with their requests; nil for none.
	AccessLog measured.Sink

	// Log receives faults.
	Log *slog.Logger
}

// Server answers requests. Use [New] to make one.
type Server struct {
	items   Items
	options Options
	log     *slog.Logger
	// answers are prepared narinfos, and nars the items with requested nars. Follow
	// invalidates them.
	answers *itemcache.Cache[prepared.Answer]
	nars    *itemcache.Cache[*nars]
	metrics *metrics.Answers
	totals  *metrics.Totals
	faults  respond.Faults
	health  *health.Health
	checker *verify.Checker
	// remoteLogged remembers logged failures of other instances.
	remoteLogged logonce.Filter

	cacheControls cachecontrol.Values

	peers  *peerapi.API
	sender *content.Sender

	answered atomic.Int64

	engine *engine.Engine
	// pool bounds queries of the index.
	pool *eventloop.Pool
	// stopping is set when connections must close after the next answer.
	stopping atomic.Bool
	// live is the context of reads for answers. It ends with the server: a
	// fasthttp.RequestCtx can't be used, as it is recycled after the answer. streaming is
	// the context of answers without an end, and ends when the server begins to stop.
	live, streaming context.Context
	end, endStreams context.CancelFunc
}

// New makes a server for the items.
func New(items Items, options Options) *Server {
	s := &Server{
		items: items, options: options, log: options.Log,
		answers: itemcache.New(options.AnswerCache, func(a prepared.Answer) int64 { return int64(cap(a.Body)) }),
		// A parsed narinfo takes about as much again as its text.
		nars:   itemcache.New(options.AnswerCache/8, func(n *nars) int64 { return 2*int64(cap(n.Text)) + 1000 }),
		pool:   eventloop.NewPool(max(4, 2*runtime.GOMAXPROCS(0))), // as many as the index has readers
		sender: content.NewSender(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.options.Pages == nil {
		s.options.Pages = page.New(page.Options{})
	}
	s.health = health.New(options.Health, options.Mirror, s.log)
	var cachedTTL func([]string) *time.Duration
	if options.Cached != nil {
		cachedTTL = options.Cached.TTL
	}
	s.cacheControls = cachecontrol.New(options.TTLs, options.NegativeTTL, cachedTTL)
	if options.Starting != nil {
		s.engine = options.Starting.Engine
	} else {
		s.engine = engine.New(s.handle, s.handleBadRequest, options.Limits, options.TrustedProxies, s.log)
	}
	s.metrics = metrics.New(metricRoutes)
	s.faults = respond.Faults{Log: s.log, Count: s.metrics.Faults}
	s.live, s.end = context.WithCancel(context.Background())
	s.streaming, s.endStreams = context.WithCancel(s.live)
	s.totals = &metrics.Totals{Read: items.Totals, Live: s.live, Log: s.log}
	s.checker = verify.New(verify.Options{
		// One processor is left for other requests.
		Decoders: decoders.New(max(1, runtime.GOMAXPROCS(0)-1), options.Decoders), Wait: decoders.Wait,
		Live: s.live, Streaming: s.streaming,
		Cut: s.cutRemote, Corrupt: s.metrics.Corrupt, Log: s.log,
	})
	s.peers = peerapi.New(peerapi.Options{
		Items: items, Identity: options.Identity, DependsOn: options.DependsOn, Changes: options.Changes, Chain: options.Chain,
		Dumps: options.Dumps, DumpsExpected: options.DumpsExpected, AccelRedirect: options.AccelRedirect, Sender: s.sender,
		Proxies: options.TrustedProxies, Faults: &s.faults, Live: s.live, Streaming: s.streaming,
	})
	s.register(s.metrics.Registry)
	return s
}

// Answered returns how many requests were answered since the start.
func (s *Server) Answered() int64 { return s.answered.Load() }

// Health returns the health that /health reports.
func (s *Server) Health() *health.Health { return s.health }

// Processors returns the lock that decoders hold while they compute. Other work that
// computes as much should hold it too.
func (s *Server) Processors() sync.Locker { return s.checker.Options.Decoders.Processors }

// Registry returns the registry of the server's metrics.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.Registry }

// Serve answers requests from all listeners until the context ends, and closes
// them. Then it waits a moment for answers in flight, cuts the others, and returns
// nil, at most two seconds later unless a health check hangs. The error is that of a
// listener that failed.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if s.options.Starting != nil {
		s.options.Starting.AnswerBy(s.handle, s.handleBadRequest)
	}
	var checks sync.WaitGroup
	checks.Go(func() { s.health.Run(s.live) })
	defer checks.Wait() // the caller closes what the checks use
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
		_ = listener.Close() // the engine may not serve it yet
	}
	s.endStreams()
	defer s.end()
	s.engine.Stop(func() { s.stopping.Store(true) }, s.end)
	return failure
}
