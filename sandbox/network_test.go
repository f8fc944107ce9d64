package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	networks "github.com/kilnbuild/kiln/internal/network"
)

// joined gives a process a network of the pool.
func joined(t testing.TB, pool *networks.Pool) func(*Spec) {
	t.Helper()
	n, err := pool.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Release(false) })
	conf, err := n.ResolvConf()
	if err != nil {
		t.Fatal(err)
	}
	return func(s *Spec) {
		s.Network.Mode, s.Network.Namespace, s.Network.ResolvConf = NetworkJoin, n.Namespace(), conf
	}
}

func newPool(t testing.TB) *networks.Pool {
	pool := &networks.Pool{}
	t.Cleanup(func() { pool.Close(context.Background()) })
	return pool
}

// answering listens on the host and answers every connection with a word.
func answering(t testing.TB, addr string) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "reached\n")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr)
}

// hostAddress is an address of the host on its network.
func hostAddress(t testing.TB) string {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr().String()
		}
	}
	t.Fatal("this test needs a network interface with an IPv4 address")
	return ""
}

func TestNetwork(t *testing.T) {
	im := newImage(t)
	pool := newPool(t)
	im.expect(t, "ls /sys/class/net; ip route | head -n 1; cat /etc/resolv.conf | head -n 1",
		"eth0\nlo\ndefault via 10.0.2.2 dev eth0 \nnameserver 10.0.2.3\n", joined(t, pool))
	host := hostAddress(t)
	open := answering(t, host+":0").Port
	im.expect(t, fmt.Sprintf("nc %s %d < /dev/null; nc %s %d < /dev/null", host, open, networks.Gateway, open), "reached\nreached\n", joined(t, pool))

	// Nothing that listens on the host's loopback interface alone is there by any address.
	for listen, addresses := range map[string][]string{
		"127.0.0.1:0": {"127.0.0.1", "0.0.0.0", "localhost", "::ffff:127.0.0.1", networks.Gateway, host},
		"[::1]:0":     {"::1", "::", "localhost", networks.Gateway},
	} {
		closed := answering(t, listen).Port
		for _, a := range addresses {
			out, _, err := im.sh(t, fmt.Sprintf("nc %s %d < /dev/null || echo refused", a, closed), joined(t, pool))
			if err != nil || strings.Contains(out, "reached") || !strings.Contains(out, "refused") {
				t.Errorf("%s by %s: %v\n%s", listen, a, err, out)
			}
		}
	}
	// Its own is.
	// The client says nothing and does not end either, at which the server would not wait until it has sent everything.
	im.expect(t, "mkfifo /tmp/f; exec 3<> /tmp/f; echo own | nc -l -p 80 > /dev/null & until nc 127.0.0.1 80 2> /dev/null <&3; do :; done", "own\n", joined(t, pool))
	im.expect(t, "ping -c 1 ::1 | grep -c '1 packets received'", "1\n", joined(t, pool))
}

// TestNetworkAgain runs steps that do nothing with their network until one has that of the step before.
func TestNetworkAgain(t *testing.T) {
	im := newImage(t)
	pool := newPool(t)
	last := ""
	waitFor(t, "the same network again", func() bool {
		n, err := pool.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer n.Release(false)
		own := im.lines(t, "readlink /proc/self/ns/net", func(s *Spec) { s.Network.Mode, s.Network.Namespace = NetworkJoin, n.Namespace() })[0]
		again := own == last
		last = own
		return again
	})
}

// TestAbstractSockets listens on a name without a file, in the host's namespace.
func TestAbstractSockets(t *testing.T) {
	l, err := net.Listen("unix", "@kiln-test-abstract")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	im := newImage(t)
	im.expect(t, "grep -c kiln-test-abstract /proc/net/unix", "0\n", joined(t, newPool(t)))
	im.expect(t, "grep -c kiln-test-abstract /proc/net/unix", "1\n", network(NetworkHost))
}

// TestNetworkCancelled ends processes that are in the middle of a transfer.
func TestNetworkCancelled(t *testing.T) {
	l, err := net.Listen("tcp", hostAddress(t)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.CopyN(c, zeros{}, 1<<20)
				received <- struct{}{}
				_, _ = io.Copy(c, zeros{})
				c.Close()
			}()
		}
	}()
	im := newImage(t)
	cut := func() {
		pool := &networks.Pool{}
		n, err := pool.Get()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-received
			cancel()
		}()
		addr := l.Addr().(*net.TCPAddr)
		root := im.mount(t)
		_, err = Run(ctx, Spec{Root: root, Process: Process{Args: []string{"sh", "-c", fmt.Sprintf("nc %s %d > /dev/null", addr.IP, addr.Port)},
			Env: []string{defaultPath}}, Network: Network{Mode: NetworkJoin, Namespace: n.Namespace()}})
		root.Close()
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		n.Release(false)
		pool.Close(t.Context())
	}
	files := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	cut()
	var goroutines, descriptors int
	waitFor(t, "rest", func() bool { // the host's ends of the connections end a little later
		again := goroutines == runtime.NumGoroutine() && descriptors == files()
		goroutines, descriptors = runtime.NumGoroutine(), files()
		time.Sleep(50 * time.Millisecond)
		return again
	})
	for range 3 {
		cut()
	}
	waitFor(t, "end of goroutines and descriptors", func() bool { return runtime.NumGoroutine() <= goroutines && files() <= descriptors })
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
