package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"nar-herder/internal/dnssd"
)

// publishType is the type of the services that guix-daemon discovers.
const publishType = "_guix_publish._tcp"

// advertiseOption announces the server on the local network.
type advertiseOption struct {
	Advertise advertiseValue `group:"listening" placeholder:"NAME" help:"Announce this server on the local network by DNS-SD, so that 'guix-daemon --discover' finds it. --advertise=NAME sets its name (default: 'nar-herder on HOST')."`
}

// advertiseValue is the name of the server on the local network, or "" if it is not announced.
// The option may lack a value.
type advertiseValue string

// IsBool implements [kong.BoolMapperValue].
func (advertiseValue) IsBool() bool { return true }

// Decode implements [kong.BoolMapperValue]. In the environment and in the file, where an option
// always has a value, true and false switch it on and off.
func (a *advertiseValue) Decode(parsed *kong.DecodeContext) error {
	value := "true"
	if parsed.Scan.Peek().Type == kong.FlagValueToken {
		value = fmt.Sprint(parsed.Scan.Pop().Value)
	}
	switch strings.ToLower(value) {
	case "true", "yes", "1":
		*a = advertiseValue(defaultName())
	case "false", "no", "0":
		*a = ""
	default:
		*a = advertiseValue(value)
		return dnssd.CheckName(value)
	}
	return nil
}

func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		return "nar-herder"
	}
	host, _, _ = strings.Cut(host, ".")
	name := dnssd.Shorten("nar-herder on "+host, dnssd.MaxName)
	if dnssd.CheckName(name) != nil {
		return "nar-herder"
	}
	return name
}

// newResponder returns what announces the server that listens on these sockets, or nil without
// --advertise. It returns an error if no other machine of the local network can reach them.
func (o advertiseOption) newResponder(listeners []net.Listener, log *slog.Logger) (*dnssd.Responder, error) {
	if o.Advertise == "" {
		return nil, nil
	}
	var port uint16
	var bound []netip.Addr
	var all []string
	for _, listener := range listeners {
		all = append(all, listener.Addr().String())
		address, ok := discoverable(listener)
		if ok && (port == 0 || address.Port() == port) {
			port = address.Port()
			bound = append(bound, address.Addr())
		}
	}
	if bound == nil {
		return nil, usagef("--advertise: other machines can't discover %s: listen on an IPv4 address of the local network, with --host=ADDRESS, or --host=0.0.0.0 for all", strings.Join(all, " and "))
	}
	return &dnssd.Responder{
		Name: string(o.Advertise), Type: publishType, Port: port, Log: log,
		Networks: func() ([]dnssd.Network, error) { return dnssd.Listening(bound) },
	}, nil
}

// discoverable returns the address of a listener, and whether other machines can discover it.
// Guix discovers only IPv4 addresses.
func discoverable(listener net.Listener) (netip.AddrPort, bool) {
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return netip.AddrPort{}, false
	}
	bound := tcp.Addr().(*net.TCPAddr).AddrPort()
	address := netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	if address.Addr() == netip.IPv6Unspecified() {
		return address, !isIPv6Only(tcp)
	}
	return address, address.Addr().Is4() && !address.Addr().IsLoopback()
}

// isIPv6Only reports whether an IPv6 socket does not accept IPv4 connections.
func isIPv6Only(listener *net.TCPListener) (only bool) {
	conn, err := listener.SyscallConn()
	if err != nil {
		return false
	}
	_ = conn.Control(func(fd uintptr) { // it only fails if the socket is closed
		value, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		only = err == nil && value != 0
	})
	return only
}
