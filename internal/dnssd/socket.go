package dnssd

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	// port is the port of mDNS, and group its multicast address.
	port = 5353
	// maxMessage is the maximum size of a message.
	maxMessage = 9000
	// sendTimeout is how long sending may take.
	sendTimeout = 250 * time.Millisecond
)

var group = netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 251}), port)

// packet is a received message.
type packet struct {
	link int // the index of the interface
	from netip.AddrPort
	data []byte
}

// conn sends and receives on one interface.
type conn interface {
	send(message []byte, to netip.AddrPort) error
	// close ends receiving before it returns.
	close()
}

type socket struct {
	conn  *ipv4.PacketConn
	index int
	done  chan struct{}
	ended chan struct{}
}

// openSocket joins the group on an interface. The port is shared with other mDNS responders of
// this machine.
func openSocket(n Network, packets chan<- packet) (conn, error) {
	udp, err := net.ListenMulticastUDP("udp4", &n.Interface, net.UDPAddrFromAddrPort(group))
	if err != nil {
		return nil, fmt.Errorf("join the mDNS group: %w", err)
	}
	s := &socket{ipv4.NewPacketConn(udp), n.Interface.Index, make(chan struct{}), make(chan struct{})}
	for _, err := range []error{
		s.conn.SetControlMessage(ipv4.FlagInterface, true),
		s.conn.SetMulticastTTL(255),
		s.conn.SetTTL(255),
		// Other responders and clients of this machine hear what is sent.
		s.conn.SetMulticastLoopback(true),
	} {
		if err != nil {
			udp.Close()
			return nil, fmt.Errorf("set up the mDNS socket: %w", err)
		}
	}
	go s.receive(packets)
	return s, nil
}

func (s *socket) receive(packets chan<- packet) {
	defer close(s.ended)
	buffer := make([]byte, maxMessage)
	for {
		n, control, from, err := s.conn.ReadFrom(buffer)
		if err != nil {
			return // closed, or the next sending fails, too
		}
		udp, ok := from.(*net.UDPAddr)
		// The kernel delivers what arrives on any interface that has joined the group.
		if !ok || control == nil || control.IfIndex != s.index {
			continue
		}
		from4 := netip.AddrPortFrom(udp.AddrPort().Addr().Unmap(), uint16(udp.Port))
		select {
		case packets <- packet{s.index, from4, append([]byte(nil), buffer[:n]...)}:
		case <-s.done:
			return
		}
	}
}

func (s *socket) send(message []byte, to netip.AddrPort) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err := s.conn.WriteTo(message, &ipv4.ControlMessage{IfIndex: s.index}, net.UDPAddrFromAddrPort(to))
	return err
}

func (s *socket) close() {
	close(s.done)
	_ = s.conn.Close() // it only fails if it is closed
	<-s.ended
}
