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

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/internal/stamp"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

const (
	// PageSize is how many changes are read at a time, which bounds the
	// memory for each who follows.
	PageSize = 200
	// mostStreams bounds those who follow at the same time, and ClientStreams those of
	// one client: several mirrors may share an address.
	mostStreams   = 1000
	ClientStreams = 16
	// streamRetry is when a client may try again that is refused, in seconds.
	streamRetry = "60"
)

// ServeChanges tells what has changed: in the original's way since a time, or
// after a change that the client knows by its number.
func (s *API) ServeChanges(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	query := ctx.QueryArgs()
	if query.Has(peer.AfterKey) {
		s.serveChangesAfter(ctx)
		return
	}
	since, ok := parseSince(string(query.Peek(peer.SinceKey)))
	if !ok {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "say from when on: ?since=YYYY-MM-DD HH:MM:SS, in UTC, or ?after=NUMBER")
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
	ctx.Response.SetBodyStream(&changesSince{s: s, client: s.options.Proxies.Client(ctx), ctx: s.options.Streaming, place: index.TimePlace{At: since}}, -1)
}

// parseSince reads a time as the original writes it, or as others do.
func parseSince(text string) (time.Time, bool) {
	for _, layout := range []string{time.DateTime, "2006-01-02T15:04:05", time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

// published is a change in the form in which it is published. A follower that goes by time would get
// nothing more behind one that is dated ahead.
func published(change index.Told) peer.Change {
	c := peer.Change{ID: change.ID, Datetime: stamp.Past(change.At, time.Now().UTC()).Format(time.DateTime), Change: peer.Addition, Data: string(change.Text)}
	if change.Kind == index.Removed {
		c.Change, c.Data = peer.Removal, change.StorePath
	}
	return c
}

// changesSince is the body of an answer in the original's way.
type changesSince struct {
	s       *API
	client  netip.Addr
	ctx     context.Context
	place   index.TimePlace
	pending bytes.Buffer
	paged   bool // a page was read
	begun   bool
	ended   bool
}

// Read fails when the changes can't be read, and so cuts the connection: an answer
// that ends too early would be taken for all there is.
func (b *changesSince) Read(p []byte) (int, error) {
	for b.pending.Len() == 0 {
		if b.ended {
			return 0, io.EOF
		}
		if b.paged { // the first was admitted with the request
			if err := b.s.awaitTurn(b.ctx, b.client, PageSize); err != nil {
				return 0, err
			}
		}
		b.paged = true
		changes, more, err := b.s.options.Changes.ChangesFrom(b.ctx, &b.place, PageSize)
		if err != nil {
			b.s.options.Faults.Log.Error("can't tell another instance what has changed", "error", err)
			return 0, err
		}
		if len(changes) == 0 && more {
			continue
		}
		for _, change := range changes {
			b.pending.WriteString(map[bool]string{false: `{"recent_changes":[`, true: ","}[b.begun])
			b.begun = true
			c := published(change)
			c.ID = 0 // which the original doesn't have
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

// logState describes the log and a page of it to a client that knows the changes up to
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

// pageAfter reads the page that a client asks for by a number. It returns false
// when that was answered: with what the client needs to know where the changes
// can't be told.
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
	// Where it has left the log, nobody can tell.
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

// sealed returns the changes of a page for a client that knows them up to a number, and the
// number of the last of them.
func (s *API) sealed(page *index.Page, told int64) ([]peer.Change, int64) {
	changes := make([]peer.Change, len(page.Changes))
	for i, change := range page.Changes {
		changes[i] = published(change)
		changes[i].Previous, changes[i].Mark = told, change.Mark()
		changes[i].Seal(s.options.Identity.Instance())
		told = change.ID
	}
	return changes, told
}

// isLost says whether changes after the one with the number have left the log, or
// whether the number is none that this log has come to.
func isLost(after int64, page index.Page) bool {
	return page.First > after+1 || after > page.Last
}

func (s *API) serveChangesAfter(ctx *fasthttp.RequestCtx) {
	page, after, ok := s.pageAfter(ctx)
	if !ok {
		return
	}
	changes, told := s.sealed(&page, after)
	reply := peer.ChangesReply{LogState: s.logState(&page, told), More: page.More, Changes: changes}
	var body bytes.Buffer
	if err := respond.WriteJSON(&body, reply); err != nil {
		s.options.Faults.Answer(ctx, "write the recent changes", err)
		return
	}
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.SetBody(body.Bytes())
}

// ServeStream tells changes as they come, until the client has enough.
func (s *API) ServeStream(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if !ctx.QueryArgs().Has(peer.AfterKey) {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "say after which change: ?after=NUMBER")
		return
	}
	client := s.options.Proxies.Client(ctx)
	if s.options.Proxies.Trusts(client.WithZone("")) {
		client = netip.Addr{} // it asks for others, and doesn't say for whom
	}
	network := engine.NetworkOf(client)
	if !s.streams.add(network) {
		ctx.Response.Header.Set("Retry-After", streamRetry)
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, "too many follow the changes here already: ask for pages of them")
		return
	}
	stream := &changeStream{s: s, client: network, ctx: s.options.Streaming, news: s.news.wait()}
	page, after, ok := s.pageAfter(ctx)
	stream.position, stream.told = after, after
	if !ok || ctx.IsHead() {
		stream.Close()
		ctx.Response.SkipBody = ctx.IsHead()
		return
	}
	ctx.Response.Header.SetContentType("text/event-stream")
	// Otherwise nginx holds events back until there are many.
	ctx.Response.Header.Set("X-Accel-Buffering", "no")
	if err := stream.write(&page); err != nil {
		stream.Close()
		s.options.Faults.Answer(ctx, "write the recent changes", err)
		return
	}
	ctx.Response.SetBodyStream(stream, -1)
}

// changeStream is the body of an answer that doesn't end.
type changeStream struct {
	s        *API
	client   netip.Prefix
	ctx      context.Context
	news     <-chan struct{}
	position int64 // up to where the log was read
	told     int64 // up to where the client was told
	more     bool
	begun    bool
	pending  bytes.Buffer
	closed   sync.Once
}

// Read waits for changes, or for the time to tell that there are none.
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
		// Before the page is read: what comes meanwhile is news again.
		b.news = b.s.news.wait()
		page, err := b.s.options.Changes.ChangesAfter(b.ctx, b.position, PageSize)
		if err != nil {
			b.s.options.Faults.Log.Error("can't tell another instance what has changed", "error", err)
			return 0, err
		}
		if isLost(b.position, page) {
			return 0, io.ErrUnexpectedEOF // it will ask again, and be told why
		}
		if len(page.Changes) == 0 && !quiet {
			b.position, b.more = page.Position, page.More // what concerns no other
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

// pendingKept is what a stream keeps of its buffer while it waits, in bytes: there
// can be many of them.
const pendingKept = 64 << 10

// write makes events of a page. The state comes before them, as the sums of changes
// include its instance, and after them, with the position.
func (b *changeStream) write(page *index.Page) error {
	if !b.begun {
		b.begun = true
		begin := index.Page{First: page.First, Last: page.Last, Position: b.told, Mark: page.AfterMark}
		if err := b.event(peer.StateEvent, b.s.logState(&begin, b.told)); err != nil {
			return err
		}
	}
	changes, told := b.s.sealed(page, b.told)
	for i := range changes {
		b.pending.WriteString("id: " + strconv.FormatInt(changes[i].ID, 10) + "\n")
		if err := b.event(peer.ChangeEvent, &changes[i]); err != nil {
			return err
		}
	}
	state := b.s.logState(page, told)
	b.position, b.told, b.more = page.Position, page.Position, page.More
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

// Close ends it.
func (b *changeStream) Close() error {
	b.closed.Do(func() { b.s.streams.remove(b.client) })
	return nil
}

// streams counts those of each client, and all.
type streams struct {
	mu      sync.Mutex
	total   int
	clients map[netip.Prefix]int
}

// add counts a stream of the client, and reports whether there may be one more. A client
// that is not valid is not known, and may be many.
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

// Streams returns how many instances follow the changes.
func (s *API) Streams() int { return s.streams.count() }

// Notify wakes those who follow the changes.
func (s *API) Notify() { s.news.notify() }

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// news wakes those who wait for changes.
type news struct {
	mu   sync.Mutex
	next chan struct{}
}

// wait returns what is closed at the next notify.
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
