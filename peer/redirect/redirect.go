// Package redirect follows redirects of a server only to itself and to public addresses.
package redirect

import (
	"context"
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

// maxRedirects is how many redirects are followed for one request.
const maxRedirects = 3

// ErrPrivate reports a redirect to an address that perhaps only this machine or its network
// can reach: its answers would be passed on to clients.
var ErrPrivate = redact.Public("redirects are followed to the same server, or over https to public addresses: use --allow-private-redirects to follow all")

type neverKey struct{}

// Never returns a context for requests that follow no redirects.
func Never(ctx context.Context) context.Context { return context.WithValue(ctx, neverKey{}, true) }

// Check is the CheckRedirect of an [http.Client]: its error says why a redirect is not
// followed.
func (s *Transport) Check(next *http.Request, before []*http.Request) error {
	if next.Context().Value(neverKey{}) != nil || len(before) > maxRedirects {
		return fmt.Errorf("it redirects to %s", redact.URL(next.URL))
	}
	if s.allowPrivate || s.isOwn(next.URL) {
		return nil
	}
	// A name is resolved when it is dialed, and its address is checked there. Through a
	// proxy, only the proxy knows the address: what it may reach is its administrator's
	// choice, and the certificate is still verified.
	address, err := netip.ParseAddr(strings.Trim(next.URL.Hostname(), "[]"))
	if next.URL.Scheme != "https" || err == nil && !isPublic(address) {
		return fmt.Errorf("it redirects to %s: %w", redact.URL(next.URL), ErrPrivate)
	}
	return nil
}

// Transport sends requests to a server, which the administrator has named and may be
// anywhere, and to others that it redirects to, which must have public addresses.
type Transport struct {
	base         *url.URL
	allowPrivate bool
	// Own is for the server, and Other for others.
	Own, Other *http.Transport
}

// NewTransport makes a transport from that for the server itself. With allowPrivate,
// redirects may go anywhere.
func NewTransport(base *url.URL, own *http.Transport, dialer net.Dialer, allowPrivate bool) *Transport {
	s := &Transport{base: base, allowPrivate: allowPrivate, Own: own, Other: own.Clone()}
	if !allowPrivate {
		// The name is resolved by now, so that the connection has the address that is
		// checked.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || !isPublic(at.Addr()) {
				return fmt.Errorf("%s: %w", address, ErrPrivate)
			}
			return nil
		}
	}
	s.Other.DialContext = dialer.DialContext
	return s
}

// isOwn reports whether a URL is of the server itself: the same scheme, host and port, or
// the usual step from http to https.
func (s *Transport) isOwn(u *url.URL) bool {
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
func (s *Transport) RoundTrip(request *http.Request) (*http.Response, error) {
	if s.isOwn(request.URL) {
		return s.Own.RoundTrip(request)
	}
	if proxy, err := redact.Proxy(request); err == nil && proxy != nil {
		return s.Own.RoundTrip(request) // to the proxy
	}
	return s.Other.RoundTrip(request)
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (s *Transport) CloseIdleConnections() {
	s.Own.CloseIdleConnections()
	s.Other.CloseIdleConnections()
}

var (
	// globalIPv6 has all public addresses.
	globalIPv6 = netip.MustParsePrefix("2000::/3")
	// nat64 has IPv4 addresses at its end.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
	// special are parts of the public space that aren't public, or that embed other
	// addresses: those of the IANA registries of special-purpose addresses, and that of
	// Azure's metadata. Other clouds have theirs at link-local addresses, or in one of
	// these.
	special = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(texts ...string) (prefixes []netip.Prefix) {
	for _, text := range texts {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}

// isPublic reports whether everybody can reach an address.
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
