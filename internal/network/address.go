package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const dnsPort = 53

// resolvConfPath is a variable for tests.
var resolvConfPath = "/etc/resolv.conf"

// maxNameServers is how many name servers a C library asks, see resolv.conf(5).
const maxNameServers = 3

// ResolvConf returns the /etc/resolv.conf for the name space: the host's, but that each name server has an address that stands
// for it. A host without the file gives one with one name server, the host itself, as resolv.conf(5) says.
func (n *Network) ResolvConf() (string, error) {
	text, servers, err := readResolvConf()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	addr := resolver4
	for range servers {
		fmt.Fprintf(&b, "nameserver %s\n", addr)
		addr = addr.Next()
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 0 || f[0] != "nameserver" {
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

// readResolvConf returns the host's resolver configuration and the name servers in it.
func readResolvConf() (text string, servers []netip.Addr, err error) {
	data, err := os.ReadFile(resolvConfPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("read the host's resolver configuration: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == maxNameServers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, a)
		}
	}
	if len(servers) == 0 {
		servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return string(data), servers, nil
}

// target returns where on the host's network a packet to dst goes: to dst, but for the addresses that stand for something.
// The error is a unix.Errno, ENETUNREACH for what is out of reach.
func target(dst netip.AddrPort) (netip.AddrPort, error) {
	addr := dst.Addr().Unmap()
	if addr == gateway4 || addr == gateway6 {
		addr, err := hostAddress(addr)
		return netip.AddrPortFrom(addr, dst.Port()), err
	}
	for i, a := 0, resolver4; i < maxNameServers; i, a = i+1, a.Next() {
		if addr != a {
			continue
		}
		if dst.Port() != dnsPort {
			return dst, unix.ECONNREFUSED
		}
		// The file may have changed since the process read it.
		_, servers, err := readResolvConf()
		if err != nil {
			return dst, unix.ENETUNREACH
		}
		return netip.AddrPortFrom(servers[min(i, len(servers)-1)], dnsPort), nil
	}
	if !reachable(addr) {
		return dst, unix.ENETUNREACH
	}
	return netip.AddrPortFrom(addr, dst.Port()), nil
}

var (
	thisNetwork  = netip.MustParsePrefix("0.0.0.0/8")
	notRoutable  = netip.MustParsePrefix("240.0.0.0/4")
	ipv4In6      = netip.MustParsePrefix("::/96") // with :: and ::1
	translatedV4 = netip.MustParsePrefix("::ffff:0:0:0/96")
)

// reachable reports whether packets to an address leave the host or reach one of its interfaces other than the loopback
// interface.
func reachable(a netip.Addr) bool {
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast(), thisNetwork.Contains(a), notRoutable.Contains(a),
		ipv4In6.Contains(a), translatedV4.Contains(a):
		return false
	case a.Is6() && a.IsLinkLocalUnicast(): // without a zone it has no meaning
		return false
	}
	return true
}

// hostAddress returns the address of the host from which it sends to others in the family of like, else any of its own
// that is not only the host's.
func hostAddress(like netip.Addr) (netip.Addr, error) {
	to := "192.0.2.1:9" // never sent to; see RFC 5737 and RFC 3849
	if like.Is6() {
		to = "[2001:db8::1]:9"
	}
	if c, err := net.Dial("udp", to); err == nil {
		defer c.Close()
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); reachable(a) {
			return a, nil
		}
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return like, unix.ENETUNREACH
	}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() == like.Is4() && reachable(p.Addr()) {
			return p.Addr(), nil
		}
	}
	return like, unix.ENETUNREACH
}
