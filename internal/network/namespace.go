package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/thread"
)

// What a process finds in a network namespace. The addresses are those that QEMU and slirp4netns use; nothing but the few
// that are named here is hidden by them, since the rest of their network is forwarded as any other.
var (
	address4 = netip.MustParsePrefix("10.0.2.100/24")
	gateway4 = netip.MustParseAddr("10.0.2.2")
	address6 = netip.MustParsePrefix("fd6b:696c:6e::100/64")
	gateway6 = netip.MustParseAddr("fd6b:696c:6e::2")
	// resolver4 is the first of the addresses that stand for the host's name servers.
	resolver4 = netip.MustParseAddr("10.0.2.3")
)

const (
	device      = "eth0"
	loIndex     = 1 // of every network namespace
	deviceIndex = 2
	peerIndex   = 3
	// The largest packet of IPv4: what is copied is copied in large pieces, and no datagram needs to be in fragments.
	mtu = 65535
)

// The two ends of a veth pair, in the form of an Ethernet header without its protocol.
var ethernet = [12]byte{0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2}

// namespace is a network namespace with one interface, the packets of which kiln reads and writes.
type namespace struct {
	file  *os.File // nsfs
	users *os.File // the user namespace that it belongs to; nil if that is kiln's own
	link  *os.File // a tun device or a packet socket; packets have a struct virtio_net_hdr, and on the latter an Ethernet header
	way   string   // how link was made
	frame int      // how long the headers before the IP header are

	// The counters of the namespace, see proc_pid_net(5), and what they were in the beginning.
	devices, sockets *os.File
	initial          counters
}

// newNamespace makes a network namespace, or sets up made, which has nothing yet. Everything of it goes with the descriptors.
func newNamespace(made *os.File, ipv6 bool) (*namespace, error) {
	n := &namespace{}
	err := inNewNamespace(made, func() error {
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		s, err := newNetlink()
		if err != nil {
			return err
		}
		defer s.close()
		if err := n.attach(s); err != nil {
			return err
		}
		if err := configure(s, n.way, ipv6); err != nil {
			return err
		}
		if n.devices, err = os.Open("/proc/thread-self/net/dev"); err != nil {
			return err
		}
		if n.sockets, err = os.Open("/proc/thread-self/net/sockstat"); err != nil {
			return err
		}
		n.initial, err = n.count()
		n.initial.sockets-- // that of s; it does not go at once when it is closed
		return err
	})
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// inNewNamespace calls f on a thread in a network namespace of its own, which is made unless it is nil.
func inNewNamespace(made *os.File, f func() error) (err error) {
	thread.Do(func() {
		if made == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			err = unix.Setns(int(made.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// attach makes the interface and opens kiln's end of it: a tun device, or where the machine has none a veth pair.
func (n *namespace) attach(s *netlink) error {
	tunErr := n.attachTun()
	if tunErr == nil {
		return nil
	}
	if err := n.attachVeth(s); err != nil {
		return errors.Join(tunErr, err)
	}
	return nil
}

// tunPath is a variable for tests.
var tunPath = "/dev/net/tun"

func (n *namespace) attachTun() error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: tunPath, Err: err}
	}
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	for _, err := range []error{
		unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, deviceIndex),
		unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr),
		unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM),
		// So it goes with the namespace, which the kernel takes apart by itself, and not with the descriptor, the closing of which
		// would wait for that.
		unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1),
	} {
		if err != nil {
			unix.Close(fd)
			return &fs.PathError{Op: "make a device with", Path: tunPath, Err: err}
		}
	}
	n.link, n.way, n.frame = os.NewFile(uintptr(fd), tunPath), "tun", virtioHeader
	return nil
}

func (n *namespace) attachVeth(s *netlink) error {
	if err := s.addVeth(); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	// What does not fit is lost, and has to be sent again. Only root may go beyond the machine's limit.
	for _, force := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force[0], 8<<20) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, force[1], 8<<20)
		}
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1), // there is nothing to queue for
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: peerIndex}),
	} {
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("set up a packet socket: %w", err)
		}
	}
	n.link, n.way, n.frame = os.NewFile(uintptr(fd), "packet socket"), "veth", virtioHeader+len(ethernet)+2
	return nil
}

// configure brings the interfaces up, with addresses and routes.
func configure(s *netlink, way string, ipv6 bool) error {
	interfaces := []int{deviceIndex}
	if way == "veth" {
		// With the other end up before it the device can send at once, and not when the kernel comes to look at it.
		interfaces = []int{peerIndex, deviceIndex}
	}
	for _, i := range interfaces {
		if err := s.setUp(i); err != nil {
			return fmt.Errorf("bring up network interface %d: %w", i, err)
		}
	}
	if err := s.link(loIndex, unix.IFF_UP, unix.IFF_UP); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	if err := s.addAddress(address4, gateway4); err != nil {
		return fmt.Errorf("set the address %s: %w", address4, err)
	}
	if ipv6 {
		if err := s.addAddress(address6, gateway6); err != nil {
			return fmt.Errorf("set the address %s: %w", address6, err)
		}
	}
	return nil
}

// counters are what shows whether something was done in a namespace.
type counters struct {
	packets string // of each interface
	sockets int
}

func (n *namespace) count() (c counters, err error) {
	var buf [4096]byte
	k, err := unix.Pread(int(n.devices.Fd()), buf[:], 0)
	if err != nil {
		return c, &fs.PathError{Op: "read", Path: n.devices.Name(), Err: err}
	}
	c.packets = string(buf[:k])
	if k, err = unix.Pread(int(n.sockets.Fd()), buf[:], 0); err != nil {
		return c, &fs.PathError{Op: "read", Path: n.sockets.Name(), Err: err}
	}
	if _, err = fmt.Sscanf(string(buf[:k]), "sockets: used %d\n", &c.sockets); err != nil {
		return c, &fs.PathError{Op: "understand", Path: n.sockets.Name(), Err: err}
	}
	return c, nil
}

// pristine reports whether the namespace is as it was made: no interface has ever passed on a packet, and there is no
// socket but kiln's. To change anything else takes privileges.
func (n *namespace) pristine() bool {
	now, err := n.count()
	return err == nil && now.packets == n.initial.packets && now.sockets <= n.initial.sockets
}

func (n *namespace) close() {
	for _, f := range []*os.File{n.file, n.users, n.link, n.devices, n.sockets} {
		if f != nil {
			f.Close()
		}
	}
}

// hasIPv6 reports whether the host has a default route of IPv6.
func hasIPv6() bool {
	text, err := os.ReadFile("/proc/net/ipv6_route")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		// Destination, prefix length, source, prefix length, next hop, metric, references, uses, flags, device.
		if len(f) == 10 && string(f[1]) == "00" && len(bytes.Trim(f[0], "0")) == 0 && string(f[9]) != "lo" {
			return true
		}
	}
	return false
}

// netlink is a socket for configuring interfaces, see rtnetlink(7).
type netlink struct{ fd int }

func newNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &netlink{fd}, nil
}

func (s *netlink) close() { unix.Close(s.fd) }

// do sends a request, which begins with a structure of its type, and waits for the answer.
func (s *netlink) do(kind uint16, flags uint16, parts ...[]byte) error {
	body := bytes.Join(parts, nil)
	h := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: flags | unix.NLM_F_REQUEST | unix.NLM_F_ACK}
	if err := unix.Sendto(s.fd, append(raw(h), body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s.fd, buf, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is of no known form")
	}
	if errno := -int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// attribute is a struct rtattr and its content.
func attribute(kind uint16, content ...[]byte) []byte {
	data := bytes.Join(content, nil)
	b := append(raw(unix.RtAttr{Len: uint16(unix.SizeofRtAttr + len(data)), Type: kind}), data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func uint32Attribute(kind uint16, v uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// link sets flags of an interface, and attributes.
func (s *netlink) link(index int, flags, change uint32, attributes ...[]byte) error {
	info := raw(unix.IfInfomsg{Index: int32(index), Flags: flags, Change: change})
	return s.do(unix.RTM_NEWLINK, 0, append([][]byte{info}, attributes...)...)
}

// setUp brings one of our interfaces up. No packet goes over it that no process sent: no groups are joined and there are no
// addresses of its own making. Nor does the kernel leave it to the interface to cut what a process sends into packets.
func (s *netlink) setUp(index int) error {
	if _, err := os.Stat("/proc/net/if_inet6"); err == nil {
		const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
		none := attribute(unix.AF_INET6, attribute(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{noAddress}))
		if err := s.link(index, 0, 0, attribute(unix.IFLA_AF_SPEC, none)); err != nil {
			return err
		}
	}
	return s.link(index, unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP|unix.IFF_MULTICAST,
		uint32Attribute(unix.IFLA_MTU, mtu), uint32Attribute(unix.IFLA_GSO_MAX_SEGS, 1))
}

// addVeth makes a pair of interfaces: the process's and kiln's.
func (s *netlink) addVeth() error {
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	peer := attribute(vethInfoPeer, raw(unix.IfInfomsg{Index: peerIndex}), attribute(unix.IFLA_IFNAME, []byte("kiln\x00")),
		attribute(unix.IFLA_ADDRESS, ethernet[6:]))
	return s.do(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, raw(unix.IfInfomsg{Index: deviceIndex}),
		attribute(unix.IFLA_IFNAME, []byte(device+"\x00")), attribute(unix.IFLA_ADDRESS, ethernet[:6]),
		attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte("veth\x00")), attribute(unix.IFLA_INFO_DATA, peer)))
}

// addAddress gives the device an address, and a default route.
func (s *netlink) addAddress(p netip.Prefix, gateway netip.Addr) error {
	family := uint8(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	addr := p.Addr().AsSlice()
	if err := s.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		raw(unix.IfAddrmsg{Family: family, Prefixlen: uint8(p.Bits()), Flags: unix.IFA_F_NODAD | unix.IFA_F_PERMANENT, Index: deviceIndex}),
		attribute(unix.IFA_LOCAL, addr), attribute(unix.IFA_ADDRESS, addr)); err != nil {
		return err
	}
	if p.Addr().Is6() {
		// The kernel makes this route later, and drops what comes before.
		if err := s.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE,
			raw(unix.RtMsg{Family: family, Dst_len: 128, Table: unix.RT_TABLE_LOCAL, Protocol: unix.RTPROT_KERNEL, Type: unix.RTN_LOCAL}),
			attribute(unix.RTA_DST, addr), uint32Attribute(unix.RTA_OIF, deviceIndex)); err != nil {
			return err
		}
	}
	return s.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		raw(unix.RtMsg{
			Family: family, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
		}),
		attribute(unix.RTA_GATEWAY, gateway.AsSlice()), uint32Attribute(unix.RTA_OIF, deviceIndex))
}

// raw is the memory of a structure.
func raw[T any](v T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))...)
}
