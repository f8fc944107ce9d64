package network

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxFlows is how many flows a namespace has at once. What would begin another one is lost.
	maxFlows = 1024
	// idle is how long a flow is kept in which nothing is sent: RFC 4787, section 4.3.
	idle = 2 * time.Minute
	// idleEcho is the same for the answers to a ping.
	idleEcho = 30 * time.Second
)

// flows are the exchanges of datagrams between an address of a process and another one. Each has a socket of the host.
type flows struct {
	ns      *namespace
	sockets *limit
	hidden  func(netip.Addr) bool // see loopbackAddresses

	mu     sync.Mutex
	open   map[flowKey]*flow
	closed bool
	all    sync.WaitGroup
}

// flowKey says what belongs together. The ports of an echo request are its identifier and zero.
type flowKey struct {
	proto    tcpip.TransportProtocolNumber
	from, to netip.AddrPort
}

// socket is one of the host.
type socket interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

type flow struct {
	flowKey
	host   socket
	raw    bool   // host is a raw socket
	ident  uint16 // of echo requests on that
	idle   time.Duration
	quoted []byte // the first datagram, to be told of in errors
	asked  int    // queries without an answer, if to is a name server's
}

func newFlows(ns *namespace, sockets *limit, hidden func(netip.Addr) bool) *flows {
	return &flows{ns: ns, sockets: sockets, hidden: hidden, open: map[flowKey]*flow{}}
}

// datagram takes a UDP datagram.
func (f *flows) datagram(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	payload := pkt.Data().AsRange().ToSlice()
	if n := int(header.UDP(pkt.TransportHeader().Slice()).Length()) - header.UDPMinimumSize; n >= 0 && n < len(payload) {
		payload = payload[:n]
	}
	key := flowKey{header.UDPProtocolNumber, addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)}
	f.send(key, pkt, payload)
	return true
}

// echo takes an ICMP message; it answers false to other than echo requests, and to those for the gateway, which the stack
// answers itself.
func (f *flows) echo(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	message := append(append([]byte(nil), pkt.TransportHeader().Slice()...), pkt.Data().AsRange().ToSlice()...)
	proto := pkt.TransportProtocolNumber
	to := addrPort(pkt.Network().DestinationAddress(), 0)
	if len(message) < 8 || to.Addr() == gateway4 || to.Addr() == gateway6 || message[0] != echoTypes(proto).request {
		return false
	}
	key := flowKey{proto, addrPort(pkt.Network().SourceAddress(), binary.BigEndian.Uint16(message[4:])), to}
	f.send(key, pkt, message)
	return true
}

type echoType struct{ request, reply byte }

// echoTypes are the types of ICMP messages, see RFC 792 and RFC 4443.
func echoTypes(proto tcpip.TransportProtocolNumber) echoType {
	if proto == header.ICMPv4ProtocolNumber {
		return echoType{byte(header.ICMPv4Echo), byte(header.ICMPv4EchoReply)}
	}
	return echoType{byte(header.ICMPv6EchoRequest), byte(header.ICMPv6EchoReply)}
}

// send passes a datagram on, by a new flow if there is none for it.
func (f *flows) send(key flowKey, pkt *stack.PacketBuffer, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.open[key]
	if fl == nil {
		if f.closed || len(f.open) >= maxFlows || !f.sockets.take() {
			return
		}
		var err error
		if fl, err = f.newFlow(key); err != nil {
			f.sockets.give()
			f.ns.refuse(quote(pkt), err)
			return
		}
		fl.quoted = quote(pkt)
		f.open[key] = fl
		f.all.Go(func() { f.receive(fl) })
	}
	if fl.raw {
		setIdent(payload, fl.ident)
	}
	_ = fl.host.SetDeadline(time.Now().Add(fl.idle))
	fl.asked++
	_, err := fl.host.Write(payload)
	if errors.Is(err, unix.ECONNREFUSED) {
		// That is the answer to an earlier one.
		f.ns.refuse(fl.quoted, err)
		_, err = fl.host.Write(payload)
	}
	if err != nil {
		f.ns.refuse(quote(pkt), err)
	}
}

// remove ends a flow. The caller has the lock.
func (f *flows) remove(fl *flow) {
	if f.open[fl.flowKey] == fl {
		delete(f.open, fl.flowKey)
		fl.host.Close()
		f.sockets.give()
	}
}

// newFlow opens the host's socket of a flow.
func (f *flows) newFlow(key flowKey) (*flow, error) {
	to, err := target(key.to, f.hidden)
	if err != nil {
		return nil, err
	}
	fl := &flow{flowKey: key, idle: idle}
	if key.proto == header.UDPProtocolNumber {
		fl.host, err = dialer.Dial("udp", to.String())
		return fl, err
	}
	fl.idle = idleEcho
	fl.host, fl.raw, err = dialEcho(key.proto, to.Addr())
	fl.ident = uint16(rand.Uint32())
	return fl, err
}

// dialEcho opens a socket for echo requests: one that ordinary users may have, see icmp(7), if the host allows it, else a raw one.
func dialEcho(proto tcpip.TransportProtocolNumber, to netip.Addr) (host *os.File, raw bool, err error) {
	family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	if to.Is4() {
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
	}
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_RAW} {
		var s int
		if s, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			continue
		}
		if err = unix.Connect(s, addr); err != nil {
			unix.Close(s)
			return nil, false, err
		}
		return os.NewFile(uintptr(s), "icmp"), kind == unix.SOCK_RAW, nil
	}
	return nil, false, err
}

// setIdent sets the identifier of an echo request, and its checksum. For ICMPv6 the kernel sets the latter.
func setIdent(message []byte, ident uint16) {
	binary.BigEndian.PutUint16(message[4:], ident)
	h := header.ICMPv4(message)
	h.SetChecksum(header.ICMPv4Checksum(h, 0))
}

// datagrams are the buffers that are in use for what the host receives.
var datagrams = sync.Pool{New: func() any { return new([mtu]byte) }}

// receive passes on what arrives in a flow until nothing does for some time, or a name server has answered everything.
func (f *flows) receive(fl *flow) {
	buf := datagrams.Get().(*[mtu]byte)
	defer datagrams.Put(buf)
	from, to := tcpip.AddrFromSlice(fl.to.Addr().AsSlice()), tcpip.AddrFromSlice(fl.from.Addr().AsSlice())
	defer func() {
		f.mu.Lock()
		f.remove(fl)
		f.mu.Unlock()
	}()
	for {
		n, err := fl.host.Read(buf[header.UDPMinimumSize:])
		if errors.Is(err, unix.ECONNREFUSED) {
			f.ns.refuse(fl.quoted, err)
			continue
		}
		if err != nil {
			return
		}
		_ = fl.host.SetDeadline(time.Now().Add(fl.idle))
		if fl.proto != header.UDPProtocolNumber {
			if message := fl.reply(buf[header.UDPMinimumSize:][:n]); message != nil {
				f.ns.send(from, to, fl.proto, message)
			}
			continue
		}
		body := buf[:header.UDPMinimumSize+n]
		header.UDP(body).Encode(&header.UDPFields{SrcPort: fl.to.Port(), DstPort: fl.from.Port(), Length: uint16(len(body))})
		f.ns.send(from, to, fl.proto, body)
		if fl.to.Port() == dnsPort && f.answered(fl) {
			return
		}
	}
}

// answered counts an answer of a name server. If there is nothing more to come the flow has ended.
func (f *flows) answered(fl *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.asked--; fl.asked > 0 {
		return false
	}
	f.remove(fl)
	return true
}

// reply returns the answer to an echo request in what a socket received, as the process expects it; nil if it is none.
func (fl *flow) reply(message []byte) []byte {
	if fl.raw && fl.proto == header.ICMPv4ProtocolNumber { // with its IP header
		ip := header.IPv4(message)
		if len(ip) < header.IPv4MinimumSize || int(ip.HeaderLength()) > len(ip) {
			return nil
		}
		message = message[ip.HeaderLength():]
	}
	if len(message) < header.ICMPv4MinimumSize || message[0] != echoTypes(fl.proto).reply ||
		fl.raw && binary.BigEndian.Uint16(message[4:]) != fl.ident {
		return nil
	}
	binary.BigEndian.PutUint16(message[4:], fl.from.Port())
	return message
}

// close ends all flows. It returns when that is done, or after the time ending.
func (f *flows) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.open {
		f.remove(fl)
	}
	f.mu.Unlock()
	select {
	case <-finished(&f.all):
	case <-time.After(ending):
	}
}
