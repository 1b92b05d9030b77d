package admission

import (
	"cmp"
	"errors"
	"log/slog"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/httpapi/clients"
)

const (
	// MaxAhead bounds how much each connection reads ahead: a thousand requests of the
	// longest kind seen take a quarter of it.
	MaxAhead = 1 << 20
	// fairAhead is the fair share of memory that a connection may read ahead: twice of what
	// the client of Guix sends before it reads.
	fairAhead = MaxAhead / 2

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

// Connections are the open connections. Use [New] to make them.
type Connections struct {
	limits  Limits
	proxies clients.Proxies
	log     *slog.Logger

	mu   sync.Mutex
	open group
	// clients are the connections of each address, which Limits.PerAddress bounds.
	clients map[netip.Prefix]*group
	// noneIdle is when the last search for idle connections found none.
	noneIdle time.Time
	// logged is when the last warning about closed connections was logged.
	logged time.Time

	// unread is the memory for requests that were read ahead, in bytes.
	unread atomic.Int64
	// closed counts connections that were closed, by reason.
	closed [closeReasons]atomic.Int64
	// draining is set by Drain.
	draining atomic.Bool
}

// New returns an empty set of connections. Trusted proxies are exempt from the limit per
// address.
func New(limits Limits, proxies clients.Proxies, log *slog.Logger) *Connections {
	within := limits.within(Descriptors())
	if within.Connections < limits.Connections {
		log.Warn("--max-connections is more than half of the limit of open files, and is lowered to that: raise the limit", "connections", within.Connections)
	}
	return &Connections{limits: within, proxies: proxies, log: log, open: newGroup(), clients: make(map[netip.Prefix]*group)}
}

// Conn is what Connections need of a connection.
type Conn interface {
	// Waiting returns since when the connection has waited for a request, and whether it
	// does.
	Waiting() (since time.Time, ok bool)
	// HasInput reports whether there are bytes to read.
	HasInput() bool
	// Cut closes the connection, so that its owner removes it. It may be called again.
	Cut()
}

// Member is the part of a connection that Connections use.
type Member struct {
	all  *Connections
	conn Conn
	// Connections.mu guards client and leaving.
	client  netip.Prefix // not valid if exempt from the limit
	leaving bool
	// unread is how much memory is reserved for requests that were read ahead.
	unread atomic.Int64
	// stalled is the time since which a write has made no progress, as a Unix time in
	// nanoseconds; 0 if no write is waiting.
	stalled atomic.Int64
}

// StalledSince records since when a write makes no progress; zero if none is waiting.
func (m *Member) StalledSince(t time.Time) {
	if t.IsZero() {
		m.stalled.Store(0)
		return
	}
	m.stalled.Store(t.UnixNano())
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

// ErrRefused is the error for a connection that is not admitted.
var ErrRefused = errors.New("there are too many connections")

// group is a set of connections: all of them, or those of one address.
type group struct {
	members map[*Member]struct{}
	// leaving is how many members were closed, and have not ended yet.
	leaving int
	// victims are the members to close next. look finds many at a time.
	victims []victim
}

// victim is a connection that has waited for its client since a time.
type victim struct {
	member  *Member
	since   time.Time
	stalled bool
	// share orders victims by the number of connections of their address, and rank orders
	// victims with the same share. Up to stalledRank, clients hardly notice.
	rank, share int
}

const (
	stalledRank = 1
	anyRank     = 3
)

func newGroup() group { return group{members: make(map[*Member]struct{})} }

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
			if _, open := g.members[v.member]; !open || v.member.leaving || v.rank > maxRank {
				continue
			}
			if now, waits := v.member.waits(); waits && now.since.Equal(v.since) && (v.stalled || !v.member.conn.HasInput()) {
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
	for m := range g.members {
		v, ok := m.waits()
		waited := now.Sub(v.since)
		client := m.all.clients[m.client]
		if !ok || m.leaving || v.stalled && waited < atLeast && !m.all.hasMany(client) {
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

// waits returns since when the connection has waited for its client, and whether it does.
func (m *Member) waits() (victim, bool) {
	if since, ok := m.conn.Waiting(); ok {
		return victim{member: m, since: since}, true
	}
	at := m.stalled.Load()
	return victim{member: m, since: time.Unix(0, at), stalled: true}, at != 0
}

// ClientOf returns the address that a connection counts for; not valid if exempt from the limit.
func (s *Connections) ClientOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	if s.proxies.Trusts(address.WithZone("")) {
		return netip.Prefix{}
	}
	return clients.NetworkOf(address)
}

// Admit makes room for a connection of the client, and reports whether that succeeded.
func (s *Connections) Admit(client netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.clients[client]; g != nil && g.size() >= s.limits.PerAddress && !s.closeOne(g, stalledTime) {
		s.wasClosed(closedRefused)
		return false
	}
	begun, atLeast := time.Now(), stalledTime
	for delay := time.Millisecond; s.open.size() >= s.limits.Connections; delay = min(2*delay, 50*time.Millisecond) {
		switch crowd := s.crowd(client); {
		case crowd == nil:
			if s.closeOne(&s.open, atLeast) {
				continue
			}
		case s.closeIdle(), s.closeOne(crowd, stalledTime):
			continue
		case crowd == s.clients[client]:
			s.wasClosed(closedRefused)
			return false
		case s.closeBusy(crowd):
			continue
		}
		if s.draining.Load() {
			return false
		}
		if time.Since(begun) > roomPatience {
			atLeast = 0
		}
		s.mu.Unlock()
		time.Sleep(delay)
		s.mu.Lock()
	}
	return true
}

// MakeRoom closes a connection for its file descriptor, and reports whether it did.
func (s *Connections) MakeRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closeOne(&s.open, stalledTime)
}

// closeIdle closes an idle or stalled connection of any address, and reports whether there
// was one. The mutex is held.
func (s *Connections) closeIdle() bool {
	now := time.Now()
	if now.Sub(s.noneIdle) < noneIdleTime {
		return false
	}
	if v := s.open.next(stalledTime, stalledRank); v != nil {
		s.closeVictim(v)
		return true
	}
	s.noneIdle = now
	return false
}

// closeOne closes one connection of the group, and reports whether there was one to close. The
// mutex is held.
func (s *Connections) closeOne(g *group, atLeast time.Duration) bool {
	v := g.next(atLeast, anyRank)
	if v == nil {
		return false
	}
	s.closeVictim(v)
	return true
}

func (s *Connections) closeVictim(v *victim) {
	reason := closedIdle
	if v.stalled {
		reason = closedStalled
	}
	s.closeFor(v.member, reason)
}

// hasMany reports whether an address has so many connections that even busy ones are closed
// for other addresses. The mutex is held.
func (s *Connections) hasMany(client *group) bool {
	return client != nil && client.size() > 1 && client.size() >= s.limits.Connections/manyShare
}

// crowd returns the connections to close from when none is idle: those of the newcomer's
// address if it has many, or else of the address with the most if that has many, or else nil,
// for all. The mutex is held.
func (s *Connections) crowd(newcomer netip.Prefix) *group {
	largest := s.clients[newcomer]
	if s.hasMany(largest) {
		return largest
	}
	largest = nil
	for _, client := range s.clients {
		if s.hasMany(client) && (largest == nil || client.size() > largest.size()) {
			largest = client
		}
	}
	return largest
}

// closeBusy closes any connection of the group. The mutex is held.
func (s *Connections) closeBusy(g *group) bool {
	for member := range g.members {
		if !member.leaving {
			s.closeFor(member, closedBusy)
			return true
		}
	}
	return false
}

// closeFor closes a connection, and no longer counts it. The mutex is held.
func (s *Connections) closeFor(m *Member, reason closeReason) {
	m.leaving = true
	s.open.leaving++
	if g := s.clients[m.client]; g != nil {
		g.leaving++
	}
	m.conn.Cut()
	s.wasClosed(reason)
}

func (s *Connections) wasClosed(reason closeReason) {
	s.closed[reason].Add(1)
	if now := time.Now(); now.Sub(s.logged) >= roomLogged {
		s.logged = now
		s.log.Warn("closing connections to stay within the limits; see narherder_http_connections_closed_total, --max-connections and --max-connections-per-address",
			"reason", closeReasonNames[reason], "connections", s.open.size(), "limit", s.limits.Connections, "limit_per_address", s.limits.PerAddress)
	}
}

// Add counts a connection of the client, which [Connections.ClientOf] has returned.
func (s *Connections) Add(m *Member, conn Conn, client netip.Prefix) {
	m.all, m.conn, m.client = s, conn, client
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.members[m] = struct{}{}
	if client.IsValid() {
		g := s.clients[client]
		if g == nil {
			one := newGroup()
			g = &one
			s.clients[client] = g
		}
		g.members[m] = struct{}{}
	}
}

// Remove forgets a connection that has ended. It may be called again.
func (m *Member) Remove() {
	s := m.all
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range []*group{&s.open, s.clients[m.client]} {
		if g == nil {
			continue
		}
		if _, ok := g.members[m]; ok && m.leaving {
			g.leaving--
		}
		delete(g.members, m)
		if len(g.members) == 0 && g != &s.open {
			delete(s.clients, m.client)
		}
	}
}

// Each calls f with each connection.
func (s *Connections) Each(f func(Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m := range s.open.members {
		f(m.conn)
	}
}

// Count returns how many connections have not ended.
func (s *Connections) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open.members)
}

// Drain makes [Connections.Admit] no longer wait for room.
func (s *Connections) Drain() { s.draining.Store(true) }
