package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"

	"github.com/kilnbuild/kiln/internal/thread"
)

// inside calls f on a thread that is in the network namespace of n. Sockets that f opens stay there.
func inside(t testing.TB, n *Network, f func()) {
	t.Helper()
	var err error
	thread.Do(func() {
		if err = unix.Setns(int(n.Namespace().Fd()), unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects from the namespace.
func dial(t testing.TB, n *Network, network, addr string) (c net.Conn, err error) {
	t.Helper()
	inside(t, n, func() { c, err = net.DialTimeout(network, addr, hang) })
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func mustDial(t testing.TB, n *Network, network, addr string) net.Conn {
	t.Helper()
	c, err := dial(t, n, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	return c
}

func newNetwork(t testing.TB) *Network {
	t.Helper()
	pool := &Pool{}
	n := get(t, pool)
	t.Cleanup(func() {
		n.Release(true)
		pool.Close(context.Background())
	})
	return n
}

func get(t testing.TB, pool *Pool) *Network {
	t.Helper()
	n, err := pool.Get()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// address is the host's own on its network.
func address(t testing.TB, like netip.Addr) netip.Addr {
	t.Helper()
	addr, err := hostAddress(like)
	if err != nil {
		t.Fatalf("this test needs a network interface with an address like %s: %v", like, err)
	}
	return addr
}

// serve listens on the host and calls f for each connection.
func serve(t testing.TB, addr netip.Addr, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(hang))
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// bothWays runs a test with a tun device and with a veth pair.
func bothWays(t *testing.T, f func(t *testing.T)) {
	for _, way := range []string{"tun", "veth"} {
		t.Run(way, func(t *testing.T) {
			if old := tunPath; way == "veth" {
				tunPath = filepath.Join(t.TempDir(), "none")
				defer func() { tunPath = old }()
			}
			if got, err := Probe(); err != nil || got != way {
				t.Fatalf("a network is made by %q, %v", got, err)
			}
			f(t)
		})
	}
}

// TestTransfer sends much in both directions at once, each half ended by itself.
func TestTransfer(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		data := make([]byte, 32<<20)
		_, _ = rand.Read(data)
		want := sha256.Sum256(data)
		addr := serve(t, address(t, gateway4), func(c *net.TCPConn) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("the host received something else, %v", err)
			}
			<-done
		})
		n := newNetwork(t)
		for _, to := range []string{addr.String(), fmt.Sprint(Gateway, ":", addr.Port())} {
			c := mustDial(t, n, "tcp", to).(*net.TCPConn)
			sent := make(chan error, 1)
			go func() {
				_, err := c.Write(data)
				sent <- errors.Join(err, c.CloseWrite())
			}()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("%s: the process received something else, %v", to, err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestHalfClose ends one half and goes on with the other, from each side.
func TestHalfClose(t *testing.T) {
	n := newNetwork(t)
	// The answer comes when the question has ended.
	addr := serve(t, address(t, gateway4), func(c *net.TCPConn) {
		question, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		_, _ = c.Write(bytes.ToUpper(question))
	})
	c := mustDial(t, n, "tcp", addr.String()).(*net.TCPConn)
	if _, err := c.Write([]byte("question")); err != nil || c.CloseWrite() != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); err != nil || string(answer) != "QUESTION" {
		t.Errorf("%q, %v", answer, err)
	}
	// The host ends its half first.
	got := make(chan string, 1)
	addr = serve(t, address(t, gateway4), func(c *net.TCPConn) {
		_ = c.CloseWrite()
		text, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		got <- string(text)
	})
	c = mustDial(t, n, "tcp", addr.String()).(*net.TCPConn)
	if text, err := io.ReadAll(c); err != nil || len(text) != 0 {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := c.Write([]byte("late")); err != nil {
		t.Error(err)
	}
	c.Close()
	if text := <-got; text != "late" {
		t.Errorf("%q", text)
	}
}

func TestResets(t *testing.T) {
	n := newNetwork(t)
	addr := serve(t, address(t, gateway4), func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	c := mustDial(t, n, "tcp", addr.String())
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the host reset the connection: %v", err)
	}
	seen := make(chan error, 1)
	addr = serve(t, address(t, gateway4), func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		seen <- err
	})
	// Often the reset comes before this side has noticed that there is a connection.
	for range 200 {
		tc := mustDial(t, n, "tcp", addr.String()).(*net.TCPConn)
		_, _ = tc.Write([]byte("x"))
		_ = tc.SetLinger(0)
		tc.Close()
		if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("the process reset the connection: %v", err)
		}
	}
}

func TestShortConnections(t *testing.T) {
	addr := serve(t, address(t, gateway4), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	n := newNetwork(t)
	inside(t, n, func() {
		for i := range 1000 {
			c, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Error(i, err)
				return
			}
			_ = c.SetDeadline(time.Now().Add(hang))
			text := fmt.Sprint("connection ", i)
			buf := make([]byte, len(text))
			_, err = c.Write([]byte(text))
			if _, readErr := io.ReadFull(c, buf); err != nil || readErr != nil || string(buf) != text {
				t.Errorf("%d: %q, %v, %v", i, buf, err, readErr)
			}
			c.Close()
		}
	})
}

func TestUDP(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		host, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address(t, gateway4), 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		go func() {
			buf := make([]byte, mtu)
			for {
				n, from, err := host.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = host.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		n := newNetwork(t)
		c := mustDial(t, n, "udp", host.LocalAddr().String())
		for _, size := range []int{0, 1, 1500, 9000, 65507} {
			text := bytes.Repeat([]byte{byte(size), 7}, size)[:size]
			buf := make([]byte, mtu)
			if _, err := c.Write(text); err != nil {
				t.Fatal(size, err)
			}
			if k, err := c.Read(buf); err != nil || !bytes.Equal(buf[:k], text) {
				t.Errorf("datagram of %d bytes: %d bytes, %v", size, k, err)
			}
		}
		// Nobody listens.
		port := host.LocalAddr().(*net.UDPAddr).AddrPort()
		host.Close()
		c = mustDial(t, n, "udp", port.String())
		for err = nil; err == nil; { // the first write goes well, the answer comes after that
			if _, err = c.Write([]byte("x")); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Error(err)
		}
	})
}

func TestEcho(t *testing.T) {
	n := newNetwork(t)
	for _, to := range []netip.Addr{gateway4, address(t, gateway4)} {
		var got []byte
		var err error
		inside(t, n, func() { got, err = ping(to, []byte("payload")) })
		if err != nil || string(got) != "payload" {
			t.Errorf("%s answers %q, %v", to, got, err)
		}
	}
}

// ping sends an echo request and returns what the answer to it holds.
func ping(to netip.Addr, payload []byte) ([]byte, error) {
	s, _, err := dialEchoRaw(to)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(hang))
	message := append([]byte{8, 0, 0, 0, 0, 0, 0, 1}, payload...)
	setIdent(message, 4711)
	if _, err := s.Write(message); err != nil {
		return nil, err
	}
	buf := make([]byte, 1500)
	for {
		k, err := s.Read(buf)
		if err != nil {
			return nil, err
		}
		fl := &flow{flowKey: flowKey{proto: unix.IPPROTO_ICMP, from: netip.AddrPortFrom(to, 4711)}, raw: true, ident: 4711}
		if m := fl.reply(buf[:k]); m != nil && binary.BigEndian.Uint16(m[6:]) == 1 {
			return m[8:], nil
		}
	}
}

func dialEchoRaw(to netip.Addr) (*os.File, bool, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, false, err
	}
	return os.NewFile(uintptr(s), "icmp"), true, unix.Connect(s, &unix.SockaddrInet4{Addr: to.As4()})
}

func TestIPv6(t *testing.T) {
	if !hasIPv6() {
		t.Skip("the host has no default route of IPv6")
	}
	addr := serve(t, address(t, gateway6), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	n := newNetwork(t)
	c := mustDial(t, n, "tcp", addr.String())
	_, _ = c.Write([]byte("x"))
	if k, err := c.Read(make([]byte, 9)); k != 1 {
		t.Error(err)
	}
	if _, err := dial(t, n, "tcp", netip.AddrPortFrom(addr.Addr(), 1).String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestNameServers has a name server on the host's loopback interface, as systemd-resolved is.
func TestNameServers(t *testing.T) {
	serveDNS := func(addr, answer string) {
		u, err := net.ListenPacket("udp", addr+":53")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", addr+":53")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close(); l.Close() })
		go func() {
			for {
				_, from, err := u.ReadFrom(make([]byte, 512))
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(answer), from)
			}
		}()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(answer))
				c.Close()
			}
		}()
	}
	serveDNS("127.77.0.53", "one")
	serveDNS("127.77.0.54", "two")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	defer func(old string) { resolvConfPath = old }(resolvConfPath)
	resolvConfPath = conf
	write := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := newNetwork(t)
	ask := func(network, addr string) string {
		c := mustDial(t, n, network, addr+":53")
		_, _ = c.Write([]byte("question"))
		buf := make([]byte, 512)
		k, err := c.Read(buf)
		if err != nil {
			t.Error(err)
		}
		return string(buf[:k])
	}
	write("# servers\nnameserver 127.77.0.53\nnameserver 127.77.0.54\nsearch example.org\noptions ndots:2 timeout:1\n")
	text, err := n.ResolvConf()
	if want := "nameserver 10.0.2.3\nnameserver 10.0.2.4\n# servers\nsearch example.org\noptions ndots:2 timeout:1\n"; err != nil || text != want {
		t.Errorf("%s%v", text, err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for addr, want := range map[string]string{"10.0.2.3": "one", "10.0.2.4": "two", "10.0.2.5": "two"} {
			if got := ask(network, addr); got != want {
				t.Errorf("%s by %s: %q", addr, network, got)
			}
		}
	}
	write("nameserver 127.77.0.54\n")
	if got := ask("udp", "10.0.2.3"); got != "two" {
		t.Errorf("after a change of the file: %q", got)
	}
	if _, err := dial(t, n, "tcp", "10.0.2.3:54"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Error(err)
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if text, err := n.ResolvConf(); err != nil || text != "nameserver 10.0.2.3\n" {
		t.Errorf("%s%v", text, err)
	}
}

func TestTargets(t *testing.T) {
	none := func(netip.Addr) bool { return false }
	for _, addr := range []string{"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
		"::ffff:0.0.0.0", "::ffff:0:127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fe80::1",
		"64:ff9b::127.0.0.1", "64:ff9b::0.0.0.0"} {
		if to, err := target(netip.AddrPortFrom(netip.MustParseAddr(addr), 80), none); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s leads to %s, %v", addr, to, err)
		}
	}
	for _, addr := range []string{"192.0.2.1", "10.0.2.15", "169.254.169.254", "2001:db8::1", "fd00::1", "64:ff9b::192.0.2.1"} {
		a := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
		if to, err := target(a, none); err != nil || to != a {
			t.Errorf("%s leads to %s, %v", addr, to, err)
		}
	}
	if to, err := target(netip.AddrPortFrom(gateway4, 80), none); err != nil || !reachable(to.Addr()) || to.Port() != 80 {
		t.Errorf("the gateway leads to %s, %v", to, err)
	}
}

// TestLoopbackAddresses has the addresses of the loopback interface refused that the host has besides 127.0.0.1 and ::1, but for
// the one that is all that a host has.
func TestLoopbackAddresses(t *testing.T) {
	n := newNetwork(t)
	check := func(what string, refused, allowed []string) {
		hidden := loopbackAddresses()
		for _, addr := range refused {
			if to, err := target(netip.AddrPortFrom(netip.MustParseAddr(addr), 80), hidden); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%s: %s leads to %s, %v", what, addr, to, err)
			}
		}
		for _, addr := range allowed {
			a := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
			if to, err := target(a, hidden); err != nil || to != a {
				t.Errorf("%s: %s leads to %s, %v", what, addr, to, err)
			}
		}
	}
	gateway := func(want string) {
		if to, err := target(netip.AddrPortFrom(gateway4, 80), loopbackAddresses()); err != nil || to.Addr().String() != want {
			t.Errorf("the gateway leads to %s, %v, want %s", to, err, want)
		}
	}
	add := func(s *netlink, prefixes ...string) error {
		for _, text := range prefixes {
			p := netip.MustParsePrefix(text)
			family := uint8(unix.AF_INET)
			if p.Addr().Is6() {
				family = unix.AF_INET6
			}
			a := unix.IfAddrmsg{Family: family, Prefixlen: uint8(p.Bits()), Flags: unix.IFA_F_NODAD, Index: loIndex}
			local, addr := attribute(unix.IFA_LOCAL, p.Addr().AsSlice()), attribute(unix.IFA_ADDRESS, p.Addr().AsSlice())
			if err := s.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, raw(a), local, addr); err != nil {
				return fmt.Errorf("add %s: %w", p, err)
			}
		}
		return nil
	}
	inside(t, n, func() {
		s, err := newNetlink()
		if err != nil {
			t.Error(err)
			return
		}
		defer s.close()
		// The last one is also an address of the other interface.
		if err := add(s, "198.51.100.1/24", "203.0.113.7/32", "3fff::7/64", "10.0.2.100/32"); err != nil {
			t.Error(err)
		}
		check("some", []string{"198.51.100.1", "198.51.100.200", "203.0.113.7", "::ffff:203.0.113.7", "64:ff9b::203.0.113.7"},
			[]string{"198.51.101.1", "203.0.113.8", "3fff::8", "10.0.2.100"})
		if hasIPv6() { // else this is the only such address
			check("IPv6", []string{"3fff::7"}, nil)
		}
		gateway("10.0.2.100")
	})
	err := inNewNamespace(nil, func() error {
		s, err := newNetlink()
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.link(loIndex, unix.IFF_UP, unix.IFF_UP); err != nil {
			return err
		}
		if err := add(s, "198.51.100.1/24", "203.0.113.7/32"); err != nil {
			return err
		}
		check("nothing else", []string{"198.51.100.2", "203.0.113.7"}, []string{"198.51.100.1"})
		gateway("198.51.100.1")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestQuiet has the logger that the stack's packages keep write nothing.
func TestQuiet(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	kept := log.Log()
	kept.Emitter = &log.Writer{Next: w}
	silence()
	kept.Infof("text")
	w.Close()
	if text, err := io.ReadAll(r); err != nil || len(text) != 0 {
		t.Errorf("%q, %v", text, err)
	}
}

// TestSameRequests sends one request for a connection again and again, as a process with a raw socket does, while each is refused.
func TestSameRequests(t *testing.T) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(address(t, gateway4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	n := newNetwork(t)
	r := newRelay(n.namespace, &n.pool.sockets)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100_000 {
				r.packet(syn(netip.AddrPortFrom(address4.Addr(), 12345), closed))
			}
		})
	}
	all.Wait()
	r.close()
	waitFor(t, "end of all sockets", func() bool { return n.pool.sockets.used.Load() == 0 })
	if len(r.tcp.pending) != 0 {
		t.Errorf("%d requests are pending", len(r.tcp.pending))
	}
}

// TestCloseEnds closes pools while a call of what the relay runs never returns.
func TestCloseEnds(t *testing.T) {
	usual, usualLingering := ending, lingering
	ending, lingering = 100*time.Millisecond, 100*time.Millisecond
	defer func() { ending, lingering = usual, usualLingering }()
	silent := serve(t, address(t, gateway4), func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	for name, count := range map[string]func(r *relay) *sync.WaitGroup{
		"connections": func(r *relay) *sync.WaitGroup { return &r.tcp.all },
		"senders":     func(r *relay) *sync.WaitGroup { return &r.tcp.sending },
		"flows":       func(r *relay) *sync.WaitGroup { return &r.flows.all },
	} {
		pool := &Pool{}
		n := get(t, pool)
		mustDial(t, n, "tcp", silent.String())
		stuck := count(n.relay)
		stuck.Add(1)
		t.Cleanup(stuck.Done)
		n.Release(true)
		closed := make(chan struct{})
		go func() {
			pool.Close(context.Background())
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(hang):
			t.Fatalf("%s: the pool is not closed", name)
		}
	}
}

// TestCloseStops ends the context while a connection still has something to pass on.
func TestCloseStops(t *testing.T) {
	usual := lingering
	lingering = 2 * hang
	defer func() { lingering = usual }()
	deaf := make(chan struct{})
	silent := serve(t, address(t, gateway4), func(c *net.TCPConn) { <-deaf })
	defer close(deaf)
	pool := &Pool{}
	n := get(t, pool)
	c := mustDial(t, n, "tcp", silent.String())
	defer c.Close()
	n.Release(true)
	ctx, cancel := context.WithCancel(context.Background())
	closed := make(chan struct{})
	go func() {
		pool.Close(ctx)
		close(closed)
	}()
	cancel()
	select {
	case <-closed:
	case <-time.After(hang):
		t.Fatal("the pool is not closed")
	}
}

// TestLoopbackByHand gives the relay packets for the host's loopback interface, which the kernel of the namespace would not
// send.
func TestLoopbackByHand(t *testing.T) {
	reached := make(chan struct{}, 1)
	// What leads to the host's own address does reach it by such a packet.
	own := serve(t, address(t, gateway4), func(*net.TCPConn) { reached <- struct{}{} })
	n := newNetwork(t)
	r := newRelay(n.namespace, &n.pool.sockets)
	r.packet(syn(netip.AddrPortFrom(address4.Addr(), 1000), own))
	<-reached
	r.close()
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr := serve(t, netip.MustParseAddr(host), func(*net.TCPConn) { reached <- struct{}{} })
		n := newNetwork(t)
		r := newRelay(n.namespace, &n.pool.sockets)
		r.packet(syn(netip.AddrPortFrom(address4.Addr(), 1000), addr))
		r.packet(syn(netip.AddrPortFrom(address6.Addr(), 1000), addr))
		// What has no answer is not waited for: closing waits for all that has begun.
		r.close()
	}
	select {
	case <-reached:
		t.Error("the host's loopback interface was reached")
	default:
	}
}

// syn is a packet that asks for a connection.
func syn(from, to netip.AddrPort) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1)
	tcp[12], tcp[13], tcp[14] = 5<<4, 2, 0xff
	if to.Addr().Is4() {
		ip := make([]byte, 20, 40)
		ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, unix.IPPROTO_TCP
		if from.Addr().Is4() {
			copy(ip[12:], from.Addr().AsSlice())
		}
		copy(ip[16:], to.Addr().AsSlice())
		var s uint32
		for i := 0; i < 20; i += 2 {
			s += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(s))
		return append(ip, tcp...)
	}
	ip := make([]byte, 40, 60)
	ip[0], ip[5], ip[6], ip[7] = 0x60, 20, unix.IPPROTO_TCP, 64
	from16, to16 := from.Addr().As16(), to.Addr().As16()
	copy(ip[8:], from16[:])
	copy(ip[24:], to16[:])
	return append(ip, tcp...)
}

func inode(t testing.TB, n *Network) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(n.Namespace().Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestReuse holds that a namespace is given out again only if nothing was done in it.
func TestReuse(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		host := address(t, gateway4)
		for name, c := range map[string]struct {
			use        func(n *Network)
			privileged bool
			again      bool
		}{
			"nothing":      {use: func(*Network) {}, again: true},
			"a socket":     {use: func(n *Network) { inside(t, n, func() { l, _ := net.Listen("tcp", "127.0.0.1:7"); l.Close() }) }, again: true},
			"privileges":   {use: func(*Network) {}, privileged: true},
			"a packet":     {use: func(n *Network) { c, _ := dial(t, n, "udp", host.String()+":9"); _, _ = c.Write(nil) }},
			"its loopback": {use: func(n *Network) { inside(t, n, func() { _, _ = net.Dial("tcp", "127.0.0.1:9") }) }},
			"a lost descriptor": {use: func(n *Network) {
				inside(t, n, func() { l, _ := net.Listen("tcp", "127.0.0.1:7"); t.Cleanup(func() { l.Close() }) })
			}},
		} {
			pool := &Pool{}
			n := get(t, pool)
			c.use(n)
			if c.again { // the kernel takes its time to forget a socket that was closed
				waitFor(t, "end of sockets", n.pristine)
			}
			first := inode(t, n)
			// While it is held its number is not that of a new one.
			held, err := unix.Dup(int(n.Namespace().Fd()))
			if err != nil {
				t.Fatal(err)
			}
			n.Release(c.privileged)
			n = get(t, pool)
			if again := inode(t, n) == first; again != c.again {
				t.Errorf("after %s: given out again: %v", name, again)
			}
			unix.Close(held)
			other := get(t, pool)
			if inode(t, other) == inode(t, n) {
				t.Errorf("after %s: given to two", name)
			}
			n.Release(false)
			other.Release(false)
			pool.Close(context.Background())
		}
	})
}

// TestApart holds that one namespace does not see what listens in another.
func TestApart(t *testing.T) {
	one, two := newNetwork(t), newNetwork(t)
	inside(t, one, func() {
		l, err := net.Listen("tcp", "0.0.0.0:7777")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
	})
	if _, err := dial(t, one, "tcp", address4.Addr().String()+":7777"); err != nil {
		t.Error(err)
	}
	for _, a := range []string{address4.Addr().String(), "127.0.0.1", "[::1]"} {
		if _, err := dial(t, two, "tcp", a+":7777"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// TestLastWords holds that what a process sent just before it ended arrives.
func TestLastWords(t *testing.T) {
	usual := lingering
	lingering = hang
	defer func() { lingering = usual }()
	bothWays(t, func(t *testing.T) {
		const size = 4 << 20
		var mu sync.Mutex
		var got []int64
		addr := serve(t, address(t, gateway4), func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			mu.Lock()
			got = append(got, n)
			mu.Unlock()
		})
		u, err := net.ListenPacket("udp", netip.AddrPortFrom(addr.Addr(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for range 5 {
			pool := &Pool{}
			n := get(t, pool)
			c, err := dial(t, n, "tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			d, err := dial(t, n, "udp", u.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Write(make([]byte, size))
			_, udpErr := d.Write([]byte("x"))
			if err := errors.Join(err, udpErr, c.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
			n.Release(false)
			pool.Close(context.Background())
			_ = u.SetDeadline(time.Now().Add(hang))
			if _, _, err := u.ReadFrom(make([]byte, 1)); err != nil {
				t.Error(err)
			}
		}
		waitFor(t, "connections", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) == 5
		})
		for _, n := range got {
			if n != size {
				t.Errorf("%d of %d bytes arrived", n, size)
			}
		}
	})
}

// hang is far longer than anything takes that a test waits for, on a machine with much else to do.
const hang = 5 * time.Minute

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("it does not come: %s", what)
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestNothingLeft ends namespaces in the middle of everything.
func TestNothingLeft(t *testing.T) {
	endless := serve(t, address(t, gateway4), func(c *net.TCPConn) {
		for {
			if _, err := c.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	silent := serve(t, address(t, gateway4), func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	use := func() {
		pool := &Pool{}
		n := get(t, pool)
		var open []net.Conn
		for i := range 20 {
			to := []netip.AddrPort{endless, silent}[i%2]
			c, err := dial(t, n, "tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			d, err := dial(t, n, "udp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = d.Write([]byte("x"))
			if to == endless {
				_, _ = io.ReadFull(c, make([]byte, 1<<17))
			}
			open = append(open, c, d)
		}
		// Handshakes that nobody ends: the kernel knows nothing of this address.
		for port := range uint16(20) {
			n.inject(t, syn(netip.AddrPortFrom(netip.MustParseAddr("10.0.2.77"), port+1), silent))
		}
		for _, c := range open {
			c.Close()
		}
		n.Release(false)
		pool.Close(context.Background())
	}
	use()
	runtime.GC()
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	for range 3 {
		use()
	}
	waitFor(t, "end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	waitFor(t, "end of all descriptors", func() bool { return descriptors(t) <= files })
}

// inject sends a packet from the namespace by a packet socket.
func (n *Network) inject(t testing.TB, packets ...[]byte) {
	t.Helper()
	inside(t, n, func() {
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(s)
		for _, p := range packets {
			proto := uint16(unix.ETH_P_IP)
			if len(p) > 0 && p[0]>>4 == 6 {
				proto = unix.ETH_P_IPV6
			}
			_ = unix.Sendto(s, p, 0, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: deviceIndex})
		}
	})
}

// TestHostile floods kiln's end with what no kernel sends, and then uses the network.
func TestHostile(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		addr := serve(t, address(t, gateway4), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		n := newNetwork(t)
		var packets [][]byte
		from := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(i)|1)
		}
		for i := range 4000 { // more than there may be
			packets = append(packets, syn(from(i), addr), datagram(from(i), addr))
		}
		for i := range 4000 { // packets that are cut off, longer than they say, or changed
			p := append(syn(from(i), addr), make([]byte, i%64)...)
			for range i % 5 {
				p[(i*7919)%len(p)] = byte(i * 31)
			}
			packets = append(packets, p[:i%(len(p)+1)], []byte{byte(i)}, nil)
		}
		n.inject(t, packets...)
		waitFor(t, "the packets", func() bool { return n.pool.sockets.used.Load() > 0 })
		n.relay.tcp.mu.Lock()
		if k := len(n.relay.tcp.pending) + len(n.relay.tcp.open); k > maxConnections {
			t.Errorf("%d connections", k)
		}
		n.relay.tcp.mu.Unlock()
		n.relay.flows.mu.Lock()
		if k := len(n.relay.flows.open); k > maxFlows {
			t.Errorf("%d flows", k)
		}
		n.relay.flows.mu.Unlock()
		if used := n.pool.sockets.used.Load(); used > maxConnections+maxFlows {
			t.Errorf("%d sockets", used)
		}
		// Another network is not disturbed.
		other := newNetwork(t)
		c := mustDial(t, other, "tcp", addr.String())
		_, _ = c.Write([]byte("x"))
		if k, err := c.Read(make([]byte, 9)); k != 1 {
			t.Error(err)
		}
	})
}

// datagram is a packet with an empty UDP datagram.
func datagram(from, to netip.AddrPort) []byte {
	p := syn(from, to)[:28]
	p[3], p[9] = 28, unix.IPPROTO_UDP
	copy(p[24:], []byte{0, 8, 0, 0})
	var s uint32
	p[10], p[11] = 0, 0
	for i := 0; i < 20; i += 2 {
		s += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(s))
	return p
}

func TestUnavailable(t *testing.T) {
	err := error(&UnavailableError{unix.EPERM})
	if !strings.Contains(err.Error(), "--network=host --allow network.host") || !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}

func BenchmarkDownload(b *testing.B) {
	addr := serve(b, address(b, gateway4), func(c *net.TCPConn) {
		buf := make([]byte, 1<<20)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	c := mustDial(b, newNetwork(b), "tcp", addr.String())
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

func BenchmarkUpload(b *testing.B) {
	addr := serve(b, address(b, gateway4), func(c *net.TCPConn) {
		buf := make([]byte, 1<<20)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	c := mustDial(b, newNetwork(b), "tcp", addr.String())
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}
