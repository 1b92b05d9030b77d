package engine

import (
	"net"
	"net/netip"
	"strings"

	"github.com/valyala/fasthttp"
)

// Proxies are those that are trusted to say for whom they ask, in X-Forwarded-For.
type Proxies struct {
	Networks []netip.Prefix
	// Unix trusts all that connect to a socket in the file system.
	Unix bool
}

func (p *Proxies) Trusts(address netip.Addr) bool {
	for _, network := range p.Networks {
		if network.Contains(address) {
			return true
		}
	}
	return false
}

// Client returns the address of the client that asks, itself or through trusted
// proxies. It is the zero value where that is not known, as for a socket in the file
// system.
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
	// Each proxy adds to the right whom it was asked by, so what is left of the first
	// that is not trusted is anybody's word.
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

// parseForwarded reads an address, which some proxies give with a port, and in brackets.
func parseForwarded(text string) (netip.Addr, bool) {
	if address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")); err == nil {
		return address.Unmap(), true
	}
	address, err := netip.ParseAddrPort(text)
	return address.Addr().Unmap(), err == nil
}

// ClientName is the client for the log: the address with its port, where the client has
// connected itself.
func (p *Proxies) ClientName(ctx *fasthttp.RequestCtx) string {
	if len(ctx.Request.Header.Peek(fasthttp.HeaderXForwardedFor)) > 0 {
		remote, isTCP := ctx.RemoteAddr().(*net.TCPAddr)
		if address := p.Client(ctx); address.IsValid() && (!isTCP || address != remote.AddrPort().Addr().Unmap()) {
			return address.String()
		}
	}
	return ctx.RemoteAddr().String()
}

// NetworkOf returns what counts as one client: an IPv6 address is easily changed for
// another of the same network.
func NetworkOf(client netip.Addr) netip.Prefix {
	client = client.Unmap()
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	network, err := client.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{} // of no address, as that of a socket in the file system
	}
	return network
}
