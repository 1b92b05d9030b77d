package peer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"nar-herder/internal/redact"
)

// mostRedirects is how many redirects are followed for one request.
const mostRedirects = 3

// errPrivateRedirect says that a peer redirects to where only this machine, or its
// network, may be able to ask: what answers there would be given to clients.
var errPrivateRedirect = errors.New("redirects are followed to the same server, or over https to public addresses: where that is wanted, --allow-private-redirects follows all")

// checkRedirect says whether the client follows a redirect.
func (p *Peer) checkRedirect(next *http.Request, before []*http.Request) error {
	if next.Context().Value(noRedirects{}) != nil || len(before) > mostRedirects {
		return fmt.Errorf("it redirects to %s", redact.URL(next.URL))
	}
	if p.self.AllowPrivateRedirects || p.servers.isOwn(next.URL) {
		return nil
	}
	// A name is resolved when it is dialed, and its address is looked at there. Through a
	// proxy, only the proxy knows the address: what it may reach is its administrator's
	// choice, and a name's certificate is still verified.
	address, err := netip.ParseAddr(strings.Trim(next.URL.Hostname(), "[]"))
	if next.URL.Scheme != "https" || err == nil && !isPublic(address) {
		return fmt.Errorf("it redirects to %s: %w", redact.URL(next.URL), errPrivateRedirect)
	}
	return nil
}

// servers sends requests to a peer's own server, which the administrator has named and
// may be anywhere, and to others that it redirects to, which must have public addresses.
type servers struct {
	base       *url.URL
	own, other *http.Transport
}

// newServers makes the two transports from the one for the peer's own server.
func newServers(base *url.URL, own *http.Transport, dialer net.Dialer, allowPrivate bool) *servers {
	s := &servers{base: base, own: own, other: own.Clone()}
	if !allowPrivate {
		// Here the name is resolved already, so that it can't have another address for the
		// check than for the connection.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || !isPublic(at.Addr()) {
				return fmt.Errorf("%s: %w", address, errPrivateRedirect)
			}
			return nil
		}
	}
	s.other.DialContext = dialer.DialContext
	return s
}

// isOwn says whether a URL is of the peer's own server: the same scheme, host and port,
// or the usual step from http to https.
func (s *servers) isOwn(u *url.URL) bool {
	if !strings.EqualFold(u.Hostname(), s.base.Hostname()) {
		return false
	}
	if u.Scheme == s.base.Scheme {
		return port(u) == port(s.base)
	}
	return u.Scheme == "https" && port(u) == "443" && port(s.base) == "80"
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// RoundTrip implements [http.RoundTripper].
func (s *servers) RoundTrip(request *http.Request) (*http.Response, error) {
	if s.isOwn(request.URL) {
		return s.own.RoundTrip(request)
	}
	if proxy, err := redact.Proxy(request); err == nil && proxy != nil {
		return s.own.RoundTrip(request) // what is dialed is the proxy
	}
	return s.other.RoundTrip(request)
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (s *servers) CloseIdleConnections() {
	s.own.CloseIdleConnections()
	s.other.CloseIdleConnections()
}

var (
	// globalIPv6 is all that is given out as public addresses.
	globalIPv6 = netip.MustParsePrefix("2000::/3")
	// nat64 has IPv4 addresses at its end.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
	// special are parts of the public space that aren't public, or lead elsewhere by
	// addresses within: those of the IANA registries of special-purpose addresses, and
	// that of Azure's metadata. Other clouds have theirs at link-local addresses, or in
	// one of these.
	special = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(texts ...string) (prefixes []netip.Prefix) {
	for _, text := range texts {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}

// isPublic says whether an address is one that everybody can reach.
func isPublic(address netip.Addr) bool {
	address = address.Unmap()
	if bytes := address.As16(); nat64.Contains(address) {
		address = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	if address.Is6() && !globalIPv6.Contains(address) {
		return false
	}
	return address.IsGlobalUnicast() && !address.IsPrivate() &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(address) })
}
