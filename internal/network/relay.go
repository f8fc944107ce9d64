package network

import (
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// relay is the TCP/IP stack at the other end of a namespace's interface, where all addresses are its own. It passes on what
// arrives by sockets of the host.
type relay struct {
	stack *stack.Stack
	link  *endpoint
	tcp   *connections
	flows *flows
}

const nic = 1

// quiet keeps the stack from writing to standard error what it thinks of packets. log.SetTarget would replace the logger, and
// the stack's rate-limited loggers have kept the one that was there when their packages were initialized.
var quiet = sync.OnceFunc(silence)

func silence() { log.Log().Emitter = &log.Writer{Next: io.Discard} }

func newRelay(ns *namespace, sockets *limit) *relay {
	quiet()
	r := &relay{link: &endpoint{ns: ns}}
	r.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	hidden := loopbackAddresses()
	r.tcp = newConnections(r.stack, ns, sockets, hidden)
	r.flows = newFlows(ns, sockets, hidden)
	r.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, r.tcp.segment)
	r.stack.SetTransportProtocolHandler(udp.ProtocolNumber, r.flows.datagram)
	r.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, r.flows.echo)
	r.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, r.flows.echo)
	// None of these can fail for a new stack but by a mistake of ours.
	must(r.stack.CreateNIC(nic, r.link))
	must(r.stack.SetPromiscuousMode(nic, true))
	must(r.stack.SetSpoofing(nic, true))
	r.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	for _, a := range []netip.Addr{gateway4, gateway6} {
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		addr := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		must(r.stack.AddProtocolAddress(nic, addr, stack.AddressProperties{}))
	}
	return r
}

func must(err tcpip.Error) {
	if err != nil {
		panic("BUG: set up a network stack: " + err.String())
	}
}

// packet takes an IP packet.
func (r *relay) packet(p []byte) {
	proto := ipv4.ProtocolNumber
	switch header.IPVersion(p) {
	case header.IPv4Version:
	case header.IPv6Version:
		proto = ipv6.ProtocolNumber
	default:
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	defer pkt.DecRef()
	r.link.dispatcher.DeliverNetworkPacket(proto, pkt)
}

// close ends all connections. It waits for everything that runs, each time no longer than the time ending.
func (r *relay) close() {
	r.tcp.close()
	r.flows.close()
	destroyed := make(chan struct{})
	go func() {
		r.stack.Destroy()
		close(destroyed)
	}()
	select {
	case <-destroyed:
	case <-time.After(ending):
	}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}

// quote is what an ICMP error tells of the packet that it is about: its IP header and the beginning of what follows.
func quote(pkt *stack.PacketBuffer) []byte {
	ip, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	return append(append([]byte(nil), ip...), transport[:min(len(transport), 8)]...)
}

// Kinds of unreachability, by what an attempt to reach the target returned. See RFC 792 and RFC 4443.
var unreachable = []struct {
	errno unix.Errno
	v4    header.ICMPv4Code
	v6    header.ICMPv6Code
}{
	{unix.ECONNREFUSED, header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable},
	{unix.EHOSTUNREACH, header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable},
	{unix.ENETUNREACH, header.ICMPv4NetUnreachable, header.ICMPv6NetworkUnreachable},
	{unix.EACCES, header.ICMPv4AdminProhibited, header.ICMPv6Prohibited},
	{unix.EPERM, header.ICMPv4AdminProhibited, header.ICMPv6Prohibited},
}

// refuse answers the packet that is quoted with the ICMP error that fits err. It returns false if none does.
func (n *namespace) refuse(quoted []byte, err error) bool {
	for _, u := range unreachable {
		if !errors.Is(err, u.errno) {
			continue
		}
		if header.IPVersion(quoted) == header.IPv4Version {
			ip := header.IPv4(quoted)
			body := make([]byte, header.ICMPv4MinimumSize+len(quoted))
			h := header.ICMPv4(body)
			h.SetType(header.ICMPv4DstUnreachable)
			h.SetCode(u.v4)
			copy(body[header.ICMPv4MinimumSize:], quoted)
			n.send(ip.DestinationAddress(), ip.SourceAddress(), header.ICMPv4ProtocolNumber, body)
			return true
		}
		ip := header.IPv6(quoted)
		body := make([]byte, header.ICMPv6MinimumSize+len(quoted))
		h := header.ICMPv6(body)
		h.SetType(header.ICMPv6DstUnreachable)
		h.SetCode(u.v6)
		copy(body[header.ICMPv6MinimumSize:], quoted)
		n.send(ip.DestinationAddress(), ip.SourceAddress(), header.ICMPv6ProtocolNumber, body)
		return true
	}
	return false
}

// udpChecksumOffset is where the checksum is in the header of UDP, see RFC 768.
const udpChecksumOffset = 6

// send sends a packet with a transport header and its payload, whose checksum it sets.
func (n *namespace) send(src, dst tcpip.Address, proto tcpip.TransportProtocolNumber, body []byte) {
	const ttl = 64
	var ip []byte
	if src.Len() == header.IPv4AddressSize {
		h := header.IPv4(make([]byte, header.IPv4MinimumSize))
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(h) + len(body)), TTL: ttl, Protocol: uint8(proto), SrcAddr: src, DstAddr: dst})
		h.SetChecksum(^h.CalculateChecksum())
		ip = h
	} else {
		h := header.IPv6(make([]byte, header.IPv6MinimumSize))
		h.Encode(&header.IPv6Fields{PayloadLength: uint16(len(body)), TransportProtocol: proto, HopLimit: ttl, SrcAddr: src, DstAddr: dst})
		ip = h
	}
	if len(ip)+len(body) > mtu {
		return
	}
	checksumAt := -1
	switch proto {
	case header.UDPProtocolNumber:
		checksumAt = udpChecksumOffset
		header.UDP(body).SetChecksum(header.PseudoHeaderChecksum(proto, src, dst, uint16(len(body))))
	case header.ICMPv4ProtocolNumber:
		h := header.ICMPv4(body)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv4Checksum(h, 0))
	case header.ICMPv6ProtocolNumber:
		h := header.ICMPv6(body)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: src, Dst: dst}))
	}
	// What cannot be sent is lost.
	_ = n.write(len(ip), checksumAt, ip, body)
}
