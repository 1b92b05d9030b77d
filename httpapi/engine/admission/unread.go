package admission

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Reserve reserves memory for reading size bytes ahead. It returns false if the
// connection was closed: because it exceeds its fair share when half of the memory is reserved,
// or by closeUnread when all of it is.
func (m *Member) Reserve(size int64) bool {
	all := m.all
	more := size - m.unread.Load()
	if size > fairAhead && all.unread.Load()+more > all.limits.Unread/2 {
		all.mu.Lock()
		defer all.mu.Unlock()
		if !m.leaving {
			all.closeFor(m, closedUnread)
		}
		return false
	}
	m.unread.Add(more)
	if all.unread.Add(more) > all.limits.Unread {
		all.closeUnread()
	}
	return m.unread.Load() > 0
}

// Release releases the memory.
func (m *Member) Release() { m.all.unread.Add(-m.unread.Swap(0)) }

// closeUnread closes connections of clients that don't read, until an eighth of the memory
// for their requests is free. Addresses that hold most come first, and there the connections that
// hold most. Within the fair share, the client that has stalled for longest comes first.
func (s *Connections) closeUnread() {
	type reader struct {
		*Member
		client, own, since int64
	}
	now := time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []reader
	clients := make(map[netip.Prefix]int64)
	for m := range s.open.members {
		held := m.unread.Load()
		if held == 0 || m.leaving {
			continue
		}
		since := m.stalled.Load()
		if since == 0 {
			since = now
		}
		all = append(all, reader{m, held, max(held, fairAhead), since})
		clients[m.client] += held
	}
	for i := range all {
		if all[i].Member.client.IsValid() {
			all[i].client = clients[all[i].Member.client]
		}
		all[i].client = max(all[i].client, fairAhead)
	}
	slices.SortFunc(all, func(a, b reader) int {
		return cmp.Or(cmp.Compare(b.client, a.client), cmp.Compare(b.own, a.own), cmp.Compare(a.since, b.since))
	})
	for _, r := range all {
		if s.unread.Load() <= s.limits.Unread-s.limits.Unread/8 {
			return
		}
		r.Release()
		s.closeFor(r.Member, closedUnread)
	}
}
