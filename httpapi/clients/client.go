// Package clients names the client of a request, which may have come through trusted proxies.
package clients

import (
	"net"
	"net/netip"
	"strings"

	"github.com/valyala/fasthttp"
)

// Proxies are proxies that are trusted to name their clients in X-Forwarded-For.
type Proxies struct {
	Networks []netip.Prefix
	// Unix trusts all clients of a Unix domain socket.
	Unix bool
}

// Trusts reports whether the address belongs to a trusted proxy.
func (p *Proxies) Trusts(address netip.Addr) bool {
	for _, network := range p.Networks {
		if network.Contains(address) {
			return true
		}
	}
	return false
}

// Client returns the address of the client, which may have sent the request through trusted
// proxies. It is the zero value if unknown, as for a Unix domain socket.
func (p *Proxies) Client(ctx *fasthttp.RequestCtx) netip.Addr {
	var peer netip.Addr
	var trusted bool
	switch remote := ctx.RemoteAddr().(type) {
	case *net.TCPAddr:
		peer = remote.AddrPort().Addr().Unmap()
		trusted = p.Trusts(peer.WithZone(""))
	case *net.UnixAddr:
		trusted = p.Unix
	}
	if !trusted {
		return peer
	}
	client := peer
	lines := ctx.Request.Header.PeekAll(fasthttp.HeaderXForwardedFor)
	// Each proxy appends its client's address. Addresses before the last one that is not
	// trusted may be forged.
	for i := len(lines) - 1; i >= 0; i-- {
		list := string(lines[i])
		for more := true; more; {
			var last string
			if comma := strings.LastIndexByte(list, ','); comma >= 0 {
				list, last = list[:comma], list[comma+1:]
			} else {
				last, more = list, false
			}
			address, ok := parseForwarded(strings.TrimSpace(last))
			if !ok {
				return peer
			}
			if client = address; !p.Trusts(client.WithZone("")) {
				return client
			}
		}
	}
	return client
}

// parseForwarded parses an address without its zone, which may be any text. Some proxies add a
// port, or brackets.
func parseForwarded(text string) (netip.Addr, bool) {
	if address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")); err == nil {
		return address.Unmap().WithZone(""), true
	}
	address, err := netip.ParseAddrPort(text)
	return address.Addr().Unmap().WithZone(""), err == nil
}

// ClientName returns the client for the log: the address, with its port if the client has
// connected directly.
func (p *Proxies) ClientName(ctx *fasthttp.RequestCtx) string {
	if len(ctx.Request.Header.Peek(fasthttp.HeaderXForwardedFor)) > 0 {
		remote, isTCP := ctx.RemoteAddr().(*net.TCPAddr)
		if address := p.Client(ctx); address.IsValid() && (!isTCP || address != remote.AddrPort().Addr().Unmap()) {
			return address.String()
		}
	}
	return ctx.RemoteAddr().String()
}

// NetworkOf returns the network that counts as one client: the /64 of an IPv6 address, as
// clients can change the rest of it easily.
func NetworkOf(client netip.Addr) netip.Prefix {
	client = client.Unmap()
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	network, err := client.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address, as of a Unix domain socket
	}
	return network
}
