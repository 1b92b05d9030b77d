package dnssd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// hostTTL is the TTL of records with a host name, and sharedTTL that of others, as
	// RFC 6762 recommends. legacyTTL is the maximum for clients that are not mDNS responders.
	hostTTL, sharedTTL, legacyTTL = 120, 4500, 10
	// cacheFlush is the bit of the class that says that the answer has all records of that
	// name and type. In questions, the bit asks for a unicast answer.
	cacheFlush = dnsmessage.Class(1 << 15)

	domain = ".local."
	// everything is the name at which clients find all types of services.
	everything = "_services._dns-sd._udp" + domain
)

// MaxName is the maximum length of a name in bytes.
const MaxName = 63

// service is what the records describe.
type service struct {
	name string // of the instance, one label
	kind string // such as _guix_publish._tcp
	host string // one label
	port uint16
}

func (s service) typeName() string     { return s.kind + domain }
func (s service) instanceName() string { return s.name + "." + s.kind + domain }
func (s service) hostName() string     { return s.host + domain }

// newHost returns a random host name. It is not the name of this machine, which another mDNS
// responder may announce with other addresses.
func newHost() string { return "nar-herder-" + strconv.FormatUint(rand.Uint64(), 36) }

// numbered returns the name with a number from 2, shortened to fit into a label.
func numbered(name string, number int) string {
	if number < 2 {
		return name
	}
	suffix := " (" + strconv.Itoa(number) + ")"
	return Shorten(name, MaxName-len(suffix)) + suffix
}

// Shorten returns the longest beginning of valid UTF-8 that has at most so many bytes.
func Shorten(name string, length int) string {
	if len(name) <= length {
		return name
	}
	for length > 0 && !utf8.RuneStart(name[length]) {
		length--
	}
	return name[:length]
}

// resource returns a record. The names have been validated.
func resource(name string, class dnsmessage.Class, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: class, TTL: ttl}, Body: body}
}

// records returns all records of the service on a network with these addresses.
func (s service) records(addresses []netip.Addr) []dnsmessage.Resource {
	const unique = dnsmessage.ClassINET | cacheFlush
	all := []dnsmessage.Resource{
		resource(s.typeName(), dnsmessage.ClassINET, sharedTTL, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(s.instanceName())}),
		resource(everything, dnsmessage.ClassINET, sharedTTL, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(s.typeName())}),
		resource(s.instanceName(), unique, hostTTL, &dnsmessage.SRVResource{Port: s.port, Target: dnsmessage.MustNewName(s.hostName())}),
		resource(s.instanceName(), unique, sharedTTL, &dnsmessage.TXTResource{TXT: []string{""}}),
	}
	for _, address := range addresses {
		all = append(all, resource(s.hostName(), unique, hostTTL, &dnsmessage.AResource{A: address.As4()}))
	}
	return all
}

// claims returns the records that a probe claims: those with the name of the instance.
func (s service) claims() (claimed []dnsmessage.Resource) {
	for _, record := range s.records(nil) {
		if isNamed(record.Header.Name, s.instanceName()) {
			record.Header.Class &^= cacheFlush
			claimed = append(claimed, record)
		}
	}
	return claimed
}

// probe returns the query that finds out whether another host has the name.
func (s service) probe() dnsmessage.Message {
	return dnsmessage.Message{
		Questions:   []dnsmessage.Question{{Name: dnsmessage.MustNewName(s.instanceName()), Type: dnsmessage.TypeALL, Class: dnsmessage.ClassINET}},
		Authorities: s.claims(),
	}
}

// response returns an unsolicited or multicast response.
func response(answers, additionals []dnsmessage.Resource) dnsmessage.Message {
	return dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}, Answers: answers, Additionals: additionals}
}

// goodbye returns the response that deletes the records from the caches of others. It keeps the
// type of service, which other instances may have.
func goodbye(records []dnsmessage.Resource) dnsmessage.Message {
	var gone []dnsmessage.Resource
	for _, record := range records {
		if !isNamed(record.Header.Name, everything) {
			record.Header.TTL = 0
			gone = append(gone, record)
		}
	}
	return response(gone, nil)
}

// legacy turns a response into one for a client that sent its query from another port, as
// plain DNS clients do.
func legacy(response, query dnsmessage.Message) dnsmessage.Message {
	response.ID, response.Questions = query.ID, query.Questions
	for _, section := range [][]dnsmessage.Resource{response.Answers, response.Additionals} {
		for i := range section {
			section[i].Header.Class &^= cacheFlush
			section[i].Header.TTL = min(section[i].Header.TTL, legacyTTL)
		}
	}
	return response
}

// answer returns the response to a query, and false if there is nothing to answer, or the
// client already knows the answer. A response always has all records.
func answer(query dnsmessage.Message, records []dnsmessage.Resource) (dnsmessage.Message, bool) {
	var answers, additionals []dnsmessage.Resource
	for _, record := range records {
		asked := slices.ContainsFunc(query.Questions, func(q dnsmessage.Question) bool {
			class := q.Class &^ cacheFlush
			return isNamed(record.Header.Name, q.Name.String()) &&
				(q.Type == typeOf(record) || q.Type == dnsmessage.TypeALL) &&
				(class == dnsmessage.ClassINET || class == dnsmessage.ClassANY)
		})
		known := asked && slices.ContainsFunc(query.Answers, func(a dnsmessage.Resource) bool {
			return isNamed(a.Header.Name, record.Header.Name.String()) && a.Header.TTL >= record.Header.TTL/2 && bytes.Equal(content(a), content(record))
		})
		if asked && !known {
			answers = append(answers, record)
		} else {
			additionals = append(additionals, record)
		}
	}
	return response(answers, additionals), len(answers) > 0
}

// conflicts reports whether a response says that another host has the name of the instance.
func (s service) conflicts(response dnsmessage.Message) bool {
	return slices.ContainsFunc(slices.Concat(response.Answers, response.Additionals), func(record dnsmessage.Resource) bool {
		srv, ok := record.Body.(*dnsmessage.SRVResource)
		return ok && record.Header.TTL > 0 && isNamed(record.Header.Name, s.instanceName()) &&
			(srv.Port != s.port || !isNamed(srv.Target, s.hostName()))
	})
}

// loses reports whether this host must give way to the sender of a probe, since both claim the
// name at the same time, and the claim of the other is greater.
func (s service) loses(query dnsmessage.Message) bool {
	var theirs [][]byte
	for _, record := range query.Authorities {
		if isNamed(record.Header.Name, s.instanceName()) {
			theirs = append(theirs, content(record))
		}
	}
	var ours [][]byte
	for _, record := range s.claims() {
		ours = append(ours, content(record))
	}
	slices.SortFunc(theirs, bytes.Compare)
	slices.SortFunc(ours, bytes.Compare)
	return slices.CompareFunc(theirs, ours, bytes.Compare) > 0
}

// isNamed compares names without regard to the case of ASCII letters.
func isNamed(name dnsmessage.Name, other string) bool {
	return strings.EqualFold(name.String(), other)
}

func typeOf(record dnsmessage.Resource) dnsmessage.Type {
	switch record.Body.(type) {
	case *dnsmessage.PTRResource:
		return dnsmessage.TypePTR
	case *dnsmessage.SRVResource:
		return dnsmessage.TypeSRV
	case *dnsmessage.TXTResource:
		return dnsmessage.TypeTXT
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	}
	return record.Header.Type
}

// content returns the class, the type and the uncompressed data of a record, in the order in
// which RFC 6762 compares them.
func content(record dnsmessage.Resource) []byte {
	data := binary.BigEndian.AppendUint16(nil, uint16(record.Header.Class&^cacheFlush))
	data = binary.BigEndian.AppendUint16(data, uint16(typeOf(record)))
	appendName := func(name dnsmessage.Name) {
		for label := range strings.SplitSeq(strings.TrimSuffix(name.String(), "."), ".") {
			data = append(append(data, byte(len(label))), label...)
		}
		data = append(data, 0)
	}
	switch body := record.Body.(type) {
	case *dnsmessage.PTRResource:
		appendName(body.PTR)
	case *dnsmessage.SRVResource:
		for _, n := range []uint16{body.Priority, body.Weight, body.Port} {
			data = binary.BigEndian.AppendUint16(data, n)
		}
		appendName(body.Target)
	case *dnsmessage.TXTResource:
		for _, text := range body.TXT {
			data = append(append(data, byte(len(text))), text...)
		}
	case *dnsmessage.AResource:
		data = append(data, body.A[:]...)
	case *dnsmessage.UnknownResource:
		data = append(data, body.Data...)
	}
	return data
}

// parse returns what a message has up to its end, or up to the first record that can't be
// parsed, such as one with a dot in a label.
func parse(data []byte) (message dnsmessage.Message, ok bool) {
	var parser dnsmessage.Parser
	var err error
	if message.Header, err = parser.Start(data); err != nil || message.OpCode != 0 || message.RCode != dnsmessage.RCodeSuccess {
		return message, false
	}
	if message.Questions, err = parser.AllQuestions(); err != nil {
		return message, false
	}
	for _, section := range []struct {
		records *[]dnsmessage.Resource
		next    func() (dnsmessage.Resource, error)
	}{{&message.Answers, parser.Answer}, {&message.Authorities, parser.Authority}, {&message.Additionals, parser.Additional}} {
		for {
			record, err := section.next()
			if err == dnsmessage.ErrSectionDone {
				break
			}
			if err != nil {
				return message, true
			}
			*section.records = append(*section.records, record)
		}
	}
	return message, true
}
