// Package reach keeps the servers that kiln asks from sending it on to addresses that they cannot reach themselves: services of
// this machine, of its private network, and the metadata service of a cloud. A host that the user named may be anywhere. It
// does not know what is asked for, nor what for.
package reach

import (
	"net"
	"net/netip"
	"net/url"
)

// Scope says who can reach an address. The higher it is, the closer the address is to this machine.
type Scope int

const (
	// Internet is an address that anybody can reach.
	Internet Scope = iota
	// Private is an address of the networks that this machine is in (RFC 1918, RFC 4193, RFC 6598 and others).
	Private
	// Machine is an address of this machine: loopback, or that of an interface.
	Machine
	// Link is a link-local address, where clouds have their metadata services, or another address of such a service; and what is
	// no server's address at all.
	Link

	// Anywhere is the limit for what the user named.
	Anywhere = Link
)

// String returns what an address of the scope is called: "a private address".
func (s Scope) String() string {
	switch s {
	case Internet:
		return "an address of the internet"
	case Private:
		return "a private address"
	case Machine:
		return "an address of this machine"
	}
	return "a link-local address or one of a cloud's metadata service"
}

// The prefixes of scopes that package netip has no method for. The first that contains an address counts.
var prefixes = []struct {
	prefix netip.Prefix
	scope  Scope
}{
	// Metadata services that have no link-local address: Alibaba, Azure, Oracle, AWS, Google.
	{netip.MustParsePrefix("100.100.100.200/32"), Link},
	{netip.MustParsePrefix("168.63.129.16/32"), Link},
	{netip.MustParsePrefix("192.0.0.192/32"), Link},
	{netip.MustParsePrefix("fd00:ec2::/32"), Link},
	{netip.MustParsePrefix("fd20:ce::254/128"), Link},
	{netip.MustParsePrefix("240.0.0.0/4"), Link},      // reserved, and broadcast
	{netip.MustParsePrefix("0.0.0.0/8"), Machine},     // Linux connects 0.0.0.0 to loopback
	{netip.MustParsePrefix("100.64.0.0/10"), Private}, // of carriers and clouds (RFC 6598)
	{netip.MustParsePrefix("192.0.0.0/24"), Private},  // RFC 6890
	{netip.MustParsePrefix("198.18.0.0/15"), Private}, // of benchmarks, and of some proxies (RFC 2544)
	{netip.MustParsePrefix("fec0::/10"), Private},     // site-local (RFC 3879)
}

// The IPv6 prefixes after which the 32 bits of an IPv4 address follow, which is where packets go in the end.
var embedding = []struct {
	prefix netip.Prefix
	at     int // of the address's first byte
}{
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible (RFC 4291)
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // IPv4-translated (RFC 2765)
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64 (RFC 6052)
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4 (RFC 3056)
}

// A network may take any prefix in localNAT64 for its own NAT64 (RFC 8215), of any length that RFC 6052 section 2.2 has. localLayouts
// are where the bytes of the IPv4 address are for the lengths 48, 56, 64 and 96; byte 8 is none of them but for the last.
var (
	localNAT64   = netip.MustParsePrefix("64:ff9b:1::/48")
	localLayouts = [][4]int{{6, 7, 9, 10}, {7, 9, 10, 11}, {9, 10, 11, 12}, {12, 13, 14, 15}}
)

// Of returns the scope of an address.
func Of(a netip.Addr) Scope {
	a = a.Unmap().WithZone("")
	s := fixed(a)
	if s < Machine && own(a) {
		return Machine
	}
	return s
}

// fixed is Of but for the addresses of this machine's interfaces.
func fixed(a netip.Addr) Scope {
	switch {
	case a.IsLoopback(), a.IsUnspecified():
		return Machine
	case a.IsLinkLocalUnicast(), a.IsMulticast(), !a.IsValid():
		return Link
	}
	for _, p := range prefixes {
		if p.prefix.Contains(a) {
			return p.scope
		}
	}
	for _, e := range embedding {
		if e.prefix.Contains(a) {
			b := a.As16()
			return fixed(netip.AddrFrom4([4]byte(b[e.at:])))
		}
	}
	if localNAT64.Contains(a) {
		return translated(a)
	}
	if a.IsPrivate() {
		return Private
	}
	return Internet
}

// translated returns the scope of an address in localNAT64: the highest of all that it may be translated to, as the length of the
// network's prefix is not known. No translator sends to 0.0.0.0/8, and the zeros of one layout are that in another, so it
// counts only where no layout has anything else.
func translated(a netip.Addr) Scope {
	b := a.As16()
	found, highest := false, Internet
	for _, at := range localLayouts {
		v4 := [4]byte{b[at[0]], b[at[1]], b[at[2]], b[at[3]]}
		if v4[0] != 0 {
			found, highest = true, max(highest, fixed(netip.AddrFrom4(v4)))
		}
	}
	if !found {
		return Machine
	}
	return highest
}

// IsLoopback reports whether "host[:port]" is this machine, as far as the name says.
func IsLoopback(addr string) bool {
	name := (&url.URL{Host: addr}).Hostname()
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// own reports whether an address is that of an interface.
func own(a netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false // nothing is known of the network
	}
	for _, n := range list {
		if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr().WithZone("") == a {
			return true
		}
	}
	return false
}
