package frontend

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/frontend/expand"
)

// expose lowers EXPOSE. A variable may hold several ports, so the words are made after it is expanded.
func (b *builder) expose(s *stage, c *instructions.ExposeCommand, lint *linter.Linter) error {
	ports := []string{}
	for _, word := range c.Ports {
		words, err := b.words.Words(word, s.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			parsed, err := parsePort(w, c.Location(), lint)
			if err != nil {
				return fmt.Errorf("invalid port %q: %w", w, err)
			}
			if err := b.budget.Spend(4 * expand.EntrySize * len(parsed)); err != nil {
				return err
			}
			ports = append(ports, parsed...)
		}
	}
	if err := s.config.Expose(ports); err != nil {
		return err
	}
	s.config.Commit(fmt.Sprintf("EXPOSE %v", ports), nil)
	return nil
}

// parsePort reads "[[ip:]host:]port[-port][/protocol]" and returns each "port/protocol" of the container; the rest is only
// checked.
func parsePort(s string, at []moby.Range, lint *linter.Linter) ([]string, error) {
	container, host, ip := s, "", ""
	if i := strings.LastIndex(s, ":"); i >= 0 {
		host, container = s[:i], s[i+1:]
		if i := strings.LastIndex(host, ":"); i >= 0 {
			ip, host = host[:i], host[i+1:]
		}
	}
	numbers, protocol, _ := strings.Cut(container, "/")
	if numbers == "" {
		return nil, fmt.Errorf("no port specified")
	}
	switch strings.ToLower(protocol) {
	case "":
		protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("the protocol has to be tcp, udp or sctp")
	}
	if protocol != strings.ToLower(protocol) {
		lint.Run(&linter.RuleExposeProtoCasing, at, linter.RuleExposeProtoCasing.Format(s))
	}
	if ip != "" || host != "" {
		lint.Run(&linter.RuleExposeInvalidFormat, at, linter.RuleExposeInvalidFormat.Format(s))
	}
	if ip != "" && net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")) == nil {
		return nil, fmt.Errorf("%q is no IP address", ip)
	}
	first, last, err := parseRange(numbers)
	if err != nil {
		return nil, err
	}
	if host != "" {
		hostFirst, hostLast, err := parseRange(host)
		if err != nil {
			return nil, fmt.Errorf("host port: %w", err)
		}
		if first != last && last-first != hostLast-hostFirst {
			return nil, fmt.Errorf("the ranges %s and %s are not of one length", host, numbers)
		}
	}
	var out []string
	for p := first; p <= last; p++ {
		out = append(out, strconv.Itoa(p)+"/"+strings.ToLower(protocol))
	}
	return out, nil
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
			return 0, 0, fmt.Errorf("a port is a number from 0 to 65535")
		}
		if i == 0 {
			first = n
		}
		last = n
	}
	if last < first {
		return 0, 0, fmt.Errorf("the range ends below its begin")
	}
	return first, last, nil
}
