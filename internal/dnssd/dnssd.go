// Package dnssd announces a service on the local network by DNS-SD (RFC 6763) over multicast DNS
// (RFC 6762). It uses IPv4 only, as the discovery of Guix does.
//
// The Go libraries for this either have no probes, name conflicts and goodbyes, or answer on
// interfaces where the service does not listen and take their own records for conflicts.
package dnssd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
)

// Intervals of RFC 6762.
const (
	maxProbeDelay    = 250 * time.Millisecond // before the first probe
	probeInterval    = 250 * time.Millisecond
	deferInterval    = time.Second // after a lost tie
	announceInterval = time.Second
	answerInterval   = time.Second // between multicasts of the same records
	defendInterval   = 250 * time.Millisecond
	conflictInterval = 5 * time.Second // after many conflicts
	goodbyeInterval  = 50 * time.Millisecond
)

const (
	probes        = 3
	announcements = 2
	manyConflicts = 10
	// refreshInterval is how often the networks are looked up, and a failure retried.
	refreshInterval = 5 * time.Second
)

// Responder announces a service.
type Responder struct {
	// Name is the name of the instance, which [CheckName] accepts. If another host has
	// it, the responder appends a number.
	Name string
	// Type is the type of the service, such as _guix_publish._tcp.
	Type string
	Port uint16
	// Networks returns the networks on which to announce the service.
	Networks func() ([]Network, error)
	Log      *slog.Logger

	open func(Network, chan<- packet) (conn, error) // openSocket, except in tests

	mu      sync.Mutex
	problem string
}

// CheckName returns an error if the name is not valid for an instance. A dot would be valid in
// DNS-SD, but many programs take it for the end of the name.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("name %q is too long: want at most %d bytes", name, MaxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("invalid name %q: want UTF-8 without control characters", name)
	case strings.Contains(name, "."):
		return fmt.Errorf("invalid name %q: it can't contain a dot", name)
	}
	return nil
}

// Warnings returns why the service is not announced.
func (r *Responder) Warnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.problem == "" {
		return nil
	}
	return []string{r.problem}
}

// note records the current problem, or "" for none, and logs a new one.
func (r *Responder) note(problem string) {
	r.mu.Lock()
	isNew := r.problem != problem
	r.problem = problem
	r.mu.Unlock()
	if isNew && problem != "" {
		r.Log.Warn(problem + ": will retry")
	}
}

// link is an interface in use.
type link struct {
	Network
	conn    conn
	step    int       // probes and announcements that were sent
	due     time.Time // of the next one; zero for none
	owned   bool      // the records were announced, and no other host contests them
	sent    time.Time // when the records were last multicast
	failure error     // of the last probe or announcement
}

// isProbing reports whether it is still unknown whether another host has the name.
func (l *link) isProbing() bool { return l.step <= probes }

// restart probes the name after a delay.
func (l *link) restart(delay time.Duration) { l.step, l.due = 0, time.Now().Add(delay) }

func (l *link) send(message dnsmessage.Message, to netip.AddrPort) error {
	data, err := message.Pack()
	if err != nil {
		return err
	}
	return l.conn.send(data, to)
}

// announcer is the state of a run.
type announcer struct {
	*Responder
	service service
	number  int // of the name
	links   map[int]*link
	packets chan packet
	failure string // of the last refresh
	logged  logonce.Filter
}

// Run announces the service until the context ends, and then withdraws it.
func (r *Responder) Run(ctx context.Context) {
	if r.open == nil {
		r.open = openSocket
	}
	a := &announcer{
		Responder: r, number: 1, service: service{r.Name, r.Type, newHost(), r.Port},
		links: make(map[int]*link), packets: make(chan packet),
	}
	defer a.leave()
	refresh, next := time.NewTicker(refreshInterval), time.NewTimer(0)
	defer refresh.Stop()
	defer next.Stop()
	a.refresh()
	for {
		a.note(a.state())
		next.Reset(a.untilDue())
		select {
		case <-ctx.Done():
			return
		case <-refresh.C:
			a.refresh()
		case <-next.C:
			a.advance()
		case p := <-a.packets:
			a.receive(p)
		}
	}
}

// sorted returns the links by index.
func (a *announcer) sorted() (all []*link) {
	for _, index := range slices.Sorted(maps.Keys(a.links)) {
		all = append(all, a.links[index])
	}
	return all
}

// state returns the first problem, or "".
func (a *announcer) state() string {
	for _, l := range a.sorted() {
		if l.failure != nil {
			return fmt.Sprintf("can't advertise this server on %s: %v", l.Interface.Name, l.failure)
		}
	}
	return a.failure
}

// untilDue returns the time until the next probe or announcement, or an hour if none is due.
func (a *announcer) untilDue() time.Duration {
	until := time.Hour
	for _, l := range a.links {
		if !l.due.IsZero() {
			until = min(until, time.Until(l.due))
		}
	}
	return until
}

// refresh opens and closes links so that they match the networks.
func (a *announcer) refresh() {
	networks, err := a.Networks()
	if err != nil {
		a.failure = "can't advertise this server: look up the network interfaces: " + err.Error()
		return
	}
	a.failure = ""
	if len(networks) == 0 {
		a.failure = "can't advertise this server: it listens on no IPv4 address of a network interface that is up and has multicast"
	}
	for _, l := range a.sorted() {
		if !slices.ContainsFunc(networks, l.equal) {
			a.withdraw(l)
			a.drop(l)
		}
	}
	for _, n := range networks {
		if a.links[n.Interface.Index] != nil {
			continue
		}
		conn, err := a.open(n, a.packets)
		if err != nil {
			a.failure = fmt.Sprintf("can't advertise this server on %s: %v", n.Interface.Name, err)
			continue
		}
		l := &link{Network: n, conn: conn}
		l.restart(rand.N(maxProbeDelay))
		a.links[n.Interface.Index] = l
	}
}

func (a *announcer) drop(l *link) {
	l.conn.close()
	delete(a.links, l.Interface.Index)
}

// advance sends the probes and announcements that are due.
func (a *announcer) advance() {
	now := time.Now()
	for _, l := range a.sorted() {
		if l.due.IsZero() || now.Before(l.due) {
			continue
		}
		isProbe := l.step < probes
		message := a.service.probe()
		if !isProbe {
			message = response(a.records(l), nil)
		}
		if l.failure = l.send(message, group); l.failure != nil {
			l.due = now.Add(refreshInterval)
			continue
		}
		l.step++
		switch {
		case isProbe:
			l.due = now.Add(probeInterval)
		case l.step < probes+announcements:
			l.owned, l.sent, l.due = true, now, now.Add(announceInterval)
			a.Log.Info("advertising this server on the local network", "name", a.service.name, "service", a.service.kind,
				"interface", l.Interface.Name, "addresses", fmt.Sprint(l.addresses()), "port", a.service.port)
		default:
			l.sent, l.due = now, time.Time{}
		}
	}
}

func (a *announcer) records(l *link) []dnsmessage.Resource {
	return a.service.records(l.addresses())
}

// receive handles a message from the network.
func (a *announcer) receive(p packet) {
	l := a.links[p.link]
	if l == nil || !l.contains(p.from.Addr()) {
		return
	}
	message, ok := parse(p.data)
	switch {
	case !ok:
	case message.Response:
		if p.from.Port() == port && a.service.conflicts(message) {
			a.conflict(l)
		}
	case l.isProbing():
		if a.service.loses(message) {
			l.restart(deferInterval)
		}
	default:
		a.reply(l, message, p.from)
	}
}

// conflict handles that another host on the link has the name.
func (a *announcer) conflict(l *link) {
	l.owned = false // a goodbye would withdraw the other's records
	if !l.isProbing() {
		l.restart(0) // the name was unique before: the other host may give way
		return
	}
	for _, other := range a.sorted() {
		a.withdraw(other)
	}
	a.number++
	a.service.name = numbered(a.Name, a.number)
	a.logged.Log(a.Log, slog.LevelWarn, time.Now(), "another server on the local network is advertised with this name: trying the name with a number", "name", a.Name)
	delay := time.Duration(0)
	if a.number > manyConflicts {
		delay = conflictInterval
	}
	for _, other := range a.links {
		other.restart(delay)
	}
}

// reply answers a query. It multicasts the records at most once a second, or defends them more
// often against a probe. If sending fails, the client repeats its query.
func (a *announcer) reply(l *link, query dnsmessage.Message, from netip.AddrPort) {
	message, ok := answer(query, a.records(l))
	if !ok {
		return
	}
	if from.Port() != port {
		// Plain DNS clients ask one question. The response repeats it, and would repeat
		// thousands, to an address that may be forged.
		if len(query.Questions) == 1 {
			_ = l.send(legacy(message, query), from)
		}
		return
	}
	interval := answerInterval
	if len(query.Authorities) > 0 {
		interval = defendInterval
	}
	if now := time.Now(); now.Sub(l.sent) >= interval {
		l.sent = now
		_ = l.send(message, group)
	}
}

// withdraw deletes the records from the caches of others.
func (a *announcer) withdraw(l *link) {
	if l.owned {
		_ = l.send(goodbye(a.records(l)), group) // they expire otherwise
	}
	l.owned = false
}

// leave withdraws the service, twice as packets get lost, and closes the links.
func (a *announcer) leave() {
	links := a.sorted()
	owned := slices.DeleteFunc(slices.Clone(links), func(l *link) bool { return !l.owned })
	for _, l := range owned {
		a.withdraw(l)
	}
	if len(owned) > 0 {
		_ = pace.Sleep(context.Background(), goodbyeInterval)
	}
	for _, l := range owned {
		l.owned = true
		a.withdraw(l)
	}
	for _, l := range links {
		a.drop(l)
	}
}
