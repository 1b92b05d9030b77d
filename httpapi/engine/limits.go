package engine

import (
	"cmp"
	"errors"
	"math"
	"math/bits"
	"nar-herder/httpapi/clients"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound the resources of all clients together. Zero selects the default of each.
type Limits struct {
	// Connections is how many may be open, at most half of the file descriptors. The
	// default is a third of them, or mostConnections if that is less: each connection may
	// need another descriptor for a file, and one for another instance or bucket.
	Connections int
	// PerAddress is how many connections one client address may have: by default, a
	// quarter. Trusted proxies and Unix domain sockets are exempt.
	PerAddress int
	// Unread is the memory for pipelined requests of clients that don't read their
	// answers, in bytes: by default 64 MiB.
	Unread int64
}

const (
	// mostConnections bounds the default. A connection takes some 30 KB.
	mostConnections = 16 << 10
	defaultUnread   = 64 << 20
	// fairAhead is the fair share of memory that a connection may read ahead: twice of what
	// the client of Guix sends before it reads.
	fairAhead = maxAhead / 2

	// idleTime is how long a connection must have waited for a request to be idle, and
	// stalledTime how long a client must have read nothing before it is closed to make room.
	// A new connection that has waited for room for roomPatience also replaces clients that
	// have stalled for less.
	idleTime     = time.Second
	noneIdleTime = 100 * time.Millisecond // until the next search for idle connections
	stalledTime  = 5 * time.Second
	roomPatience = time.Second
	// manyShare: an address has many connections if it has 1/manyShare of the limit.
	manyShare = 8
	// roomLogged is the interval of warnings about closed connections.
	roomLogged = time.Minute
)

// Descriptors returns how many file descriptors the process may open. (Package os raises
// the soft limit to the hard one at the start.)
func Descriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024
	}
	return int(min(limit.Cur, math.MaxInt32))
}

// within returns the limits with defaults for a number of file descriptors.
func (l Limits) within(descriptors int) Limits {
	if l.Connections <= 0 {
		l.Connections = min(descriptors/3, mostConnections)
	}
	l.Connections = max(1, min(l.Connections, descriptors/2))
	if l.PerAddress <= 0 {
		l.PerAddress = l.Connections / 4
	}
	l.PerAddress = max(1, min(l.PerAddress, l.Connections))
	if l.Unread <= 0 {
		l.Unread = defaultUnread
	}
	return l
}

// closeReason is why a connection was closed.
type closeReason int

const (
	closedIdle    closeReason = iota // idle, and another needed the room
	closedStalled                    // the client read nothing, and another needed the room
	closedBusy                       // the address has many, and another needed the room
	closedUnread                     // the client sent requests and didn't read the answers
	closedRefused                    // the address has too many
	closeReasons
)

var closeReasonNames = [closeReasons]string{"idle", "stalled", "busy", "unread", "refused"}

var errRefused = errors.New("there are too many connections")

// group is a set of connections: all of them, or those of one address.
type group struct {
	members map[*connection]struct{}
	// leaving is how many members were closed, and have not ended yet.
	leaving int
	// victims are the members to close next. look finds many at a time.
	victims []victim
}

// victim is a connection that has waited for its client since a time.
type victim struct {
	connection *connection
	since      time.Time
	stalled    bool
	// share orders victims by the number of connections of their address, and rank orders
	// victims with the same share. Up to stalledRank, clients hardly notice.
	rank, share int
}

const (
	stalledRank = 1
	anyRank     = 3
)

func newGroup() group { return group{members: make(map[*connection]struct{})} }

func (g *group) size() int { return len(g.members) - g.leaving }

// next removes and returns the member to close next, or nil. Addresses with the most
// connections come first, and there the connection that has been idle for longest, then a
// client that has stalled for stalledTime, then any connection that waits for a request, then a
// client that has stalled for atLeast, or for any time if its address has many connections. The
// rank is maxRank or less.
func (g *group) next(atLeast time.Duration, maxRank int) *victim {
	for again := false; ; again = true {
		for len(g.victims) > 0 {
			v := g.victims[0]
			g.victims = g.victims[1:]
			if _, open := g.members[v.connection]; !open || v.connection.leaving || v.rank > maxRank {
				continue
			}
			if now, waits := v.connection.waits(); waits && now.since.Equal(v.since) && (v.stalled || !v.connection.hasInput()) {
				return &v
			}
		}
		if again {
			return nil
		}
		g.look(atLeast, maxRank)
	}
}

func (g *group) look(atLeast time.Duration, maxRank int) {
	now := time.Now()
	var all []victim
	for c := range g.members {
		v, ok := c.waits()
		waited := now.Sub(v.since)
		client := c.engine.clients[c.client]
		if !ok || c.leaving || v.stalled && waited < atLeast && !c.engine.hasMany(client) {
			continue
		}
		switch {
		case v.stalled && waited >= stalledTime:
			v.rank = stalledRank
		case v.stalled:
			v.rank = anyRank
		case waited < idleTime:
			v.rank = 2
		}
		if client != nil {
			v.share = bits.Len(uint(client.size()))
		}
		if v.rank <= maxRank {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b victim) int {
		return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.rank, b.rank), a.since.Compare(b.since))
	})
	g.victims = slices.Clone(all[:min(len(all), len(all)/16+1)])
}

// hasInput reports whether the socket has bytes to read.
func (c *connection) hasInput() (has bool) {
	if c.raw == nil {
		return false
	}
	_ = c.raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		has = err == nil && n > 0
	})
	return has
}

// waits returns since when the connection has waited for its client, and whether it does.
func (c *connection) waits() (victim, bool) {
	if c.loop != nil {
		if since, ok := c.loop.Waiting(); ok {
			return victim{connection: c, since: since}, true
		}
	}
	at := c.stalled.Load()
	return victim{connection: c, since: time.Unix(0, at), stalled: true}, at != 0
}

// limitedClient returns the client that a connection counts for; not valid if exempt.
func (e *Engine) limitedClient(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	if e.proxies.Trusts(address.WithZone("")) {
		return netip.Prefix{}
	}
	return clients.NetworkOf(address)
}

// admit makes room for a connection of the client, and reports whether that succeeded.
func (e *Engine) admit(client netip.Prefix) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.clients[client]; g != nil && g.size() >= e.limits.PerAddress && !e.closeOne(g, stalledTime) {
		e.wasClosed(closedRefused)
		return false
	}
	begun, atLeast := time.Now(), stalledTime
	for delay := time.Millisecond; e.open.size() >= e.limits.Connections; delay = min(2*delay, 50*time.Millisecond) {
		switch crowd := e.crowd(client); {
		case crowd == nil:
			if e.closeOne(&e.open, atLeast) {
				continue
			}
		case e.closeIdle(), e.closeOne(crowd, stalledTime):
			continue
		case crowd == e.clients[client]:
			e.wasClosed(closedRefused)
			return false
		case e.closeBusy(crowd):
			continue
		}
		if e.draining.Load() {
			return false
		}
		if time.Since(begun) > roomPatience {
			atLeast = 0
		}
		e.mu.Unlock()
		time.Sleep(delay)
		e.mu.Lock()
	}
	return true
}

// makeRoom closes a connection for its file descriptor, and reports whether it did.
func (e *Engine) makeRoom() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closeOne(&e.open, stalledTime)
}

// closeIdle closes an idle or stalled connection of any address, and reports whether there
// was one. The mutex is held.
func (e *Engine) closeIdle() bool {
	now := time.Now()
	if now.Sub(e.noneIdle) < noneIdleTime {
		return false
	}
	if v := e.open.next(stalledTime, stalledRank); v != nil {
		e.closeVictim(v)
		return true
	}
	e.noneIdle = now
	return false
}

// closeOne closes one connection of the group, and reports whether there was one to close. The
// mutex is held.
func (e *Engine) closeOne(g *group, atLeast time.Duration) bool {
	v := g.next(atLeast, anyRank)
	if v == nil {
		return false
	}
	e.closeVictim(v)
	return true
}

func (e *Engine) closeVictim(v *victim) {
	reason := closedIdle
	if v.stalled {
		reason = closedStalled
	}
	e.closeFor(v.connection, reason)
}

// hasMany reports whether an address has so many connections that even busy ones are closed
// for other addresses. The mutex is held.
func (e *Engine) hasMany(client *group) bool {
	return client != nil && client.size() > 1 && client.size() >= e.limits.Connections/manyShare
}

// crowd returns the connections to close from when none is idle: those of the newcomer's
// address if it has many, or else of the address with the most if that has many, or else nil,
// for all. The mutex is held.
func (e *Engine) crowd(newcomer netip.Prefix) *group {
	largest := e.clients[newcomer]
	if e.hasMany(largest) {
		return largest
	}
	largest = nil
	for _, client := range e.clients {
		if e.hasMany(client) && (largest == nil || client.size() > largest.size()) {
			largest = client
		}
	}
	return largest
}

// closeBusy closes any connection of the group. The mutex is held.
func (e *Engine) closeBusy(g *group) bool {
	for member := range g.members {
		if !member.leaving {
			e.closeFor(member, closedBusy)
			return true
		}
	}
	return false
}

// closeFor closes a connection, and no longer counts it. The mutex is held.
func (e *Engine) closeFor(connection *connection, reason closeReason) {
	connection.leaving = true
	e.open.leaving++
	if g := e.clients[connection.client]; g != nil {
		g.leaving++
	}
	_ = connection.Conn.Close() // fails if the client was first
	e.wasClosed(reason)
}

func (e *Engine) wasClosed(reason closeReason) {
	e.closed[reason].Add(1)
	if now := time.Now(); now.Sub(e.logged) >= roomLogged {
		e.logged = now
		e.log.Warn("closing connections to stay within the limits; see narherder_http_connections_closed_total, --max-connections and --max-connections-per-address",
			"reason", closeReasonNames[reason], "connections", e.open.size(), "limit", e.limits.Connections, "limit_per_address", e.limits.PerAddress)
	}
}

// add counts a connection of the client.
func (e *Engine) add(connection *connection, client netip.Prefix) {
	connection.client = client
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open.members[connection] = struct{}{}
	if client.IsValid() {
		g := e.clients[client]
		if g == nil {
			one := newGroup()
			g = &one
			e.clients[client] = g
		}
		g.members[connection] = struct{}{}
	}
}

// remove forgets a connection that has ended. It may be called again.
func (e *Engine) remove(connection *connection) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range []*group{&e.open, e.clients[connection.client]} {
		if g == nil {
			continue
		}
		if _, ok := g.members[connection]; ok && connection.leaving {
			g.leaving--
		}
		delete(g.members, connection)
		if len(g.members) == 0 && g != &e.open {
			delete(e.clients, connection.client)
		}
	}
}

// reserveAhead reserves memory for reading size bytes ahead. It returns false if the
// connection was closed: because it exceeds its fair share when half of the memory is reserved,
// or by closeUnread when all of it is.
func (c *connection) reserveAhead(size int64) bool {
	all := c.engine
	more := size - c.unread.Load()
	if size > fairAhead && all.unread.Load()+more > all.limits.Unread/2 {
		all.mu.Lock()
		defer all.mu.Unlock()
		if !c.leaving {
			all.closeFor(c, closedUnread)
		}
		return false
	}
	c.unread.Add(more)
	if all.unread.Add(more) > all.limits.Unread {
		all.closeUnread()
	}
	return c.unread.Load() > 0
}

// releaseAhead releases the memory.
func (c *connection) releaseAhead() { c.engine.unread.Add(-c.unread.Swap(0)) }

// closeUnread closes connections of clients that don't read, until an eighth of the memory
// for their requests is free. Addresses that hold most come first, and there the connections that
// hold most. Within the fair share, the client that has stalled for longest comes first.
func (e *Engine) closeUnread() {
	type reader struct {
		*connection
		client, own, since int64
	}
	now := time.Now().UnixNano()
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []reader
	clients := make(map[netip.Prefix]int64)
	for connection := range e.open.members {
		held := connection.unread.Load()
		if held == 0 || connection.leaving {
			continue
		}
		since := connection.stalled.Load()
		if since == 0 {
			since = now
		}
		all = append(all, reader{connection, held, max(held, fairAhead), since})
		clients[connection.client] += held
	}
	for i := range all {
		if all[i].connection.client.IsValid() {
			all[i].client = clients[all[i].connection.client]
		}
		all[i].client = max(all[i].client, fairAhead)
	}
	slices.SortFunc(all, func(a, b reader) int {
		return cmp.Or(cmp.Compare(b.client, a.client), cmp.Compare(b.own, a.own), cmp.Compare(a.since, b.since))
	})
	for _, r := range all {
		if e.unread.Load() <= e.limits.Unread-e.limits.Unread/8 {
			return
		}
		r.releaseAhead()
		e.closeFor(r.connection, closedUnread)
	}
}
