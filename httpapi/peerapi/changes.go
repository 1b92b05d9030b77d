package peerapi

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/internal/stamp"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

const (
	// PageSize is how many changes are read at a time. It bounds the memory of an answer.
	PageSize = 200
	// mostStreams bounds the number of streams, and ClientStreams those of one client.
	// Several mirrors may share an address.
	mostStreams   = 1000
	ClientStreams = 16
	// streamRetry is the Retry-After header of a refused stream, in seconds.
	streamRetry = "60"
)

// ServeChanges answers with changes: as the original does since a time, or after the change
// with a number.
func (s *API) ServeChanges(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	query := ctx.QueryArgs()
	if query.Has(peer.AfterKey) {
		s.serveChangesAfter(ctx)
		return
	}
	since, ok := parseSince(string(query.Peek(peer.SinceKey)))
	if !ok {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "missing parameter: ?since=YYYY-MM-DD HH:MM:SS, in UTC, or ?after=NUMBER")
		return
	}
	if ctx.IsHead() {
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SkipBody = true
		return
	}
	if !s.admit(ctx, PageSize) {
		return
	}
	ctx.Response.Header.SetContentType("application/json")
	engine.SendChunks(ctx, io.NopCloser(&changesSince{s: s, client: s.options.Proxies.Client(ctx), ctx: s.options.Streaming, place: index.TimeCursor{At: since}}))
}

// parseSince parses a time in the original's format, or other common ones.
func parseSince(text string) (time.Time, bool) {
	for _, layout := range []string{time.DateTime, "2006-01-02T15:04:05", time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

// published returns a change as it is published. Times in the future become the current time, as
// a mirror that follows by time would get no more changes until then.
func published(change index.MirrorChange) peer.Change {
	c := peer.Change{ID: change.ID, Datetime: stamp.Past(change.At, time.Now().UTC()).Format(time.DateTime), Change: peer.Addition, Data: string(change.Text)}
	if change.Kind == index.Removed {
		c.Change, c.Data = peer.Removal, change.StorePath
	}
	return c
}

// changesSince is the body of an answer in the original's format.
type changesSince struct {
	s       *API
	client  netip.Addr
	ctx     context.Context
	place   index.TimeCursor
	pending bytes.Buffer
	paged   bool // a page was read
	begun   bool
	ended   bool
}

// Read returns an error if the changes can't be read, which cuts the connection: clients would
// take a shorter answer as complete.
func (b *changesSince) Read(p []byte) (int, error) {
	for b.pending.Len() == 0 {
		if b.ended {
			return 0, io.EOF
		}
		if b.paged { // the first page was admitted with the request
			if err := b.s.await(b.ctx, b.client, PageSize); err != nil {
				return 0, err
			}
		}
		b.paged = true
		changes, more, err := b.s.options.Changes.ChangesFrom(b.ctx, &b.place, PageSize)
		if err != nil {
			if faults := b.s.options.Faults; faults.IsDue("read changes", err) {
				faults.Log.Error("can't read changes for another instance", "error", err)
			}
			return 0, err
		}
		if len(changes) == 0 && more {
			continue
		}
		for _, change := range changes {
			b.pending.WriteString(map[bool]string{false: `{"recent_changes":[`, true: ","}[b.begun])
			b.begun = true
			c := published(change)
			c.ID = 0 // the original has no IDs
			if err := respond.WriteJSON(&b.pending, c); err != nil {
				return 0, err
			}
		}
		if !more {
			if !b.begun {
				b.pending.WriteString(`{"recent_changes":[`)
			}
			b.pending.WriteString("]}\n")
			b.ended = true
		}
	}
	return b.pending.Read(p)
}

// logState describes the log and a page of it to a client that has the changes up to
// previous.
func (s *API) logState(page *index.Page, previous int64) peer.LogState {
	state := peer.LogState{
		Instance: s.options.Identity.Instance(), First: page.First, Last: page.Last, Position: page.Position, Mark: page.Mark, Previous: previous,
	}
	if s.options.Chain != nil {
		state.Chain = s.options.Chain()
	}
	state.Seal()
	return state
}

// pageAfter reads the page that a client requests by a number. It returns false after
// answering with an error: 410 Gone with the state of the log if the client can't continue from
// there.
func (s *API) pageAfter(ctx *fasthttp.RequestCtx) (page index.Page, after int64, ok bool) {
	query := ctx.QueryArgs()
	after, err := strconv.ParseInt(string(query.Peek(peer.AfterKey)), 10, 64)
	if err != nil || after < 0 {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "?after=NUMBER must be that of a change, or 0")
		return page, 0, false
	}
	if !s.admit(ctx, PageSize) {
		return page, 0, false
	}
	page, err = s.options.Changes.ChangesAfter(s.options.Live, after, PageSize)
	if err != nil {
		s.options.Faults.Answer(ctx, "read the recent changes", err)
		return page, 0, false
	}
	instance, mark := string(query.Peek(peer.InstanceKey)), string(query.Peek(peer.MarkKey))
	isOther := instance != "" && instance != s.options.Identity.Instance()
	// AfterMark is empty if the change has left the log.
	isAnother := mark != "" && page.AfterMark != "" && mark != page.AfterMark
	if !isOther && !isAnother && !isLost(after, page) {
		return page, after, true
	}
	var body bytes.Buffer
	if err := respond.WriteJSON(&body, s.logState(&index.Page{First: page.First, Last: page.Last}, 0)); err != nil {
		s.options.Faults.Answer(ctx, "write the recent changes", err)
		return page, 0, false
	}
	ctx.Response.SetStatusCode(fasthttp.StatusGone)
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.SetBody(body.Bytes())
	return page, 0, false
}

// sealed returns the changes of a page with checksums for a client that has the changes up to
// previous, and the number of the last one.
func (s *API) sealed(page *index.Page, previous int64) ([]peer.Change, int64) {
	changes := make([]peer.Change, len(page.Changes))
	for i, change := range page.Changes {
		changes[i] = published(change)
		changes[i].Previous, changes[i].Mark = previous, change.Mark()
		changes[i].Seal(s.options.Identity.Instance())
		previous = change.ID
	}
	return changes, previous
}

// isLost reports whether changes after the one with the number have left the log, or
// the number is higher than that of the last change.
func isLost(after int64, page index.Page) bool {
	return page.First > after+1 || after > page.Last
}

func (s *API) serveChangesAfter(ctx *fasthttp.RequestCtx) {
	page, after, ok := s.pageAfter(ctx)
	if !ok {
		return
	}
	changes, last := s.sealed(&page, after)
	reply := peer.ChangesReply{LogState: s.logState(&page, last), More: page.More, Changes: changes}
	var body bytes.Buffer
	if err := respond.WriteJSON(&body, reply); err != nil {
		s.options.Faults.Answer(ctx, "write the recent changes", err)
		return
	}
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.SetBody(body.Bytes())
}

// ServeStream streams changes as events, until the client closes the connection.
func (s *API) ServeStream(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if !ctx.QueryArgs().Has(peer.AfterKey) {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "missing parameter: ?after=NUMBER")
		return
	}
	client := s.options.Proxies.Client(ctx)
	if s.options.Proxies.Trusts(client.WithZone("")) {
		client = netip.Addr{} // a proxy that doesn't name its client
	}
	network := clients.NetworkOf(client)
	if !s.streams.add(network) {
		ctx.Response.Header.Set("Retry-After", streamRetry)
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, "too many streams of changes: request pages instead, or retry later")
		return
	}
	stream := &changeStream{s: s, client: network, ctx: s.options.Streaming, news: s.news.wait()}
	page, after, ok := s.pageAfter(ctx)
	stream.position, stream.sent = after, after
	if !ok || ctx.IsHead() {
		stream.Close()
		ctx.Response.SkipBody = ctx.IsHead()
		return
	}
	ctx.Response.Header.SetContentType("text/event-stream")
	// Without this header, nginx buffers events.
	ctx.Response.Header.Set("X-Accel-Buffering", "no")
	if err := stream.write(&page); err != nil {
		stream.Close()
		s.options.Faults.Answer(ctx, "write the recent changes", err)
		return
	}
	engine.SendChunks(ctx, stream)
}

// changeStream is the body of a stream of changes.
type changeStream struct {
	s        *API
	client   netip.Prefix
	ctx      context.Context
	news     <-chan struct{}
	position int64 // number of the last change that was read
	sent     int64 // position that was sent to the client
	more     bool
	begun    bool
	pending  bytes.Buffer
	closed   sync.Once
}

// Read waits for changes, or until it is time for an event without any.
func (b *changeStream) Read(p []byte) (int, error) {
	pulse := time.NewTimer(peer.StreamPulse)
	defer pulse.Stop()
	for quiet := false; b.pending.Len() == 0; {
		if !b.more {
			select {
			case <-b.news:
			case <-pulse.C:
				quiet = true
			case <-b.ctx.Done():
			}
		}
		if err := b.ctx.Err(); err != nil {
			return 0, err
		}
		// Before the page is read, so that later changes are not missed.
		b.news = b.s.news.wait()
		page, err := b.s.options.Changes.ChangesAfter(b.ctx, b.position, PageSize)
		if err != nil {
			if faults := b.s.options.Faults; faults.IsDue("read changes", err) {
				faults.Log.Error("can't read changes for another instance", "error", err)
			}
			return 0, err
		}
		if isLost(b.position, page) {
			return 0, io.ErrUnexpectedEOF // the client asks again, and gets 410
		}
		if len(page.Changes) == 0 && !quiet {
			b.position, b.more = page.Position, page.More // only unpublished changes
			continue
		}
		if err := b.write(&page); err != nil {
			return 0, err
		}
	}
	n, err := b.pending.Read(p)
	if b.pending.Len() == 0 && b.pending.Cap() > pendingKept {
		b.pending = bytes.Buffer{}
	}
	return n, err
}

// pendingKept is the largest buffer that a stream keeps while it waits, in bytes, as there can
// be many streams.
const pendingKept = 64 << 10

// write appends the events of a page: the first time, the state, as the checksums of changes
// include its instance; then the changes; then the state with the new position.
func (b *changeStream) write(page *index.Page) error {
	if !b.begun {
		b.begun = true
		begin := index.Page{First: page.First, Last: page.Last, Position: b.sent, Mark: page.AfterMark}
		if err := b.event(peer.StateEvent, b.s.logState(&begin, b.sent)); err != nil {
			return err
		}
	}
	changes, last := b.s.sealed(page, b.sent)
	for i := range changes {
		b.pending.WriteString("id: " + strconv.FormatInt(changes[i].ID, 10) + "\n")
		if err := b.event(peer.ChangeEvent, &changes[i]); err != nil {
			return err
		}
	}
	state := b.s.logState(page, last)
	b.position, b.sent, b.more = page.Position, page.Position, page.More
	return b.event(peer.StateEvent, state)
}

func (b *changeStream) event(kind string, data any) error {
	b.pending.WriteString("event: " + kind + "\ndata: ")
	if err := respond.WriteJSON(&b.pending, data); err != nil {
		return err
	}
	b.pending.WriteString("\n\n")
	return nil
}

// Close implements [io.Closer].
func (b *changeStream) Close() error {
	b.closed.Do(func() { b.s.streams.remove(b.client) })
	return nil
}

// streams counts streams, in total and of each client.
type streams struct {
	mu      sync.Mutex
	total   int
	clients map[netip.Prefix]int
}

// add counts a stream of the client, and reports whether it is within the limits. An invalid
// client is unknown, and has no limit of its own.
func (s *streams) add(client netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= mostStreams || client.IsValid() && s.clients[client] >= ClientStreams {
		return false
	}
	if s.clients == nil {
		s.clients = make(map[netip.Prefix]int)
	}
	s.total++
	s.clients[client]++
	return true
}

func (s *streams) remove(client netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.clients[client]--; s.clients[client] == 0 {
		delete(s.clients, client)
	}
}

// Streams returns the number of streams of changes.
func (s *API) Streams() int { return s.streams.count() }

// Notify wakes streams of changes.
func (s *API) Notify() { s.news.notify() }

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// news notifies waiting streams of new changes.
type news struct {
	mu   sync.Mutex
	next chan struct{}
}

// wait returns a channel that the next notify closes.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

func (n *news) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}
