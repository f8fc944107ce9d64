package network

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// inside calls f on a thread that is in the network name space of n. Sockets that f opens stay there.
func inside(t testing.TB, n *Network, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(n.Namespace().Fd()), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// dialInside connects from the name space.
func dialInside(t testing.TB, n *Network, network, addr string) (c net.Conn, err error) {
	t.Helper()
	inside(t, n, func() { c, err = net.Dial(network, addr) })
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func newNetwork(t testing.TB) *Network {
	t.Helper()
	pool := &Pool{}
	n, err := pool.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Release(true)
		pool.Close()
	})
	return n
}

// listen listens at the host's own address on its network.
func listen(t testing.TB) net.Listener {
	t.Helper()
	addr, err := hostAddress(gateway4)
	if err != nil {
		t.Fatal("this test needs a network interface with an IPv4 address: ", err)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func BenchmarkDownload(b *testing.B) {
	l := listen(b)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1<<20)
			go func() {
				defer c.Close()
				for {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	n := newNetwork(b)
	c, err := dialInside(b, n, "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
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
	l := listen(b)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1<<20)
			go func() {
				defer c.Close()
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	n := newNetwork(b)
	c, err := dialInside(b, n, "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}
