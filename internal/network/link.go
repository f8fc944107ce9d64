package network

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// virtioHeader is the size of struct virtio_net_hdr, which says what of a packet's checksum is still to be done.
const virtioHeader = 10

// write sends a packet, which may be in pieces, into the namespace. The first piece holds the headers. What cannot be
// sent is lost, as on any network. checksumAt is where the checksum is in the transport header; it is taken to hold that of the
// pseudo-header, and the rest need not be computed. It is -1 if there is nothing to be done about it.
func (n *namespace) write(transportAt, checksumAt int, pieces ...[]byte) error {
	frame := make([]byte, n.frame)
	if checksumAt >= 0 {
		frame[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(frame[6:], uint16(n.frame-virtioHeader+transportAt))
		binary.NativeEndian.PutUint16(frame[8:], uint16(checksumAt))
	}
	if n.frame > virtioHeader {
		copy(frame[virtioHeader:], ethernet[:])
		proto := uint16(unix.ETH_P_IP)
		if header.IPVersion(pieces[0]) == header.IPv6Version {
			proto = unix.ETH_P_IPV6
		}
		binary.BigEndian.PutUint16(frame[virtioHeader+len(ethernet):], proto)
	}
	raw, err := n.link.SyscallConn()
	if err != nil {
		return err
	}
	var writeErr error
	err = raw.Control(func(fd uintptr) {
		_, writeErr = unix.Writev(int(fd), append([][]byte{frame}, pieces...))
	})
	if err != nil {
		return err
	}
	return writeErr
}

// endpoint is the link of the stack.
type endpoint struct {
	ns         *namespace
	dispatcher stack.NetworkDispatcher
}

func (e *endpoint) MTU() uint32                             { return mtu }
func (e *endpoint) SetMTU(uint32)                           {}
func (e *endpoint) MaxHeaderLength() uint16                 { return 0 }
func (e *endpoint) LinkAddress() tcpip.LinkAddress          { return "" }
func (e *endpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *endpoint) Attach(d stack.NetworkDispatcher)        { e.dispatcher = d }
func (e *endpoint) IsAttached() bool                        { return e.dispatcher != nil }
func (e *endpoint) Wait()                                   {}
func (e *endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (e *endpoint) AddHeader(*stack.PacketBuffer)           {}
func (e *endpoint) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (e *endpoint) Close()                                  {}
func (e *endpoint) SetOnCloseAction(func())                 {}
func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
}

// WritePackets implements stack.LinkWriter.
func (e *endpoint) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range list.AsSlice() {
		checksumAt := -1
		if pkt.TransportProtocolNumber == header.TCPProtocolNumber {
			checksumAt = header.TCPChecksumOffset
			ip := pkt.Network()
			h := header.TCP(pkt.TransportHeader().Slice())
			size := uint16(len(h) + pkt.Data().Size())
			h.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), size))
		}
		if e.ns.write(len(pkt.NetworkHeader().Slice()), checksumAt, pkt.AsSlices()...) != nil {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return list.Len(), nil
}
