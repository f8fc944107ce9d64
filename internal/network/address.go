package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const dnsPort = 53

// resolvConfPath is a variable for tests.
var resolvConfPath = "/etc/resolv.conf"

// maxNameServers is how many name servers a C library asks, see resolv.conf(5).
const maxNameServers = 3

// ResolvConf returns the /etc/resolv.conf for the namespace: the host's, but that each name server has an address that stands
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
// hidden reports the addresses of the loopback interface, see loopbackAddresses.
// The error is a unix.Errno, ENETUNREACH for what is out of reach.
func target(dst netip.AddrPort, hidden func(netip.Addr) bool) (netip.AddrPort, error) {
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
	for _, a := range meanings(addr) {
		if !reachable(a) {
			return dst, unix.ENETUNREACH
		}
		if hidden(a) {
			// On some routers the loopback interface has the host's only address, to which the gateway leads as well.
			if own, err := hostAddress(a); err != nil || own != a {
				return dst, unix.ENETUNREACH
			}
		}
	}
	return netip.AddrPortFrom(addr, dst.Port()), nil
}

var (
	thisNetwork  = netip.MustParsePrefix("0.0.0.0/8")
	notRoutable  = netip.MustParsePrefix("240.0.0.0/4")
	ipv4In6      = netip.MustParsePrefix("::/96") // with :: and ::1
	translatedV4 = netip.MustParsePrefix("::ffff:0:0:0/96")
	nat64        = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052, section 2.1
)

// meanings returns the address, and for one of NAT64 the address of IPv4 in it: the translator may be on the host.
func meanings(a netip.Addr) []netip.Addr {
	if !nat64.Contains(a) {
		return []netip.Addr{a}
	}
	b := a.As16()
	return []netip.Addr{a, netip.AddrFrom4([4]byte(b[12:]))}
}

// loopbackAddresses returns a function that reports whether an address is one of the host's loopback interface and of no
// other interface. To the kernel every address of an IPv4 prefix on that interface is the host's. If the host's interfaces cannot be
// listed all addresses are reported.
func loopbackAddresses() func(netip.Addr) bool {
	interfaces, err := net.Interfaces()
	if err != nil {
		return func(netip.Addr) bool { return true }
	}
	var local []netip.Prefix
	other := map[netip.Addr]bool{}
	for _, i := range interfaces {
		list, err := i.Addrs()
		if err != nil {
			return func(netip.Addr) bool { return true }
		}
		for _, a := range list {
			p, err := netip.ParsePrefix(a.String())
			switch {
			case err != nil:
			case i.Flags&net.FlagLoopback == 0:
				other[p.Addr()] = true
			case p.Addr().Is4():
				local = append(local, p.Masked())
			default:
				local = append(local, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
			}
		}
	}
	return func(a netip.Addr) bool {
		return !other[a] && slices.ContainsFunc(local, func(p netip.Prefix) bool { return p.Contains(a) })
	}
}

// reachable reports whether an address may be one of another host or of an interface other than the loopback interface, as far as the
// address tells.
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
// that is not only the host's, one of the loopback interface last.
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
	hidden, found := loopbackAddresses(), netip.Addr{}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().Is4() != like.Is4() || !reachable(p.Addr()) {
			continue
		}
		if !hidden(p.Addr()) {
			return p.Addr(), nil
		}
		if !found.IsValid() {
			found = p.Addr()
		}
	}
	if !found.IsValid() {
		return like, unix.ENETUNREACH
	}
	return found, nil
}
