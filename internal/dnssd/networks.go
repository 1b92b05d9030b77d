package dnssd

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Network is an interface, with the addresses to announce there.
type Network struct {
	Interface net.Interface
	Prefixes  []netip.Prefix // addresses with the length of their network
}

func (n Network) addresses() (all []netip.Addr) {
	for _, prefix := range n.Prefixes {
		all = append(all, prefix.Addr())
	}
	return all
}

// contains reports whether the address is on the network.
func (n Network) contains(address netip.Addr) bool {
	return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(address) })
}

func (n Network) equal(other Network) bool {
	return n.Interface.Index == other.Interface.Index && n.Interface.Name == other.Interface.Name && slices.Equal(n.Prefixes, other.Prefixes)
}

// Listening returns the networks on which a server with these bound addresses can be reached.
func Listening(bound []netip.Addr) ([]Network, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []Network
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", i.Name, err)
		}
		n := Network{Interface: i}
		for _, address := range addresses {
			if prefix, err := netip.ParsePrefix(address.String()); err == nil {
				n.Prefixes = append(n.Prefixes, prefix)
			}
		}
		all = append(all, n)
	}
	return reachable(all, bound), nil
}

// reachable returns the networks with bound addresses that a multicast reaches. An unspecified
// bound address stands for all.
func reachable(all []Network, bound []netip.Addr) (found []Network) {
	const needed = net.FlagUp | net.FlagRunning | net.FlagMulticast
	for _, n := range all {
		if n.Interface.Flags&needed != needed || n.Interface.Flags&net.FlagLoopback != 0 {
			continue
		}
		n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool {
			return !p.Addr().Is4() || p.Addr().IsLoopback() || !slices.ContainsFunc(bound, func(b netip.Addr) bool {
				return b.IsUnspecified() || b.Unmap() == p.Addr()
			})
		})
		if len(n.Prefixes) > 0 {
			found = append(found, n)
		}
	}
	return found
}
