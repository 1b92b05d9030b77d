package dnssd

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
)

var sample = service{"nar-herder on Büro", "_guix_publish._tcp", "nar-herder-1", 8734}

func sampleRecords() []dnsmessage.Resource {
	return sample.records([]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.7")})
}

func query(name string, kind dnsmessage.Type) dnsmessage.Message {
	return dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
}

// describe returns the records as text, in order.
func describe(records []dnsmessage.Resource) string {
	var all []string
	for _, r := range records {
		text := strings.TrimPrefix(typeOf(r).String(), "Type")
		switch body := r.Body.(type) {
		case *dnsmessage.PTRResource:
			text += " " + body.PTR.String()
		case *dnsmessage.SRVResource:
			text += " " + body.Target.String()
		case *dnsmessage.AResource:
			text += " " + netip.AddrFrom4(body.A).String()
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	const (
		pointer  = "PTR nar-herder on Büro._guix_publish._tcp.local."
		host     = "A 192.0.2.7, A 198.51.100.7"
		instance = "nar-herder on Büro._guix_publish._tcp.local."
	)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string // "" for no answer
	}{
		{"_guix_publish._tcp.local.", dnsmessage.TypePTR, pointer},
		{"_GUIX_publish._TCP.local.", dnsmessage.TypePTR, pointer},
		{"_guix_publish._tcp.local.", dnsmessage.TypeALL, pointer},
		{"_services._dns-sd._udp.local.", dnsmessage.TypePTR, "PTR _guix_publish._tcp.local."},
		{instance, dnsmessage.TypeSRV, "SRV nar-herder-1.local."},
		{instance, dnsmessage.TypeTXT, "TXT"},
		{instance, dnsmessage.TypeALL, "SRV nar-herder-1.local., TXT"},
		{"nar-herder-1.local.", dnsmessage.TypeA, host},
		{"nar-herder-1.local.", dnsmessage.TypeAAAA, ""},
		{"_ipp._tcp.local.", dnsmessage.TypePTR, ""},
		{"another._guix_publish._tcp.local.", dnsmessage.TypeSRV, ""},
	} {
		got, ok := answer(query(c.name, c.kind), sampleRecords())
		if ok != (c.want != "") || ok && describe(got.Answers) != c.want {
			t.Errorf("%s %s: %s", c.name, c.kind, describe(got.Answers))
		}
		if ok && len(got.Answers)+len(got.Additionals) != len(sampleRecords()) {
			t.Errorf("%s %s: not all records: %s; %s", c.name, c.kind, describe(got.Answers), describe(got.Additionals))
		}
		if ok && (!got.Response || !got.Authoritative) {
			t.Errorf("%s %s: %v", c.name, c.kind, got.Header)
		}
	}
}

// TestKnownAnswer: a client that knows the answer for long enough gets none.
func TestKnownAnswer(t *testing.T) {
	t.Parallel()
	for ttl, want := range map[uint32]bool{sharedTTL: false, sharedTTL / 2: false, sharedTTL/2 - 1: true} {
		q := query("_guix_publish._tcp.local.", dnsmessage.TypePTR)
		known := sampleRecords()[0]
		known.Header.TTL = ttl
		q.Answers = []dnsmessage.Resource{known}
		if _, ok := answer(q, sampleRecords()); ok != want {
			t.Errorf("TTL %d: %v", ttl, ok)
		}
	}
	other := sample
	other.name = "other"
	q := query("_guix_publish._tcp.local.", dnsmessage.TypePTR)
	q.Answers = other.records(nil)[:1]
	if _, ok := answer(q, sampleRecords()); !ok {
		t.Error("a client that knows another instance gets no answer")
	}
}

// TestLegacy: a plain DNS client gets its question back and no cache-flush bits.
func TestLegacy(t *testing.T) {
	t.Parallel()
	q := query("_guix_publish._tcp.local.", dnsmessage.TypePTR)
	q.ID = 77
	got, _ := answer(q, sampleRecords())
	got = legacy(got, q)
	if got.ID != 77 || len(got.Questions) != 1 {
		t.Errorf("%v", got.Header)
	}
	for _, r := range append(got.Answers, got.Additionals...) {
		if r.Header.Class != dnsmessage.ClassINET || r.Header.TTL > legacyTTL {
			t.Errorf("%v", r.Header)
		}
	}
}

func TestGoodbye(t *testing.T) {
	t.Parallel()
	got := goodbye(sampleRecords())
	if want := "PTR nar-herder on Büro._guix_publish._tcp.local., SRV nar-herder-1.local., TXT, A 192.0.2.7, A 198.51.100.7"; describe(got.Answers) != want {
		t.Errorf("%s", describe(got.Answers))
	}
	for _, r := range got.Answers {
		if r.Header.TTL != 0 {
			t.Errorf("%v", r.Header)
		}
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	other := func(change func(*service)) dnsmessage.Message {
		s := sample
		change(&s)
		return response(s.records(nil), nil)
	}
	for name, c := range map[string]struct {
		message dnsmessage.Message
		want    bool
	}{
		"own records":   {other(func(*service) {}), false},
		"another host":  {other(func(s *service) { s.host = "other" }), true},
		"another port":  {other(func(s *service) { s.port++ }), true},
		"another name":  {other(func(s *service) { s.name, s.host = "other", "other" }), false},
		"its goodbye":   {goodbye(other(func(s *service) { s.host = "other" }).Answers), false},
		"in additional": {response(nil, other(func(s *service) { s.host = "other" }).Answers), true},
		"in other case": {other(func(s *service) { s.name, s.host = strings.ToUpper(s.name), "other" }), true},
	} {
		if got := sample.conflicts(c.message); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTie: of two hosts that probe the same name at once, exactly one gives way.
func TestTie(t *testing.T) {
	t.Parallel()
	other := sample
	other.port++
	if !sample.loses(other.probe()) || other.loses(sample.probe()) {
		t.Error("the smaller claim must lose")
	}
	if sample.loses(sample.probe()) {
		t.Error("a host loses against itself")
	}
}

func TestNumbered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		number int
		want   string
	}{
		{"x", 1, "x"},
		{"x", 2, "x (2)"},
		{strings.Repeat("x", 63), 12, strings.Repeat("x", 58) + " (12)"},
		{strings.Repeat("ä", 31), 2, strings.Repeat("ä", 29) + " (2)"},
	} {
		got := numbered(c.name, c.number)
		if got != c.want || len(got) > MaxName || !utf8.ValidString(got) {
			t.Errorf("%s %d: %q", c.name, c.number, got)
		}
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Büro, 2nd floor":       "",
		strings.Repeat("x", 63): "",
		strings.Repeat("x", 64): "at most 63 bytes",
		strings.Repeat("ä", 32): "at most 63 bytes",
		"":                      "empty",
		"farm.example.org":      "dot",
		"a\nb":                  "control characters",
		"a\xff":                 "UTF-8",
	} {
		err := CheckName(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestReachable(t *testing.T) {
	t.Parallel()
	const up = net.FlagUp | net.FlagRunning | net.FlagMulticast
	network := func(index int, flags net.Flags, prefixes ...string) Network {
		n := Network{Interface: net.Interface{Index: index, Flags: flags}}
		for _, p := range prefixes {
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
		}
		return n
	}
	all := []Network{
		network(1, up|net.FlagLoopback, "127.0.0.1/8", "::1/128", "10.9.9.9/32"),
		network(2, up, "192.0.2.7/24", "192.0.2.8/24", "fe80::1/64"),
		network(3, up, "198.51.100.7/24"),
		network(4, net.FlagUp|net.FlagRunning, "203.0.113.7/24"),
		network(5, net.FlagUp|net.FlagMulticast, "203.0.113.8/24"), // no carrier
		network(6, net.FlagMulticast, "203.0.113.9/24"),
		network(7, up, "2001:db8::1/64"),
	}
	for bound, want := range map[string]string{
		"0.0.0.0":                "2:192.0.2.7 2:192.0.2.8 3:198.51.100.7",
		"::":                     "2:192.0.2.7 2:192.0.2.8 3:198.51.100.7",
		"192.0.2.8":              "2:192.0.2.8",
		"::ffff:192.0.2.8":       "2:192.0.2.8",
		"192.0.2.8,198.51.100.7": "2:192.0.2.8 3:198.51.100.7",
		"127.0.0.1":              "",
		"10.9.9.9":               "",
		"203.0.113.7":            "",
		"2001:db8::1":            "",
		"192.0.2.99":             "",
	} {
		var addresses []netip.Addr
		for text := range strings.SplitSeq(bound, ",") {
			addresses = append(addresses, netip.MustParseAddr(text))
		}
		var got []string
		for _, n := range reachable(all, addresses) {
			for _, address := range n.addresses() {
				got = append(got, string(rune('0'+n.Interface.Index))+":"+address.String())
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", bound, got, want)
		}
	}
}
