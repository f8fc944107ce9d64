package imageconfig

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// OddPort says what is unusual about a port.
type OddPort struct {
	Casing bool // the protocol has upper-case letters
	Host   bool // an address or a port of the host stands before it
}

// ParsePorts reads "[[ip:]host:]port[-port][/protocol]" and returns each "port/protocol" of the container; the rest is only
// checked.
func ParsePorts(s string) (ports []string, odd OddPort, err error) {
	container, host, ip := s, "", ""
	if i := strings.LastIndex(s, ":"); i >= 0 {
		host, container = s[:i], s[i+1:]
		if i := strings.LastIndex(host, ":"); i >= 0 {
			ip, host = host[:i], host[i+1:]
		}
	}
	numbers, protocol, _ := strings.Cut(container, "/")
	if numbers == "" {
		return nil, odd, errors.New("no port specified")
	}
	switch strings.ToLower(protocol) {
	case "":
		protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, odd, errors.New("the protocol has to be tcp, udp or sctp")
	}
	odd = OddPort{Casing: protocol != strings.ToLower(protocol), Host: ip != "" || host != ""}
	if ip != "" && net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")) == nil {
		return nil, odd, fmt.Errorf("%q is not an IP address", ip)
	}
	first, last, err := parseRange(numbers)
	if err != nil {
		return nil, odd, err
	}
	if host != "" {
		hostFirst, hostLast, err := parseRange(host)
		if err != nil {
			return nil, odd, fmt.Errorf("host port: %w", err)
		}
		if first != last && last-first != hostLast-hostFirst {
			return nil, odd, fmt.Errorf("the ranges %s and %s differ in length", host, numbers)
		}
	}
	for p := first; p <= last; p++ {
		ports = append(ports, strconv.Itoa(p)+"/"+strings.ToLower(protocol))
	}
	return ports, odd, nil
}

// parseRange reads "port" or "port-port".
func parseRange(s string) (first, last int, err error) {
	a, z, ok := strings.Cut(s, "-")
	if !ok {
		z = a
	}
	for i, text := range []string{a, z} {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 65535 {
			return 0, 0, errors.New("a port is a number from 0 to 65535")
		}
		if i == 0 {
			first = n
		}
		last = n
	}
	if last < first {
		return 0, 0, errors.New("the range ends before it begins")
	}
	return first, last, nil
}
