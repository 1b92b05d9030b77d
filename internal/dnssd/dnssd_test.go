package dnssd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// lan is a network in memory, which records what its hosts send.
type lan struct {
	mu      sync.Mutex
	hosts   []*host
	fails   error // of opening
	sending error // of sending
	heard   []heard
}

type heard struct {
	at      time.Time
	from    netip.Addr
	to      netip.AddrPort
	message dnsmessage.Message
}

// host is a link of a responder to the network.
type host struct {
	lan     *lan
	address netip.Addr
	packets chan<- packet
	done    chan struct{}
}

const index = 2

// open makes a conn of a responder with this network.
func (l *lan) open(n Network, packets chan<- packet) (conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails != nil {
		return nil, l.fails
	}
	h := &host{l, n.Prefixes[0].Addr(), packets, make(chan struct{})}
	l.hosts = append(l.hosts, h)
	return h, nil
}

func (h *host) send(data []byte, to netip.AddrPort) error {
	h.lan.mu.Lock()
	err := h.lan.sending
	h.lan.mu.Unlock()
	if err != nil {
		return err
	}
	h.lan.multicast(netip.AddrPortFrom(h.address, port), to, data)
	return nil
}

func (h *host) close() {
	close(h.done)
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.lan.hosts = slices.DeleteFunc(h.lan.hosts, func(other *host) bool { return other == h })
}

// multicast delivers a message to all hosts, including the sender.
func (l *lan) multicast(from, to netip.AddrPort, data []byte) {
	message, ok := parse(data)
	if !ok {
		panic("a message that can't be parsed")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, heard{time.Now(), from.Addr(), to, message})
	if to != group {
		return
	}
	for _, h := range l.hosts {
		go func() {
			select {
			case h.packets <- packet{index, from, data}:
			case <-h.done:
			}
		}()
	}
}

// ask multicasts a query for the service.
func (l *lan) ask(t *testing.T, from string) {
	t.Helper()
	q := query("_guix_publish._tcp.local.", dnsmessage.TypePTR)
	data, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	l.multicast(netip.MustParseAddrPort(from), group, data)
	synctest.Wait()
}

// take returns what was sent since the last call, as text.
func (l *lan) take() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.heard {
		text := h.from.String() + " "
		switch {
		case !h.message.Response && len(h.message.Authorities) > 0:
			text += "probes " + h.message.Questions[0].Name.String()
		case !h.message.Response:
			text += "asks"
		case h.message.Answers[0].Header.TTL == 0:
			text += "withdraws " + describe(h.message.Answers[:1])
		default:
			text += "sends " + describe(h.message.Answers[:1])
		}
		if h.to != group {
			text += " to " + h.to.String()
		}
		all = append(all, strings.ReplaceAll(text, "._guix_publish._tcp.local.", ""))
	}
	l.heard = nil
	return all
}

func (l *lan) want(t *testing.T, what string, wanted ...string) {
	t.Helper()
	synctest.Wait()
	if got := l.take(); !slices.Equal(got, wanted) {
		t.Errorf("%s: %q, want %q", what, got, wanted)
	}
}

func networkOf(prefix string) []Network {
	return []Network{{Interface: net.Interface{Index: index, Name: "lan0"}, Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}}}
}

// join runs a responder with the name until the returned function is called.
func (l *lan) join(t *testing.T, name string, networks func() ([]Network, error)) (*Responder, func()) {
	r := &Responder{Name: name, Type: "_guix_publish._tcp", Port: 8734, Networks: networks, Log: slog.New(slog.DiscardHandler), open: l.open}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	return r, func() {
		cancel()
		<-ended
	}
}

func fixed(prefix string) func() ([]Network, error) {
	return func() ([]Network, error) { return networkOf(prefix), nil }
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(lan)
		r, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		time.Sleep(5 * time.Second)
		l.want(t, "start", "192.0.2.1 probes a", "192.0.2.1 probes a", "192.0.2.1 probes a", "192.0.2.1 sends PTR a", "192.0.2.1 sends PTR a")
		if got := r.Warnings(); got != nil {
			t.Error(got)
		}
		l.ask(t, "192.0.2.9:5353")
		l.want(t, "query", "192.0.2.9 asks", "192.0.2.1 sends PTR a")
		l.ask(t, "192.0.2.9:5353")
		l.want(t, "again within a second", "192.0.2.9 asks")
		time.Sleep(time.Second)
		l.ask(t, "192.0.2.9:5353")
		l.want(t, "a second later", "192.0.2.9 asks", "192.0.2.1 sends PTR a")
		l.ask(t, "192.0.2.9:40000")
		l.want(t, "plain DNS client", "192.0.2.9 asks", "192.0.2.1 sends PTR a to 192.0.2.9:40000")
		l.ask(t, "203.0.113.1:40000")
		l.want(t, "not on the network", "203.0.113.1 asks")
		before := time.Now()
		stop()
		l.want(t, "stop", "192.0.2.1 withdraws PTR a", "192.0.2.1 withdraws PTR a")
		if took := time.Since(before); took > time.Second {
			t.Errorf("the goodbye took %v", took)
		}
	})
}

// TestManyQuestions: a query to which the answer would repeat many questions gets none.
func TestManyQuestions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(lan)
		_, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		defer stop()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		l.take()
		q := query("_guix_publish._tcp.local.", dnsmessage.TypePTR)
		q.Questions = slices.Repeat(q.Questions, 1000)
		data, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		l.multicast(netip.MustParseAddrPort("192.0.2.9:40000"), group, data)
		l.want(t, "many questions", "192.0.2.9 asks")
	})
}

// TestStopWhileProbing: a name that may be another's is not withdrawn.
func TestStopWhileProbing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(lan)
		_, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		time.Sleep(2 * probeInterval)
		l.take()
		stop()
		l.want(t, "stop")
	})
}

func TestSecondWithTheName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(lan)
		_, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		defer stop()
		time.Sleep(5 * time.Second)
		l.take()
		_, stopSecond := l.join(t, "a", fixed("192.0.2.2/24"))
		time.Sleep(10 * time.Second)
		got := l.take()
		if !slices.Contains(got, "192.0.2.2 sends PTR a (2)") || slices.Contains(got, "192.0.2.2 sends PTR a") || slices.Contains(got, "192.0.2.1 withdraws PTR a") {
			t.Errorf("%q", got)
		}
		stopSecond()
		l.want(t, "stop", "192.0.2.2 withdraws PTR a (2)", "192.0.2.2 withdraws PTR a (2)")
	})
}

// TestBothWithTheName: two servers start at the same time.
func TestBothWithTheName(t *testing.T) {
	t.Parallel()
	for range 20 { // the delays and the host names are random
		synctest.Test(t, func(t *testing.T) {
			l := new(lan)
			_, stop := l.join(t, "a", fixed("192.0.2.1/24"))
			defer stop()
			_, stopOther := l.join(t, "a", fixed("192.0.2.2/24"))
			defer stopOther()
			time.Sleep(20 * time.Second)
			l.take()
			l.ask(t, "192.0.2.9:5353")
			got := l.take()
			slices.Sort(got)
			if len(got) != 3 || strings.Contains(got[0], "(2)") == strings.Contains(got[1], "(2)") {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestNameFromAnotherNetwork: two networks are joined, and both have a server with the name.
func TestNameFromAnotherNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, far := new(lan), new(lan)
		_, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		defer stop()
		_, stopFar := far.join(t, "a", fixed("192.0.2.2/24"))
		defer stopFar()
		time.Sleep(5 * time.Second)
		far.mu.Lock()
		l.mu.Lock()
		for _, h := range far.hosts {
			h.lan = l
			l.hosts = append(l.hosts, h)
		}
		l.mu.Unlock()
		far.mu.Unlock()
		l.ask(t, "192.0.2.9:5353")
		time.Sleep(20 * time.Second)
		l.take()
		l.ask(t, "192.0.2.9:5353")
		got := l.take()
		slices.Sort(got)
		if len(got) != 3 || strings.Contains(got[0], "(2)") == strings.Contains(got[1], "(2)") {
			t.Errorf("%q", got)
		}
	})
}

// TestNetworkChanges: addresses and interfaces come and go.
func TestNetworkChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var networks []Network
		var lookup error
		set := func(to []Network, err error) {
			mu.Lock()
			defer mu.Unlock()
			networks, lookup = to, err
		}
		l := new(lan)
		r, stop := l.join(t, "a", func() ([]Network, error) {
			mu.Lock()
			defer mu.Unlock()
			return networks, lookup
		})
		time.Sleep(time.Second)
		if got := r.Warnings(); len(got) != 1 || !strings.Contains(got[0], "IPv4 address") {
			t.Errorf("without networks: %q", got)
		}
		set(networkOf("192.0.2.1/24"), nil)
		time.Sleep(2 * refreshInterval)
		if got := l.take(); len(got) != probes+announcements || r.Warnings() != nil {
			t.Errorf("with a network: %q, %q", got, r.Warnings())
		}
		set(networkOf("192.0.2.5/24"), nil)
		time.Sleep(2 * refreshInterval)
		if got := l.take(); len(got) != 1+probes+announcements || got[0] != "192.0.2.1 withdraws PTR a" || got[5] != "192.0.2.5 sends PTR a" {
			t.Errorf("with another address: %q", got)
		}
		set(nil, errors.New("out of memory"))
		time.Sleep(2 * refreshInterval)
		if got := r.Warnings(); len(got) != 1 || !strings.Contains(got[0], "out of memory") {
			t.Errorf("without an answer: %q", got)
		}
		stop()
		l.want(t, "stop", "192.0.2.5 withdraws PTR a", "192.0.2.5 withdraws PTR a")
	})
}

// TestFailures: the port is taken, and then nothing can be sent.
func TestFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &lan{fails: errors.New("address already in use")}
		r, stop := l.join(t, "a", fixed("192.0.2.1/24"))
		time.Sleep(time.Second)
		if got := r.Warnings(); len(got) != 1 || !strings.Contains(got[0], "lan0: address already in use") {
			t.Errorf("%q", got)
		}
		l.mu.Lock()
		l.fails, l.sending = nil, errors.New("operation not permitted")
		l.mu.Unlock()
		time.Sleep(time.Minute)
		if got := r.Warnings(); len(got) != 1 || !strings.Contains(got[0], "lan0: operation not permitted") {
			t.Errorf("%q", got)
		}
		l.mu.Lock()
		l.sending = nil
		l.mu.Unlock()
		time.Sleep(2 * refreshInterval)
		if got := l.take(); len(got) != probes+announcements || r.Warnings() != nil {
			t.Errorf("%q, %q", got, r.Warnings())
		}
		stop()
	})
}

// FuzzReceive: no message of the network makes the program crash.
func FuzzReceive(f *testing.F) {
	for _, message := range []dnsmessage.Message{
		sample.probe(), response(sampleRecords(), nil), goodbye(sampleRecords()),
		query("_guix_publish._tcp.local.", dnsmessage.TypePTR), query("nar-herder-1.local.", dnsmessage.TypeALL),
	} {
		data, err := message.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, true, uint16(port))
		f.Add(data, false, uint16(40000))
	}
	f.Fuzz(func(t *testing.T, data []byte, probing bool, from uint16) {
		l := new(lan)
		n := networkOf("192.0.2.1/24")[0]
		conn, err := l.open(n, make(chan packet))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.close()
		a := &announcer{Responder: &Responder{Name: sample.name, Log: slog.New(slog.DiscardHandler)}, service: sample, links: map[int]*link{index: {Network: n, conn: conn}}}
		if !probing {
			a.links[index].step = probes + announcements
		}
		a.receive(packet{index, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), from), data})
	})
}
